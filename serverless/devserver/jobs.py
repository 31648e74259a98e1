"""The jobs of an endpoint and what can happen to them; no sockets and no processes here.

IN_QUEUE -> IN_PROGRESS -> COMPLETED | FAILED | CANCELLED | TIMED_OUT
    ^____________|  its worker died, once; the second time it is FAILED
    ^______________________________ /retry of FAILED and TIMED_OUT
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from serverless.devserver.job import RETRYABLE, Job, State
from serverless.devserver.limits import Limits

Clock = Callable[[], float]


class JobUnknown(LookupError):
    """No such job, or its time is over."""


class QueueFull(RuntimeError):
    """As many jobs wait as may."""


class NotRetryable(RuntimeError):
    """Only what failed or ran out of time can be tried again."""


class Jobs:
    """All jobs, the queue among them. Single-threaded: everything is called in one event loop."""

    def __init__(
        self, limits: Limits, *, clock: Clock = time.monotonic, finished: Callable[[Job], None] | None = None
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.n_completed = self.n_failed = self.n_retried = 0
        self._jobs: dict[str, Job] = {}
        self._queue: deque[Job] = deque()
        self._stops: dict[str, list[str]] = {}
        self._finished = finished
        self._changed = asyncio.Event()

    async def until(self, is_so: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for something that a change of a job can make true; False when the time is over."""
        deadline_s = self.clock() + timeout_s
        while not is_so():
            left_s = deadline_s - self.clock()
            if left_s <= 0:
                return False
            try:
                await asyncio.wait_for(self._changed.wait(), left_s)
            except TimeoutError:
                return is_so()
        return True

    def tell(self) -> None:
        """Wake all who wait in `until`."""
        self._changed.set()
        self._changed = asyncio.Event()

    def submit(
        self,
        payload: Mapping[str, Any],
        *,
        n_bytes: int,
        n_workers: int,
        sync: bool = False,
        execution_timeout_s: float | None = None,
        ttl_s: float | None = None,
        kept_s: float | None = None,
        webhook: str | None = None,
    ) -> Job:
        """A new job at the end of the queue; `n_bytes` is the size of its request.

        Raises:
            QueueFull: too many wait, or they hold too much memory.
        """
        limits, now_s = self.limits, self.clock()
        if len(self._queue) >= limits.max_queue(n_workers):
            raise QueueFull(f"{len(self._queue)} jobs wait already")
        if (held := self._evict(n_bytes)) > limits.kept_bytes:
            raise QueueFull(f"the jobs that wait and run hold {held - n_bytes} bytes")
        job = Job(
            id=f"{'sync-' if sync else ''}{uuid.uuid4()}-u1",
            payload=payload,
            n_bytes=n_bytes,
            kept_s=kept_s or (limits.sync_kept_s if sync else limits.async_kept_s),
            result_bytes=limits.runsync_bytes if sync else limits.run_bytes,
            execution_timeout_s=execution_timeout_s or limits.execution_timeout_s,
            ttl_s=ttl_s or limits.ttl_s,
            queued_s=now_s,
            born_s=now_s,
            webhook=webhook,
        )
        self._jobs[job.id] = job
        self._queue.append(job)
        self.tell()
        return job

    def get(self, job_id: str) -> Job:
        """The job of that name; raises JobUnknown."""
        try:
            return self._jobs[job_id]
        except KeyError:
            raise JobUnknown(job_id) from None

    def view(self, job: Job) -> dict[str, Any]:
        """What /status says of it now."""
        return job.view(self.clock())

    def take(self, worker: str, n: int = 1) -> list[Job]:
        """Up to `n` jobs for a worker, oldest first."""
        taken = [self._queue.popleft() for _ in range(min(n, len(self._queue)))]
        stops = self._stops.get(worker, [])
        for job in taken:
            if job.id in stops:
                stops.remove(job.id)  # meant for an earlier attempt
            job.state, job.worker, job.taken_s = "IN_PROGRESS", worker, self.clock()
        if taken:
            self.tell()
        return taken

    def has_queued(self) -> bool:
        """Whether a job waits for a worker."""
        return bool(self._queue)

    def has_stops(self, worker: str) -> bool:
        """Whether a worker has something to stop."""
        return bool(self._stops.get(worker))

    def stops(self, worker: str) -> list[str]:
        """The jobs that a worker shall stop; each is named once."""
        return self._stops.pop(worker, [])

    def held_by(self, worker: str) -> list[Job]:
        """What a worker works on."""
        return [job for job in self._jobs.values() if job.state == "IN_PROGRESS" and job.worker == worker]

    def progress(self, worker: str, job_id: str, output: Any, n_bytes: int) -> None:
        """What a running job says of itself; nothing of a job that the worker no longer has."""
        if job := self._running(worker, job_id):
            job.output, job.output_bytes = output, n_bytes
            self._evict(0)
            self.tell()

    def stream(self, worker: str, job_id: str, item: Any, n_bytes: int) -> None:
        """One item for /stream."""
        if job := self._running(worker, job_id):
            job.items.append((item, n_bytes))
            while len(job.items) > self.limits.stream_items or job.items_bytes > self.limits.stream_bytes:
                job.items.popleft()
            self.tell()

    def done(self, worker: str, job_id: str, result: Mapping[str, Any], n_bytes: int) -> None:
        """The result that a worker posts; of a job that it no longer has, nothing is kept."""
        job = self._running(worker, job_id)
        if job is None:
            return
        job.output = result.get("output")
        if n_bytes > job.result_bytes:
            job.output, job.output_bytes = None, 0
            self._finish(job, "FAILED", f"the result is over {job.result_bytes} bytes; store it and return a URL")
            return
        job.output_bytes = n_bytes
        self._evict(0)
        error = result.get("error")
        if error:
            self._finish(job, "FAILED", error if isinstance(error, str) else json.dumps(error))
        else:
            self._finish(job, "COMPLETED", None)

    def cancel(self, job_id: str) -> Job:
        """A waiting job never starts, a running one is stopped; what is over stays as it is."""
        job = self.get(job_id)
        if not job.is_final:
            self._stop(job)
            self._finish(job, "CANCELLED", None)
        return job

    def retry(self, job_id: str) -> Job:
        """The same job once more, under its name; what it gave is dropped. Raises NotRetryable."""
        job = self.get(job_id)
        if job.state not in RETRYABLE:
            raise NotRetryable(job.state)
        job.n_retries = 0
        job.born_s = self.clock()
        self._requeue(job)
        return job

    def purge(self) -> int:
        """Cancel everything that waits; says how many."""
        waiting = list(self._queue)
        for job in waiting:
            self._finish(job, "CANCELLED", None)
        return len(waiting)

    def worker_gone(self, worker: str, reason: str) -> None:
        """A worker died: its jobs wait again, those that did so before have failed."""
        self._stops.pop(worker, None)
        for job in self.held_by(worker):
            if job.n_retries < self.limits.n_retries:
                job.n_retries += 1
                self.n_retried += 1
                self._requeue(job, first=True)
            else:
                job.output, job.output_bytes = None, 0  # as in _finish
                # The first words are the platform's own, so that programs which look for them find them.
                self._finish(job, "FAILED", f"job timed out after {job.n_retries} retries: {reason}")

    def sweep(self) -> None:
        """End what took too long and forget what is over; to be called every second or so."""
        now_s = self.clock()
        for job in list(self._jobs.values()):
            if job.is_final:
                if now_s - (job.finished_s or now_s) > job.kept_s:
                    del self._jobs[job.id]
            elif now_s - job.born_s > job.ttl_s:
                self._stop(job)
                self._finish(job, "TIMED_OUT", "ttl exceeded")
            elif (
                job.taken_s is not None and job.state == "IN_PROGRESS" and now_s - job.taken_s > job.execution_timeout_s
            ):
                self._stop(job)
                self._finish(job, "TIMED_OUT", "executionTimeout exceeded")

    def counts(self) -> dict[str, int]:
        """The job part of /health."""
        running = sum(job.state == "IN_PROGRESS" for job in self._jobs.values())
        return {
            "completed": self.n_completed,
            "failed": self.n_failed,
            "inProgress": running,
            "inQueue": len(self._queue),
            "retried": self.n_retried,
        }

    def _running(self, worker: str, job_id: str) -> Job | None:
        job = self._jobs.get(job_id)
        return job if job and job.state == "IN_PROGRESS" and job.worker == worker else None

    def _requeue(self, job: Job, *, first: bool = False) -> None:
        job.state, job.worker, job.taken_s, job.finished_s = "IN_QUEUE", None, None, None
        job.output, job.output_bytes, job.error, job.queued_s = None, 0, None, self.clock()
        job.items.clear()
        (self._queue.appendleft if first else self._queue.append)(job)
        self.tell()

    def _stop(self, job: Job) -> None:
        if job.state == "IN_PROGRESS" and job.worker:
            self._stops.setdefault(job.worker, []).append(job.id)

    def _finish(self, job: Job, state: State, error: str | None) -> None:
        if job.state == "IN_QUEUE":
            self._queue.remove(job)
        if state in ("CANCELLED", "TIMED_OUT"):
            job.output, job.output_bytes = None, 0  # a progress report is no result
        job.state, job.error, job.finished_s = state, error, self.clock()
        self.n_completed += state == "COMPLETED"
        self.n_failed += state in RETRYABLE
        self.tell()
        if self._finished:
            self._finished(job)

    def _evict(self, n_bytes: int) -> int:
        """Forget the oldest results until `n_bytes` more fit; gives what is held then, those included."""
        held = n_bytes + sum(job.held_bytes for job in self._jobs.values())
        for job in sorted((job for job in self._jobs.values() if job.is_final), key=lambda job: job.finished_s or 0.0):
            if held <= self.limits.kept_bytes:
                break
            held -= job.held_bytes
            del self._jobs[job.id]
        return held
