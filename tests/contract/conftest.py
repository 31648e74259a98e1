"""Every registered engine, loaded once for the whole run: weights take seconds to read and the tests share them.

FireRedTTS-2 runs on a tiny checkpoint of random weights, through the code that loads the real one: it makes noise, in
time and in order. A machine without the models skips with the reason; with VOICEPOD_REQUIRE_MODELS=1 the same is a
failure, so that a run which is meant to have them cannot pass by skipping. Lanes belong to one event loop: these tests
run in the session's.
"""

import asyncio
import atexit
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pipeline.engines.base import ENGINES, Asr, EngineKind, Llm, Tts, Vad, create_engine
from pipeline.engines.lanes import Lane
from pipeline.engines.tts_firered import FireRedTts
from pipeline.errors import ConfigError
from settings import Settings
from tests.support.firered_tiny import write_checkpoint
from tests.support.firered_tts import BRIEF, firered_settings, write_voice

OPTIONAL = {"piper", "firered_upstream"}  # installed on request, never by the profile

WAIT_S = 60.0  # only a fault waits this long; the machine may be busy


@cache
def tiny_firered() -> Settings:
    """Settings with a tiny model and one voice, which are there until the tests end."""
    directory = Path(tempfile.mkdtemp(prefix="voicepod-firered-"))
    atexit.register(shutil.rmtree, directory)
    write_voice(directory / "voices" / "anna.voice", "Anna")
    return firered_settings(write_checkpoint(directory / "model"), directory / "voices")


def needs_words(tts: Tts) -> None:
    """Skips what only trained weights can do."""
    if tts.info.name == "firered":
        pytest.skip("random weights speak no words")


async def load_engine(kind: EngineKind, name: str) -> Any:
    """A loaded engine of the default settings, or a skip that says what is missing."""
    if name == "firered":  # random weights never end a piece themselves
        engine: Any = FireRedTts.from_settings(tiny_firered(), limits=BRIEF)
    else:
        engine = create_engine(kind, name, Settings.model_validate({"llm": {"threads": 1}}))
    try:
        await engine.load()
    except ConfigError as error:
        await engine.close()
        if os.environ.get("VOICEPOD_REQUIRE_MODELS") and name not in OPTIONAL:
            raise
        pytest.skip(error.message)
    return engine


async def idle(engine: Any) -> None:
    """Return once no step of the engine runs: its lane knows, or the engine itself where it batches its own jobs."""
    worker: Lane | FireRedTts = engine if isinstance(engine, FireRedTts) else engine._lane
    async with asyncio.timeout(WAIT_S):
        await worker.idle()


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=sorted(ENGINES["vad"]))
async def vad(request: pytest.FixtureRequest) -> AsyncIterator[Vad]:
    engine = await load_engine("vad", request.param)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=sorted(ENGINES["asr"]))
async def asr(request: pytest.FixtureRequest) -> AsyncIterator[Asr]:
    engine = await load_engine("asr", request.param)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=sorted(ENGINES["llm"]))
async def llm(request: pytest.FixtureRequest) -> AsyncIterator[Llm]:
    engine = await load_engine("llm", request.param)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=sorted(ENGINES["tts"]))
async def tts(request: pytest.FixtureRequest) -> AsyncIterator[Tts]:
    engine = await load_engine("tts", request.param)
    yield engine
    await engine.close()
