"""Cloning with FireRedTTS-2: the real loading and encoding code on tiny random weights, over HTTP as well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from firered import VoicePrompt
from pipeline.audio import AudioChunk, concat, file_bytes
from pipeline.engines.base import CloningTts, Voice
from pipeline.engines.tts_firered import LANGUAGES, FireRedTts
from pipeline.errors import EngineNotReady, InvalidInput
from tests.support.firered_tiny import speech_like, write_checkpoint
from tests.support.firered_tts import BRIEF, firered_settings, voice_prompt
from tests.support.live_server import live_server, scripted_settings
from tests.support.rest import Rest
from tests.support.scripted import ScriptedAsr
from tests.support.speech_clips import pieces
from tests.support.voices import PitchSpeakers, cloned, said

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 60.0  # only a fault waits this long
WORDS = "these are the words of the recording"
MINE = Voice("voice_0123", "Mine", "en", languages=LANGUAGES, cloned=True)
SAMPLE = AudioChunk(speech_like(16_000 * 4), 16_000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("firered") / "model")


async def loaded(model: Path, voices: Path) -> FireRedTts:
    tts = FireRedTts.from_settings(firered_settings(model, voices, system={"max_concurrent_users": 2}), limits=BRIEF)
    async with asyncio.timeout(WAIT_S):
        await tts.load()
    return tts


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tts(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FireRedTts]:
    engine = await loaded(model, tmp_path_factory.mktemp("no voices"))
    yield engine
    await engine.close()


async def spoken(tts: FireRedTts, voice: Voice, *, seed: int = 3) -> AudioChunk:
    repeated = Voice(voice.id, voice.name, voice.language, seed=seed)
    async with asyncio.timeout(WAIT_S), aclosing(tts.synthesize(pieces("Hello there."), voice=repeated)) as chunks:
        return concat([chunk.audio async for chunk in chunks], 24_000)


async def test_firered_clones(tts: FireRedTts) -> None:
    assert isinstance(tts, CloningTts)
    data = await tts.clone(SAMPLE, WORDS, name="Mine")
    prompt = VoicePrompt.from_bytes(data)
    assert (prompt.transcript, prompt.name) == (WORDS, "Mine")
    assert prompt.seconds == pytest.approx(SAMPLE.seconds, abs=0.7)
    assert await tts.clone(SAMPLE, WORDS, name="Mine") == data


async def test_an_added_voice_speaks_and_is_not_among_the_stock(tts: FireRedTts) -> None:
    stock = tts.info.voices
    await tts.add_voice(MINE, await tts.clone(SAMPLE, WORDS, name="Mine"))
    assert tts.info.voices == stock
    mine, random = await spoken(tts, MINE), await spoken(tts, stock[0])
    assert mine.n_samples
    assert not np.array_equal(mine.samples, random.samples)
    assert np.array_equal((await spoken(tts, MINE)).samples, mine.samples)
    await tts.remove_voice(MINE.id)
    await tts.remove_voice(MINE.id)
    with pytest.raises(InvalidInput, match="no such voice"):
        await spoken(tts, MINE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"FR2VOICE but not really",
        voice_prompt("x").to_bytes()[:-3],
        voice_prompt("x", codebook_size=2048).to_bytes(),  # of the published codec, which has more entries
    ],
    ids=["empty", "foreign", "cut", "another codec"],
)
async def test_data_that_the_model_cannot_speak_with_is_a_typed_refusal(tts: FireRedTts, data: bytes) -> None:
    with pytest.raises(InvalidInput) as refused:
        await tts.add_voice(MINE, data)
    assert refused.value.code == "voice_not_usable"
    with pytest.raises(InvalidInput, match="no such voice"):
        await spoken(tts, MINE)


@pytest.mark.parametrize(
    ("sample", "transcript"),
    [
        (AudioChunk.silence(4, 16_000), WORDS),
        (SAMPLE.slice(0, 3200), WORDS),
        (SAMPLE, "..."),
        (SAMPLE, ""),
    ],
    ids=["silent", "short", "no words", "empty"],
)
async def test_a_recording_that_cannot_serve_is_a_typed_refusal(
    tts: FireRedTts, sample: AudioChunk, transcript: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await tts.clone(sample, transcript, name="Mine")
    assert refused.value.code == "voice_not_clonable"


async def test_voices_come_and_go_while_others_speak(tts: FireRedTts) -> None:
    data = await tts.clone(SAMPLE, WORDS, name="Mine")
    await tts.add_voice(MINE, data)
    alone = await spoken(tts, MINE)
    async with asyncio.timeout(WAIT_S), aclosing(tts.synthesize(pieces("Hello there."), voice=MINE)) as chunks:
        first = await anext(chunks)
        await tts.remove_voice(MINE.id)
        for number in range(3):
            other = Voice(f"voice_{number}", "Other", "en")
            await tts.add_voice(other, data)
            await tts.remove_voice(other.id)
        rest = [chunk.audio async for chunk in chunks]
    assert concat([first.audio, *rest], 24_000).n_samples == alone.n_samples


async def test_an_engine_that_is_not_loaded_or_closed_makes_no_voice(model: Path, tmp_path: Path) -> None:
    engine = FireRedTts.from_settings(firered_settings(model, tmp_path), limits=BRIEF)
    for _ in range(2):
        with pytest.raises(EngineNotReady):
            await engine.clone(SAMPLE, WORDS, name="Mine")
        with pytest.raises(EngineNotReady):
            await engine.add_voice(MINE, b"")
        await engine.remove_voice(MINE.id)
        await engine.close()


@asynccontextmanager
async def served(tts: FireRedTts, directory: Path) -> AsyncIterator[Rest]:
    settings = scripted_settings(tts={"voice": "random"}, storage={"dir": directory}, security={"rate_limiting": False})
    engine: Any = tts
    async with live_server(settings, tts=engine, asr=ScriptedAsr(delay_s=0.0), speakers=PitchSpeakers()) as live:
        async with httpx.AsyncClient(base_url=live.http, timeout=WAIT_S) as client:
            yield Rest(live, client)


async def test_a_voice_is_cloned_over_http_and_speaks_after_a_restart(model: Path, tmp_path: Path) -> None:
    async with served(await loaded(model, tmp_path), tmp_path / "data") as rest:
        shown = (await rest.client.get("/api/clone")).json()
        assert (shown["method"], shown["engine"], shown["languages"]) == ("clone", "firered", list(LANGUAGES))
        assert "academic research" in shown["notice"]
        voice = await cloned(rest, audio=file_bytes(said(5), "wav"), transcript=WORDS)
        assert (voice["kind"], voice["transcript"], voice["languages"][0]) == ("clone", WORDS, "en")
        body = {"text": "Hello there.", "voice": voice["id"], "format": "wav", "seed": 5}
        heard = (await rest.client.post("/api/tts", json=body)).content
        assert len(heard) > 1000
    async with served(await loaded(model, tmp_path), tmp_path / "data") as rest:
        assert (await rest.client.get(f"/api/voices/{voice['id']}")).json() == voice
        assert (await rest.client.post("/api/tts", json=body)).content == heard
