"""A word to all pages: they get it, a client that never reads holds nobody up, and it comes before the server goes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import httpx
import pytest
import websockets

from api.sockets import Sockets
from tests.support.client import connected
from tests.support.live_server import Live, live_server

PAGE = "voicepod.v1"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    async with live_server() as live:
        yield live


async def test_pages_are_told_and_stock_clients_are_left_alone(live: Live) -> None:
    async with AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(connected(live.url, protocols=[PAGE])) for _ in range(3)]
        stock = await stack.enter_async_context(connected(live.url))
        for client in (*pages, stock):
            await client.until("session.created")
        async with httpx.AsyncClient(base_url=live.http, verify=False, headers={"Origin": live.http}) as http:
            body = {"kind": "maintenance", "message": "Back at\u202e noon.\n"}
            answer = await http.post("/api/notices", json=body)
            assert (answer.status_code, answer.json()["told"]) == (200, 3)
            for wrong in (
                {"kind": "drain", "message": "x"},
                {"kind": "restart", "message": "x" * 301},
                {"kind": "restart"},
            ):
                assert (await http.post("/api/notices", json=wrong)).status_code in (400, 413)
        for page in pages:
            notice = await page.until("voicepod.notice")
            assert (notice["kind"], notice["message"]) == ("maintenance", "Back at noon.")
        await stock.send("session.update", session={"type": "realtime"})
        await stock.until("session.updated")
        assert not stock.all("voicepod.notice")


async def test_sockets_that_never_take_it_hold_nobody_up_and_leave_no_task() -> None:
    sockets = Sockets()
    told: list[str] = []
    stuck: list[str] = []

    async def first(notice: object) -> None:
        told.append("first")

    async def last(notice: object) -> None:
        told.append("last")

    async def never(notice: object) -> None:
        stuck.append("one")
        try:
            await asyncio.Event().wait()
        finally:
            stuck.pop()

    async def broken(notice: object) -> None:
        raise RuntimeError("the socket is gone")

    with ExitStack() as stack:
        for tell in (never, first, broken, never, last):
            stack.enter_context(sockets.holding(tell))
        assert await sockets.broadcast("drain", "bye", within_s=0.01) == 2
    assert (told, stuck) == (["first", "last"], [])
    assert await sockets.broadcast("drain", "bye") == 0


async def test_a_client_that_never_reads_does_not_keep_the_word_from_others(live: Live) -> None:
    """Its socket is full: the server has written into it until nothing went any more."""
    async with AsyncExitStack() as stack:
        deaf = await stack.enter_async_context(websockets.connect(live.url, subprotocols=[PAGE], max_queue=1))  # type: ignore[list-item]
        deaf.transport.pause_reading()
        text = {"type": "input_text", "text": "x" * 20_000}
        item = {"type": "message", "role": "user", "content": [text]}
        await deaf.send(json.dumps({"type": "conversation.item.create", "item": {**item, "id": "item_1"}}))
        for _ in range(400):  # each answer has the text: 8 MB, more than the buffers of both ends
            await deaf.send(json.dumps({"type": "conversation.item.retrieve", "item_id": "item_1"}))
        page = await stack.enter_async_context(connected(live.url, protocols=[PAGE]))
        await page.until("session.created")
        told = await live.server.sockets.broadcast("restart", "Soon.", within_s=0.2)
        assert told == 1
        assert (await page.until("voicepod.notice"))["message"] == "Soon."
        deaf.transport.abort()


SERVER = """
import asyncio, sys
import uvicorn
from api.application import Server
from api.http_server import HttpServer
from pipeline.engines.base import Engines
from tests.support.live_server import scripted_settings
from tests.support.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedVad

settings = scripted_settings(storage={"dir": sys.argv[1]})
server = Server(settings, Engines(ScriptedVad(), ScriptedAsr(), ScriptedLlm(), ScriptedTts()))
config = uvicorn.Config(server.app, host="127.0.0.1", port=int(sys.argv[2]), log_config=None)
HttpServer(config, before_closing=server.drain).run()
"""


async def test_a_server_that_is_asked_to_stop_tells_its_pages_first(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(tmp_path / "data"), str(port)]
    process = await asyncio.to_thread(subprocess.Popen, command, cwd=ROOT, stdout=-3, stderr=-3)
    try:
        async with asyncio.timeout(60):
            while not await is_ready(port):
                await asyncio.sleep(0.1)
            async with connected(f"ws://127.0.0.1:{port}/v1/realtime", protocols=[PAGE]) as page:
                await page.until("session.created")
                process.send_signal(signal.SIGTERM)
                assert (await page.until("voicepod.notice"))["kind"] == "drain"
                assert await page.closed() == 1012
        await asyncio.to_thread(process.wait, 30)
    finally:
        process.kill()


async def is_ready(port: int) -> bool:
    try:
        async with httpx.AsyncClient(verify=False) as http:
            return (await http.get(f"http://127.0.0.1:{port}/health/ready")).status_code == 200
    except httpx.TransportError:
        return False
