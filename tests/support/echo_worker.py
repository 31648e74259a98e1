"""A worker for the local RunPod: the real SDK's loop around a handler that does as its input says."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from serverless.sdk import import_runpod

runpod = import_runpod()


def _is_there(path: str) -> bool:
    return Path(path).exists()


def _touch(path: str) -> None:
    Path(path).touch()


def _die_once(mark: str) -> None:
    if not _is_there(mark):
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)


async def _until(path: str) -> None:
    while not _is_there(path):
        await asyncio.sleep(0.02)


async def handler(job: dict[str, Any]) -> Any:
    """What `do` of the input says."""
    wish = job["input"]
    match wish["do"]:
        case "echo":
            return {"echo": wish, "job": {name: job[name] for name in job if name != "input"}, "pid": os.getpid()}
        case "wait":
            _touch(wish["started"])
            await _until(wish["until"])
            return {"waited": True, "pid": os.getpid()}
        case "fail":
            return {"error": "BAD: so it is", "error_code": "BAD", "retryable": False}
        case "raise":
            raise ValueError("on purpose")
        case "big":
            return {"text": "x" * wish["n"]}
        case "report":
            runpod.serverless.progress_update(job, {"percent": 50})
            await _until(wish["until"])
            return {"percent": 100}
        case "refresh":
            return {"pid": os.getpid(), "refresh_worker": True}
        case "nan":
            return {"loudness": float("nan")}
        case "hang":
            threading.Thread(target=time.sleep, args=(600,)).start()  # the interpreter waits for it at its end
            return {"pid": os.getpid(), "refresh_worker": True}
        case "block":
            _touch(wish["started"])
            threading.Event().wait()  # the event loop stands still
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die_once":
            _die_once(wish["mark"])
            return {"lived": True}
        case "sleep":
            _touch(wish["started"])
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                _touch(wish["stopped"])
                raise
    return None


async def items(job: dict[str, Any]) -> AsyncIterator[dict[str, int]]:
    """As many items as the input says."""
    for n in range(job["input"]["n"]):
        yield {"n": n}


def main() -> None:
    """WORKER_STREAMS: answers in parts; WORKER_IS_BROKEN: its check at start fails."""
    start: dict[str, Any] = {"handler": handler, "concurrency_modifier": lambda _: 4}
    if os.environ.get("WORKER_STREAMS"):
        start = {"handler": items, "return_aggregate_stream": True}
    if os.environ.get("WORKER_IS_BROKEN"):

        @runpod.serverless.register_fitness_check  # type: ignore[untyped-decorator, unused-ignore]
        def no_model() -> None:
            raise RuntimeError("the model is missing")

    runpod.serverless.start(start)


if __name__ == "__main__":
    main()
