"""How the server ends when an engine does not let go. That Ctrl-C ends it: test_access_start.py, test_faults.py."""

from __future__ import annotations

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
