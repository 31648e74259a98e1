"""The real server with its page, closed to whoever has no key, with scripted engines, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn

import ui
from api.access import first_start
from api.application import Server
from pipeline.engines.base import Engines
from pipeline.sample_quality import Speakers
from settings import Settings
from tests.support.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedVad

T = TypeVar("T")


@dataclass
class Closed:
    """A running server. `link` is what its terminal said."""

    server: Server
    llm: ScriptedLlm
    directory: Path
    port: int
    link: str
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        """What stands behind the # of the set-up link."""
        return self.link.partition("#")[2]

    def inside(self, call: Callable[[], T]) -> T:
        """What `call` gives, asked in the server's event loop."""

        async def asked() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(asked(), self.loop).result(10)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives, awaited in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def browser(self) -> httpx.Client:
        """A client that keeps cookies and says where it comes from, as a browser does."""
        return httpx.Client(base_url=self.url, headers={"Origin": self.url}, timeout=20)


@contextlib.contextmanager
def closed_server(
    host: str = "127.0.0.1", *, speakers: Speakers | None = None, **sections: dict[str, Any]
) -> Iterator[Closed]:
    """Serve until the block ends."""
    with tempfile.TemporaryDirectory(prefix="voicepod-test-") as folder:
        directory = Path(folder) / "data"
        settings = Settings.model_validate(
            {"tts": {"voice": "anna"}, "network": {"host": host}, "storage": {"dir": directory}, **sections}
        )
        llm = ScriptedLlm(first_token_s=0.02, token_s=0.002)
        engines = Engines(
            ScriptedVad(), ScriptedAsr(delay_s=0.02), llm, ScriptedTts(first_audio_s=0.02, real_time_factor=0.05)
        )
        server = Server(settings, engines, speakers=lambda: speakers)
        page = ui.PageContext(
            metrics=server.page_metrics,
            session_figures=server.page_session_figures,
            can_log_out=True,
            has_socket=settings.network.websocket_enabled,
        )
        ui.mount(server.app, page, guard=server.guard)
        said = first_start.words(settings, server.store, now_s=server.access.now())
        link = next((line.strip() for line in said.splitlines() if "#" in line), "")
        config = uvicorn.Config(
            server.app, host=host, port=0, log_config=None, proxy_headers=False, timeout_graceful_shutdown=2
        )
        http = uvicorn.Server(config)
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            await http.serve()

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        while not (http.started and server.readiness.is_ready):
            thread.join(0.02)
            assert thread.is_alive(), "the server did not start"
        port = http.servers[0].sockets[0].getsockname()[1]
        try:
            yield Closed(server, llm, directory, port, link, loops[0])
        finally:
            http.should_exit = True
            thread.join(10)
