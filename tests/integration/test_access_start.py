"""`python app.py` as a newcomer starts it: the link in the terminal, what a server says that is open, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import signal
import socket
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from api.http_server import GONE_S, Connection, listen
from app import serve
from pipeline.errors import ConfigError
from settings import NetworkSettings, Settings, StorageSettings
from tests.support.server_process import ServerProcess, ServerProcesses, server_processes

UNLOADED = ("--set", "performance.preload_models=false")
STOP_S = 60.0  # only a fault takes so long
REQUEST = (
    b"POST /gradio_api/run/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
    b"Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n"
)


@pytest.fixture(scope="module")
def unloaded() -> Iterator[ServerProcesses]:
    with server_processes() as servers:
        yield servers


@pytest.fixture(scope="module")
def closed(unloaded: ServerProcesses) -> ServerProcess:
    """One where everyone needs a key."""
    return unloaded.start(*UNLOADED, "--set", "access.mode=keys").until_it_says("/login#").until_live()


@pytest.fixture(scope="module")
def opened(unloaded: ServerProcesses) -> ServerProcess:
    """One that lets everybody in; the last test stops it."""
    server = unloaded.start(*UNLOADED, "--set", "network.shutdown_grace_s=300")
    return server.until_it_says("access.mode open").until_live()


def test_the_terminal_shows_a_link_that_opens_the_page_and_forwarded_headers_are_not_believed(
    closed: ServerProcess,
) -> None:
    """Uvicorn alone would believe whoever connects from loopback, as every proxy on the same machine does."""
    (link,) = re.findall(r"^ +(http://localhost:\d+/login#vl_\S+)$", closed.output, re.MULTILINE)
    assert f":{closed.port}/" in link
    assert "0.0.0.0" in closed.output  # everyone needs a key, so it may listen everywhere
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    with httpx.Client(base_url=closed.page, headers={"Origin": closed.page}, verify=False) as browser:
        assert browser.get("/config").status_code == 401
        answer = browser.post("/login", json={"credential": link.partition("#")[2]}, headers=forwarded)
        assert answer.headers["set-cookie"].startswith("voicepod=")  # not the name that a cookie has over https
        assert answer.json() == {"set_up": True}
        assert browser.get("/config").status_code == 200
        assert browser.post("/api/ticket").status_code == 200
    assert link.partition("#")[2] not in closed.output.replace(link, "")  # in no log line


def test_an_open_server_says_so_and_stays_on_loopback(opened: ServerProcess) -> None:
    assert httpx.get(f"{opened.page}/config", verify=False).status_code == 200
    assert "login#" not in opened.output
    with socket.socket() as elsewhere:  # the port is free on every other address
        elsewhere.bind(("127.0.0.2", opened.port))


def test_a_second_ctrl_c_ends_the_waiting_for_a_client_and_nothing_is_left(opened: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", opened.port)) as client:
        client.sendall(REQUEST)
        assert client.recv(1000).startswith(b"HTTP/1.1 100 Continue")  # it waits for the rest, which never comes
        opened.process.send_signal(signal.SIGINT)
        opened.until_it_says("Waiting for connections to close")
        opened.process.send_signal(signal.SIGINT)
        assert opened.process.wait(STOP_S) == 0
    assert "server.stopped" in opened.output
    assert "Traceback" not in opened.output
    assert opened.errors == ""
    assert opened.relatives() == []


def test_a_terminal_that_is_closed_ends_its_server_in_good_order(closed: ServerProcess) -> None:
    closed.process.send_signal(signal.SIGHUP)
    assert closed.process.wait(STOP_S) == 0
    assert "server.stopped" in closed.output
    assert closed.errors == ""
    assert closed.relatives() == []


def test_a_port_in_use_is_said_before_any_link_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that runs already goes on with its own link, which a second one in vain would have made void."""
    storage = StorageSettings(dir=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        network = NetworkSettings(host="127.0.0.1", port=other.getsockname()[1])
        with pytest.raises(ConfigError, match=r"127.0.0.1, port \d+: Address already in use; .*--port"):
            serve(Settings(network=network, storage=storage))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["no certificate", None])
def test_a_certificate_that_cannot_be_used_is_named_before_any_link_is_made(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = tmp_path / "certificate.pem"
    if content is not None:
        certificate.write_text(content)
    network = NetworkSettings(port=0, tls_cert=certificate, tls_key=certificate)
    with pytest.raises(ConfigError, match=r"network.tls_cert /.*certificate.pem, network.tls_key /.*: .*PEM"):
        serve(Settings(network=network, storage=StorageSettings(dir=tmp_path / "data")))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot listen on {host}, port 7860: .*network.host"):
        listen(host, 7860)


def test_an_address_that_a_name_has_and_the_machine_has_not_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the IPv6 address of localhost in a container without IPv6."""
    real = socket.getaddrinfo
    away, here = (real(address, 0, type=socket.SOCK_STREAM) for address in ("192.0.2.1", "127.0.0.1"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_how: away + here)
    (listener,) = listen("localhost", 0)
    with listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_clients_that_vanish_or_never_read_lose_their_connections() -> None:
    """Without a word they would hold a request's slot until the kernel gives up, or for ever."""
    (listener,) = listen("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * GONE_S
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == GONE_S
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[tuple[str, int], list[weakref.ref[Connection]]]]:
    """A server that answers with nothing: its address, and the connections that were made, as far as they are alive."""
    config, state = uvicorn.Config(_nothing, log_config=None), ServerState()
    config.load()
    made: list[weakref.ref[Connection]] = []

    def connection() -> Connection:
        made.append(weakref.ref(new := Connection(config, state, {})))
        return new

    (listener,) = listen("127.0.0.1", 0)
    address = listener.getsockname()
    loop = asyncio.get_running_loop()
    async with await loop.create_server(connection, sock=listener), asyncio.timeout(20):
        yield address, made


async def test_idle_clients_leave_descriptors_for_the_talks_and_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks them for a key. With all descriptors taken no engine could open a file: every talk failed."""
    monkeypatch.setattr(Connection, "room", 2)
    async with listening() as (address, made):
        asking, to_asking = await asyncio.open_connection(*address)
        to_asking.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await asking.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        silent, to_silent = await asyncio.open_connection(*address)
        to_silent.write(b"GET / HTTP/1.1\r\nHost: loc")
        third, to_third = await asyncio.open_connection(*address)
        with contextlib.suppress(ConnectionResetError):
            assert await third.read() == b""
        for connection in [alive for one in made if (alive := one()) is not None]:
            if connection.cycle is None:
                connection.close_if_silent()  # as a timer does after a minute
        assert await silent.read() == b""
        to_asking.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await asking.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        for writer in (to_asking, to_silent, to_third):
            writer.close()


async def test_who_was_answered_once_does_not_keep_the_connection_for_half_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time that uvicorn gives for the next request ends with its first byte."""
    async with listening() as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        for silent_s in (GONE_S, 0.0):
            monkeypatch.setattr(Connection, "silent_s", silent_s)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        writer.write(b"GET")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_of_a_connection_that_is_over_nothing_is_kept() -> None:
    """For its minute each would take 6 kB, of as many as come in a minute."""
    async with listening() as (address, made):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 204")
        writer.close()
        while made[0]() is not None:
            await asyncio.sleep(0.05)
            gc.collect()


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})
