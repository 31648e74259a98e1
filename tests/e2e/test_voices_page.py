"""The tab "My voices" in Chromium against a scripted server: what people press and read, and what is sent."""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path

import pytest
import soundfile
from playwright.sync_api import Browser, Locator, ViewportSize, expect

from tests.e2e.test_page import wait_until
from tests.support.browser import VoicePage
from tests.support.scripted_server import Running
from tests.support.scripted_voices import wav
from tests.support.speech_clips import SPEECH
from tests.support.widget_page import PATH as WIDGET

NOISY = {"code": "noisy", "severity": "error", "message": "the noise is too loud: record in a quiet room"}
# What the page asks of the microphone.
NOTE_WISHES = """
window.wishes = [];
const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = (wish) => {
  window.wishes.push(wish);
  return open(wish);
};
"""


def open_voices(page: VoicePage) -> VoicePage:
    page.page.get_by_role("tab", name="My voices").click()
    return page


@pytest.fixture
def refused(window: VoicePage, scripted: Running) -> VoicePage:
    """The tab in a browser that may complain: it notes each refusal of the server."""
    window.begin(scripted.url + WIDGET)
    return window.open()


def choose(page: VoicePage, path: Path | str) -> None:
    page.page.locator("#drop").wait_for()
    page.page.locator("#file").set_input_files(path)
    expect(page.page.locator("#clip")).to_be_visible()


def check(page: VoicePage) -> None:
    page.button("Check this recording").click()


def problem(page: VoicePage) -> Locator:
    return page.page.get_by_role("alert").filter(visible=True)


def consent_and_name(page: VoicePage, name: str) -> None:
    page.page.get_by_label("I have read this and agree").check()
    page.page.get_by_label("Your full name").fill("Anna Muster")
    page.page.get_by_label("Name of the voice").fill(name)


def make_voice(page: VoicePage, name: str) -> None:
    choose(page, SPEECH / "jfk.flac")
    check(page)
    consent_and_name(page, name)
    page.page.locator("#create").click()
    expect(page.page.get_by_role("heading", name=f"“{name}” is ready")).to_be_focused()


def test_a_file_becomes_a_voice_that_is_used_in_the_talk_at_once(widget: VoicePage, scripted: Running) -> None:
    voices = scripted.server.voices
    widget.button("Start").click()
    widget.wait_for_state("listening")
    open_voices(widget)
    expect(widget.page.get_by_text("a match, not a clone")).to_be_visible()
    before = scripted.server.talk.n_mic_samples
    wait_until(widget, lambda: scripted.server.talk.n_mic_samples > before + 16_000)  # the talk goes on
    widget.button("Record").click()
    widget.wait_for_state("muted")  # and does not hear what is read aloud here
    widget.button("Discard").click()
    widget.wait_for_state("listening")
    choose(widget, SPEECH / "jfk.flac")
    end = widget.page.get_by_role("slider", name="End of the selection")
    expect(end).to_have_attribute("aria-valuetext", "11.0 s")
    end.press("PageDown")
    end.press("ArrowLeft")
    expect(end).to_have_attribute("aria-valuenow", "9.9")
    check(widget)
    expect(widget.page.locator("#grade")).to_be_focused()
    assert voices.uploads[0]["end_s"] == "9.900"
    assert voices.uploads[0]["bytes"] == (SPEECH / "jfk.flac").read_bytes()
    create = widget.page.locator("#create")
    expect(create).to_be_disabled()
    expect(widget.page.locator("#create-missing")).to_have_text(
        "Still missing: your consent, your full name and a name for the voice."
    )
    widget.page.get_by_label("What is said in it").fill("Ask not.")
    consent_and_name(widget, "Anna")
    create.click()
    expect(widget.page.get_by_role("heading", name="“Anna” is ready")).to_be_focused()
    assert voices.created[0]["transcript"] == "Ask not."
    assert voices.created[0]["consent"] == {"agreed": True, "statement": "1", "name": "Anna Muster"}
    expect(widget.page.locator("#own-voices li")).to_contain_text("Match: the stock voice Adam, alike (0.71)")
    expect(widget.page.locator("#voice option")).to_have_text(["Anna", "Heart", "Adam", "Siwis"])
    widget.button("Use it in the conversation").click()
    made = voices.own[0]["id"]
    wait_until(widget, lambda: scripted.server.talk.session["audio"]["output"]["voice"] == made)
    widget.page.get_by_role("tab", name="Talk").click()
    widget.wait_for_state("listening")
    widget.open_settings()
    expect(widget.page.get_by_role("combobox", name="Voice")).to_have_value(made)


def test_a_recording_of_the_page_is_what_the_microphone_heard(speaking_browser: Browser, scripted: Running) -> None:
    context = speaking_browser.new_context()
    context.add_init_script(NOTE_WISHES)
    scripted.server.voices.about["max_s"] = 4.0
    page = open_voices(VoicePage(context, scripted.url + WIDGET).open())
    page.button("Record").click()  # it ends by itself when it is long enough
    check(page)
    page.page.locator("#statement").wait_for()
    samples, rate = soundfile.read(io.BytesIO(scripted.server.voices.uploads[0]["bytes"]))
    assert samples.ndim == 1
    assert len(samples) == 4 * rate
    assert abs(samples).max() > 0.1
    (wish,) = page.page.evaluate("window.wishes")
    assert not any(wish["audio"][name] for name in ("echoCancellation", "noiseSuppression", "autoGainControl"))
    page.button("Show the phrase").click()
    expect(page.page.locator("#phrase-text")).to_contain_text("river, candle, mountain, silver")
    scripted.server.voices.phrase_heard = "liver"
    page.button("Record it").click()
    page.page.locator("#phrase-record").get_by_text("Stop").click()
    expect(page.page.locator("#phrase-result")).to_contain_text("heard “liver”")
    scripted.server.voices.phrase_heard = None
    page.button("Read it again").click()
    page.page.locator("#phrase-record").get_by_text("Stop").click()
    expect(page.page.locator("#phrase-result")).to_have_text("That is the phrase.")
    consent_and_name(page, "Anna")
    page.page.locator("#create").click()
    page.page.locator("#made").wait_for()
    assert scripted.server.voices.created[0]["consent"]["phrase_sample_id"].startswith("smp_")
    assert scripted.server.voices.uploads[-1]["phrase_id"] == "phr_1"
    assert page.problems == []
    context.close()


def test_nothing_is_lost_when_the_server_refuses_or_is_gone(refused: VoicePage, scripted: Running) -> None:
    page, voices = open_voices(refused), scripted.server.voices
    choose(page, SPEECH / "jfk.flac")
    page.page.route("**/api/clone/samples", lambda route: None, times=1)  # it takes for ever
    check(page)
    page.button("Cancel").click()
    expect(problem(page)).to_have_count(0)
    page.page.route("**/api/clone/samples", lambda route: route.abort(), times=1)
    check(page)
    expect(problem(page)).to_contain_text("cannot be reached. Check your network. Your recording is still here.")
    voices.refuse("POST /api/clone/samples", 401, code="unauthorized", message="log in")
    page.button("Try again").click()
    expect(problem(page)).to_contain_text("Your login has ended")
    expect(problem(page).get_by_role("link", name="Log in")).to_have_attribute("target", "_blank")
    voices.refuse("POST /api/clone/samples", 429, code="rate_limited", message="too much", retry_after_s=1)
    page.button("Try again").click()
    expect(problem(page)).to_contain_text("too much in a short time")
    page.button("Try again").click()  # enabled after the wait
    page.page.locator("#statement").wait_for()
    assert len({upload["bytes"] for upload in voices.uploads}) == 1
    consent_and_name(page, "Anna")
    voices.refuse("POST /api/clone", 404, code="sample_not_found", message="no such sample")
    page.page.locator("#create").click()
    expect(problem(page)).to_contain_text("keeps an unused recording only for some minutes")
    check(page)
    page.page.locator("#create").click()
    expect(page.page.get_by_role("heading", name="“Anna” is ready")).to_be_visible()


def test_files_are_refused_before_they_are_sent_or_sent_whole(widget: VoicePage, scripted: Running) -> None:
    open_voices(widget)
    widget.page.locator("#drop").wait_for()
    field = widget.page.locator("#file")
    field.set_input_files({"name": "big.wav", "mimeType": "audio/wav", "buffer": bytes(2 * 1024 * 1024)})
    expect(problem(widget)).to_contain_text("This file has 2 MB; up to 1 MB can be sent.")
    field.set_input_files({"name": "cat.png", "mimeType": "image/png", "buffer": b"png"})
    expect(problem(widget)).to_contain_text("not a sound file")
    field.set_input_files({"name": "short.wav", "mimeType": "audio/wav", "buffer": wav(1.0)})
    expect(widget.page.locator("#clip-hint")).to_contain_text("too short: at least 3 s are needed")
    expect(widget.button("Check this recording")).to_be_disabled()
    widget.button("Use another").click()
    assert scripted.server.voices.uploads == []
    drop = """(file) => {
      const data = new DataTransfer();
      data.items.add(new File([file], "voice.amr", { type: "audio/amr" }));
      const panel = document.querySelector('.voicepod-host').shadowRoot.getElementById("panel-voices");
      panel.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    widget.page.evaluate(drop, "#!AMR not really")
    expect(widget.page.locator("#clip-hint")).to_contain_text("cannot show this file. It is sent whole")
    expect(widget.page.locator("#wave")).to_be_hidden()
    check(widget)
    widget.page.locator("#statement").wait_for()
    (upload,) = scripted.server.voices.uploads
    assert (upload["bytes"], upload["start_s"], upload["end_s"]) == (b"#!AMR not really", None, None)


def test_voices_are_heard_renamed_downloaded_and_deleted(widget: VoicePage, scripted: Running) -> None:
    voices = scripted.server.voices
    open_voices(widget)
    make_voice(widget, "Anna")
    widget.page.get_by_label("Sentence to hear").fill("Good morning.")
    widget.button("Listen to Anna").click()
    expect(widget.button("Stop Anna")).to_be_visible()
    expect(widget.button("Listen to Anna")).to_be_visible()
    widget.page.get_by_label("Sentence to hear").fill("")
    widget.page.get_by_text("Voices of this server (3)").click()
    widget.button("Listen to Siwis").click()
    widget.button("Stop Siwis").click()
    expect(widget.button("Listen to Siwis")).to_be_focused()
    assert voices.spoken[0] == {"text": "Good morning.", "voice": voices.own[0]["id"], "format": "wav"}
    assert voices.spoken[1]["text"].startswith("Bonjour")
    widget.button("Rename Anna").press("Enter")
    name = widget.page.get_by_role("textbox", name="New name")
    expect(name).to_be_focused()
    name.fill("Anna at home")
    name.press("Enter")
    expect(widget.button("Rename Anna at home")).to_be_focused()
    with widget.page.expect_download() as download:
        widget.button("Download the recording of Anna at home").click()
    assert download.value.suggested_filename == "Anna at home.wav"
    widget.button("Delete Anna at home").click()
    expect(widget.button("Keep")).to_be_focused()
    widget.page.keyboard.press("Escape")
    expect(widget.button("Delete Anna at home")).to_be_focused()
    widget.button("Use Anna at home in the conversation").click()
    widget.button("Delete Anna at home").click()
    widget.button("Delete").click()
    expect(widget.page.locator("#own-voices li")).to_have_count(0)
    expect(widget.page.locator("#announce")).to_have_text("“Anna at home” is deleted.")
    assert voices.own == []
    expect(widget.page.locator("#voice option")).to_have_text(["Chosen after Start", "Heart", "Adam", "Siwis"])


def test_who_can_make_no_voices_is_told_why(refused: VoicePage, scripted: Running) -> None:
    page, voices = refused, scripted.server.voices
    voices.refuse("GET /api/clone", 403, code="forbidden", message="it lacks the scope voices")
    open_voices(page)
    expect(problem(page)).to_contain_text("Ask for one with the scope “voices”.")
    expect(page.page.locator("#voices-content")).to_be_hidden()
    page.page.get_by_role("tab", name="Talk").click()
    voices.refuse("GET /api/voices", 404, code="not_found", message="there is nothing here")
    open_voices(page)
    expect(problem(page)).to_contain_text("There is nothing here.")
    page.page.get_by_role("tab", name="Talk").click()
    voices.about["method"] = "none"
    open_voices(page)
    expect(page.page.locator("#why-not")).to_contain_text("cannot make new ones")
    expect(page.page.locator("#steps")).to_be_hidden()
    page.button("Listen to Heart").click()
    page.button("Stop Heart").wait_for()


def test_a_poor_recording_leads_no_further_and_all_has_names_and_keys(widget: VoicePage, scripted: Running) -> None:
    tab = widget.page.get_by_role("tab", name="Talk")
    tab.focus()
    tab.press("ArrowRight")
    mine = widget.page.get_by_role("tab", name="My voices")
    expect(mine).to_be_focused()
    expect(mine).to_have_attribute("aria-selected", "true")
    widget.button("Record").wait_for()
    widget.page.keyboard.press("Tab")
    expect(widget.button("Record")).to_be_focused()
    choose(widget, SPEECH / "jfk.flac")
    expect(widget.button("Check this recording")).to_be_focused()
    widget.page.keyboard.press("Enter")
    widget.page.locator("#statement").wait_for()
    controls = (
        "[...voice.root.querySelectorAll('button, input, select, textarea, summary, [role=slider], [role=meter]')]"
    )
    named = "(c.getAttribute('aria-label') || c.labels?.[0]?.textContent || c.textContent).trim()"
    assert widget.inside(f"{controls}.filter((c) => !{named} && !c.closest('[hidden]')).map((c) => c.outerHTML)") == []
    described = "[...voice.root.querySelectorAll('[aria-describedby], [aria-labelledby], [aria-controls]')]"
    ids = "['aria-describedby', 'aria-labelledby', 'aria-controls'].map((a) => c.getAttribute(a)).filter(Boolean)"
    assert widget.inside(f"{described}.flatMap((c) => {ids}).filter((id) => !voice.$(id))") == []


def test_a_phone_shows_each_step_without_scrolling_sideways(denied_browser: Browser, scripted: Running) -> None:
    phone: ViewportSize = {"width": 390, "height": 844}
    with closing(denied_browser.new_context(viewport=phone, is_mobile=True, has_touch=True)) as context:
        page = open_voices(VoicePage(context, scripted.url).open())
        page.button("Record").click()
        expect(problem(page)).to_contain_text("The microphone is blocked")
        make_voice(page, "A name that is as long as names of voices can be, sixty sign")
        page.button("Make another").click()
        choose(page, SPEECH / "jfk.flac")
        check(page)
        page.page.locator("#stock > summary").click()
        page.page.locator("[data-part=delete]").click()
        page.page.wait_for_function("document.documentElement.scrollWidth <= 390")
        panel = "[...voice.$('panel-voices').querySelectorAll('*')].filter((c) => c.offsetParent)"
        wide = f"{panel}.filter((c) => c.getBoundingClientRect().right > 390.5).map((c) => c.id || c.className)"
        assert page.inside(wide) == []
        touched = "c.matches('button, select, summary, input[type=text], .tick, .grip')"
        small = f"{panel}.filter((c) => {touched} && c.getBoundingClientRect().height < 44).map((c) => c.outerHTML)"
        assert page.inside(small) == []
