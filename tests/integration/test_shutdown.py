"""How the server ends when an engine does not let go. That Ctrl-C ends it: test_access_start.py, test_faults.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STOP_S = 60.0  # only a fault takes so long

# A server whose engine hangs: in a step of its lane, or while it is closed. It stops itself as soon as it has started.
HANGING = """
import asyncio, os, signal, threading
import uvicorn
from api.http_server import HttpServer, leave
from pipeline.engines.lanes import Lane

lane = Lane("hanging", 1, stage="asr")
for_ever = threading.Event()


async def application(scope, receive, send):
    await receive()
    hanging = asyncio.create_task(lane.run(lambda stop: for_ever.wait()))
    await send({"type": "lifespan.startup.complete"})
    os.kill(os.getpid(), signal.SIGTERM)
    await receive()
    if WHERE == "step":
        await lane.close(0.1)
        await asyncio.wait([hanging], timeout=0)
    else:
        await asyncio.to_thread(for_ever.wait)
    await send({"type": "lifespan.shutdown.complete"})


config = uvicorn.Config(application, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1)
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    HttpServer(config, closing_s=1.0).run()
except KeyboardInterrupt:
    print("stopped")
leave(0)
"""


@pytest.mark.parametrize(("where", "status"), [("step", 0), ("close", 1)])
def test_an_engine_that_hangs_does_not_keep_the_process_alive(where: str, status: int) -> None:
    code = HANGING.replace("WHERE", repr(where))
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=STOP_S)
    assert ended.returncode == status, ended.stderr
    assert ended.stderr == ""


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_an_output_that_takes_no_words_does_not_keep_the_process_alive_either(reader: str) -> None:
    """A closed pipe fails when it is written to, a full one (a stopped terminal) holds whoever writes."""
    read, write = os.pipe()
    if reader == "gone":
        os.close(read)
    else:
        os.set_blocking(write, False)
        while not _is_full(write):
            pass
        os.set_blocking(write, True)
    code = HANGING.replace("WHERE", "'close'")
    try:
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=-3, timeout=STOP_S)
        assert ended.returncode == 1
    finally:
        os.close(write)
        if reader == "asleep":
            os.close(read)


def _is_full(pipe: int) -> bool:
    try:
        os.write(pipe, bytes(4096))
    except BlockingIOError:
        return True
    return False
