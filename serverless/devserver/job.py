"""One job: what was asked, how far it is, and what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

State = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
FINAL: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
RETRYABLE: Final = frozenset({"FAILED", "TIMED_OUT"})


@dataclass(slots=True, eq=False)
class Job:
    """One request. Times are those of the clock of `Jobs`, in seconds."""

    id: str
    payload: Mapping[str, Any]
    n_bytes: int
    kept_s: float
    result_bytes: int
    execution_timeout_s: float
    ttl_s: float
    queued_s: float
    webhook: str | None = None
    born_s: float = 0.0
    state: State = "IN_QUEUE"
    worker: str | None = None
    taken_s: float | None = None
    finished_s: float | None = None
    n_retries: int = 0
    output: Any = None
    output_bytes: int = 0
    error: str | None = None
    items: deque[tuple[Any, int]] = field(default_factory=deque)
    """Of /stream, each with its bytes, until somebody fetches them."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINAL

    @property
    def items_bytes(self) -> int:
        """What the items hold, as they were sent."""
        return sum(n_bytes for _, n_bytes in self.items)

    @property
    def held_bytes(self) -> int:
        """What it holds in all, as it was sent."""
        return self.n_bytes + self.output_bytes + self.items_bytes

    def for_worker(self) -> dict[str, Any]:
        """What a worker is given."""
        return {"id": self.id, **self.payload}

    def view(self, now_s: float) -> dict[str, Any]:
        """What /status says; times in whole milliseconds, of the last attempt."""
        view: dict[str, Any] = {"id": self.id, "status": self.state}
        if self.taken_s is not None:
            view["delayTime"] = round((self.taken_s - self.queued_s) * 1000)
            view["workerId"] = self.worker
            if self.is_final:
                view["executionTime"] = round(((self.finished_s or now_s) - self.taken_s) * 1000)
        if self.output is not None:
            view["output"] = self.output
        if self.error is not None:
            view["error"] = self.error
        if self.n_retries:
            view["retries"] = self.n_retries
        return view
