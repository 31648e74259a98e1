"""Chromium for the e2e tests: a speech file as its microphone, and the page's parts by name."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import soundfile
from playwright.sync_api import Browser, BrowserContext, CDPSession, ConsoleMessage, Locator, Page, Playwright

CHROMIUM = "/usr/bin/chromium"
# What Playwright turns off (the last word counts, so its own list has to stand here, too) and what costs a second of
# computing for each window: menus of the address bar that nobody sees, and a process for a page that does not come.
TURNED_OFF = (
    "AvoidUnnecessaryBeforeUnloadCheckSync",
    "DestroyProfileOnBrowserClose",
    "HttpsUpgrades",
    "HttpsFirstBalancedModeAutoEnable",
    "LensOverlay",
    "MediaRouter",
    "PaintHolding",
    "ThirdPartyStoragePartitioning",
    "AvoidCorsURLLoaderRestartOnRedirect",
    "OptimizationHints",
    "NetworkTimeServiceQuerying",
    "AimEnabled",
    "PreconnectToSearch",
    "WebUIOmniboxPopup",
    "WebUIOmniboxAimPopup",
    "WebUIOmniboxFullPopup",
    "SpareRendererForSitePerProcess",
)
ARGS = (
    f"--disable-features={','.join(TURNED_OFF)}",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
)
MIC_RATE = 48_000
# A device that says what a test gives it, when the test does: an answer takes as long as it takes, and a question that
# came out of a file would fall into it. It stands below getUserMedia; everything above is the page's own.
MICROPHONE = """
{
  const getUserMedia = async () => {
    const context = new AudioContext();
    const microphone = new MediaStreamAudioDestinationNode(context);
    new ConstantSourceNode(context, { offset: 0 }).connect(microphone);
    window.speak = async (base64) => {
      const file = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
      const voice = new AudioBufferSourceNode(context, { buffer: await context.decodeAudioData(file.buffer) });
      voice.connect(microphone);
      voice.start();
    };
    return microphone.stream;
  };
  if (navigator.mediaDevices) Object.assign(navigator.mediaDevices, { getUserMedia });  // an empty window has none
}
"""
WATCH_CAPTIONS = """
(voice) => {
  window.captions = [];
  new MutationObserver(() => {
    const words = [...voice.root.querySelectorAll(".message.assistant .words")].at(-1)?.textContent;
    if (words && words !== window.captions.at(-1)?.[0]) window.captions.push([words, voice.player.position.played]);
  }).observe(voice.$("chat"), { childList: true, subtree: true, characterData: true });
}
"""


@contextmanager
def chromium(playwright: Playwright, *, microphone: Path | None, args: Sequence[str] = ()) -> Iterator[Browser]:
    """A browser whose microphone plays this WAV once when a page opens it; None denies the microphone."""
    granted = () if microphone is None else ("--use-fake-ui-for-media-stream",)
    sound = () if microphone is None else (f"--use-file-for-fake-audio-capture={microphone}%noloop",)
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGS, *granted, *sound, *args])
    try:
        yield browser
    finally:
        browser.close()


def write_microphone(path: Path, clips: Sequence[tuple[Path, float]], *, lead_in_s: float = 1.0) -> Path:
    """A WAV for the fake microphone: silence, then each clip followed by its pause in seconds."""
    parts = [np.zeros(int(lead_in_s * MIC_RATE))]
    for clip, pause_s in clips:
        samples, rate = soundfile.read(clip, dtype="float32")
        at = np.arange(0, len(samples), rate / MIC_RATE)
        parts += [np.interp(at, np.arange(len(samples)), samples), np.zeros(int(pause_s * MIC_RATE))]
    soundfile.write(path, np.concatenate(parts), MIC_RATE, subtype="PCM_16")
    return path


class VoicePage:
    """One open page: what a person sees and presses, and what went wrong meanwhile."""

    def __init__(self, context: BrowserContext, url: str, *, microphone: bool = False) -> None:
        self.context = context
        self.url = url
        if microphone:
            context.add_init_script(MICROPHONE)
        self.page: Page = context.new_page()
        self.page.emulate_media(reduced_motion="reduce")  # without a graphics card the cores paint what moves
        self.page.set_default_timeout(20_000)
        self.problems: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _request(self, url: str) -> None:
        if url.startswith(("data:", "blob:")):
            return
        if urlsplit(url).netloc != urlsplit(self.url).netloc:
            self.elsewhere.append(url)

    def open(self) -> VoicePage:
        """Load the page and wait until the widget is there."""
        self.page.goto(self.url, wait_until="domcontentloaded")
        self.page.locator("[data-ready=true]").wait_for(state="attached")
        return self

    def leave(self) -> None:
        """Go where nothing runs: the document is gone, with its socket, sound and microphone."""
        self.page.goto("about:blank")

    def begin(self, url: str) -> None:
        """Make the window what a new one is, for the page at `url`: nothing open, nothing remembered, no complaint.

        Scripts and listeners that a test added stay, and so does the window's size.
        """
        self.leave()
        self.page.unroute_all()
        self.page.keyboard.up("Space")
        self.page.mouse.up()
        self.page.mouse.move(0, 0)
        self.context.clear_cookies()
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        self.tools.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
        self.url = url
        self.problems.clear()
        self.elsewhere.clear()

    @cached_property
    def tools(self) -> CDPSession:
        """What the browser lets its developers' tools do with the page."""
        return self.context.new_cdp_session(self.page)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def wait_for_state(self, *states: str) -> None:
        """Wait until the page shows one of these states (their keys, not their words)."""
        either = ",".join(f'#page[data-state="{state}"]' for state in states)
        self.page.locator(either).wait_for()

    @property
    def state_words(self) -> Locator:
        return self.page.locator("#state")

    def watch_captions(self) -> None:
        """Note each text of a reply from now on, with the samples that were heard when it came to stand there."""
        self.inside("(" + WATCH_CAPTIONS + ")(voice)")

    def captions(self) -> list[tuple[str, int]]:
        """(words, samples heard) of each text that a reply had since `watch_captions`."""
        return [(str(words), int(heard)) for words, heard in self.page.evaluate("() => window.captions")]

    def messages(self) -> list[tuple[str, str]]:
        """(who, words) of each message in the chat."""
        rows = self.page.locator(".message").all()
        return [(row.locator(".who").text_content() or "", row.locator(".words").text_content() or "") for row in rows]

    def type(self, text: str) -> None:
        self.page.get_by_role("textbox", name="Message").fill(text)
        self.page.keyboard.press("Enter")

    def speak(self, clip: Path) -> None:
        """Begin to say this sound file into the `microphone` of the page, which must be open."""
        self.page.evaluate("(file) => window.speak(file)", base64.b64encode(clip.read_bytes()).decode())

    def open_settings(self) -> None:
        if self.page.locator("#settings").get_attribute("open") is None:
            self.page.locator("#settings > summary").click()

    def inside(self, expression: str) -> Any:
        """The value of a JavaScript expression over `voice`, the page's own object."""
        script = f"() => {{ const voice = document.querySelector('.voicepod-host').voicepod; return {expression}; }}"
        return self.page.evaluate(script)

    def wait_inside(self, expression: str) -> None:
        """Wait until the expression over `voice` is true."""
        script = f"() => {{ const voice = document.querySelector('.voicepod-host').voicepod; return {expression}; }}"
        self.page.wait_for_function(script)

    def played(self) -> list[dict[str, Any]]:
        """What the loudspeaker was given: turn, first sample, number of samples and time of each piece, in order."""
        pieces = "voice.recording.tracks.assistant.map(({turn, first, at, pcm}) => ({turn, first, at, n: pcm.length}))"
        played: list[dict[str, Any]] = json.loads(self.inside(f"JSON.stringify({pieces})"))
        return played

    def download(self, kind: str) -> bytes:
        """The file that one of the download buttons gives."""
        self.page.locator("#downloads > summary").click()
        with self.page.expect_download() as info:
            self.page.locator(f"[data-download={kind}]").click()
        return Path(info.value.path()).read_bytes()
