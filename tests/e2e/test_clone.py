"""A voice of one's own on the real server, in the browser: real models, a recording of a person as the microphone.

Order and content are asserted, never times: the machine may be busy.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jiwer
import numpy as np
import pytest
from playwright.sync_api import Browser, Playwright, WebSocket, expect

from pipeline.audio import AudioChunk, file_bytes
from tests.e2e.test_conversation import PATIENCE_MS
from tests.support.browser import VoicePage, chromium, write_microphone
from tests.support.speech_clips import NOISE, SPEECH
from tests.support.words import plain

SENTENCE = "The small boat leaves the harbour early in the morning."
# Every sound that the tab plays, as it is handed to the loudspeaker.
NOTE_SOUNDS = """
const start = AudioBufferSourceNode.prototype.start;
window.sounds = [];
AudioBufferSourceNode.prototype.start = function (...when) {
  window.sounds.push(this.buffer);
  return start.apply(this, when);
};
"""
LAST_SOUND = """() => {
  const buffer = window.sounds.at(-1);
  const bytes = new Uint8Array(buffer.getChannelData(0).slice().buffer);
  let letters = "";
  for (let i = 0; i < bytes.length; i += 32768) letters += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return { rate: buffer.sampleRate, samples: btoa(letters) };
}"""

pytestmark = [pytest.mark.models, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def browser(playwright_sync: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser in front of which somebody gives a speech as soon as a page listens."""
    clip = SPEECH / "jfk.flac"
    microphone = write_microphone(tmp_path_factory.mktemp("mic") / "speech.wav", [(clip, 20.0)], lead_in_s=0.2)
    with chromium(playwright_sync, microphone=microphone) as browser:
        yield browser


def updates(page: VoicePage) -> list[dict[str, Any]]:
    """Each answer of the server to a change of the session, as they come."""
    seen: list[dict[str, Any]] = []

    def note(frame: str | bytes) -> None:
        if isinstance(frame, str) and json.loads(frame)["type"] in ("session.updated", "error"):
            seen.append(json.loads(frame))

    def watch(socket: WebSocket) -> None:
        socket.on("framereceived", note)

    page.page.on("websocket", watch)
    return seen


def last_sound(page: VoicePage) -> AudioChunk:
    """What the tab played last."""
    sound = page.page.evaluate(LAST_SOUND)
    samples = np.frombuffer(base64.b64decode(sound["samples"]), np.float32)
    return AudioChunk(samples.copy(), int(sound["rate"]))


def refuse_bad_recordings(page: VoicePage) -> None:
    """What is no sound, and what is no speech, is told with what helps."""
    file = page.page.locator("#file")
    check = page.button("Check this recording")
    file.set_input_files({"name": "voice.wav", "mimeType": "audio/wav", "buffer": b"This is only text. " * 40})
    check.click()
    expect(page.page.locator("#recording-problem")).to_contain_text("This is not an audio file; send WAV, MP3")
    page.button("Use another").click()
    file.set_input_files(NOISE / "ringing_phone.wav")
    check.click()
    expect(page.page.locator("#grade")).to_have_text("Not good enough.")
    expect(page.page.locator("#findings")).to_contain_text("Nobody speaks in this recording: check the microphone.")
    expect(page.page.locator("#step-consent")).to_be_hidden()
    page.button("Use another").click()


def record_and_agree(page: VoicePage) -> None:
    """A recording from the microphone, understood; without a consent nothing is made of it."""
    page.button("Record").click()
    expect(page.page.locator("#record-time")).to_contain_text("9 of 30 s")
    page.button("Stop").click()
    page.button("Check this recording").click()
    page.page.locator("#statement").wait_for()
    transcript = page.page.get_by_label("What is said in it").input_value()
    assert "what your country can do for you" in plain(transcript), transcript
    page.button("Show the phrase").click()
    expect(page.page.locator("#phrase-text")).to_have_text(re.compile(r"^“(\w+, ){7}\w+”$"))
    page.page.get_by_label("Name of the voice").fill("John")
    create = page.page.locator("#create")
    expect(create).to_be_disabled()
    expect(page.page.locator("#create-missing")).to_have_text("Still missing: your consent and your full name.")
    page.page.get_by_label("I have read this and agree").check()
    page.page.get_by_label("Your full name").fill("John Fitzgerald")
    create.click()
    expect(page.page.get_by_role("heading", name="“John” is ready")).to_be_visible()
    expect(page.page.locator("#made-text")).to_contain_text("It is a match, not a clone.")


def test_a_voice_is_recorded_agreed_to_heard_used_in_a_talk_and_deleted(server: str, browser: Browser) -> None:
    page = VoicePage(browser.new_context(), server)
    page.context.add_init_script(NOTE_SOUNDS)
    page.page.set_default_timeout(PATIENCE_MS)
    answers = updates(page)
    page.open()
    page.page.get_by_role("tab", name="My voices").click()
    expect(page.page.locator("#maker-text")).to_contain_text("This server cannot clone voices.")
    refuse_bad_recordings(page)
    assert [problem for problem in page.problems if "400" not in problem] == []
    record_and_agree(page)
    (own,) = (voice for voice in httpx.get(f"{server}/api/voices").json()["data"] if voice["kind"] != "stock")
    page.page.get_by_label("Sentence to hear").fill(SENTENCE)
    page.button("Listen to John").click()
    page.page.wait_for_function("window.sounds.length > 0")
    sound = {"file": ("sound.wav", file_bytes(last_sound(page), "wav"))}
    answer = httpx.post(f"{server}/v1/audio/transcriptions", files=sound, data={"model": "whisper-1"}, timeout=60)
    heard = answer.json()["text"]
    assert jiwer.wer(plain(SENTENCE), plain(heard)) <= 0.15, heard
    page.button("Use it in the conversation").click()
    page.page.get_by_role("tab", name="Talk").click()
    page.type("What is the capital of France?")
    expect(page.page.locator(".message.assistant .words")).to_contain_text("Paris")  # captions come with their sound
    page.wait_inside("voice.player.position.played > 0")
    assert [answer["type"] for answer in answers] == ["session.updated"] * len(answers), answers
    assert answers[-1]["session"]["audio"]["output"]["voice"] == own["id"]
    page.page.get_by_role("tab", name="My voices").click()
    page.button("Delete John").click()
    page.button("Delete").click()
    expect(page.page.locator("#own-voices li")).to_have_count(0)
    assert httpx.get(f"{server}/api/voices/{own['id']}").status_code == 404
    page.context.close()
