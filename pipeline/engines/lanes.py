"""Lanes: how blocking engines run beside an event loop.

A lane owns `capacity` threads. A job is one utterance (ASR), one piece (TTS) or one stream (LLM). Who waits is served
by priority: first audio of a turn, then the talk with the least audio ahead, then speculation. Cancelling a caller
frees the caller at once; the lane itself waits for the step that is running, because a model step cannot be stopped
in the middle, and takes the next job only then.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import EngineNotReady, VoicepodError

T = TypeVar("T")

FIRST_AUDIO, LATER_AUDIO, SPECULATION = 0, 1, 2

# What the running turn is owed, asked anew each time a lane has a free slot: (class, seconds of audio ahead). Smaller
# goes first. It travels in the context, so that engine Protocols need no scheduling argument.
job_priority: ContextVar[Callable[[], tuple[int, float]]] = ContextVar("job_priority")


@dataclass(frozen=True, slots=True)
class Waited:
    """A job began in `lane`, so many seconds after it was submitted."""

    lane: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Ran:
    """A job of `lane` worked for so many seconds and gave its result. Streams are not told: their readers pace them."""

    lane: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Spoke:
    """A piece of speech took so many seconds to compute, waiting not counted, and lasts `audio_s`."""

    computed_s: float
    audio_s: float


Work = Waited | Ran | Spoke

# Who is told of the work that is done for the running turn, on its event loop. Travels in the context as well.
work_told: ContextVar[Callable[[Work], None]] = ContextVar("work_told")


def tell_nobody(work: Work) -> None:
    """What `work_told` is where nobody asked."""


# Names of lanes that were closed while a step ran on: the interpreter would wait for their threads at its exit.
abandoned: set[str] = set()

# Jobs that were told to stop and have not yet, with the moment they were told. One event loop's, as the lanes are.
stopping: dict[object, float] = {}


def overdue_s() -> float:
    """How long the oldest of them has been told: more than a step takes means that the step hangs."""
    return time.monotonic() - min(stopping.values()) if stopping else 0.0


def _no_priority() -> tuple[int, float]:
    """Of work outside a talk, such as a file that is read aloud: nobody waits for its next second."""
    return (LATER_AUDIO, math.inf)


class Stop:
    """A flag that a blocking job looks at between steps. `wake` frees a job that waits for its reader."""

    __slots__ = ("_event", "_wake")

    def __init__(self, wake: Callable[[], object] | None = None) -> None:
        self._event = threading.Event()
        self._wake = wake

    def set(self) -> None:
        """Ask the job to end."""
        self._event.set()
        if self._wake is not None:
            self._wake()

    def __bool__(self) -> bool:
        return self._event.is_set()


class _End:
    """Marks the end of a stream, with the error that ended it, if any."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Lane:
    """`capacity` threads for one engine. All methods belong to one event loop."""

    def __init__(self, name: str, capacity: int, *, stage: str) -> None:
        self.name, self.capacity, self.stage = name, capacity, stage
        self._threads = ThreadPoolExecutor(capacity, thread_name_prefix=f"lane-{name}")
        self._running = 0
        self._waiting: list[tuple[Callable[[], tuple[int, float]], int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._stops: set[Stop] = set()
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def n_running(self) -> int:
        """Jobs in a thread now, a cancelled one's last step included."""
        return self._running

    @property
    def n_waiting(self) -> int:
        """Jobs waiting for a slot."""
        return len(self._waiting)

    async def idle(self) -> None:
        """Return once no job is in a thread."""
        await self._idle.wait()

    async def run(self, work: Callable[[Stop], T]) -> T:
        """`work(stop)` in a thread of the lane; cancelling sets `stop` and returns at once."""
        stop, tell, submitted_s = Stop(), work_told.get(tell_nobody), time.monotonic()
        await self._take_slot()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            begun_s = time.monotonic()
            self._call(loop, tell, Waited(self.name, begun_s - submitted_s))
            try:
                self._refuse(stop)
                result = work(stop)
                self._refuse(stop)
                self._call(loop, tell, Ran(self.name, time.monotonic() - begun_s))
            except BaseException as error:  # handed to the caller, never lost in the thread
                self._call(loop, _fail, done, error)
            else:
                self._call(loop, _settle, done, result)
            finally:
                self._call(loop, self._free_slot, stop)

        self._start(job, stop)
        try:
            return await done
        finally:
            self._stop(stop)

    def stream(self, work: Callable[[Stop], Iterator[T]], *, buffer: int = 4) -> AsyncGenerator[T, None]:
        """Items of `work(stop)` as they come, at most `buffer` ahead of the reader. Close it to stop the job."""

        def pull(stop: Stop, emit: Callable[[T], bool]) -> None:
            for item in work(stop):
                if not emit(item):
                    return

        return self.pushed(pull, buffer=buffer)

    async def pushed(
        self, work: Callable[[Stop, Callable[[T], bool]], None], *, buffer: int = 4
    ) -> AsyncGenerator[T, None]:
        """Items that `work(stop, emit)` hands to `emit`, for libraries that call back instead of yielding.

        `emit` blocks the thread while `buffer` items wait for the reader, and gives False once the job should end.
        """
        tell, submitted_s = work_told.get(tell_nobody), time.monotonic()
        room = threading.Semaphore(buffer)
        stop = Stop(room.release)
        await self._take_slot()
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[T | _End] = asyncio.Queue()

        def emit(item: T) -> bool:
            room.acquire()
            if stop:
                return False
            self._call(loop, items.put_nowait, item)
            return True

        def job() -> None:
            error: BaseException | None = None
            self._call(loop, tell, Waited(self.name, time.monotonic() - submitted_s))
            try:
                self._refuse(stop)
                work(stop, emit)
                self._refuse(stop)
            except BaseException as caught:  # handed to the reader, never lost in the thread
                error = caught
            finally:
                self._call(loop, items.put_nowait, _End(error))
                self._call(loop, self._free_slot, stop)

        self._start(job, stop)
        try:
            while True:
                item = await items.get()
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    return
                room.release()
                yield item
        finally:
            self._stop(stop)

    async def close(self, timeout_s: float = 10.0) -> None:
        """Refuse new jobs, stop the running ones and wait for their threads, at most `timeout_s`."""
        self._closed = True
        for _, _, waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(self._closed_error())
        self._waiting.clear()
        for stop in list(self._stops):
            self._stop(stop)
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:  # a step that never ends must not keep the server from closing
            abandoned.add(self.name)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _stop(self, stop: Stop) -> None:
        """Ask the job to end; the time is noted while it runs on."""
        if stop in self._stops:
            stopping.setdefault(stop, time.monotonic())
        stop.set()

    def _refuse(self, stop: Stop) -> None:
        """Raise in a job that closing cut short, so that half a result never looks like a whole one."""
        if stop:
            raise self._closed_error()

    def _closed_error(self) -> VoicepodError:
        return EngineNotReady(f"the {self.name} engine is closed", stage=self.stage)

    async def _take_slot(self) -> None:
        if self._closed:
            raise self._closed_error()
        if self._running < self.capacity and not self._waiting:
            self._running += 1
            self._idle.clear()
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (job_priority.get(_no_priority), next(self._order), waiter)
        self._waiting.append(entry)
        try:
            await waiter
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif not waiter.cancelled() and waiter.exception() is None:
                self._hand_on()  # the slot was given to us in the same tick
            raise

    def _start(self, job: Callable[[], None], stop: Stop) -> None:
        self._stops.add(stop)
        try:
            self._threads.submit(job)
        except RuntimeError as error:  # the pool was shut down between the slot and here
            self._free_slot(stop)
            raise self._closed_error() from error

    def _free_slot(self, stop: Stop) -> None:
        self._stops.discard(stop)
        stopping.pop(stop, None)
        self._hand_on()

    def _hand_on(self) -> None:
        """Give the free slot to who waits with the smallest priority, else keep it free."""
        waiting = [entry for entry in self._waiting if not entry[2].done()]
        self._waiting = waiting
        if not waiting:
            self._running -= 1
            if not self._running:
                self._idle.set()
            return
        chosen = min(waiting, key=lambda entry: (entry[0](), entry[1]))
        waiting.remove(chosen)
        chosen[2].set_result(None)

    @staticmethod
    def _call(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> None:
        try:
            loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            return


def _settle(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[T], error: BaseException) -> None:
    if done.done():
        return
    if isinstance(error, StopIteration):  # a future refuses it, and the caller would wait for ever
        error = RuntimeError("a lane job raised StopIteration")
    done.set_exception(error)
