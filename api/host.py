"""How busy the machine is: one thread looks once a second, everybody else reads its last snapshot."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import structlog

from api.gpus import GpuMetrics, Gpus
from pipeline import cgroup

log = structlog.get_logger()

PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class HostMetrics:
    """Percentages are of `n_cpus`, the cores that this container may use; None means not known (yet).

    Memory is the container's where it has a limit, else the machine's. `process_*` count the server and all its child
    processes. `n_errors` counts samples that could not be taken, since the start.
    """

    n_cpus: float
    cpu_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    process_cpu_percent: float | None = None
    process_memory_bytes: int | None = None
    gpus: tuple[GpuMetrics, ...] = ()
    n_errors: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the page; what tells one card from all others in the world is left out."""
        values = asdict(self)
        for gpu in values["gpus"]:
            del gpu["uuid"]
        return values


class HostMonitor:
    """`async with monitor.running()` around the server's life; `snapshot` is a plain read from any thread.

    A thread of its own, and no task: the calls below it block, and a hanging GPU driver must hang nobody else.
    """

    def __init__(
        self,
        *,
        gpus: Gpus | None = None,
        cgroup_root: Path = cgroup.ROOT,
        clock: Callable[[], float] = time.monotonic,
        period_s: float = PERIOD_S,
    ) -> None:
        self._gpus, self._root, self._clock, self._period_s = gpus or Gpus(), cgroup_root, clock, period_s
        self._stop = threading.Event()
        self._processes: dict[int, psutil.Process] = {}
        self._n_cpus = _n_cpus(cgroup_root)
        self._cpu_before: tuple[float, float] | None = None  # (clock, CPU seconds of the container)
        self._n_errors = 0
        self._latest = HostMetrics(n_cpus=self._n_cpus)

    @asynccontextmanager
    async def running(self, stop_timeout_s: float = 2.0) -> AsyncIterator[None]:
        """Look once a second while the body runs. At the end a hanging look is left behind after `stop_timeout_s`."""
        thread = threading.Thread(target=self._watch, name="host-monitor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            await asyncio.to_thread(thread.join, stop_timeout_s)

    def snapshot(self) -> HostMetrics:
        """The last sample; nothing known before the first one."""
        return self._latest

    def sample(self) -> HostMetrics:
        """Look now. Blocking, for one thread at a time. CPU figures are since the last look."""
        used_bytes, total_bytes = self._memory()
        cpu_percent = self._cpu_percent()
        process_cpu_percent, process_memory_bytes = self._process_tree()
        gpus = self._gpus.read()
        return HostMetrics(
            n_cpus=self._n_cpus,
            cpu_percent=cpu_percent,
            memory_used_bytes=used_bytes,
            memory_total_bytes=total_bytes,
            process_cpu_percent=process_cpu_percent,
            process_memory_bytes=process_memory_bytes,
            gpus=gpus,
            n_errors=self._n_errors + self._gpus.n_errors,
        )

    def _watch(self) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            wait_s = self._period_s
            try:
                self._latest = self.sample()
                if self._latest.cpu_percent is None:  # needs a second look, and a page should not wait long for it
                    wait_s /= 10
            except Exception:  # boundary: a background job of the server
                self._n_errors += 1
                if self._n_errors == 1:  # once a second would fill the log; the metrics count the rest
                    log.exception("host.sample_failed")
        self._gpus.close()

    def _cpu_percent(self) -> float | None:
        """Of the container where it has a quota, else of the machine."""
        used_s = cgroup.cpu_used_s(self._root) if cgroup.cpu_limit(self._root) is not None else None
        machine = psutil.cpu_percent(interval=None)
        now_s, before = self._clock(), self._cpu_before
        self._cpu_before = (now_s, used_s if used_s is not None else 0.0)
        if before is None or now_s <= before[0]:
            return None  # a share needs two looks; psutil's first answer is a meaningless 0
        if used_s is None:
            return float(machine)
        return min(max(100.0 * (used_s - before[1]) / (now_s - before[0]) / self._n_cpus, 0.0), 100.0)

    def _memory(self) -> tuple[int, int]:
        machine = psutil.virtual_memory()
        limit, used = cgroup.memory_limit_bytes(self._root), cgroup.memory_used_bytes(self._root)
        if limit is None or used is None or limit >= machine.total:
            return int(machine.total - machine.available), int(machine.total)
        return max(used, 0), limit

    def _process_tree(self) -> tuple[float | None, int]:
        me = self._processes.get(os.getpid()) or psutil.Process()
        known = self._processes
        tree = {process.pid: known.get(process.pid, process) for process in (me, *me.children(recursive=True))}
        is_first = os.getpid() not in known
        percent, memory_bytes = 0.0, 0
        for process in tree.values():
            try:
                with process.oneshot():
                    percent += process.cpu_percent(interval=None)
                    memory_bytes += process.memory_info().rss
            except psutil.NoSuchProcess:  # it ended between the list and here
                continue
        self._processes = tree
        return None if is_first else percent / self._n_cpus, memory_bytes


def _n_cpus(root: Path) -> float:
    """Cores that this process may run on, or the container's quota when that is less."""
    allowed = float(len(os.sched_getaffinity(0)))
    quota = cgroup.cpu_limit(root)
    return min(allowed, quota) if quota is not None else allowed
