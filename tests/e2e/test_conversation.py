"""A person talks to the real server in the browser: real models, speech files as the microphone.

Order and content are asserted, never times: the machine may be busy.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jiwer
import pytest
import soundfile
from num2words import num2words
from playwright.sync_api import Browser, expect

from pipeline.audio import AudioChunk, concat
from pipeline.engines.base import Asr, create_engine
from settings import AsrSettings, Settings
from tests.support.browser import VoicePage
from tests.support.speech_clips import SPEECH, questions
from tests.support.words import plain

PATIENCE_MS = 120_000  # only a fault waits this long
PIECE_S = 0.2  # a piece of the page's recording is shorter
# The small model refuses a story now and then; begun for it, never.
LONG_REQUEST = "Once upon a time an old man lived in a lighthouse. Tell me a long story about him."
LONG_WINDED = "You tell long stories of at least twenty sentences."
WHOLE_SENTENCES = "Answer every question in one whole sentence that repeats the question."
SHORT_SPOKEN = "Answer each question in one short sentence."

pytestmark = [pytest.mark.models, pytest.mark.timeout(900)]


def open_page(browser: Browser, url: str, *, microphone: bool = False) -> VoicePage:
    """A page of the server; with `microphone` its words are said when the test chooses."""
    page = VoicePage(browser.new_context(), url, microphone=microphone)
    page.page.set_default_timeout(PATIENCE_MS)
    return page.open()


def wait_for_answers(page: VoicePage, n: int) -> None:
    """Wait until n replies were heard to their end, or cut."""
    expect(page.page.locator(".latency")).to_have_count(n, timeout=PATIENCE_MS)


def spoken_answers(page: VoicePage) -> list[AudioChunk]:
    """What the page played turn by turn, cut out of the file that people can download: its right channel."""
    samples, rate = soundfile.read(io.BytesIO(page.download("wav")), dtype="float32")
    start_s = page.inside("Math.min(...Object.values(voice.recording.tracks).map(([first]) => first.at))")
    pieces = page.played()
    answers = []
    for turn in sorted({piece["turn"] for piece in pieces}):
        begin, end = (at([piece["at"] - start_s for piece in pieces if piece["turn"] == turn]) for at in (min, max))
        answers.append(AudioChunk(samples[int(begin * rate) : int((end + PIECE_S) * rate), 1].copy(), rate))
    return answers


def heard_back(answers: Sequence[AudioChunk]) -> str:
    """The words of all answers by our own recogniser. In a thread: Playwright's loop runs in this one."""
    pause = AudioChunk.silence(0.5, answers[0].sample_rate)
    audio = concat([part for answer in answers for part in (answer, pause)], answers[0].sample_rate)

    async def transcribe() -> str:
        asr: Asr = create_engine("asr", "faster_whisper", Settings(asr=AsrSettings(threads=1)))
        await asr.load()
        try:
            return (await asr.transcribe(audio, language="en")).text
        finally:
            await asr.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, transcribe()).result()


def in_words(text: str) -> str:
    """Bare words with numbers spelled out, as they are spoken."""
    return plain(re.sub(r"\d+", lambda number: f" {num2words(int(number[0]))} ", text.replace(",", "")))


def instruct(page: VoicePage, instructions: str) -> None:
    """Give the assistant other instructions from the next reply on."""
    update = {"type": "session.update", "session": {"type": "realtime", "instructions": instructions}}
    page.inside(f"voice.socket.send({json.dumps(update)})")


def test_five_questions_of_one_talk_are_understood_and_answered_aloud(server: str, silent_browser: Browser) -> None:
    page = open_page(silent_browser, server, microphone=True)
    page.button("Start").click()
    page.wait_for_state("listening")
    instruct(page, WHOLE_SENTENCES)
    for n, clip in enumerate(questions(), 1):
        page.speak(SPEECH / f"{clip.name}.flac")
        wait_for_answers(page, n)
    messages = page.messages()
    assert [who for who, _ in messages] == ["You", "Voicepod"] * len(questions())
    understood, replies = ([words for _, words in messages[start::2]] for start in (0, 1))
    assert all(replies)
    assert jiwer.wer([plain(clip.text) for clip in questions()], [plain(words) for words in understood]) <= 0.15
    spoken = spoken_answers(page)
    assert len(spoken) == len(replies)
    heard = heard_back(spoken)
    assert jiwer.wer(in_words(" ".join(replies)), in_words(heard)) <= 0.15, heard
    assert page.problems == []
    assert page.elsewhere == []
    page.context.close()


def start_a_long_reply(page: VoicePage) -> None:
    """Ask for something long without a microphone and wait until more than a second of it was heard."""
    page.inside("void voice.start({ withMic: false })")
    page.wait_for_state("typing")
    instruct(page, LONG_WINDED)
    page.type(LONG_REQUEST)
    page.wait_inside("voice.player.position && voice.player.position.played > 36000")
    instruct(page, SHORT_SPOKEN)


def assert_cut_to_what_was_heard(page: VoicePage, played: int) -> None:
    """The first reply was cut, nothing of it was played later, and the server remembers what was heard."""
    assert sum(piece["n"] for piece in page.played() if piece["turn"] == 1) == played
    shown = page.messages()[1][1]
    expect(page.page.locator(".message").nth(1).locator(".note")).to_have_text("interrupted")
    page.page.reload(wait_until="domcontentloaded")
    page.page.locator("[data-ready=true]").wait_for(state="attached")
    page.inside("void voice.start({ withMic: false })")
    words = page.page.locator(".message .words").nth(1)
    expect(words).to_have_text(re.compile(r"\w"))
    remembered = words.text_content() or ""
    assert plain(shown).startswith(plain(remembered)), (shown, remembered)


def test_the_button_cuts_a_long_reply_and_the_history_to_what_was_heard(server: str, silent_browser: Browser) -> None:
    page = open_page(silent_browser, server)
    start_a_long_reply(page)
    page.button("Interrupt").click()
    page.wait_inside("voice.player.flushedTurn === 1")
    page.wait_inside("voice.player.mode !== 'playing'")
    played = sum(piece["n"] for piece in page.played())
    wait_for_answers(page, 1)
    page.type("What is the capital of France?")
    wait_for_answers(page, 2)
    assert "paris" in plain(page.messages()[3][1])
    assert_cut_to_what_was_heard(page, played)
    page.context.close()


def test_a_voice_cuts_a_long_reply_and_is_answered(server: str, speaking_browser: Browser) -> None:
    page = open_page(speaking_browser, server)
    start_a_long_reply(page)
    page.button("Use microphone").click()
    page.wait_for_state("hearing")
    page.wait_inside("voice.player.flushedTurn === 1")
    page.wait_inside("voice.player.mode !== 'playing' || voice.player.position.turn > 1")
    played = sum(piece["n"] for piece in page.played() if piece["turn"] == 1)
    wait_for_answers(page, 2)
    assert plain(page.messages()[2][1]) == "what is the capital of france"
    assert "paris" in plain(page.messages()[3][1])
    assert_cut_to_what_was_heard(page, played)
    page.context.close()
