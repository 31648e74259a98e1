"""A person talks to the real server in the browser: real models, speech files as the microphone.

Order and content are asserted, never times: the machine may be busy.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError

import jiwer
import pytest
import soundfile
from num2words import num2words
from playwright.sync_api import Browser, Playwright, expect

from pipeline.audio import AudioChunk
from pipeline.engines.base import create_engine
from settings import Settings
from tests.support.browser import VoicePage, chromium, write_microphone
from tests.support.speech_clips import SPEECH, questions
from tests.support.words import plain

ROOT = Path(__file__).parents[2]
PATIENCE_MS = 120_000  # only a fault waits this long
START_S = 180
LONG_REQUEST = "Tell me the story of the lighthouse keeper."
LONG_WINDED = "You tell long stories of at least twenty sentences. Begin with the story at once."
SHORT_SPOKEN = "Answer each question in one short sentence."

pytestmark = [pytest.mark.models, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `python app.py --profile cpu`, ready to talk."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log_file = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "app.py", "--profile", "cpu", "--port", str(port)]
    with log_file.open("wb") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, log_file)
            yield url
        finally:
            process.terminate()
    assert "Traceback" not in log_file.read_text(), log_file.read_text()[-4000:]


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log_file: Path) -> None:
    for _ in range(2 * START_S):
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as answer:
                assert answer.status == 200
                return
        except URLError:  # not listening yet, or 503 while the models load
            pass
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            continue
        words = log_file.read_text()[-2000:]
        if "download_models" in words and not os.environ.get("VOICEPOD_REQUIRE_MODELS"):
            pytest.skip("the models are not there: python -m scripts.download_models --profile cpu")
        raise AssertionError(f"the server ended with status {process.returncode}:\n{words}")
    raise AssertionError("the server was not ready in time")


def open_page(browser: Browser, url: str) -> VoicePage:
    page = VoicePage(browser.new_context(), url)
    page.page.set_default_timeout(PATIENCE_MS)
    return page.open()


def wait_for_answers(page: VoicePage, n: int) -> None:
    """Wait until n replies were heard to their end, or cut."""
    expect(page.page.locator(".latency")).to_have_count(n, timeout=PATIENCE_MS)


def spoken_answer(page: VoicePage) -> AudioChunk:
    """What the page played, from the file that people can download: the reply is its right channel."""
    samples, rate = soundfile.read(io.BytesIO(page.download("wav")), dtype="float32")
    return AudioChunk(samples[:, 1].copy(), rate)


def heard_back(answers: Sequence[AudioChunk]) -> list[str]:
    """The answers' words by our own recogniser. In a thread: Playwright's loop runs in this one."""

    async def transcribe() -> list[str]:
        asr = create_engine("asr", "faster_whisper", Settings())
        await asr.load()
        try:
            return [(await asr.transcribe(answer, language="en")).text for answer in answers]
        finally:
            await asr.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, transcribe()).result()


def in_words(text: str) -> str:
    """Bare words with numbers spelled out, as they are spoken."""
    return plain(re.sub(r"\d+", lambda number: f" {num2words(int(number[0]))} ", text.replace(",", "")))


def test_five_questions_are_understood_and_answered_aloud(
    server: str, playwright_sync: Playwright, tmp_path: Path
) -> None:
    asked, understood, answers, spoken = [], [], [], []
    for clip in questions():
        microphone = write_microphone(tmp_path / f"{clip.name}.wav", [(SPEECH / f"{clip.name}.flac", 600.0)])
        with chromium(playwright_sync, microphone=microphone) as browser:
            page = open_page(browser, server)
            page.button("Start").click()
            wait_for_answers(page, 1)
            (asker, words), (answerer, reply) = page.messages()
            assert (asker, answerer) == ("You", "Voicepod")
            assert reply
            asked.append(clip.text)
            understood.append(words)
            answers.append(spoken_answer(page))
            spoken.append(reply)
            assert page.problems == []
            assert page.elsewhere == []
        microphone.unlink()
    assert jiwer.wer([plain(text) for text in asked], [plain(text) for text in understood]) <= 0.15
    heard = heard_back(answers)
    assert jiwer.wer([in_words(text) for text in spoken], [in_words(text) for text in heard]) <= 0.15, (spoken, heard)


def instruct(page: VoicePage, instructions: str) -> None:
    """Give the assistant other instructions from the next reply on."""
    update = {"type": "session.update", "session": {"type": "realtime", "instructions": instructions}}
    page.inside(f"voice.socket.send({json.dumps(update)})")


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
    page.type("Thank you.")
    expect(page.page.locator(".message").nth(1)).to_be_visible()
    remembered = page.messages()[1][1]
    assert remembered
    assert plain(shown).startswith(plain(remembered)), (shown, remembered)


def test_the_button_cuts_a_long_reply_and_the_history_to_what_was_heard(server: str, silent_browser: Browser) -> None:
    page = open_page(silent_browser, server)
    start_a_long_reply(page)
    page.button("Interrupt").click()
    page.wait_inside("voice.player.mode === 'idle'")
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
