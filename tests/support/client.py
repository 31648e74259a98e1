"""A small realtime client for tests: sends events, collects what comes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import websockets
from websockets.asyncio.client import ClientConnection

Json = dict[str, Any]


class Client:
    """One socket. `events` holds all JSON messages, `audio` the PCM of each turn."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[Json] = []
        self.frames: list[tuple[int, int, bytes]] = []  # turn, first sample, PCM
        self.pcm = b""  # base64 audio of stock clients, joined
        self.close_code: int | None = None
        self._came = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def speak(self, seconds: float, *, rate: int = 24000, binary: bool = False, level: float = 0.5) -> None:
        """So many seconds of sound at once; faster than real time is fine, endpoints count audio."""
        pcm = np.full(int(seconds * rate), level * 32767, np.int16).tobytes()
        if binary:
            await self.socket.send(pcm)
        else:
            await self.send("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())

    async def say(self, seconds: float = 0.6, *, rate: int = 24000, binary: bool = False) -> None:
        """An utterance: sound, then the silence that ends it."""
        await self.speak(seconds, rate=rate, binary=binary)
        await self.speak(0.8, rate=rate, binary=binary, level=0.0)

    async def until(self, kind: str, n: int = 1, timeout_s: float = 20.0) -> Json:
        """The nth event of a kind."""
        async with asyncio.timeout(timeout_s), self._came:
            await self._came.wait_for(lambda: len(self.all(kind)) >= n or self.close_code is not None)
        found = self.all(kind)
        assert len(found) >= n, (
            f"closed with {self.close_code} before {kind} came; got {[e['type'] for e in self.events]}"
        )
        return found[n - 1]

    async def closed(self, timeout_s: float = 20.0) -> int:
        """The close code."""
        async with asyncio.timeout(timeout_s):
            await self._reading
        assert self.close_code is not None
        return self.close_code

    def all(self, kind: str) -> list[Json]:
        return [event for event in self.events if event["type"] == kind]

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events]

    async def _read(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for message in self.socket:
                if isinstance(message, bytes):
                    turn, first_sample = struct.unpack_from("<II", message)
                    self.frames.append((turn, first_sample, message[8:]))
                else:
                    event = json.loads(message)
                    self.events.append(event)
                    if event["type"] == "response.output_audio.delta":
                        self.pcm += base64.b64decode(event["delta"])
                async with self._came:
                    self._came.notify_all()
        self.close_code = self.socket.close_code
        async with self._came:
            self._came.notify_all()

    async def stop(self) -> None:
        await self.socket.close()
        await self._reading


@contextlib.asynccontextmanager
async def connected(url: str, *, protocols: list[str] | None = None, **options: Any) -> AsyncIterator[Client]:
    """A client that is closed at the end of the block."""
    async with websockets.connect(url, subprotocols=protocols, max_size=None, **options) as socket:  # type: ignore[arg-type]
        client = Client(socket)
        try:
            yield client
        finally:
            await client.stop()
