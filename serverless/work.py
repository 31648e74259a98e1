"""The threads of a worker and the time that each step of a job takes in them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Threads:
    """Where blocking work runs. One thread computes speech, one encodes, one aligns; several read and write."""

    speech: Executor
    encoding: Executor
    alignment: Executor
    storage: Executor

    async def speak(self, work: Callable[[], T]) -> T:
        """In the model's thread, after what waits there."""
        return await asyncio.get_running_loop().run_in_executor(self.speech, work)

    async def encode(self, work: Callable[[], T]) -> T:
        """Beside the model, and never behind the word times of another job."""
        return await asyncio.get_running_loop().run_in_executor(self.encoding, work)

    async def align(self, work: Callable[[], T]) -> T:
        """Beside the model, for what computes on the CPU."""
        return await asyncio.get_running_loop().run_in_executor(self.alignment, work)

    async def store(self, work: Callable[[], T]) -> T:
        """Reading and writing of the storage."""
        return await asyncio.get_running_loop().run_in_executor(self.storage, work)

    def close(self) -> None:
        """What waits is dropped; a step that runs ends first."""
        for pool in (self.speech, self.encoding, self.alignment, self.storage):
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class Stopwatch:
    """Milliseconds of each step of a job."""

    ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Adds the time inside to `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.ms[name] = self.ms.get(name, 0.0) + (time.perf_counter() - started) * 1000

    def rounded(self) -> dict[str, float]:
        """For the answer."""
        return {name: round(ms, 1) for name, ms in self.ms.items()}


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def forget_gpu_peak() -> None:
    """What follows is measured from here on."""
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()


def gpu_peak_mb() -> float | None:
    """The most that torch held on the card since `forget_gpu_peak`, in MB; None on a CPU."""
    cuda = _cuda()
    return None if cuda is None else round(cuda.max_memory_allocated() / 1e6, 1)
