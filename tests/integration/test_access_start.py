"""`python app.py` as a newcomer starts it: the link in the terminal, and what a server says that is open."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.support.server_process import ServerProcesses, server_processes

UNLOADED = ("--set", "performance.preload_models=false")


@pytest.fixture
def unloaded() -> Iterator[ServerProcesses]:
    with server_processes() as servers:
        yield servers


def test_the_terminal_shows_a_link_that_opens_the_page(unloaded: ServerProcesses) -> None:
    server = unloaded.start(*UNLOADED, "--set", "access.mode=keys").until_it_says("/login#").until_live()
    (link,) = re.findall(r"^ +(http://localhost:\d+/login#vl_\S+)$", server.output, re.MULTILINE)
    assert f":{server.port}/" in link
    assert "0.0.0.0" in server.output  # everyone needs a key, so it may listen everywhere
    with httpx.Client(base_url=server.page, headers={"Origin": server.page}) as browser:
        assert browser.get("/config").status_code == 401
        answer = browser.post("/login", json={"credential": link.partition("#")[2]})
        assert answer.json() == {"set_up": True}
        assert browser.get("/config").status_code == 200
        assert browser.post("/api/ticket").status_code == 200
    assert link.partition("#")[2] not in server.output.replace(link, "")  # in no log line


def test_an_open_server_says_so_and_stays_on_loopback(unloaded: ServerProcesses) -> None:
    server = unloaded.start(*UNLOADED).until_it_says("access.mode open").until_live()
    assert httpx.get(f"{server.page}/config").status_code == 200
    assert "login#" not in server.output
    with socket.socket() as elsewhere:  # the port is free on every other address
        elsewhere.bind(("127.0.0.2", server.port))


def test_forwarded_headers_are_not_believed_because_the_proxy_is_near(unloaded: ServerProcesses) -> None:
    """Uvicorn alone would believe whoever connects from loopback, as every proxy on the same machine does."""
    server = unloaded.start(*UNLOADED, "--set", "access.mode=keys").until_it_says("/login#").until_live()
    token = re.findall(r"/login#(\S+)", server.output)[0]
    headers = {"Origin": server.page, "X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    answer = httpx.post(f"{server.page}/login", json={"credential": token}, headers=headers)
    assert answer.headers["set-cookie"].startswith("voicepod=")
