"""A server that the self-test reaches over HTTP only: its figures as far as the key lets us see them."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from api.realtime import PROTOCOL
from api.selftest.report import Memory, Speeds
from pipeline.audio import AudioChunk, file_bytes
from pipeline.errors import EngineFailed, Forbidden, InvalidInput, Unauthorized

WAIT_S: Final = 60.0
PCM_RATE: Final = 24_000  # of OpenAI's format pcm
_SAMPLE: Final = re.compile(r"^voicepod_(\w+?)(?:\{([^}]*)\})? ([0-9.e+]+)$", re.MULTILINE)


class RemoteServer:
    """`url` is the server's, http or ws, with or without a path; `key` opens it, None where everybody may enter."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
            raise InvalidInput("the address of a server looks like http://127.0.0.1:7860")
        is_tls = parts.scheme in ("https", "wss")
        host = parts.netloc.rpartition("@")[2]
        self._http_url, self._ws_url = f"http{'s' * is_tls}://{host}", f"ws{'s' * is_tls}://{host}/v1/realtime"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Read once, and only where there is TLS: a client that reads them itself takes 20 ms for it each time.
        self._certificates = httpx.create_ssl_context(trust_env=False) if is_tls else False

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[ClientConnection]:
        """A socket. `Unauthorized`, `Forbidden`, `EngineFailed`."""
        try:
            socket = await websockets.connect(
                self._ws_url,
                subprotocols=[cast(Subprotocol, PROTOCOL)],
                additional_headers=self._headers,
                max_size=None,
                proxy=None,
            )
        except websockets.InvalidStatus as refused:
            status = refused.response.status_code
            if status == 401:
                raise Unauthorized("the server asks for a key: set VOICEPOD_KEY") from None
            raise Forbidden(f"the server refuses talks (status {status})") from None
        except (OSError, websockets.InvalidHandshake, TimeoutError):
            raise EngineFailed("no server answers there", stage="server") from None
        try:
            yield socket
        finally:
            await socket.close()

    async def n_talks(self) -> int | None:
        """From /metrics, where the key has the scope."""
        found = (await self._figures()).get("sessions_active", {})
        return round(found[""]) if found else None

    async def memory(self) -> Memory:
        """From /metrics as well."""
        figures = await self._figures()
        process = figures.get("process_tree_memory_bytes", {}).get("")
        vram = figures.get("vram_bytes", {})
        used, total = (
            sum(value for labels, value in vram.items() if f'state="{state}"' in labels) for state in ("used", "total")
        )
        return Memory(None if process is None else int(process), int(used) or None, int(total) or None)

    async def speeds(self, clip: AudioChunk, text: str) -> Speeds:
        """By /v1/audio, where the key has the scope speech: decoding and encoding files is counted as well."""
        wav = file_bytes(clip, "wav")
        asr_s, heard = await self._timed("transcriptions", data={"model": "x"}, files={"file": ("a.wav", wav)})
        asked = {"model": "x", "voice": "alloy", "input": text, "response_format": "pcm"}
        tts_s, said = await self._timed("speech", json=asked)
        spoken_s = len(said or b"") / 2 / PCM_RATE
        return Speeds(
            asr=None if heard is None else round(asr_s / clip.seconds, 3),
            tts=round(tts_s / spoken_s, 3) if spoken_s else None,
        )

    async def _timed(self, path: str, **request: Any) -> tuple[float, bytes | None]:
        """The second of two calls: the first one after a pause finds cold caches."""
        answer: httpx.Response | None = None
        began_s = 0.0
        with contextlib.suppress(httpx.HTTPError):
            async with self._client() as http:
                for _ in range(2):
                    began_s = time.perf_counter()
                    answer = await http.post(f"/v1/audio/{path}", **request)
        took_s = time.perf_counter() - began_s
        return took_s, answer.content if answer is not None and answer.status_code == 200 else None

    async def _figures(self) -> dict[str, dict[str, float]]:
        """Name without prefix -> labels -> value; empty where they are not shown."""
        try:
            async with self._client() as http:
                answer = await http.get("/metrics")
        except httpx.HTTPError:
            return {}
        found: dict[str, dict[str, float]] = {}
        for name, labels, value in _SAMPLE.findall(answer.text if answer.status_code == 200 else ""):
            found.setdefault(name, {})[labels] = float(value)
        return found

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self._http_url,
            headers=self._headers,
            timeout=WAIT_S,
            verify=self._certificates,
            trust_env=False,
        )
