"""`python app.py` as a newcomer starts it: the link in the terminal, what a server says that is open, how it ends."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator

import httpx
import pytest

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
