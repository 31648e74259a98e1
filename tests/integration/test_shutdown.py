"""How the server ends when it is not left in peace, or when an engine does not let go."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server_process import ServerProcesses, server_processes

ROOT = Path(__file__).resolve().parents[2]
STOP_S = 30.0  # only a fault takes so long
UNLOADED = ("--set", "performance.preload_models=false", "--set", "network.shutdown_grace_s=300")

REQUEST = (
    b"POST /gradio_api/run/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
    b"Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n"
)

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


@pytest.fixture
def unloaded() -> Iterator[ServerProcesses]:
    with server_processes() as servers:
        yield servers


def test_a_second_ctrl_c_ends_the_waiting_for_a_client_and_nothing_is_left(unloaded: ServerProcesses) -> None:
    server = unloaded.start(*UNLOADED).until_live()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(REQUEST)
        assert client.recv(1000).startswith(b"HTTP/1.1 100 Continue")  # it waits for the rest, which never comes
        server.process.send_signal(signal.SIGINT)
        server.until_it_says("Waiting for connections to close")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(STOP_S) == 0
    assert "server.stopped" in server.output
    assert "Traceback" not in server.output
    assert server.errors == ""
    assert server.relatives() == []


@pytest.mark.parametrize(("where", "status"), [("step", 0), ("close", 1)])
def test_an_engine_that_hangs_does_not_keep_the_process_alive(where: str, status: int) -> None:
    code = HANGING.replace("WHERE", repr(where))
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=STOP_S)
    assert ended.returncode == status, ended.stderr
    assert ended.stderr == ""
