"""Every registered engine, loaded once for the whole run: weights take seconds to read and the tests share them.

FireRedTTS-2 and F5-TTS run on tiny checkpoints of random weights, through the code that loads the real ones: they make
noise, in time and in order. A machine without the models skips with the reason; with VOICEPOD_REQUIRE_MODELS=1 the same
is a failure, so that a run which is meant to have them cannot pass by skipping. Lanes belong to one event loop: these
tests run in the session's.
"""

import asyncio
import atexit
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio

from pipeline.engines.base import ENGINES, Asr, EngineKind, Llm, Tts, Vad, create_engine
from pipeline.engines.process import ProcessLlm, ProcessTts, in_processes
from pipeline.engines.tiny_chat import ANSWER, write_tiny_chat
from pipeline.engines.tiny_f5 import write_tiny_f5
from pipeline.engines.tts_f5 import F5Tts
from pipeline.engines.tts_firered import FireRedTts
from pipeline.errors import ConfigError
from pipeline.models import locate
from settings import Settings
from tests.support.firered_tiny import write_checkpoint
from tests.support.firered_tts import BRIEF, firered_settings, write_voice
from tests.support.llama_server import KEY, llama_server

OPTIONAL = {"piper", "firered_upstream"}  # installed on request, never by the profile

WAIT_S = 60.0  # only a fault waits this long; the machine may be busy


@contextmanager
def _time_to_count() -> Iterator[None]:
    """What another server does not count in time, its engine guesses: here the machine may be busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.engines.chat_server.ASK_S", WAIT_S)
        yield


@pytest.fixture(scope="module", autouse=True)
def _all_the_time_to_count() -> Iterator[None]:
    with _time_to_count():
        yield


@cache
def tiny_firered() -> Settings:
    """Settings with a tiny model and one voice, which are there until the tests end."""
    directory = Path(tempfile.mkdtemp(prefix="voicepod-firered-"))
    atexit.register(shutil.rmtree, directory)
    write_voice(directory / "voices" / "anna.voice", "Anna")
    return firered_settings(write_checkpoint(directory / "model"), directory / "voices")


@cache
def tiny_f5() -> Settings:
    """Settings with a tiny model, which is there until the tests end."""
    directory = Path(tempfile.mkdtemp(prefix="voicepod-f5-"))
    atexit.register(shutil.rmtree, directory)
    return Settings.model_validate(
        {
            "models": {"tts_model_path": write_tiny_f5(directory / "model")},
            "voices": {"dir": directory / "voices"},
            "system": {"gpu_device": "cpu"},
            "tts": {"engine": "f5", "threads": 1},
        }
    )


@cache
def tiny_chat() -> Path:
    """The directory of a tiny chat model, which is there until the tests end."""
    directory = Path(tempfile.mkdtemp(prefix="voicepod-chat-"))
    atexit.register(shutil.rmtree, directory)
    return write_tiny_chat(directory)


def says(llm: Llm, text: str, word: str) -> bool:
    """Whether the answer holds the word. The tiny model knows one answer only, whatever it is asked."""
    return text == ANSWER if llm.info.name == "transformers" else word in text


def speaks_words(tts: Tts) -> bool:
    """Whether it has trained weights."""
    return tts.info.name not in ("firered", "f5")


def needs_words(tts: Tts) -> None:
    """Skips what only trained weights can do."""
    if not speaks_words(tts):
        pytest.skip("random weights speak no words")


def own_weights(name: str) -> dict[str, Any]:
    """Tiny weights for the engine that has none to download on a small machine."""
    return {"path": tiny_chat(), "device": "cpu"} if name == "transformers" else {}


def remote(name: str) -> dict[str, Any]:
    """Where the engine for other servers finds one: a process of llama.cpp's, as no port of ours may be open."""
    if name != "openai":
        return {}
    try:
        url = llama_server(Settings().models.dir)
    except ConfigError:  # without the model there is no server, and loading says what is missing
        return {}
    return {"base_url": url, "api_key": KEY, "temperature": 0}


IN_PROCESS = " in a process"  # behind an engine's name: the same one in a child process
OUR_LLM, OUR_TTS = f"transformers{IN_PROCESS}", f"firered{IN_PROCESS}"
SETTINGS_OF_TINY: dict[str, Callable[[], Settings]] = {
    "llm": lambda: Settings.model_validate({"llm": {"engine": "transformers", **own_weights("transformers")}}),
    "tts": tiny_firered,
}


def in_process(kind: EngineKind, name: str) -> Any:
    """The stand-in for an engine of tiny weights that lives in a process of its own."""
    system = {"engine_processes": (kind,), "gpu_device": "cpu"}
    settings = SETTINGS_OF_TINY[kind]()
    settings = settings.model_copy(update={"system": settings.system.model_copy(update=system)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES["tts"], "firered", "tests.support.firered_tts:BriefFireRed")
        return in_processes(settings)[0][kind]


async def load_engine(kind: EngineKind, name: str, **changed: Any) -> Any:
    """A loaded engine of the default settings but for these sections, or a skip that says what is missing."""
    if name.endswith(IN_PROCESS):
        engine: Any = in_process(kind, name.removesuffix(IN_PROCESS))
        await engine.load()
        return engine
    if name == "firered":  # random weights never end a piece themselves
        engine = FireRedTts.from_settings(tiny_firered(), limits=BRIEF)
    elif name == "f5":
        engine = F5Tts.from_settings(tiny_f5(), n_steps=4)
    else:
        llm = {"threads": 1, **remote(name), **own_weights(name)}
        sections = {"asr": {"threads": 1}, "llm": llm, "tts": {"threads": 1}}
        engine = create_engine(kind, name, Settings.model_validate(sections | changed))
    try:
        with _time_to_count():
            await engine.load()
    except ConfigError as error:
        await engine.close()
        if os.environ.get("VOICEPOD_REQUIRE_MODELS") and name not in OPTIONAL:
            raise
        pytest.skip(error.message)
    return engine


async def idle(engine: Any) -> None:
    """Return once no step of the engine runs: its lane knows, or the engine itself where it batches its own jobs."""
    if isinstance(engine, ProcessLlm | ProcessTts):
        async with asyncio.timeout(WAIT_S):
            for _ in range(2):  # it has done all that it was told before the second answer to a ping
                answered_s = engine.process._pong_s
                while engine.process._pong_s == answered_s or engine.process._ending:
                    await asyncio.sleep(0.02)
        return
    worker = engine if hasattr(engine, "idle") else engine._lane
    async with asyncio.timeout(WAIT_S):
        await worker.idle()


KEPT = ("faster_whisper", "kokoro", "piper")  # several fixtures give them, and each load takes seconds


class Kept(Protocol):
    """Gives a loaded engine of the default settings but for these sections; each is loaded once."""

    def __call__(self, kind: EngineKind, name: str, /, **changed: Any) -> Awaitable[Any]: ...


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kept() -> AsyncIterator[Kept]:
    """Loads an engine at the first call; it stays until the tests end."""
    engines: dict[str, Any] = {}

    async def get(kind: EngineKind, name: str, /, **changed: Any) -> Any:
        key = f"{name} {changed}"
        if key not in engines:
            engines[key] = await load_engine(kind, name, **changed)
        return engines[key]

    yield get
    for engine in engines.values():
        await engine.close()


async def english(name: str, kept: Kept) -> Asr:
    """This Whisper engine with the model tiny.en, from a directory of one's own: half the work of the default one."""
    try:
        directory = locate(Settings().models.dir, "whisper-tiny.en")
    except ConfigError as error:
        if os.environ.get("VOICEPOD_REQUIRE_MODELS"):
            raise
        pytest.skip(error.message)
    engine: Asr = await kept("asr", name, asr={"path": directory, "device": "cpu", "threads": 1})
    return engine


@asynccontextmanager
async def given(kind: EngineKind, name: str, kept: Kept) -> AsyncIterator[Any]:
    """A loaded engine; it is closed after its tests if no others use it."""
    if name in KEPT:
        yield await kept(kind, name)
        return
    engine = await load_engine(kind, name)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=sorted(ENGINES["vad"]))
async def vad(request: pytest.FixtureRequest, kept: Kept) -> AsyncIterator[Vad]:
    async with given("vad", request.param, kept) as engine:
        yield engine


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=sorted(ENGINES["asr"]))
async def asr(request: pytest.FixtureRequest, kept: Kept) -> AsyncIterator[Asr]:
    async with given("asr", request.param, kept) as engine:
        yield engine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def recogniser(kept: Kept) -> Asr:
    """One that listens to the voices: with all of them every sentence would be heard several times."""
    engine: Asr = await kept("asr", "faster_whisper")
    return engine


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=[*sorted(ENGINES["llm"]), OUR_LLM])
async def llm(request: pytest.FixtureRequest, kept: Kept) -> AsyncIterator[Llm]:
    async with given("llm", request.param, kept) as engine:
        yield engine


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=[*sorted(ENGINES["tts"]), OUR_TTS])
async def tts(request: pytest.FixtureRequest, kept: Kept) -> AsyncIterator[Tts]:
    async with given("tts", request.param, kept) as engine:
        yield engine
