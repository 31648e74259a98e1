"""How long a job may run, and whether it was told to stop: one object that the event loop and the threads look at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serverless.errors import JobError, told


def seconds_allowed(job: Mapping[str, Any], processing_timeout_s: float) -> float:
    """What the worker allows, or the job's own `policy.executionTimeout` (milliseconds) where that is less."""
    policy = job.get("policy")
    asked = policy.get("executionTimeout") if isinstance(policy, Mapping) else None
    if isinstance(asked, int | float) and not isinstance(asked, bool) and 0 < asked < processing_timeout_s * 1000:
        return asked / 1000
    return processing_timeout_s


class Limits:
    """A deadline and a flag; every method may be called from any thread."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._deadline_s = clock() + seconds
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Whatever still works for the job stops at its next step."""
        self._stopped.set()

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._deadline_s - self._clock()

    def is_over(self) -> bool:
        """Stopped, or past the deadline."""
        return self._stopped.is_set() or self.left_s <= 0

    def is_nearly_over(self) -> bool:
        """The same a little before the deadline: for what the answer can do without, which must not cost the rest."""
        return self.is_over() or self.left_s <= self._reserve_s

    @property
    def left_for_extras_s(self) -> float:
        """Seconds until such work is left behind, whatever it does: half of the reserve is kept to end the job."""
        return self.left_s - self._reserve_s / 2

    @property
    def _reserve_s(self) -> float:
        return min(5.0, self.seconds / 10)

    def failure(self, error: Exception) -> JobError:
        """The error as the caller is told it: what stopped because the time was up is a timeout."""
        failure = told(error)
        was_stopped = isinstance(error, TimeoutError) or failure.code == "CANCELLED"
        return self.timed_out() if was_stopped and self.left_s <= 0 else failure

    def timed_out(self) -> JobError:
        """What a job that took too long ends with."""
        return JobError("TIMEOUT", f"the job took longer than the {self.seconds:g} s it may take")


class Occupant:
    """For which job the model's thread works now, so that one that does not stop is seen."""

    def __init__(self) -> None:
        self._limits: Limits | None = None

    @contextmanager
    def of(self, limits: Limits) -> Iterator[None]:
        """The thread works for that job inside."""
        self._limits = limits
        try:
            yield
        finally:
            self._limits = None

    def overdue(self) -> Limits | None:
        """The limits of the job that the thread still works for although it is over."""
        limits = self._limits
        return limits if limits is not None and limits.is_over() else None
