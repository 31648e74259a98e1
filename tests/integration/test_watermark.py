"""The watermark through every door: what cloned voices say carries it, and `POST /api/watermark` finds it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from api.rest.transcriptions import MAX_DIRECT_S
from pipeline.audio import AudioChunk, concat, decode_file, file_bytes
from pipeline.engines.base import SpeechChunk, SpeechPiece, Voice
from pipeline.engines.marking import MarkingTts
from pipeline.errors import ConfigError
from pipeline.watermark import THRESHOLD, Watermarker
from settings_sources import load_settings
from tests.support.client import connected
from tests.support.rest import Rest, a_file, rest_server
from tests.support.scripted import TTS_RATE, VOICES, ScriptedAsr, ScriptedLlm, ScriptedTts

SPEECH = Path(__file__).parents[1] / "fixtures" / "speech"


def models_dir() -> Path:
    return load_settings(None, os.environ).settings.models.dir


@pytest.fixture(scope="module")
def watermarker() -> Watermarker:
    """The real weights; a skip says how to get them."""
    try:
        return Watermarker.installed(models_dir())
    except ConfigError as error:
        if os.environ.get("VOICEPOD_REQUIRE_MODELS"):
            raise
        pytest.skip(error.message)


@cache
def speech() -> AudioChunk:
    """Three seconds of a voice."""
    return decode_file((SPEECH / "question_hamlet.flac").read_bytes(), max_seconds=60).resampled(TTS_RATE)


class SpeakingTts(ScriptedTts):
    """Says the same question for every piece, in chunks of 80 ms; anna's voice is a clone, bruno's is not."""

    info = replace(ScriptedTts.info, voices=(replace(VOICES[0], cloned=True), VOICES[1]))

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        step = TTS_RATE * 80 // 1000
        starts = range(0, speech().n_samples, step)
        async for piece in pieces:
            for start in starts:
                yield SpeechChunk(speech().slice(start, start + step), piece.index, final=start == starts[-1])


@pytest.fixture
async def rest(watermarker: Watermarker) -> AsyncIterator[Rest]:
    tts: Any = MarkingTts(SpeakingTts(), models_dir(), all_voices=False)
    async with rest_server(asr=ScriptedAsr(delay_s=0.0), llm=ScriptedLlm(["It is so."] * 9), tts=tts) as running:
        yield running


def heard(answer: httpx.Response) -> AudioChunk:
    assert answer.status_code == 200, answer.text[:200]
    return AudioChunk.from_pcm16(answer.content, TTS_RATE)


async def asked(rest: Rest, audio: bytes) -> httpx.Response:
    return await rest.client.post("/api/watermark", files={"file": ("speech.wav", audio, "audio/wav")})


pytestmark = pytest.mark.models


@pytest.mark.parametrize(("voice", "is_marked"), [("anna", True), ("bruno", False)])
async def test_what_a_cloned_voice_says_is_marked_at_every_door(rest: Rest, voice: str, is_marked: bool) -> None:
    body = {"text": "It is so.", "format": "pcm", "voice": voice}
    spoken = {"/api/tts": heard(await rest.client.post("/api/tts", json=body))}
    body = {"model": "x", "input": "It is so.", "response_format": "pcm", "voice": voice}
    spoken["/v1/audio/speech"] = heard(await rest.client.post("/v1/audio/speech", json=body))
    params = {"format": "pcm", "voice": voice}
    spoken["/api/converse"] = heard(await rest.client.post("/api/converse", content=a_file(), params=params))
    async with connected(rest.live.url) as client:
        await client.until("session.created")
        await client.send("session.update", session={"type": "realtime", "audio": {"output": {"voice": voice}}})
        await client.until("session.updated")
        await client.say()
        await client.until("response.done")
        spoken["/v1/realtime"] = AudioChunk.from_pcm16(client.pcm, TTS_RATE)
    for door, audio in spoken.items():
        assert audio.seconds == pytest.approx(speech().seconds, abs=0.01), door
        detection = (await asked(rest, file_bytes(audio, "wav"))).json()
        assert detection["watermarked"] is is_marked, door


async def test_a_compressed_file_is_heard_as_well(rest: Rest) -> None:
    for kind in ("mp3", "opus"):
        answer = await rest.client.post("/api/tts", json={"text": "It is so.", "format": kind, "voice": "anna"})
        detection = (await asked(rest, answer.content)).json()
        assert detection["watermarked"] is True
        assert THRESHOLD <= detection["confidence"] <= 1.0


async def test_marked_speech_is_found_at_the_end_of_a_long_recording(rest: Rest, watermarker: Watermarker) -> None:
    stream = watermarker.stream(TTS_RATE)
    marked = AudioChunk(np.concatenate([stream.add(speech().samples), stream.flush()]), TTS_RATE)
    recording = [speech()] * 6
    assert (await asked(rest, file_bytes(concat(recording, TTS_RATE), "wav"))).json()["watermarked"] is False
    assert (await asked(rest, file_bytes(concat([*recording, *[marked] * 4], TTS_RATE), "wav"))).json()["watermarked"]


async def test_the_answer_is_not_kept_by_caches(rest: Rest) -> None:
    answer = await asked(rest, a_file())
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert set(answer.json()) == {"watermarked", "confidence"}


@pytest.mark.parametrize(
    ("audio", "status", "code"),
    [
        (b"no audio", 400, "not_audio"),
        (file_bytes(AudioChunk.silence(1, 16000), "wav"), 400, "silent"),
        (a_file(0.05), 400, "too_short"),
        (a_file(MAX_DIRECT_S + 1), 400, "too_long"),
    ],
)
async def test_what_is_no_speech_is_refused_with_a_reason(rest: Rest, audio: bytes, status: int, code: str) -> None:
    answer = await asked(rest, audio)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_another_body_is_refused(rest: Rest) -> None:
    assert (await rest.client.post("/api/watermark", content=a_file())).status_code == 415
    assert (await rest.client.post("/api/watermark", files={"other": b"x"})).status_code == 400


async def test_the_limits_of_uploads_and_of_size_hold() -> None:
    async with rest_server(security={"rate_limiting": True, "max_upload_size_mb": 0.1}) as rest:
        assert (await asked(rest, a_file(10))).status_code == 413
        answers = [(await asked(rest, b"no audio")).status_code for _ in range(12)]
        assert answers[-1] == 429


async def test_a_server_without_the_weights_says_so(tmp_path: Path) -> None:
    async with rest_server(models={"dir": tmp_path}) as rest:
        answer = await asked(rest, a_file())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_not_ready")


async def test_two_recordings_at_once_are_heard_one_after_the_other(rest: Rest) -> None:
    answers = await asyncio.gather(*(asked(rest, a_file(2.0)) for _ in range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3
