"""What the HTTP API speaks with the real voices, its own recogniser understands."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import jiwer
import pytest

from api.application import Server
from pipeline.engines.base import Asr, Engines, Tts, WordTimes
from tests.contract.conftest import WAIT_S, needs_words
from tests.support.live_server import scripted_settings
from tests.support.scripted import ScriptedLlm, ScriptedTts, ScriptedVad
from tests.support.speech_clips import SPEECH, recordings
from tests.support.words import plain

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

TEXT = "There are seven days in a week."


@contextlib.asynccontextmanager
async def client_of(asr: Asr, tts: Tts, directory: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The application without its lifespan: the engines are loaded already, and are not its own to close."""
    patience = {f"{stage}_timeout_s": 2 * WAIT_S for stage in ("asr", "first_audio", "audio")}
    settings = scripted_settings(storage={"dir": directory}, tts={"voice": tts.info.voices[0].id}, turn=patience)
    server = Server(settings, Engines(ScriptedVad(), asr, ScriptedLlm(), tts))
    for kind, engine in server.engines.by_kind().items():
        async with server.readiness.loading(kind, engine.info.name):
            pass
    transport = httpx.ASGITransport(app=server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=4 * WAIT_S) as client:
        yield client
    await server.store.aclose()


async def test_what_is_spoken_is_heard_again(tts: Tts, recogniser: Asr, tmp_path: Path) -> None:
    needs_words(tts)
    async with client_of(recogniser, tts, tmp_path) as client:
        speech = await client.post(
            "/v1/audio/speech", json={"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": "opus"}
        )
        assert speech.status_code == 200
        heard = await client.post(
            "/v1/audio/transcriptions", files={"file": speech.content}, data={"model": "whisper-1", "language": "en"}
        )
    assert heard.status_code == 200
    assert jiwer.wer(plain(TEXT), plain(heard.json()["text"])) <= 0.15  # a word of the seven


async def test_word_times_lie_within_the_words(recogniser: Asr, tmp_path: Path) -> None:
    assert isinstance(recogniser, WordTimes)
    clip = recordings()[0]
    async with client_of(recogniser, ScriptedTts(), tmp_path) as client:
        answer = await client.post(
            "/v1/audio/transcriptions",
            files={"file": (SPEECH / clip.name).read_bytes()},
            data={"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]},
        )
    found = answer.json()
    words = found["words"]
    assert found["language"] == "en"
    assert jiwer.wer(plain(clip.text), plain(" ".join(word["word"] for word in words))) <= 0.1
    starts = [word["start"] for word in words]
    assert starts == sorted(starts)
    assert all(0 <= word["start"] <= word["end"] <= clip.audio.seconds + 0.1 for word in words)
    ask = next(word for word in words if plain(word["word"]) == "ask")
    assert ask["end"] == pytest.approx(3.7, abs=0.3)  # a start may reach into the pause before the word
    assert len(found["segments"]) >= 2
    assert found["segments"][-1]["end"] == words[-1]["end"]
