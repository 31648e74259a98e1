"""Lanes on real time: every wait is for an event, with a timeout that only a fault reaches."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing

import pytest

from pipeline.engines.lanes import (
    FIRST_AUDIO,
    LATER_AUDIO,
    SPECULATION,
    Lane,
    Ran,
    Stop,
    Waited,
    Work,
    job_priority,
    work_told,
)
from pipeline.errors import EngineNotReady

WAIT_S = 5.0


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    made = Lane("test", 1, stage="tts")
    yield made
    await made.close(WAIT_S)


class Step:
    """A blocking step that says when it has begun and ends when told."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.n_steps = 0

    def __call__(self, stop: Stop) -> str:
        self.n_steps += 1
        self.begun.set()
        assert self.may_end.wait(WAIT_S)
        return "done"

    def endless(self, stop: Stop) -> Iterator[int]:
        """Yields after each step, for ever."""
        while True:
            self(stop)
            yield self.n_steps


async def begun(step: Step) -> None:
    assert await asyncio.to_thread(step.begun.wait, WAIT_S)


async def idle(lane: Lane) -> None:
    async with asyncio.timeout(WAIT_S):
        await lane.idle()


async def ticks(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until `condition` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0)


async def test_run_gives_the_result_of_the_work(lane: Lane) -> None:
    assert await lane.run(lambda stop: threading.current_thread().name) != threading.current_thread().name


async def test_an_error_of_the_work_reaches_the_caller(lane: Lane) -> None:
    def work(stop: Stop) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await lane.run(work)
    assert await lane.run(lambda stop: 1) == 1


async def test_a_stop_iteration_of_the_work_does_not_leave_the_caller_waiting(lane: Lane) -> None:
    empty: Iterator[int] = iter(())
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(lane.run(lambda stop: next(empty)), WAIT_S)


async def test_cancelling_frees_the_caller_while_the_step_runs_on(lane: Lane) -> None:
    step = Step()
    caller = asyncio.create_task(lane.run(step))
    await begun(step)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(caller, WAIT_S)
    assert lane.n_running == 1
    step.may_end.set()
    await idle(lane)
    assert lane.n_running == 0


async def test_the_next_job_begins_only_when_the_cancelled_step_has_ended(lane: Lane) -> None:
    first, second = Step(), Step()
    second.may_end.set()
    cancelled = asyncio.create_task(lane.run(first))
    await begun(first)
    cancelled.cancel()
    following = asyncio.create_task(lane.run(second))
    await ticks(lambda: lane.n_waiting == 1)
    assert not second.begun.is_set()
    first.may_end.set()
    assert await asyncio.wait_for(following, WAIT_S) == "done"


async def test_no_step_runs_after_a_stream_is_closed(lane: Lane) -> None:
    step = Step()
    stream = lane.stream(step.endless)
    reading = asyncio.ensure_future(anext(stream))
    await begun(step)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await stream.aclose()
    assert lane.n_running == 1
    step.may_end.set()
    await idle(lane)
    assert step.n_steps == 1


async def test_a_stream_is_at_most_its_buffer_ahead_of_the_reader(lane: Lane) -> None:
    step = Step()
    step.may_end.set()
    async with aclosing(lane.stream(step.endless, buffer=2)) as stream:
        assert await anext(stream) == 1
        await ticks(lambda: step.n_steps == 4)  # 2 in the buffer, and the one that waits for room
        assert await anext(stream) == 2
        await ticks(lambda: step.n_steps == 5)
    await idle(lane)
    assert step.n_steps == 5


async def test_a_stream_ends_with_the_work(lane: Lane) -> None:
    assert [item async for item in lane.stream(lambda stop: iter("abc"), buffer=1)] == ["a", "b", "c"]


async def test_items_before_an_error_are_delivered_and_then_the_error(lane: Lane) -> None:
    def work(stop: Stop) -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    stream = lane.stream(work)
    assert await anext(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)


async def test_emit_tells_a_calling_back_library_to_stop(lane: Lane) -> None:
    answers: list[bool] = []
    step = Step()

    def work(stop: Stop, emit: Callable[[int], bool]) -> None:
        answers.append(emit(1))
        step(stop)
        answers.append(emit(2))

    async with aclosing(lane.pushed(work)) as stream:
        assert await anext(stream) == 1
    step.may_end.set()
    await idle(lane)
    assert answers == [True, False]


async def test_no_more_jobs_run_at_once_than_the_capacity() -> None:
    lane = Lane("test", 2, stage="tts")
    steps = [Step() for _ in range(4)]
    jobs = [asyncio.create_task(lane.run(step)) for step in steps]
    await begun(steps[0])
    await begun(steps[1])
    assert (lane.n_running, lane.n_waiting) == (2, 2)
    assert not steps[2].begun.is_set()
    assert not steps[3].begun.is_set()
    for step in steps:
        step.may_end.set()
    assert await asyncio.wait_for(asyncio.gather(*jobs), WAIT_S) == ["done"] * 4
    await lane.close(WAIT_S)


async def test_the_slot_goes_to_the_smallest_priority_asked_when_it_is_free(lane: Lane) -> None:
    order: list[str] = []
    holder = Step()
    holding = asyncio.create_task(lane.run(holder))
    await begun(holder)
    ahead_s = {"rich": 0.1, "poor": 3.0}

    def prioritised(name: str, priority: Callable[[], tuple[int, float]]) -> asyncio.Task[None]:
        async def job() -> None:
            job_priority.set(priority)
            await lane.run(lambda stop: order.append(name))

        return asyncio.create_task(job())

    jobs = [
        prioritised("speculation", lambda: (SPECULATION, 0.0)),
        prioritised("rich", lambda: (LATER_AUDIO, ahead_s["rich"])),
        prioritised("poor", lambda: (LATER_AUDIO, ahead_s["poor"])),
        prioritised("first audio", lambda: (FIRST_AUDIO, 0.0)),
        prioritised("first audio, later", lambda: (FIRST_AUDIO, 0.0)),
    ]
    await ticks(lambda: lane.n_waiting == len(jobs))
    ahead_s.update(rich=3.0, poor=0.1)  # time passes while they wait
    holder.may_end.set()
    await asyncio.wait_for(asyncio.gather(holding, *jobs), WAIT_S)
    assert order == ["first audio", "first audio, later", "poor", "rich", "speculation"]


async def test_a_job_cancelled_while_it_waits_never_runs_and_loses_no_slot(lane: Lane) -> None:
    holder, waiting, last = Step(), Step(), Step()
    last.may_end.set()
    holding = asyncio.create_task(lane.run(holder))
    await begun(holder)
    cancelled = asyncio.create_task(lane.run(waiting))
    following = asyncio.create_task(lane.run(last))
    await ticks(lambda: lane.n_waiting == 2)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    holder.may_end.set()
    await asyncio.wait_for(asyncio.gather(holding, following), WAIT_S)
    await idle(lane)
    assert waiting.n_steps == 0


async def test_a_job_cancelled_in_the_tick_that_gives_it_the_slot_hands_it_on(lane: Lane) -> None:
    holder, unlucky = Step(), Step()
    holding = asyncio.create_task(lane.run(holder))
    await begun(holder)
    cancelled = asyncio.create_task(lane.run(unlucky))
    await ticks(lambda: lane.n_waiting == 1)
    hand_on = lane._hand_on

    def hand_on_and_cancel() -> None:
        lane._hand_on = hand_on  # type: ignore[method-assign]
        hand_on()
        cancelled.cancel()

    lane._hand_on = hand_on_and_cancel  # type: ignore[method-assign]
    holder.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(cancelled, WAIT_S)
    await holding
    await idle(lane)
    assert unlucky.n_steps == 0
    assert await asyncio.wait_for(lane.run(lambda stop: "free"), WAIT_S) == "free"


async def test_closing_refuses_new_jobs_and_those_that_wait() -> None:
    lane = Lane("test", 1, stage="tts")
    holder = Step()
    holding = asyncio.create_task(lane.run(holder))
    await begun(holder)
    waiting = asyncio.create_task(lane.run(lambda stop: "too late"))
    await ticks(lambda: lane.n_waiting == 1)
    closing = asyncio.create_task(lane.close(WAIT_S))
    with pytest.raises(EngineNotReady):
        await asyncio.wait_for(waiting, WAIT_S)
    with pytest.raises(EngineNotReady):
        await lane.run(lambda stop: "too late")
    assert not closing.done()
    holder.may_end.set()
    await asyncio.wait_for(closing, WAIT_S)
    with pytest.raises(EngineNotReady):  # what a stopped job gives may be half a result
        await holding


async def test_closing_wakes_a_stream_whose_reader_is_away_and_ends_it_with_an_error() -> None:
    lane = Lane("test", 1, stage="tts")
    step = Step()
    step.may_end.set()
    stream = lane.stream(step.endless, buffer=1)
    assert await anext(stream) == 1
    await ticks(lambda: step.n_steps == 3)  # the thread waits for room
    async with asyncio.timeout(WAIT_S):
        await lane.close(WAIT_S * 2)
    assert lane.n_running == 0
    assert await anext(stream) == 2
    with pytest.raises(EngineNotReady):
        await anext(stream)


async def test_closing_gives_up_on_a_step_that_does_not_end() -> None:
    lane = Lane("test", 1, stage="tts")
    step = Step()
    caller = asyncio.create_task(lane.run(step))
    await begun(step)
    await lane.close(0.01)
    assert lane.n_running == 1
    step.may_end.set()
    with pytest.raises(EngineNotReady):
        await asyncio.wait_for(caller, WAIT_S)


async def test_the_turn_is_told_how_long_its_job_waited_and_worked(lane: Lane) -> None:
    first, second = Step(), Step()
    told: list[Work] = []
    holding = asyncio.create_task(lane.run(first))
    await begun(first)
    work_told.set(told.append)
    submitted_s = time.monotonic()
    waiting = asyncio.create_task(lane.run(second))
    await ticks(lambda: lane.n_waiting == 1)
    assert told == []
    held_s = time.monotonic() - submitted_s
    first.may_end.set()
    await begun(second)
    begun_s = time.monotonic()
    await ticks(lambda: told != [])
    working_s = time.monotonic() - begun_s
    second.may_end.set()
    await asyncio.gather(holding, waiting)
    waited, ran = told
    assert isinstance(waited, Waited)
    assert isinstance(ran, Ran)
    assert (waited.lane, ran.lane) == ("test", "test")
    assert held_s <= waited.seconds <= time.monotonic() - submitted_s
    assert working_s <= ran.seconds <= time.monotonic() - submitted_s


async def test_the_turn_is_told_how_long_its_stream_waited(lane: Lane) -> None:
    told: list[Work] = []
    work_told.set(told.append)
    assert [item async for item in lane.stream(lambda stop: iter([1, 2]))] == [1, 2]
    (waited,) = told
    assert isinstance(waited, Waited)
