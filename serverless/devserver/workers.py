"""Worker processes: the real SDK loop, started, watched, and started again when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal

import structlog

from serverless.devserver.jobs import Jobs

log = structlog.get_logger()
Urls = Callable[[str], Mapping[str, str]]
PR_SET_PDEATHSIG = 1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


@dataclass(slots=True, eq=False)
class Worker:
    """One process, or a worker that somebody started by hand (`process` is None)."""

    id: str
    key: str
    seen_s: float
    process: asyncio.subprocess.Process | None = None
    number: int = -1
    state: Literal["initializing", "ready"] = "initializing"
    leaves: bool = False
    """Told to stop, or gone: it gets no more jobs."""
    deaf_s: float | None = None
    """Since when it has asked nothing although there is a job that it shall stop, or was told to."""


class Workers:
    """As many workers as wanted, always; `command` starts one.

    A worker that ends is replaced at once; one that never asked for a job, after a pause that doubles each time.
    """

    def __init__(
        self,
        jobs: Jobs,
        *,
        command: Sequence[str],
        n: int,
        environ: Mapping[str, str],
        grace_s: float = 30.0,
        output: IO[bytes] | None = None,
    ) -> None:
        self.n_wanted = n
        self._jobs = jobs
        self._command = command
        self._environ = environ
        self._grace_s = grace_s
        self._output = output
        self._workers: dict[str, Worker] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._not_starting: set[int] = set()
        self._ends: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    def start(self, urls: Urls) -> None:
        """Start all; `urls(key)` gives the environment that leads a worker back to this server."""
        self._tasks = [asyncio.create_task(self._keep(number, urls)) for number in range(self.n_wanted)]

    def admit(self, worker_id: str, key: str) -> Worker:
        """Let a worker in that was not started from here; it has this name and key."""
        self._workers[worker_id] = worker = Worker(worker_id, key, self._jobs.clock())
        return worker

    def get(self, worker_id: str) -> Worker | None:
        """The live worker of that name."""
        return self._workers.get(worker_id)

    def all(self) -> list[Worker]:
        """Those that live."""
        return list(self._workers.values())

    def is_ready(self, worker: Worker) -> None:
        """It asked for work."""
        worker.state = "ready"
        self._not_starting.discard(worker.number)

    def replace(self, worker: Worker) -> None:
        """End it as soon as it has nothing to do; another comes. One from outside is left alone."""
        if worker.process:
            worker.leaves = True
            self._jobs.tell()
            with contextlib.suppress(ProcessLookupError):
                worker.process.terminate()
            end = asyncio.create_task(self._end(worker.process))
            self._ends.add(end)
            end.add_done_callback(self._ends.discard)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """A worker whose model hangs does not leave by itself; on the platform its container goes."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), self._grace_s)
            return
        _kill_group(process.pid)

    def sweep(self) -> None:
        """Give up workers from outside that nothing was heard of for long, and end our own that hang in a job."""
        now_s = self._jobs.clock()
        for worker in self.all():
            if worker.deaf_s is None:
                worker.deaf_s = now_s if self._jobs.has_stops(worker.id) else None
            elif worker.process and not worker.leaves and now_s - worker.deaf_s > self._grace_s:
                log.error("devserver.worker_hangs", worker=worker.id)
                self.replace(worker)
            if (
                worker.process is None
                and worker.state == "ready"
                and now_s - worker.seen_s > self._jobs.limits.heartbeat_s
            ):
                worker.state = "initializing"
                self._jobs.worker_gone(worker.id, "nothing was heard of its worker")

    def counts(self) -> dict[str, int]:
        """The worker part of /health."""
        busy = {worker.id for worker in self.all() if self._jobs.held_by(worker.id)}
        ready = [worker for worker in self.all() if worker.state == "ready"]
        starting = [worker for worker in self.all() if worker.state != "ready"]
        return {
            "idle": sum(worker.id not in busy for worker in ready),
            "initializing": sum(worker.number not in self._not_starting for worker in starting),
            "ready": len(ready),
            "running": len(busy),
            "throttled": 0,
            "unhealthy": len(self._not_starting),
        }

    async def close(self) -> None:
        """Ask all to end, give them the grace, and end them."""
        self._closing.set()
        for worker in self.all():
            self.replace(worker)
        if self._tasks:
            await asyncio.wait(self._tasks)
        for end in self._ends:
            end.cancel()

    async def _keep(self, number: int, urls: Urls) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._closing.is_set():
            if await self._one(number, urls):
                self._not_starting.discard(number)
                pause_s = FIRST_PAUSE_S
                continue
            if self._closing.is_set():
                return
            self._not_starting.add(number)
            log.error("devserver.worker_does_not_start", again_in_s=pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _one(self, number: int, urls: Urls) -> bool:
        """The life of one worker; False if it never asked for a job."""
        key = secrets.token_urlsafe(24)
        worker_id = f"worker-{number}-{secrets.token_hex(4)}"
        environ = {**self._environ, **urls(key), "RUNPOD_POD_ID": worker_id, "RUNPOD_AI_API_KEY": key}
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
                preexec_fn=_end_with_this_program if sys.platform == "linux" else None,
            )
        except OSError as error:
            log.error("devserver.worker_not_run", reason=type(error).__name__)
            return False
        worker = self._workers[worker_id] = Worker(worker_id, key, self._jobs.clock(), process, number)
        log.info("devserver.worker_started", worker=worker_id, pid=process.pid)
        if self._closing.is_set():
            self.replace(worker)
        code = await process.wait()
        # The SDK's heartbeat is a process of its own; it outlives a worker that was killed.
        _kill_group(process.pid)
        worker.leaves = True  # its last question may still be open: what waits again now is not for it
        del self._workers[worker_id]
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        self._jobs.worker_gone(worker_id, f"its worker {how}")
        log.info("devserver.worker_ended", worker=worker_id, code=code, was=worker.state)
        return worker.state == "ready"


_libc = ctypes.CDLL(None)  # loaded here: after a fork it is too late


def _end_with_this_program() -> None:
    """In the child: a worker whose server was killed would ask a closed port for jobs as fast as it can."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
