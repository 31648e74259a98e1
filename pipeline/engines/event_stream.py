"""Server-sent events out of a stream of bytes that may be hostile: no event is longer than a bound."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

# A delta of a chat is a few hundred bytes; servers that repeat the whole answer at its end stay far below this.
MAX_EVENT_BYTES: Final = 1 << 20


class MalformedStream(ValueError):
    """What came is no stream of events."""


async def events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """The data of each event; one that the end of the stream cuts short counts as whole. `MalformedStream`.

    An event's lines named `error`, which older servers of llama.cpp send, come as `{"error": ...}`.
    """
    data: list[bytes] = []
    n_bytes = 0
    async with aclosing(_lines(chunks)) as lines:
        async for line in lines:
            if not line:
                if data:
                    yield _text(data)
                data, n_bytes = [], 0
                continue
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                data.append(value)
            elif name == b"error":
                data.append(b'{"error": ' + value + b"}")
            n_bytes += len(line)
            if n_bytes > MAX_EVENT_BYTES:
                raise MalformedStream("an event without an end")
    if data:
        yield _text(data)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Lines without their ends, the last one whether it ends or not, and without a byte order mark before the first."""
    buffer, searched, mark = bytearray(), 0, BOM_UTF8
    async for chunk in chunks:
        buffer += chunk
        while (end := buffer.find(b"\n", searched)) >= 0:
            line, mark = bytes(buffer[:end]).removeprefix(mark).removesuffix(b"\r"), b""
            del buffer[: end + 1]
            searched = 0
            yield line
        searched = len(buffer)
        if searched > MAX_EVENT_BYTES:
            raise MalformedStream("a line without an end")
    if buffer:
        yield bytes(buffer).removeprefix(mark).removesuffix(b"\r")


def _text(data: list[bytes]) -> str:
    try:
        return b"\n".join(data).decode()
    except UnicodeDecodeError:
        raise MalformedStream("bytes that are no UTF-8") from None
