"""The real server on a loopback port of its own, with scripted engines, inside the test's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from api.application import Server, WarmUp
from pipeline.engines.base import Engines
from pipeline.pressure import Pressure
from pipeline.sample_quality import Speakers
from settings import Settings
from tests.support.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedVad


@dataclass
class Live:
    """A running server and the script of its engines."""

    server: Server
    asr: ScriptedAsr
    llm: ScriptedLlm
    tts: ScriptedTts
    port: int

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/realtime?model=voicepod"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ticket(self) -> str:
        """A one-time ticket for a page's socket, as the page asks for it."""
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"{self.http}/api/ticket", headers={"Origin": self.http})
            return str(answer.json()["ticket"])


class _Quiet(uvicorn.Server):
    """Leaves the signals of the test run alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def scripted_settings(**sections: dict[str, Any]) -> Settings:
    """Settings for scripted engines, open to everybody on loopback; `sections` replaces single keys."""
    return Settings.model_validate({"tts": {"voice": "anna"}, "access": {"mode": "open"}, **sections})


@contextlib.asynccontextmanager
async def live_server(
    settings: Settings | None = None,
    *,
    asr: ScriptedAsr | None = None,
    llm: ScriptedLlm | None = None,
    tts: ScriptedTts | None = None,
    speakers: Speakers | None = None,
    pressure: Pressure | None = None,
    warm_up: WarmUp | None = None,
    until_ready: bool = True,
) -> AsyncIterator[Live]:
    """Serve until the block ends; the engines answer much faster than real ones."""
    settings = settings or scripted_settings()
    folder = contextlib.ExitStack()
    if "dir" not in settings.storage.model_fields_set:  # each server has a directory of its own
        data = Path(folder.enter_context(tempfile.TemporaryDirectory(prefix="voicepod-test-")))
        settings = settings.model_copy(update={"storage": settings.storage.model_copy(update={"dir": data})})
    asr = asr or ScriptedAsr(delay_s=0.02)
    llm = llm or ScriptedLlm(first_token_s=0.02, token_s=0.002)
    tts = tts or ScriptedTts(first_audio_s=0.02, real_time_factor=0.05)
    engines = Engines(ScriptedVad(), asr, llm, tts, pressure=pressure)
    server = Server(settings, engines, speakers=lambda: speakers, warm_up=warm_up)
    network = settings.network
    http = _Quiet(
        uvicorn.Config(
            server.app,
            host="127.0.0.1",
            port=0,
            log_config=None,
            ws_max_size=network.max_frame_bytes,
            ws_ping_interval=network.ping_interval_s,
            ws_ping_timeout=network.ping_timeout_s,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=2,
        )
    )
    serving = asyncio.create_task(http.serve())
    while not (http.started and (server.readiness.is_ready or not until_ready)):
        if serving.done():
            serving.result()
        await asyncio.sleep(0.01)
    port = http.servers[0].sockets[0].getsockname()[1]
    try:
        yield Live(server, asr, llm, tts, port)
    finally:
        http.should_exit = True
        await serving
        folder.close()
