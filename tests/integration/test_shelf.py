"""A bounded number of loaded models: who is closed for whom, and who has to wait."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import psutil
import pytest

from pipeline.audio import AudioChunk
from pipeline.engines.base import CloningTts, EngineKind, Engines, Message, SpeechPiece, Voice, Word, WordTimes
from pipeline.engines.shelf import Shelf, on_shelf
from pipeline.errors import ConfigError, EngineNotReady
from pipeline.sentences import PieceSplitter
from pipeline.turn import ReplySink, Waits, speak
from process_tuning import give_back_memory
from settings import Settings
from tests.support.faulty_engines import RATE, FaultyLlm, FaultyTts
from tests.support.scripted import ScriptedAsr, ScriptedLlm

BEA = Voice("bea", "Bea", "en", cloned=True)


@pytest.fixture(autouse=True)
def _frozen_again() -> Iterator[None]:
    """The shelf takes back what `tests/conftest.py` did for all tests."""
    yield
    gc.freeze()


class Log:
    """Engines that write down when they are loaded and closed."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def watched(self, name: str, make: Any) -> Any:
        def create() -> Any:
            engine = make()
            load, close = engine.load, engine.close

            async def loaded() -> None:
                await load()
                self.events.append(f"+{name}")
                engine.was_loaded = True

            async def closed() -> None:
                await close()
                if getattr(engine, "was_loaded", False):
                    self.events.append(f"-{name}")

            engine.load, engine.close = loaded, closed
            return engine

        return create


def shelved(limit: int, log: Log, **makers: Any) -> dict[str, Any]:
    shelf = Shelf(limit)
    kinds: dict[str, EngineKind] = {"asr": "asr", "llm": "llm", "tts": "tts"}
    return {name: on_shelf(shelf, kinds[name], log.watched(name, make)) for name, make in makers.items()}


async def heard(asr: Any) -> str:
    return str((await asr.transcribe(AudioChunk.silence(0.1, 16_000), language="en")).text)


async def said(llm: Any) -> str:
    async with aclosing(llm.reply([Message("user", "hello")])) as deltas:
        return "".join([delta async for delta in deltas])


async def spoken(tts: Any, voice: Voice) -> int:
    async def pieces() -> AsyncIterator[SpeechPiece]:
        yield SpeechPiece(0, "hello", 0, 5)

    async with aclosing(tts.synthesize(pieces(), voice=voice)) as chunks:
        return sum([chunk.audio.n_samples async for chunk in chunks])


def faulty_tts() -> FaultyTts:
    return FaultyTts(Settings())


async def test_the_one_not_used_for_longest_makes_room_and_comes_back_when_it_is_needed() -> None:
    log = Log()
    engines = shelved(2, log, asr=lambda: ScriptedAsr(["words"] * 9, 0.0), llm=ScriptedLlm, tts=faulty_tts)
    assert isinstance(engines["tts"], CloningTts)
    assert not isinstance(engines["asr"], WordTimes)
    for engine in engines.values():
        await engine.load()
    assert log.events == ["+asr", "+llm", "-asr", "+tts"]
    assert await said(engines["llm"])  # still there
    assert await heard(engines["asr"]) == "words"
    assert log.events[4:] == ["-tts", "+asr"]
    # A voice that was added is there again with the engine.
    await engines["tts"].add_voice(BEA, b"data")
    await heard(engines["asr"])
    await said(engines["llm"])
    assert log.events[-1] == "+llm"
    assert await spoken(engines["tts"], BEA) == 5
    for engine in engines.values():
        await engine.close()
    assert sorted(event[1:] for event in log.events if event[0] == "+") == sorted(
        event[1:] for event in log.events if event[0] == "-"
    )


class CircularLlm(ScriptedLlm):
    """Frees its weights as the engine of transformers does: a network may hold itself in a circle."""

    network: Any = None

    async def load(self) -> None:
        self.network = type("Network", (), {})()
        self.network.itself = self.network
        await super().load()

    async def close(self) -> None:
        self.network = None
        await super().close()
        gc.collect()


async def test_who_makes_room_does_so_although_the_server_keeps_the_collector_off_what_was_loaded_at_first() -> None:
    made: list[CircularLlm] = []

    def circular() -> CircularLlm:
        made.append(CircularLlm())
        return made[-1]

    engines = shelved(1, Log(), asr=lambda: ScriptedAsr(["words"] * 9, 0.0), llm=circular)
    await engines["llm"].load()
    network = weakref.ref(made[-1].network)
    gc.freeze()
    await engines["asr"].load()
    assert network() is None


class HeavyLlm(ScriptedLlm):
    """Holds 200 MB while it is loaded, and something small behind them for ever."""

    weights: Sequence[bytes] = ()

    async def load(self) -> None:
        self.weights = [bytes([k]) * 2**20 for k in range(200)]
        self.kept = b"x" * 2**16
        await super().load()

    async def close(self) -> None:
        self.weights = ()
        await super().close()


async def test_who_makes_room_gives_the_memory_back_to_the_system() -> None:
    engines = shelved(1, Log(), asr=lambda: ScriptedAsr(["words"] * 9, 0.0), llm=HeavyLlm)
    give_back_memory()
    before = psutil.Process().memory_info().rss
    await engines["llm"].load()
    loaded = psutil.Process().memory_info().rss
    await engines["asr"].load()
    after = psutil.Process().memory_info().rss
    assert loaded - before > 150 * 2**20
    assert after < loaded - 150 * 2**20


async def one_waits_for_the_other(log: Log) -> tuple[dict[str, Any], Any, asyncio.Task[str]]:
    """The only place is a reply's, and somebody's words wait for it."""
    engines = shelved(1, log, asr=lambda: ScriptedAsr(["words"] * 9, 0.0), llm=ScriptedLlm)
    for engine in engines.values():
        await engine.load()
    stream = engines["llm"].reply([Message("user", "hello")])
    await anext(stream)
    hearing = asyncio.create_task(heard(engines["asr"]))
    for _ in range(20):
        await asyncio.sleep(0)
    return engines, stream, hearing


async def test_an_engine_in_use_is_not_closed_the_next_one_waits_for_its_end() -> None:
    log = Log()
    _, stream, hearing = await one_waits_for_the_other(log)
    assert not hearing.done()
    assert "-llm" not in log.events
    await stream.aclose()
    assert await hearing == "words"
    assert log.events[-2:] == ["-llm", "+asr"]


async def test_an_engine_that_is_closed_while_somebody_waits_for_it_is_not_loaded_again() -> None:
    log = Log()
    engines, stream, hearing = await one_waits_for_the_other(log)
    await engines["asr"].close()
    await stream.aclose()
    with pytest.raises(EngineNotReady):
        await hearing
    assert log.events.count("+asr") == 1


async def test_a_reply_is_spoken_where_one_engine_has_room() -> None:
    engines = shelved(1, Log(), llm=lambda: ScriptedLlm(["One. Two is more. Three is most of all."]), tts=faulty_tts)
    for engine in engines.values():
        await engine.load()
    n_samples = 0

    async def take(audio: AudioChunk, words: tuple[Word, ...]) -> bool:
        nonlocal n_samples
        n_samples += audio.n_samples
        return True

    def ignore(item: Any) -> None:
        return

    async with asyncio.timeout(10):
        await speak(
            engines["llm"].reply([Message("user", "hello")]),
            ReplySink(ignore, ignore, ignore, take, ignore),
            tts=engines["tts"],
            voice=Voice("anna", "Anna", "en"),
            splitter=PieceSplitter(language="en", first_clause_min_chars=3, piece_max_chars=20),
            output_rate=RATE,
            waits=Waits.from_settings(Settings().turn),
        )
    assert n_samples > 30


async def test_before_load_and_after_close_work_is_refused_and_a_missing_model_is_told() -> None:
    def broken() -> Any:
        llm = FaultyLlm(Settings())

        async def load() -> None:
            raise ConfigError("there is no model. Run: download it")

        llm.load = load  # type: ignore[method-assign]
        return llm

    engines = shelved(1, Log(), llm=broken, asr=lambda: ScriptedAsr(["words"], 0.0))
    with pytest.raises(ConfigError):
        await engines["llm"].load()
    with pytest.raises(EngineNotReady):
        await said(engines["llm"])
    await engines["asr"].load()
    await engines["asr"].close()
    with pytest.raises(EngineNotReady):
        await heard(engines["asr"])


def test_max_loaded_models_acts() -> None:
    roomy = Engines.from_settings(Settings())
    tight = Engines.from_settings(Settings.model_validate({"system": {"max_loaded_models": 2}}))
    assert type(roomy.llm).__name__ == "LlamaCppLlm"
    assert type(tight.llm).__name__ == "ShelvedLlm"
    assert tight.llm.info == roomy.llm.info
    with pytest.raises(ValueError, match="engine_processes"):
        Settings.model_validate({"system": {"max_loaded_models": 2, "engine_processes": ["tts"]}})
