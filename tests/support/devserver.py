"""The local RunPod in a thread of its own, for tests that are plain functions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from serverless.devserver.limits import Limits
from serverless.devserver.server import DevServer, Plan, serving

ROOT = Path(__file__).resolve().parents[2]
ECHO = (sys.executable, "-m", "tests.support.echo_worker")
WAIT_S = 60.0  # only a fault takes so long
LOOK_S = 0.02


def worker_environ(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of this process, without what would lead a worker elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "AWS_", "GOOGLE_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **(more or {})}


@contextlib.contextmanager
def devserver(log: Path, *, environ: Mapping[str, str] | None = None, **plan: Any) -> Iterator[DevServer]:
    """Serve until the block ends; the workers write into `log`."""
    plan.setdefault("command", ECHO)
    plan.setdefault("limits", Limits(hold_s=0.3))
    plan.setdefault("grace_s", 10.0)
    started = threading.Event()
    running: list[DevServer] = []
    faults: list[BaseException] = []
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        closing = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(closing.set))
        with log.open("ab") as output:
            async with serving(Plan(environ=worker_environ(environ), output=output, **plan)) as server:
                running.append(server)
                started.set()
                await closing.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as fault:
            faults.append(fault)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="devserver")
    thread.start()
    started.wait(WAIT_S)
    try:
        if running:
            yield running[0]
    finally:
        for end in stop:
            with contextlib.suppress(RuntimeError):
                end()
        thread.join(WAIT_S)
        if faults:
            raise faults[0]


def until(is_so: Callable[[], Any], what: str) -> None:
    """Wait for something; an assertion says what did not come."""
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, f"this did not happen: {what}"
        time.sleep(LOOK_S)


def pid_of(server: DevServer) -> int:
    """Of the worker that is ready."""
    found: list[int] = []

    def ready() -> bool:
        found[:] = [w.process.pid for w in server.workers.all() if w.process and w.state == "ready"]
        return bool(found)

    until(ready, "a worker is ready")
    return found[0]
