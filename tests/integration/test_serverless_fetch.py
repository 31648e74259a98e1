"""Downloads from real servers on loopback, good ones and hostile ones."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serverless.errors import JobError
from serverless.fetch import fetch
from tests.support.file_server import serving

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(answer: Answer) -> AsyncIterator[str]:
    """A server that reads a request and then writes whatever `answer` writes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            await answer(writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        await server.wait_closed()


def sending(*pieces: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
        await writer.drain()

    return answer


async def failing(url: str, **other: Any) -> JobError:
    arguments: dict[str, Any] = {"timeout_s": 20, "allow_private": True, "max_bytes": 1000}
    with pytest.raises(JobError) as caught:
        await fetch(url, **(arguments | other))
    return caught.value


async def test_a_file_and_a_redirect_to_it_are_fetched() -> None:
    with serving({"/a.wav": b"RIFF" * 100}) as server:
        server.redirects["/old"] = "/a.wav"
        for path in ("/a.wav", "/old"):
            data = await fetch(server.address + path, max_bytes=400, timeout_s=20, allow_private=True)
            assert data == b"RIFF" * 100
        assert "cookie" not in server.requests[-1][2]
        assert (await failing(server.address + "/a.wav", max_bytes=399)).code == "DOWNLOAD_FAILED"
        assert (await failing(server.address + "/none")).code == "DOWNLOAD_FAILED"


async def test_no_url_is_written_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving({"/a.wav?signature=secret": b"RIFF"}) as server:
        url = server.address + "/a.wav?signature=secret"
        assert await fetch(url, max_bytes=400, timeout_s=20, allow_private=True) == b"RIFF"
    assert "secret" not in caplog.text


async def test_the_same_servers_are_blocked_without_the_flag() -> None:
    with serving({"/a.wav": b"RIFF"}) as server:
        port = server.address.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1"):
            for scheme in ("http", "https"):
                error = await failing(f"{scheme}://{host}:{port}/a.wav", allow_private=False)
                assert error.code == "URL_BLOCKED"
        assert server.requests == []


async def test_a_redirect_in_a_circle_ends() -> None:
    with serving() as server:
        server.redirects["/a"] = "/a"
        error = await failing(server.address + "/a")
        assert (error.code, len(server.requests)) == ("DOWNLOAD_FAILED", 4)


@pytest.mark.parametrize(
    "answer",
    [
        sending(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"x" * 5),
        sending(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 5),
        sending(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 5000),
        sending(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1388\r\n" + b"x" * 5000 + b"\r\n0\r\n\r\n"),
        sending(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"zzz\r\n"),
        sending(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", gzip.compress(b"\0" * 10_000_000)[:900]),
        sending(b"not http at all\r\n\r\n"),
        sending(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000),
        sending(),
    ],
    ids=["short", "huge", "endless", "chunks", "bad-chunks", "bomb", "no-http", "headers", "nothing"],
)
async def test_a_hostile_answer_is_a_failed_download(answer: Answer) -> None:
    async with raw_server(answer) as url:
        error = await failing(url)
        assert error.code == "DOWNLOAD_FAILED"
        assert "127.0.0.1" not in error.message


async def test_a_body_that_lies_about_its_length_is_cut_by_the_count() -> None:
    async with raw_server(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"x" * 5000)) as url:
        assert await fetch(url, max_bytes=1000, timeout_s=20, allow_private=True) == b"x" * 5


async def test_a_server_that_drips_ends_with_the_time_for_all_of_it() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with raw_server(drip) as url:
        error = await failing(url, timeout_s=0.4, max_bytes=10**9)
    assert (error.code, error.retryable) == ("DOWNLOAD_FAILED", True)


async def test_a_name_that_resolves_only_to_a_closed_port_cannot_be_reached() -> None:
    async with raw_server(sending()) as url:
        pass
    assert (await failing(url)).code == "DOWNLOAD_FAILED"
