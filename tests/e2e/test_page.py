"""The page in Chromium against a scripted server: what people press, see and hear. No model is needed."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import closing
from typing import Any

import soundfile
from playwright.sync_api import Browser, ViewportSize, expect

from tests.support.browser import VoicePage
from tests.support.scripted_server import REPLY, SENTENCE_S, Running
from tests.support.tcp_proxy import tcp_proxy
from tests.support.widget_page import PATH as WIDGET

WHOLE = " ".join(REPLY)
RATE = 24_000
SHORT_S = 0.3  # where an answer only has to come to its end
LONG_S = 20.0  # a sentence that a busy machine cannot miss the middle of


def events(scripted: Running, kind: str) -> list[dict[str, Any]]:
    return [event for event in scripted.server.talk.received if event["type"] == kind]


def wait_until(page: VoicePage, condition: Callable[[], bool]) -> None:
    """Let the page live on until the server has seen something; fails after 20 s."""
    for _ in range(400):
        if condition():
            return
        page.page.evaluate("() => new Promise((resolve) => setTimeout(resolve, 50))")
    raise AssertionError("the server never saw it")


def last_playback(scripted: Running) -> int:
    """The newest report of what was heard, in samples; 0 before the first."""
    return next((int(event["played_samples"]) for event in reversed(events(scripted, "voicepod.playback"))), 0)


def session_of(page: VoicePage, scripted: Running) -> dict[str, Any]:
    """The server's session once the page has said all its wishes: it does so when it hears of the session."""
    wait_until(page, lambda: len(events(scripted, "session.update")) >= 2)
    return scripted.server.talk.session


def assert_seamless(pieces: list[dict[str, Any]], turn: int) -> int:
    """The pieces of a turn follow each other sample by sample; gives how many samples they are."""
    heard = 0
    for piece in pieces:
        if piece["turn"] == turn:
            assert piece["first"] == heard
            heard += piece["n"]
    return heard


def test_a_question_is_spoken_and_its_answer_heard(speaking_browser: Browser, scripted: Running) -> None:
    context = speaking_browser.new_context()
    page = VoicePage(context, scripted.url).open()
    expect(page.state_words).to_have_text("Ready when you are")
    page.watch_captions()
    page.button("Start").click()
    page.wait_for_state("speaking")
    expect(page.page.locator(".message.assistant .words")).to_have_text(WHOLE)
    assert page.messages()[0] == ("You", "How big is the sun?")
    shown = page.captions()
    assert [words for words, _ in shown] == [" ".join(REPLY[: n + 1]) for n in range(len(REPLY))]
    assert all(heard >= n * SENTENCE_S * RATE for n, (_, heard) in enumerate(shown)), "a sentence came before its sound"
    latency = page.page.locator(".latency")
    latency.locator("summary").click()
    expect(latency.locator("li").nth(0)).to_have_text("end of speech 600 ms")
    expect(latency.locator("li").nth(1)).to_have_text("recognition 140 ms")
    page.wait_for_state("listening")
    talk = scripted.server.talk
    assert assert_seamless(page.played(), 1) == len(talk.audio)
    wait_until(page, lambda: last_playback(scripted) == len(talk.audio))
    reports = [event["played_samples"] for event in events(scripted, "voicepod.playback")]
    assert reports == sorted(reports)
    assert talk.session["audio"]["input"]["format"]["rate"] == 16000
    assert page.problems == []
    assert page.elsewhere == []
    context.close()


def assert_silent_after_interruption(page: VoicePage, scripted: Running) -> None:
    wait_until(page, lambda: bool(events(scripted, "response.cancel")))
    received = [event for event in scripted.server.talk.received if event["type"] != "voicepod.ping"]
    cancelled = [event["type"] for event in received].index("response.cancel")
    report = received[cancelled - 1]
    assert report["type"] == "voicepod.playback", "the server must know what was heard before it stops"
    heard = report["played_samples"]
    assert 0 < heard < len(scripted.server.talk.audio)
    expect(page.page.locator(".note", has_text="interrupted")).to_be_visible()
    played = sum(piece["n"] for piece in page.played())
    page.type("And the moon?")
    expect(page.page.locator(".message.assistant")).to_have_count(2)
    page.wait_for_state("speaking")
    later = page.played()
    assert sum(piece["n"] for piece in later if piece["turn"] == 1) == played, "a flushed turn went on"
    assert heard <= played
    assert page.messages()[1][1] == REPLY[0]


def test_the_interrupt_button_silences_at_once_and_the_talk_goes_on(widget: VoicePage, scripted: Running) -> None:
    scripted.server.sentence_s = LONG_S
    widget.type("How big is the sun?")
    widget.page.locator(".message.assistant").wait_for()
    widget.button("Interrupt").click()
    assert_silent_after_interruption(widget, scripted)


def test_a_flush_of_the_server_drops_what_is_still_on_its_way(widget: VoicePage, scripted: Running) -> None:
    scripted.server.sentence_s = LONG_S
    widget.type("How big is the sun?")
    widget.page.locator(".message.assistant").wait_for()
    widget.inside("voice.socket.onEvent({ type: 'voicepod.flush', turn: 1 })")
    widget.wait_inside("voice.player.mode === 'idle'")
    played = widget.played()
    for first in range(0, RATE, 960):
        assert widget.inside(f"voice.player.play(1, {first}, new Int16Array(960))") is False
    widget.inside("voice.player.output.post({ type: 'audio', turn: 1, first: 0, pcm: new Int16Array(9600) })")
    widget.type("And the moon?")
    widget.wait_for_state("speaking")
    assert [piece for piece in widget.played() if piece["turn"] == 1] == played


def test_an_example_question_needs_no_microphone(denied_browser: Browser, scripted: Running) -> None:
    scripted.server.sentence_s = SHORT_S
    with closing(denied_browser.new_context()) as context:
        page = VoicePage(context, scripted.url + WIDGET).open()
        page.button("How big is the sun?").click()
        expect(page.page.locator(".message.assistant .words")).to_have_text(WHOLE)
        assert page.messages()[0] == ("You", "How big is the sun?")
        assert scripted.server.talk.n_mic_samples == 0
        page.wait_for_state("typing")


def test_a_denied_microphone_is_explained_and_typing_goes_on(denied_browser: Browser, scripted: Running) -> None:
    with closing(denied_browser.new_context()) as context:
        page = VoicePage(context, scripted.url + WIDGET).open()
        page.button("Start").click()
        alert = page.page.get_by_role("alert")
        expect(alert.get_by_role("heading", name="The microphone is blocked")).to_be_visible()
        expect(alert).to_contain_text("Allow the microphone for this page")
        page.button("Type instead").click()
        expect(alert).to_be_hidden()
        page.wait_for_state("typing")
        page.type("Hello")
        page.page.locator(".message.assistant").wait_for()


def test_a_page_without_https_says_how_to_get_it_and_still_answers(denied_browser: Browser, scripted: Running) -> None:
    scripted.server.sentence_s = SHORT_S
    with closing(denied_browser.new_context()) as context:
        page = VoicePage(context, scripted.url.replace("127.0.0.1", "voicepod.test")).open()
        page.button("Start").click()
        alert = page.page.get_by_role("alert")
        expect(alert).to_contain_text("--tls-cert CERT.pem --tls-key KEY.pem")
        page.button("Type instead").click()
        page.type("Hello")
        page.page.locator(".latency").wait_for(state="attached")
        expect(page.page.locator(".message.assistant .words")).to_have_text(WHOLE)
        assert assert_seamless(page.played(), 1) == len(scripted.server.talk.audio)


def test_a_lost_microphone_is_explained_and_taken_again(widget: VoicePage, scripted: Running) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    widget.inside("voice.mic.stream.getAudioTracks()[0].dispatchEvent(new Event('ended'))")
    expect(widget.page.get_by_role("alert")).to_contain_text("The microphone is gone")
    widget.button("Use another microphone").click()
    widget.wait_for_state("listening")
    expect(widget.page.get_by_role("alert")).to_be_hidden()
    assert len(scripted.server.talks) == 1


def test_a_device_that_was_pulled_out_and_is_back_is_used_again(widget: VoicePage, scripted: Running) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    widget.inside("voice.mic.stream.getAudioTracks()[0].dispatchEvent(new Event('ended'))")
    expect(widget.page.get_by_role("alert")).to_contain_text("The microphone is gone")
    widget.page.evaluate(
        """async () => {
          const { mic } = document.querySelector(".voicepod-host").voicepod;
          window.itsDevice = mic.device;
          mic.device = "another";
          navigator.mediaDevices.dispatchEvent(new Event("devicechange"));
          await navigator.mediaDevices.enumerateDevices();
        }"""
    )
    assert not widget.inside("voice.live.starting || voice.mic.open"), "a device that nobody chose was opened"
    widget.page.evaluate(
        """() => {
          document.querySelector(".voicepod-host").voicepod.mic.device = window.itsDevice;
          navigator.mediaDevices.dispatchEvent(new Event("devicechange"));
        }"""
    )
    widget.wait_for_state("listening")
    expect(widget.page.get_by_role("alert")).to_be_hidden()
    assert len(scripted.server.talks) == 1


def test_a_permission_that_was_taken_back_is_not_called_an_unplugged_device(widget: VoicePage) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    widget.page.evaluate("navigator.permissions.query = async () => ({ state: 'denied' })")
    widget.inside("voice.mic.stream.getAudioTracks()[0].dispatchEvent(new Event('ended'))")
    expect(widget.page.get_by_role("alert")).to_contain_text("The microphone is blocked")
    widget.wait_for_state("typing")


def test_a_browser_that_never_gives_the_microphone_is_named_and_typing_waits_for_nobody(
    widget: VoicePage, scripted: Running
) -> None:
    widget.page.evaluate(
        """() => {
          const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
          navigator.mediaDevices.getUserMedia = async (wish) => {
            await new Promise((allow) => { window.allow = allow; });
            return (window.stream = await real(wish));
          };
        }"""
    )
    widget.button("Start").click()
    expect(widget.page.get_by_role("alert")).to_contain_text("The browser has not given the microphone yet")
    expect(widget.state_words).to_have_text("Waiting for the microphone…")
    widget.type("How big is the sun?")
    expect(widget.page.locator(".message.user .words")).to_have_text("How big is the sun?")
    expect(widget.page.get_by_role("alert")).to_be_hidden()
    widget.page.evaluate("window.allow()")
    widget.page.wait_for_function("window.stream?.getAudioTracks()[0].readyState === 'ended'")
    assert not widget.inside("voice.mic.open"), "a microphone that nobody waits for any more stayed open"
    assert scripted.server.talk.n_mic_samples == 0


def test_a_microphone_that_the_system_mutes_is_not_called_listening(widget: VoicePage) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    mute = """(muted) => {
      const [track] = document.querySelector(".voicepod-host").voicepod.mic.stream.getAudioTracks();
      Object.defineProperty(track, "muted", { value: muted, configurable: true });
      track.dispatchEvent(new Event(muted ? "mute" : "unmute"));
    }"""
    widget.page.evaluate(mute, True)
    expect(widget.state_words).to_have_text("Muted by your system or device")
    widget.page.evaluate(mute, False)
    widget.wait_for_state("listening")


def test_sound_that_the_browser_holds_is_not_called_listening(widget: VoicePage) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    widget.inside("voice.sound.context.suspend()")
    widget.wait_for_state("paused")
    expect(widget.state_words).to_have_text("Sound is paused")
    widget.button("Play sound").click()
    widget.wait_for_state("listening")
    expect(widget.page.get_by_role("alert")).to_be_hidden()


def test_hold_to_talk_sends_only_while_held_and_asks_for_an_answer(widget: VoicePage, scripted: Running) -> None:
    widget.open_settings()
    widget.page.get_by_role("radio", name="Hold to talk").check(force=True)
    widget.page.locator("#settings > summary").click()
    widget.button("Start").click()
    widget.wait_for_state("listening")
    assert session_of(widget, scripted)["audio"]["input"]["turn_detection"] is None
    widget.wait_inside("voice.uplink.preroll.length === 15")
    assert scripted.server.talk.n_mic_samples == 0
    widget.page.locator("h1").click()
    widget.page.keyboard.down("Space")
    widget.wait_for_state("hearing")
    wait_until(widget, lambda: scripted.server.talk.n_mic_samples > 16000)
    widget.page.keyboard.up("Space")
    widget.page.locator(".message.assistant").wait_for()
    kinds = [event["type"] for event in scripted.server.talk.received if event["type"] != "voicepod.ping"]
    assert kinds.index("input_audio_buffer.commit") < kinds.index("response.create")
    sent = scripted.server.talk.n_mic_samples
    button = widget.button("Hold to talk")
    box = button.bounding_box()
    assert box is not None
    widget.page.mouse.move(box["x"] + 20, box["y"] + 20)
    widget.page.mouse.down()
    wait_until(widget, lambda: scripted.server.talk.n_mic_samples > sent + 16000)
    widget.page.mouse.up()
    wait_until(widget, lambda: len(events(scripted, "input_audio_buffer.commit")) == 2)
    assert events(scripted, "response.cancel"), "talking over a reply interrupts it"


def test_space_in_the_text_box_is_a_space(widget: VoicePage, scripted: Running) -> None:
    widget.open_settings()
    widget.page.get_by_role("radio", name="Hold to talk").check(force=True)
    widget.button("Start").click()
    widget.wait_for_state("listening")
    widget.page.get_by_role("textbox", name="Message").click()
    widget.page.keyboard.type("a b")
    expect(widget.page.get_by_role("textbox", name="Message")).to_have_value("a b")
    assert not events(scripted, "input_audio_buffer.commit")


def test_mute_sends_nothing_and_says_so(widget: VoicePage, scripted: Running) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    wait_until(widget, lambda: scripted.server.talk.n_mic_samples > 0)
    widget.button("Mute").click()
    expect(widget.page.locator("#mute")).to_have_attribute("aria-pressed", "true")
    widget.wait_for_state("muted")
    widget.type("Hello")  # comes after all sound that was on its way
    wait_until(widget, lambda: len(events(scripted, "conversation.item.create")) == 1)
    before = scripted.server.talk.n_mic_samples
    widget.page.locator(".message.assistant").wait_for()
    widget.type("Hello again")
    wait_until(widget, lambda: len(events(scripted, "conversation.item.create")) == 2)
    assert scripted.server.talk.n_mic_samples == before
    widget.button("Unmute").click()
    wait_until(widget, lambda: scripted.server.talk.n_mic_samples > before + 16000)


def test_a_cut_network_is_bridged_and_the_reply_goes_on_where_it_stopped(window: VoicePage, scripted: Running) -> None:
    with tcp_proxy(int(scripted.url.rsplit(":", 1)[1])) as proxy:
        window.begin(f"http://127.0.0.1:{proxy.port}")
        page = window.open()
        page.type("How big is the sun?")
        page.page.locator(".message.assistant").wait_for()
        page.page.evaluate("() => { window.sameDocument = true; }")
        proxy.up = False
        with page.page.expect_event("requestfailed", lambda request: "/gradio_api/run/" in request.url):
            proxy.cut()
        expect(page.page.get_by_role("alert")).to_contain_text("The server cannot be reached")
        expect(page.page.locator("#rtt")).to_be_hidden()
        proxy.up = True
        expect(page.page.locator(".message.assistant .words")).to_have_text(WHOLE)
        page.page.locator(".latency").wait_for(state="attached")
        assert len(scripted.server.talks) == 1
        assert assert_seamless(page.played(), 1) == len(scripted.server.talk.audio)
        assert len(page.messages()) == 2
        expect(page.page.get_by_role("alert")).to_be_hidden()
        with page.page.expect_event("response", lambda response: "/gradio_api/run/" in response.url):
            pass
        assert page.page.evaluate("() => window.sameDocument"), "Gradio reloaded the page in the middle of a talk"
        (resume,) = events(scripted, "voicepod.resume")
        assert resume["turn"] == 1
        page.leave()


def test_a_network_that_is_too_slow_for_the_voice_is_told(widget: VoicePage) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    answered = """async ([voice, ms]) => {
        clearTimeout(voice.socket.pingTimer);  // no other answers, but one that is on its way
        await new Promise((done) => setTimeout(done, 500));
        voice.socket.openedAt = -60_000;
        voice.socket.socket.onmessage({ data: JSON.stringify({ type: "voicepod.pong", t: performance.now() - ms }) });
    }"""
    widget.inside(f"({answered})([voice, 3000])")
    expect(widget.page.get_by_role("alert")).to_contain_text("Your network is too slow for your voice")
    widget.inside(f"({answered})([voice, 30])")
    expect(widget.page.get_by_role("alert")).to_be_hidden()


def test_a_reload_goes_on_with_the_conversation(widget: VoicePage, scripted: Running) -> None:
    page = widget
    scripted.server.sentence_s = SHORT_S
    page.type("How big is the sun?")
    expect(page.page.locator(".latency")).to_have_count(1)
    page.page.reload(wait_until="domcontentloaded")
    page.page.locator("[data-ready=true]").wait_for(state="attached")
    page.button("Continue").click()
    expect(page.page.locator(".message .words")).to_have_text(["How big is the sun?", WHOLE])
    expect(page.page.locator(".message .who")).to_have_text(["You", "Voicepod"])
    assert len(scripted.server.talks) == 1


def test_a_full_house_counts_down_and_lets_the_page_in(widget: VoicePage, scripted: Running) -> None:
    scripted.server.busy_retry_s = 2
    widget.button("Start").click()
    alert = widget.page.get_by_role("alert")
    expect(alert).to_contain_text("All seats are taken")
    expect(alert.locator(".count")).to_contain_text("next try in")
    scripted.server.busy_retry_s = None
    widget.wait_for_state("listening")
    expect(alert).to_be_hidden()


def test_a_server_that_loads_again_is_not_called_full(widget: VoicePage, scripted: Running) -> None:
    scripted.server.busy_retry_s, scripted.server.busy_code = 1, "engine_not_ready"
    widget.button("Start").click()
    expect(widget.page.get_by_role("alert")).to_contain_text("The server is starting")
    widget.type("How big is the sun?")
    expect(widget.page.locator(".divider")).to_contain_text("Your message waits here")
    scripted.server.busy_retry_s = None
    expect(widget.page.locator(".message.user .words")).to_have_text("How big is the sun?")
    expect(widget.page.get_by_role("alert")).to_be_hidden()


def test_a_text_that_went_into_a_dead_connection_is_said_in_the_next_one(widget: VoicePage, scripted: Running) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    widget.page.evaluate(
        """() => {
          const { socket } = document.querySelector(".voicepod-host").voicepod.socket;
          window.swallowed = [];
          socket.send = (data) => { if (typeof data === "string") window.swallowed.push(JSON.parse(data).type); };
        }"""
    )
    widget.type("How big is the sun?")
    widget.page.wait_for_function("window.swallowed.includes('response.create')")
    widget.inside("voice.socket.socket.onclose({ code: 1006 })")
    expect(widget.page.locator(".message.user .words")).to_have_text("How big is the sun?")
    expect(widget.page.locator(".message.assistant")).to_have_count(1)
    assert len(events(scripted, "response.create")) == 1
    assert len(scripted.server.talks) == 1


def test_what_is_said_into_a_dead_connection_reaches_the_server_with_the_next_one(
    widget: VoicePage, scripted: Running
) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    wait_until(widget, lambda: scripted.server.talk.n_mic_samples > 0)
    widget.page.evaluate(
        """() => {
          window.swallowed = 0;
          const { socket } = document.querySelector(".voicepod-host").voicepod.socket;
          socket.send = (data) => { window.swallowed += data.length ?? 0; };
        }"""
    )
    widget.page.wait_for_function("window.swallowed > 8000")
    widget.inside("voice.socket.socket.onclose({ code: 1006 })")
    widget.wait_for_state("reconnecting", "connecting")
    widget.wait_for_state("listening")
    widget.button("Mute").click()
    wait_until(widget, lambda: scripted.server.talk.n_mic_samples == widget.inside("voice.uplink.position"))
    said = widget.inside("voice.recording.tracks.user.reduce((sum, { pcm }) => sum + pcm.length, 0)")
    assert said == scripted.server.talk.n_mic_samples
    assert len(scripted.server.talks) == 1


def test_a_conversation_that_went_on_in_another_tab_is_not_fought_over(widget: VoicePage, scripted: Running) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    scripted.close_socket(4409)
    expect(widget.page.get_by_role("alert")).to_contain_text("went on in another tab")
    widget.wait_for_state("idle")
    widget.wait_inside("voice.mic.open === false")
    expect(widget.button("Continue")).to_be_hidden()
    widget.button("Start here").click()
    widget.wait_for_state("listening")
    assert len(scripted.server.talks) == 2


def test_a_page_that_waits_for_models_asks_for_one_token_which_makes_them_load(
    window: VoicePage, scripted: Running
) -> None:
    scripted.server.tokens.clear()
    waiting = [{"kind": "llm", "name": "llamacpp", "state": "waiting", "seconds": 0.0}]
    scripted.server.startup = {"state": "loading", "engines": waiting}
    window.begin(scripted.url + WIDGET)
    window.open()
    loading = window.page.locator("#loading")
    expect(loading).to_contain_text("waiting")
    wait_until(window, lambda: len(scripted.server.tokens) == 1)
    scripted.server.startup = {"state": "ready", "engines": []}
    expect(loading).to_be_hidden()
    assert len(scripted.server.tokens) == 1


def test_the_loading_screen_shows_each_model_until_the_server_is_ready(window: VoicePage, scripted: Running) -> None:
    models = [
        {"kind": "asr", "name": "faster_whisper", "state": "ready", "seconds": 2.5},
        {"kind": "llm", "name": "llamacpp", "state": "loading", "seconds": 1.0},
    ]
    scripted.server.startup = {"state": "loading", "engines": models}
    window.begin(scripted.url + WIDGET)
    window.open()
    loading = window.page.locator("#loading")
    expect(loading).to_contain_text("Speech recognition (faster_whisper)ready in 2.5 s")
    expect(loading).to_contain_text("1 of 2 are ready")
    expect(window.button("Start")).to_be_disabled()
    scripted.server.startup = {"state": "ready", "engines": []}
    expect(loading).to_be_hidden()
    expect(window.button("Start")).to_be_enabled()


def test_settings_reach_the_server_and_are_remembered(widget: VoicePage, scripted: Running) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    widget.open_settings()
    select = widget.page.get_by_label
    languages = ["Automatic", "English", "French", "German (understood, answered in English)"]
    expect(select("Language", exact=True).locator("option")).to_have_text(languages)
    expect(widget.page.locator("#language-hint")).to_contain_text("recognised anew in every utterance")
    select("Persona").select_option("Pirate")
    select("Language", exact=True).select_option("French")
    widget.page.locator("#patience").fill("900")
    widget.page.locator("#speed").fill("1.25")
    widget.page.get_by_role("switch", name="I use headphones").check(force=True)
    session = session_of(widget, scripted)
    wait_until(widget, lambda: bool(session["voicepod"]["headphones"]))
    assert session["audio"]["output"]["voice"] == "ff_siwis"
    assert session["audio"]["output"]["speed"] == 1.25
    assert session["audio"]["input"]["transcription"]["language"] == "fr"
    assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 900
    assert session["instructions"] == "You are a pirate. Always answer in French."
    widget.button("End").click()
    widget.page.reload(wait_until="domcontentloaded")
    widget.page.locator("[data-ready=true]").wait_for(state="attached")
    assert widget.inside("voice.settings.patienceMs") == 900
    expect(widget.page.get_by_label("Persona")).to_have_value("Pirate")


def test_the_transcript_and_the_sound_can_be_kept(widget: VoicePage, scripted: Running) -> None:
    scripted.server.sentence_s = SHORT_S
    widget.button("Start").click()
    widget.wait_for_state("listening")
    widget.type("How big is the sun?")
    expect(widget.page.locator(".latency")).to_have_count(1)
    assert widget.download("txt").decode() == f"You: How big is the sun?\n\nVoicepod: {WHOLE}\n"
    kept = json.loads(widget.download("json"))
    assert [message["role"] for message in kept["messages"]] == ["user", "assistant"]
    assert kept["messages"][1]["latency_ms"]["asr"] == 140
    assert widget.download("srt").decode().count(" --> ") == 2
    samples, rate = soundfile.read(io.BytesIO(widget.download("wav")))
    assert rate == RATE
    assert samples.shape[1] == 2
    reply = samples[:, 1]
    assert (abs(reply) > 0.01).sum() > 0.8 * len(scripted.server.talk.audio)


def test_a_new_conversation_starts_empty(widget: VoicePage, scripted: Running) -> None:
    widget.type("How big is the sun?")
    widget.page.locator(".message.assistant").wait_for()
    widget.button("New").click()
    expect(widget.page.locator(".message")).to_have_count(0)
    wait_until(widget, lambda: scripted.server.talk.items == [])
    expect(widget.page.locator("#welcome")).to_be_visible()


def test_words_stand_in_the_direction_of_their_script_and_the_empty_page_says_how_to_begin(
    widget: VoicePage, scripted: Running
) -> None:
    scripted.server.reply, scripted.server.sentence_s = ("שלום, מה שלומך?",), SHORT_S
    welcome = widget.page.locator("#welcome p")
    expect(welcome).to_have_text("Press Start and speak, or try one of these:")
    widget.inside("void voice.start({ withMic: false })")
    widget.wait_for_state("typing")
    expect(welcome).to_have_text("Type a message, or try one of these:")
    widget.type("Hello")
    expect(widget.page.locator(".message.assistant .words")).to_have_text("שלום, מה שלומך?")
    direction = "[...voice.root.querySelectorAll('.words')].map((words) => getComputedStyle(words).direction)"
    assert widget.inside(direction) == ["ltr", "rtl"]


def test_chosen_and_pressed_is_seen_where_the_system_forces_its_colours(widget: VoicePage) -> None:
    widget.open_settings()
    widget.page.emulate_media(forced_colors="active")
    colour = "getComputedStyle(voice.root.querySelector('{}')).backgroundColor"
    differ = [("[role=tab][aria-selected=true]", "[role=tab][aria-selected=false]")]
    differ += [(".segments input:checked + span", ".segments input:not(:checked) + span")]
    for chosen, other in differ:
        assert widget.inside(f"{colour.format(chosen)} !== {colour.format(other)}"), chosen
    assert widget.inside("getComputedStyle(voice.$('volume')).forcedColorAdjust") == "none", "a slider without its bar"
    widget.page.emulate_media(forced_colors="none")


def test_the_round_trip_does_not_lie_under_the_button_of_the_sidebar(
    denied_browser: Browser, scripted: Running
) -> None:
    with closing(denied_browser.new_context(viewport={"width": 1100, "height": 600})) as context:
        page = VoicePage(context, scripted.url).open()
        page.inside("void voice.start({ withMic: false })")
        page.page.locator("#rtt").wait_for()
        told, button = page.page.locator("#rtt").bounding_box(), page.page.locator(".toggle-button").bounding_box()
        assert told is not None
        assert button is not None
        assert told["x"] + told["width"] <= button["x"]


def test_the_page_works_from_the_keyboard_and_escape_interrupts_from_anywhere(
    page: VoicePage, scripted: Running
) -> None:
    scripted.server.sentence_s = LONG_S
    page.button("Start").focus()
    page.page.keyboard.press("Enter")
    page.wait_for_state("listening")
    status = page.page.locator("#state")
    expect(status).to_have_attribute("aria-live", "polite")
    expect(status).to_have_attribute("role", "status")
    seen = set()
    for _ in range(14):
        page.page.keyboard.press("Tab")
        seen.add(page.inside("voice.root.activeElement?.id || voice.root.activeElement?.tagName"))
    assert {"mute", "end", "text", "SUMMARY"} <= seen
    page.button("End").press("Enter")
    page.wait_for_state("idle")
    page.wait_inside("voice.root.activeElement?.id === 'start'")
    page.type("How big is the sun?")
    page.page.locator(".message.assistant").wait_for()
    page.page.keyboard.press("Escape")
    assert_silent_after_interruption(page, scripted)


def test_every_control_has_a_name(widget: VoicePage) -> None:
    widget.open_settings()
    controls = "[...voice.root.querySelectorAll('button, input, select, summary, [role=meter]')]"
    named = "(c.getAttribute('aria-label') || c.labels?.[0]?.textContent || c.textContent).trim()"
    assert widget.inside(f"{controls}.filter((c) => !{named}).map((c) => c.outerHTML)") == []


def test_a_phone_shows_start_without_scrolling_sideways(denied_browser: Browser, scripted: Running) -> None:
    scripted.server.sentence_s = SHORT_S
    phone: ViewportSize = {"width": 390, "height": 844}
    with closing(
        denied_browser.new_context(viewport=phone, is_mobile=True, has_touch=True, color_scheme="dark")
    ) as context:
        page = VoicePage(context, scripted.url).open()
        expect(page.button("Start")).to_be_in_viewport()
        page.type("How big is the sun?")
        page.page.locator(".latency").wait_for(state="attached")
        page.open_settings()
        page.page.wait_for_function("document.documentElement.scrollWidth <= 390")
        expect(page.page.locator(".sidebar.open")).to_have_count(0)
        visible = "[...voice.root.querySelectorAll('button, select, .settings > summary, .menu > summary')]"
        small = f"{visible}.filter((c) => c.offsetParent && c.getBoundingClientRect().height < 44).map((c) => c.id)"
        page.wait_inside(f"{small}.length === 0")


def test_the_sidebar_is_open_on_a_wide_screen_and_shows_live_figures(page: VoicePage, scripted: Running) -> None:
    sidebar = page.page.locator(".sidebar")
    expect(sidebar).to_have_class(re.compile(r"\bopen\b"))
    expect(sidebar).to_contain_text("37 %")
    expect(sidebar).to_contain_text("3.0 of 8.0 GiB")
    page.type("How big is the sun?")
    expect(sidebar).to_contain_text("1.03 s")
    expect(page.page.locator(".sidebar svg, .sidebar canvas").first).to_be_attached()
