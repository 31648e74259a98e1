"""URLs that a caller must not have fetched: none of them reaches a socket."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless.errors import JobError
from serverless.fetch import fetch, is_public

BLOCKED_BY_FORM = [
    "",
    "x",
    "http://example.com/a.wav",
    "ftp://example.com/a.wav",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "gopher://example.com/",
    "data:audio/wav;base64,AAAA",
    "javascript:alert(1)",
    "//example.com/a.wav",
    "https:example.com/a.wav",
    "https:///a.wav",
    "https://",
    "https://@/a.wav",
    "https://user@example.com/a.wav",
    "https://user:password@example.com/a.wav",
    "https://example.com@127.0.0.1/a.wav",
    "https://example.com\\@127.0.0.1/a.wav",
    "https://example.com:80/a.wav",
    "https://example.com:22/a.wav",
    "https://example.com:0/a.wav",
    "https://example.com:99999/a.wav",
    "https://example.com:x/a.wav",
    "https://exa mple.com/a.wav",
    "https://example.com/a b.wav",
    "https://example.com/\r\nHost: evil",
    "https://example.com/\0",
    "https://exämple.com/a.wav",
    "https://ⓔxample.com/a.wav",
    "https://127。0。0。1/a.wav",
    "https://[::1",
    "https://[fe80::1%25eth0]/a.wav",
    "https://exa%6dple.com/",
    "https://example.com#@127.0.0.1/\u2028",
    "https://example.com/" + "a" * 3000,
]
BLOCKED_BY_ADDRESS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "0",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "0xa9fea9fe",
    "2852039166",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "198.18.0.1",
    "192.88.99.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:169.254.169.254]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::1]",
    "[2002:7f00:1::]",
    "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
    "[fe80::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "[2001:db8::1]",
    "[3fff::1]",
    "[fec0::2]",
    "[4000::1]",
    "168.63.129.16",
    "localhost",
    "LOCALHOST",
]


@pytest.fixture(autouse=True)
def no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is a failed test."""

    async def connect(*arguments: object, **named: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", connect)


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name has these addresses; gives the names that were asked for."""
    asked: list[str] = []

    async def getaddrinfo(self: object, host: str, port: int, **named: object) -> list[Any]:
        asked.append(host)
        if not addresses:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return asked


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[httpx.Request], httpx.Response]) -> None:
    """Servers answer so, without a socket."""

    async def handle(self: object, request: httpx.Request) -> httpx.Response:
        return answer(request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)


async def failing(url: str, **named: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        await fetch(url, timeout_s=5, **named)
    return caught.value


@pytest.mark.parametrize("url", BLOCKED_BY_FORM, ids=range(len(BLOCKED_BY_FORM)))
async def test_a_url_of_the_wrong_form_is_not_even_looked_up(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    asked = resolving(monkeypatch, "8.8.8.8")
    error = await failing(url)
    assert (error.code, error.retryable) == ("URL_BLOCKED", False)
    assert error.errors[0].field == "local_voice"
    assert asked == []


@pytest.mark.parametrize("host", BLOCKED_BY_ADDRESS)
async def test_an_address_that_is_not_public_is_blocked_however_it_is_written(host: str) -> None:
    error = await failing(f"https://{host}/a.wav")
    assert error.code == "URL_BLOCKED"
    assert host not in error.message


@pytest.mark.parametrize(
    "addresses",
    [("127.0.0.1",), ("8.8.8.8", "10.0.0.1"), ("10.0.0.1", "8.8.8.8"), ("::ffff:10.0.0.1",), ("fe80::1%2",)],
)
async def test_a_name_with_one_address_that_is_not_public_is_blocked(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    resolving(monkeypatch, *addresses)
    assert (await failing("https://innocent.example/a.wav")).code == "URL_BLOCKED"


async def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolving(monkeypatch, "8.8.8.8")
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(b"RIFF"))

    answering(monkeypatch, answer)
    assert await fetch("https://Voices.Example/a.wav?x=1#part", timeout_s=5) == b"RIFF"
    (request,) = seen
    assert str(request.url) == "https://8.8.8.8/a.wav?x=1"
    assert request.headers["host"] == "voices.example"
    assert request.headers["accept-encoding"] == "identity"
    assert request.extensions["sni_hostname"] == "voices.example"
    assert asked == ["voices.example"]


async def test_a_name_in_another_script_is_taken_in_its_ascii_form(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolving(monkeypatch, "8.8.8.8")
    answering(monkeypatch, lambda request: httpx.Response(200, stream=httpx.ByteStream(b"RIFF")))
    assert await fetch("https://xn--mnchen-3ya.example/a.wav", timeout_s=5) == b"RIFF"
    assert asked == ["xn--mnchen-3ya.example"]
    await fetch("https://xn--a/", timeout_s=5)  # no name of any script, for the server of names to refuse


@pytest.mark.parametrize(
    "location",
    [
        "https://127.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "http://example.com/a.wav",
        "file:///etc/passwd",
        "https://user:pw@example.com/",
        "https://example.com:8443/",
        "//[::1]/",
        "\\\\127.0.0.1\\x",
        "x:y",
        "https://xn--a/",
    ],
)
async def test_a_redirect_is_checked_as_the_first_url_was(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    real = asyncio.BaseEventLoop.getaddrinfo

    async def getaddrinfo(self: Any, host: str, port: int, **named: Any) -> Any:
        if host == "start.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port))]
        return await real(self, host, port, **named)

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    n_answers = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal n_answers
        n_answers += 1
        return httpx.Response(302, headers={"Location": location})

    answering(monkeypatch, answer)
    assert (await failing("https://start.example/a.wav")).code == "URL_BLOCKED"
    assert n_answers == 1


async def test_three_redirects_are_followed_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "8.8.8.8")
    left = 3

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal left
        left -= 1
        if left >= 0:
            return httpx.Response(307, headers={"Location": "/next"})
        return httpx.Response(200, stream=httpx.ByteStream(b"x"))

    answering(monkeypatch, answer)
    assert await fetch("https://a.example/", timeout_s=5) == b"x"
    left = 4
    error = await failing("https://a.example/")
    assert (error.code, error.retryable) == ("DOWNLOAD_FAILED", False)


@pytest.mark.parametrize(
    ("response", "retryable"),
    [
        (httpx.Response(404), False),
        (httpx.Response(403), False),
        (httpx.Response(204), False),
        (httpx.Response(503), True),
        (httpx.Response(429), True),
        (httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"\x1f\x8b")), False),
        (httpx.Response(200, headers={"Content-Length": "999999999"}, stream=httpx.ByteStream(b"x")), False),
        (httpx.Response(200, headers={"Content-Length": "9" * 5000}, stream=httpx.ByteStream(b"x")), False),
        (httpx.Response(200, headers={"Content-Length": "1"}, stream=httpx.ByteStream(b"x" * 11)), False),
        (httpx.Response(200, headers={"Content-Length": "-5"}, stream=httpx.ByteStream(b"x" * 11)), False),
    ],
    ids=range(10),
)
async def test_an_answer_that_is_no_small_file_is_a_failed_download(
    monkeypatch: pytest.MonkeyPatch, response: httpx.Response, retryable: bool
) -> None:
    resolving(monkeypatch, "8.8.8.8")
    answering(monkeypatch, lambda request: response)
    error = await failing("https://secret-host.example/a.wav?token=secret", max_bytes=10)
    assert (error.code, error.retryable) == ("DOWNLOAD_FAILED", retryable)
    assert "secret" not in error.message


async def test_a_name_that_nobody_knows_is_a_failed_download(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch)
    assert (await failing("https://nobody.example/a.wav")).code == "DOWNLOAD_FAILED"


@given(st.ip_addresses())
def test_nothing_private_is_ever_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if is_public(str(address)):
        assert address.is_global or getattr(address, "ipv4_mapped", None) is not None
        assert not address.is_multicast


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@given(st.integers(0, 2**32 - 1))
def test_an_address_is_as_public_in_ipv6_as_in_ipv4(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    assert is_public(f"::ffff:{address}") == is_public(f"64:ff9b::{address}") == is_public(str(address))
