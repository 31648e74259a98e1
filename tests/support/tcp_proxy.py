"""A TCP proxy on loopback that cuts its connections when told: what a network does to a page."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class TcpProxy:
    """Passes bytes both ways; `cut()` drops every connection, `up = False` refuses new ones."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.up = True
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    async def serve(self, started: threading.Event) -> None:
        """Listen until `stop()`."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        self._abort()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.up:
            writer.transport.abort()
            return
        out_reader, out_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers |= {writer, out_writer}
        await asyncio.gather(self._pass(reader, out_writer), self._pass(out_reader, writer))
        self._writers -= {writer, out_writer}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def cut(self) -> None:
        """Drop every connection as a network does: no close frame, no goodbye."""
        self._loop.call_soon_threadsafe(self._abort)

    def run(self, started: threading.Event) -> None:
        """The proxy's thread."""
        try:
            self._loop.run_until_complete(self.serve(started))
        finally:
            self._loop.close()

    def stop(self) -> None:
        """End the thread's loop."""
        self._loop.call_soon_threadsafe(self._stop.set)


@contextmanager
def tcp_proxy(target_port: int) -> Iterator[TcpProxy]:
    """A proxy in front of `target_port` until the block ends."""
    proxy = TcpProxy(target_port)
    started = threading.Event()
    thread = threading.Thread(target=proxy.run, args=(started,), daemon=True)
    thread.start()
    assert started.wait(5)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(5)
