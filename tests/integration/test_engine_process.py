"""Engines in processes of their own: what they give, and what happens when such a process dies, hangs or leaks."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest
from pydantic import SecretStr

from pipeline.audio import AudioChunk
from pipeline.engines import lanes
from pipeline.engines.base import ENGINES, CloningTts, Engines, Message, SpeechPiece, Voice, WordTimes
from pipeline.engines.lanes import Spoke
from pipeline.engines.process_host import is_poisoned
from pipeline.errors import ConfigError, EngineFailed, EngineNotReady, InvalidInput, OutOfMemory
from pipeline.memory import read_memory
from settings import Settings
from tests.support.faulty_engines import RATE

WAIT_S = 60.0  # only a fault waits so long; the machine may be busy
ANNA = Voice("anna", "Anna", "en")


@pytest.fixture(autouse=True)
def _faulty_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("asr", "llm", "tts"):
        name = f"tests.support.faulty_engines:Faulty{kind.capitalize()}"
        monkeypatch.setitem(ENGINES, kind, {"faulty": name})


def settings_with(directory: Path, *groups: str, **scaling: Any) -> Settings:
    engine = {"engine": "faulty"}
    return Settings.model_validate(
        {
            "system": {"engine_processes": groups},
            "scaling_config": {"restart_wait_s": 60, "step_timeout_s": 30, "worker_timeout": 60, **scaling},
            "cache": {"dir": directory},
            "asr": engine,
            "llm": engine,
            "tts": engine,
            "voices": {"watermark": "off"},
        }
    )


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Engines]:
    engines = Engines.from_settings(settings)
    try:
        async with asyncio.timeout(WAIT_S):
            for engine in (engines.asr, engines.llm, engines.tts):
                await engine.load()
        yield engines
    finally:
        for engine in (engines.asr, engines.llm, engines.tts):
            await engine.close()
        for process in engines.processes:
            assert process.pid is None


async def said(engines: Engines, text: str, max_tokens: int | None = None) -> list[str]:
    reply = cast(AsyncGenerator[str, None], engines.llm.reply([Message("user", text)], max_tokens=max_tokens))
    async with asyncio.timeout(WAIT_S), aclosing(reply) as deltas:
        return [delta async for delta in deltas]


async def heard(engines: Engines, directory: Path, words: str) -> str:
    (directory / "heard").write_text(words)
    async with asyncio.timeout(WAIT_S):
        return (await engines.asr.transcribe(AudioChunk.silence(0.5, 16_000), language=None)).text


async def spoken(engines: Engines, *texts: str, voice: Voice = ANNA) -> list[tuple[int, list[float], bool]]:
    async def pieces() -> AsyncIterator[SpeechPiece]:
        for index, text in enumerate(texts):
            yield SpeechPiece(index, text, 0, len(text))

    async with asyncio.timeout(WAIT_S), aclosing(engines.tts.synthesize(pieces(), voice=voice)) as chunks:  # type: ignore[type-var]
        return [(c.piece_index, c.audio.samples.tolist(), c.final) async for c in chunks]


async def ends(*awaited: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*awaited, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.02)


async def test_one_process_serves_all_three_engines_as_if_they_were_here(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path, "asr+llm+tts")) as engines:
        (process,) = engines.processes
        assert process.pid is not None
        assert engines.asr.info.languages == ("en", "de")
        assert not isinstance(engines.asr, WordTimes)
        assert isinstance(engines.tts, CloningTts)

        assert await heard(engines, tmp_path, "guten tag") == "guten tag"
        assert await said(engines, "good day") == ["good ", "day ", f"[{process.pid}]"]
        assert await said(engines, "good day to you", max_tokens=1) == ["good ", f"[{process.pid}]"]
        assert await engines.llm.count_tokens("one two three") == 3
        quarter = [0.25, 0.25]
        assert await spoken(engines, "hey", "you") == [
            (0, quarter, False), (0, [0.25], True), (1, quarter, False), (1, [0.25], True),
        ]  # fmt: skip
        assert await spoken(engines) == []

        told: list[lanes.Work] = []
        lanes.work_told.set(told.append)
        lanes.job_priority.set(lambda: (lanes.LATER_AUDIO, 7.5))
        assert (await spoken(engines, "my priority"))[0][1] == [7.5, 7.5]
        assert told == [Spoke(0.5, 1.5)]

        data = await engines.tts.clone(AudioChunk.silence(1, RATE), "words", name="Bea")
        assert data == b"Bea|words|24000"
        bea = Voice("bea", "Bea", "en", cloned=True)
        with pytest.raises(InvalidInput) as refused:
            await spoken(engines, "hey", voice=bea)
        assert (refused.value.code, refused.value.param) == ("voice_not_found", "voice")
        await engines.tts.add_voice(bea, data)
        assert (await spoken(engines, "hey", voice=bea))[0][1] == [0.5, 0.5]
        await engines.tts.remove_voice("bea")
        with pytest.raises(InvalidInput):
            await spoken(engines, "hey", voice=bea)

        # Closing a stream in the middle stops the job there, and bounds what it makes ahead of its reader.
        async with aclosing(engines.llm.reply([Message("user", "forever on")])) as endless:  # type: ignore[type-var]
            assert [await anext(endless) for _ in range(20)][-1] == "on "
        await until(lambda: not process._ending and not process._jobs)
        callers = [asyncio.create_task(said(engines, f"talk number {i}")) for i in range(4)]
        callers[2].cancel()
        texts = await ends(*callers)
        assert isinstance(texts.pop(2), asyncio.CancelledError)
        assert ["".join(text).split()[2] for text in texts] == ["0", "1", "3"]

        memory = process.memory
        assert memory is not None
        assert memory.used_bytes > 10_000_000


async def test_errors_arrive_as_they_are_and_an_unforeseen_one_tells_nothing_of_the_inside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(settings_with(tmp_path, "asr+llm", "tts")) as engines:
        first, second = engines.processes
        assert first.pid != second.pid
        pid = first.pid
        for ask in (said(engines, "oom"), heard(engines, tmp_path, "oom")):
            with pytest.raises(OutOfMemory) as full:
                await ask
            assert full.value.stage in ("llm", "asr")
        with pytest.raises(EngineFailed) as failed:
            await said(engines, "raise")
        assert "secret" not in failed.value.message
        with pytest.raises(OutOfMemory):
            await spoken(engines, "hey", "oom")
        assert first.pid == pid  # nothing of this is a reason to end a process
        # A poisoned card is: the driver's context is of no use any more.
        with pytest.raises(EngineFailed):
            await said(engines, "poison")
        assert (await said(engines, "again"))[0] == "again "
        assert first.pid != pid


async def test_a_poisoned_card_ends_no_other_job_as_if_it_were_whole(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path, "asr+llm", worker_timeout=120)) as engines:
        (process,) = engines.processes
        (tmp_path / "never-closes").touch()  # an engine without its card may not even end
        pid = process.pid
        async with aclosing(engines.llm.reply([Message("user", "forever on")])) as endless:  # type: ignore[type-var]
            assert await anext(endless) == "forever "
            hearing = asyncio.create_task(heard(engines, tmp_path, "hang"))
            await until(lambda: len(process._jobs) == 2)
            assert await engines.llm.count_tokens("it was taken up") == 4
            (tmp_path / "heard").write_text("heard again")
            with pytest.raises(EngineFailed):
                await said(engines, "poison")
            async with asyncio.timeout(WAIT_S / 2):
                assert await hearing == "heard again"
                with pytest.raises(EngineFailed, match="being restarted"):
                    await anext(endless)
            (tmp_path / "never-closes").unlink()
        assert (await said(engines, "again"))[0] == "again "
        assert process.pid != pid


async def test_a_process_that_dies_costs_its_running_turn_a_message_and_nobody_else_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it dies; and deaths after a healthy life do not add up."""
    monkeypatch.setattr("pipeline.engines.process_supervisor.HEALTHY_S", 0.0)
    async with running(settings_with(tmp_path, "llm", "tts")) as engines:
        llm, tts = engines.processes
        voice_pid = tts.pid
        for how in ("die", "crash", "exit"):
            changes: list[tuple[str, str]] = []
            llm.watch(lambda kind, trouble, changes=changes: changes.append((kind, trouble)))  # type: ignore[misc]
            with pytest.raises(EngineFailed, match="being restarted"):
                await said(engines, f"first some words and then {how}")
            assert (await said(engines, "the next turn"))[:2] == ["the ", "next "]
            assert tts.pid == voice_pid
            await until(lambda changes=changes: changes[-1:] == [("llm", "")])  # type: ignore[misc]
            assert [kind for kind, trouble in changes if trouble] == ["llm"]


async def test_a_job_that_has_given_nothing_yet_is_done_again_once_by_the_next_process(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path, "asr+llm+tts")) as engines:
        assert isinstance(engines.tts, CloningTts)
        bea = Voice("bea", "Bea", "en", cloned=True)
        await engines.tts.add_voice(bea, b"data")
        assert (await said(engines, "die only once"))[-2] == "once "
        # What was added is added again, before anybody speaks.
        (tmp_path / "died-once").unlink()
        assert [chunk[1] for chunk in await spoken(engines, "once", "more", voice=bea)] == [[0.5, 0.5]] * 4
        # It is not done for ever: a job that kills every process is told so.
        with pytest.raises(EngineFailed):
            await heard(engines, tmp_path, "die")


async def test_after_three_deaths_in_a_row_jobs_are_refused_at_once(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path, "llm")) as engines:
        for _ in range(2):
            with pytest.raises(EngineFailed):
                await said(engines, "first die")
            await said(engines, "works")
        with pytest.raises((EngineFailed, EngineNotReady)):
            await said(engines, "first die")
        await until(lambda: engines.processes[0].pid is None)
        with pytest.raises(EngineNotReady, match="several times"):
            await said(engines, "hello")


async def test_a_process_that_hangs_is_replaced_once_its_job_was_given_up(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path, "asr", step_timeout_s=1)) as engines:
        (process,) = engines.processes
        for how in ("hang", "freeze"):  # one lane, or the whole process
            pid = process.pid
            (tmp_path / "heard").write_text(how)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await engines.asr.transcribe(AudioChunk.silence(0.5, 16_000), language="en")
            await until(lambda pid=pid: process.pid not in (pid, None))  # type: ignore[misc]
            assert await heard(engines, tmp_path, "well again") == "well again"


async def test_a_stopped_process_is_replaced(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path, "llm", worker_timeout=2)) as engines:
        (process,) = engines.processes
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert (await said(engines, "are you there"))[:1] == ["are "]
        assert process.pid != pid
        assert not psutil.pid_exists(pid)


async def test_a_turn_waits_for_a_new_process_as_long_as_the_setting_says(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path, "llm", restart_wait_s=0)) as engines:
        first, second = await ends(said(engines, "first die"), said(engines, "first die"))
        assert {type(first), type(second)} <= {EngineFailed, EngineNotReady}
        with pytest.raises(EngineNotReady, match="in a moment"):
            await said(engines, "hello")


async def test_a_process_that_grows_is_replaced_while_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engines.process_supervisor.GROWN_BYTES", 100_000_000)
    monkeypatch.setattr("pipeline.engines.process_supervisor.SETTLED_JOBS", 3)
    async with running(settings_with(tmp_path, "llm")) as engines:
        (process,) = engines.processes
        pid = process.pid
        for words in ("leak", "hello", "hello"):  # what the first ones take for good is no leak
            await said(engines, words)
        await until(lambda: process._settled_rss_bytes > 100_000_000)
        assert process.pid == pid
        await said(engines, "leak")
        await until(lambda: process.pid not in (pid, None))
        assert (await said(engines, "hello"))[0] == "hello "


async def test_what_a_process_kept_of_a_large_job_is_no_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engines.process_supervisor.GROWN_BYTES", 100_000_000)
    monkeypatch.setattr("pipeline.engines.process_supervisor.SETTLED_JOBS", 1)
    async with running(settings_with(tmp_path, "llm")) as engines:
        (process,) = engines.processes
        pid = process.pid
        await said(engines, "hello")
        await until(lambda: process._settled_rss_bytes > 0)
        await said(engines, "peak")
        looks = {process._pong_s}

        def has_looked_again() -> bool:
            looks.add(process._pong_s)
            return len(looks) > 3

        await until(has_looked_again)
        assert process.rss_bytes < process._settled_rss_bytes + 100_000_000
        assert process.pid == pid


async def test_a_job_that_is_cancelled_before_it_has_begun_costs_nobody_the_process(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path, "llm", worker_timeout=60)) as engines:
        (process,) = engines.processes
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # it reads the job and its end at once
        talk = asyncio.create_task(said(engines, "hello"))
        await until(lambda: bool(process._jobs))
        talk.cancel()
        await ends(talk)
        os.kill(pid, signal.SIGCONT)
        await until(lambda: not process._ending)
        assert process.pid == pid


async def test_a_process_that_does_not_end_when_it_is_to_be_replaced_is_killed_and_its_absence_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engines.process_supervisor.GROWN_BYTES", 100_000_000)
    monkeypatch.setattr("pipeline.engines.process_supervisor.SETTLED_JOBS", 0)
    async with running(settings_with(tmp_path, "llm", worker_timeout=5)) as engines:
        (process,) = engines.processes
        changes: list[str] = []
        process.watch(lambda kind, trouble: changes.append(trouble))
        await until(lambda: process._settled_rss_bytes > 0)
        pid = process.pid
        (tmp_path / "never-closes").touch()
        await said(engines, "leak")
        await until(lambda: process.pid not in (pid, None))
        (tmp_path / "never-closes").unlink()
        assert (await said(engines, "hello"))[0] == "hello "
        assert "being restarted" in changes[0]
        assert changes[-1] == ""


async def test_a_voice_may_be_removed_while_its_process_is_replaced(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path, "tts")) as engines:
        (process,) = engines.processes
        tts = engines.tts
        assert isinstance(tts, CloningTts)
        ada, bea = (Voice(name, name, "en", cloned=True) for name in ("ada", "bea"))
        for voice in (ada, bea):
            await tts.add_voice(voice, b"data")
        removing: list[asyncio.Task[None]] = []
        direct = process.direct

        async def removed_meanwhile(*args: Any, **values: Any) -> None:
            if not removing:
                removing.append(asyncio.create_task(tts.remove_voice("ada")))
                await asyncio.sleep(0)
            await direct(*args, **values)

        process.direct = removed_meanwhile  # type: ignore[method-assign]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: bool(removing))
        await removing[0]
        assert (await spoken(engines, "hey", voice=bea))[0][1] == [0.5, 0.5]
        with pytest.raises(InvalidInput):
            await spoken(engines, "hey", voice=ada)
        assert process._n_deaths == 1
    await tts.remove_voice("bea")  # nothing to forget is no error


async def test_an_engine_may_be_loaded_while_the_one_beside_it_is_loaded_again(tmp_path: Path) -> None:
    engines = Engines.from_settings(settings_with(tmp_path, "asr+llm"))
    (process,) = engines.processes
    try:
        async with asyncio.timeout(WAIT_S):
            await engines.llm.load()
            process._restore["llm"] = engines.asr.load
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            while "asr" not in process._restore or not process._up.is_set():
                await asyncio.sleep(0.02)
        assert await heard(engines, tmp_path, "good day") == "good day"
        assert process._n_deaths == 1
    finally:
        await engines.llm.close()


async def test_a_model_that_is_missing_stops_the_start_and_a_death_at_loading_is_told(tmp_path: Path) -> None:
    (tmp_path / "no-model").touch()
    with pytest.raises(ConfigError, match="Run: "):
        async with running(settings_with(tmp_path, "asr+llm+tts")):
            pass
    (tmp_path / "no-model").rename(tmp_path / "dies-at-load")
    with pytest.raises(EngineFailed, match="while it was being loaded"):
        async with running(settings_with(tmp_path, "asr+llm+tts")):
            pass


async def test_before_load_and_after_close_work_is_refused(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, "asr+llm")
    engines = Engines.from_settings(settings)
    with pytest.raises(EngineNotReady):
        await said(engines, "hello")
    async with running(settings) as engines:
        talk = asyncio.create_task(said(engines, "forever on"))
        await until(lambda: bool(engines.processes[0]._jobs))
        await engines.llm.close()
        with pytest.raises(EngineNotReady):
            await talk
        with pytest.raises(EngineNotReady):
            await said(engines, "hello")


async def test_who_waits_for_a_new_process_is_told_at_once_when_none_will_come(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path, "llm", restart_wait_s=120)) as engines:
        (process,) = engines.processes
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: not process._up.is_set())
        waiting = asyncio.create_task(said(engines, "hello"))
        await asyncio.sleep(0)
        await engines.llm.close()
        async with asyncio.timeout(WAIT_S / 4):
            with pytest.raises(EngineNotReady, match="closed"):
                await waiting


async def test_settings_reach_the_process_with_their_secrets(tmp_path: Path) -> None:
    from pipeline.engines.process_wire import settings_head, settings_of

    settings = settings_with(tmp_path, "tts")
    secret = settings.llm.model_copy(update={"api_key": SecretStr("key-1")})
    settings = settings.model_copy(update={"llm": secret})
    assert settings_of(settings_head(settings)) == settings


def test_running_out_of_memory_poisons_no_card_and_other_errors_of_it_do() -> None:
    assert not is_poisoned(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_poisoned(RuntimeError("CUDA error: out of memory"))
    assert not is_poisoned(ValueError("no"))
    wrapped = EngineFailed("the voice failed", stage="tts")
    wrapped.__cause__ = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert is_poisoned(wrapped)


def test_an_engine_may_be_in_one_process_only() -> None:
    for groups in (["asr+asr"], ["asr", "llm+asr"], ["vad"], ["asr+"]):
        with pytest.raises(ValueError, match=r"engine_processes|joined by"):
            Settings.model_validate({"system": {"engine_processes": groups}})


def test_an_utterance_keeps_its_samples_on_the_way() -> None:
    from pipeline.engines.process_wire import Packet, audio_body, audio_head, audio_of

    chunk = AudioChunk(np.linspace(-1, 1, 101, dtype=np.float32), 48_000)
    there = audio_of(Packet({"type": "call", **audio_head(chunk)}, audio_body(chunk)))
    assert there.sample_rate == 48_000
    assert np.array_equal(there.samples, chunk.samples)
    assert replace(ANNA) == ANNA


def test_a_look_at_the_memory_does_not_touch_a_library_that_is_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    half = ModuleType("torch")  # without `cuda`, as in the middle of its import
    half.__spec__ = SimpleNamespace(_initializing=True)  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "torch", half)
    assert read_memory().device == "cpu"


async def test_a_voice_that_the_next_process_refuses_keeps_the_others_not_away(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path, "tts")) as engines:
        assert isinstance(engines.tts, CloningTts)
        bad, good = Voice("refused-later", "Bad", "en", cloned=True), Voice("bea", "Bea", "en", cloned=True)
        for voice in (bad, good):
            await engines.tts.add_voice(voice, b"data")
        (tmp_path / "refuses").write_text(bad.id)
        assert [chunk[1] for chunk in await spoken(engines, "once", voice=good)] == [[0.5, 0.5]] * 2
        with pytest.raises(InvalidInput):
            await spoken(engines, "hey", voice=bad)
