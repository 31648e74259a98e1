"""A chat server on a free loopback port that answers as a test scripts it, faults included."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

HANG = object()  # send nothing more until the client goes away
CUT = object()  # close the connection

Step = bytes | object
Script = list[Step]


@dataclass(slots=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def event(text: str, **choice: Any) -> bytes:
    """One delta as an event."""
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **choice}]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def head(status: int = 200, **headers: str) -> bytes:
    """The head of a chunked answer."""
    lines = [f"HTTP/1.1 {status} Status", "Transfer-Encoding: chunked"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


END = b"0\r\n\r\n"


def stream(*parts: Step, end: bool = True) -> Script:
    """A good head, then each part in a chunk of its own; `end` closes the body."""
    steps = [chunk(part) if isinstance(part, bytes) else part for part in parts]
    return [head(Content_Type="text/event-stream"), *steps, *([END] if end else [])]


def says(*deltas: str) -> Script:
    """A faultless answer."""
    return stream(*(event(delta) for delta in deltas), event("", finish_reason="stop"), DONE)


def refuses(status: int, body: object = "", **headers: str) -> Script:
    """An answer of another status, its body as JSON."""
    return [head(status, **headers), chunk(json.dumps(body).encode()), END]


@dataclass
class ChatServer:
    """`chats` are taken one a request, `otherwise` once they are used up. `pages` answer all other paths."""

    url: str = ""
    chats: deque[Script] = field(default_factory=deque)
    otherwise: Script = field(default_factory=lambda: says("Hi."))
    pages: dict[str, Callable[[Asked], Script]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    n_connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """The client closed a connection in the middle of an answer."""

    def offer(self, *models: str, **facts: Any) -> None:
        """Let the list of models hold these."""
        listed = {"object": "list", "data": [{"id": model, **facts} for model in models]}
        self.pages["/v1/models"] = lambda asked: refuses(200, listed)

    @property
    def chats_asked(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == "/v1/chat/completions"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (asked := await _read(reader)) is not None:
                self.asked.append(asked)
                for step in self._script(asked):
                    if step is CUT:
                        return
                    if step is HANG:
                        with contextlib.suppress(ConnectionError):  # what was not read yet makes it a reset
                            await reader.read()
                        self.gone.set()
                        return
                    assert isinstance(step, bytes)
                    writer.write(step)
                    await writer.drain()

    def _script(self, asked: Asked) -> Script:
        if asked.path == "/v1/chat/completions":
            return self.chats.popleft() if self.chats else self.otherwise
        page = self.pages.get(asked.path)
        return page(asked) if page else refuses(404)


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = lines[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, json.loads(body or b"{}"))


@contextlib.asynccontextmanager
async def chat_server() -> AsyncIterator[ChatServer]:
    """A server that runs inside the test's own loop and offers the model `parrot`."""
    scripted = ChatServer()
    scripted.offer("parrot")

    open_now: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_now[task] = writer
        try:
            await scripted.serve(reader, writer)
        finally:
            writer.close()
            del open_now[task]

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield scripted
    finally:
        server.close()
        for writer in open_now.values():
            writer.transport.abort()
        await asyncio.gather(*open_now)
