"""Voicepod: settings -> Server, which loads the engines, and its page -> uvicorn. Wiring only."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import time

import structlog
import uvicorn

import process_tuning  # noqa: F401 (before numpy)
import ui
from api.access import first_start
from api.application import Server
from api.http_server import Connection, HttpServer, check_certificate, leave, listen
from logs import configure_logging, open_missing_streams, release_logging, say
from pipeline.engines.base import Engines, Voice
from pipeline.engines.tiny_models import write_tiny_models
from pipeline.errors import ConfigError, StorageError, VoicepodError
from pipeline.model_needs import require_models
from pipeline.turn import Waits
from pipeline.warm_up import warm_turn
from private_files import make_private_directory
from settings import Settings
from settings_sources import load_settings
from ui.content import EXAMPLES, PERSONAS

log = structlog.get_logger()


def main(argv: list[str] | None = None) -> int:
    """Serve until interrupted; gives the exit status."""
    open_missing_streams()
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # cards counted as NVML counts them
    try:
        loaded = load_settings(sys.argv[1:] if argv is None else argv, os.environ)
        if loaded.print_config:
            print(loaded.describe())
            return 0
        configure_logging(loaded.settings)
        for notice in loaded.notices:
            log.warning("settings.notice", text=notice)
        make_private_directory(loaded.settings.cache.dir, "cache.dir")
        require_models(loaded.settings)
        if loaded.random_tiny is not None:
            write_tiny_models(loaded.random_tiny)
        return serve(loaded.settings)
    except ConfigError as error:
        print(f"voicepod: {error.message}", file=sys.stderr)
        return 1
    except StorageError as error:  # at the start; later ones cost a request
        print(f"voicepod: storage.dir {loaded.settings.storage.dir}: {error.__cause__}", file=sys.stderr)
        return 1
    finally:
        release_logging()


async def warm_up(engines: Engines, *, voice: Voice, instructions: str, waits: Waits) -> None:
    """A turn before the first one. Garbage collections leave out what is loaded then: they stopped talks for 0.3 s."""
    await warm_turn(engines, voice=voice, instructions=instructions, waits=waits)
    gc.collect()
    gc.freeze()


def serve(settings: Settings) -> int:
    """Run the server on its port, which is taken first: what is printed then is true."""
    network = settings.network
    if network.tls_cert:
        check_certificate(network.tls_cert, network.tls_key)
    with contextlib.ExitStack() as closing:
        sockets = [closing.enter_context(listener) for listener in listen(network.host, network.port)]
        network = network.model_copy(update={"port": sockets[0].getsockname()[1]})
        return _run(settings.model_copy(update={"network": network}), sockets)


def _run(settings: Settings, sockets: list[socket.socket]) -> int:
    """Serve on these. An engine that cannot load ends it with the reason."""
    fatal: list[BaseException] = []

    def stop_for(error: BaseException) -> None:
        fatal.append(error)
        http.should_exit = True

    server = Server(settings, on_fatal=stop_for, warm_up=warm_up)
    ui.mount(
        server.app,
        ui.PageContext(
            metrics=server.page_metrics,
            session_figures=server.page_session_figures,
            examples=EXAMPLES,
            personas={**PERSONAS, "Assistant": settings.llm.system_prompt},
            can_log_out=settings.access.mode == "keys",
            has_socket=settings.network.websocket_enabled,
        ),
        guard=server.guard,
    )
    network = settings.network
    http = HttpServer(
        uvicorn.Config(
            server.app,
            log_config=None,
            ssl_certfile=network.tls_cert,
            ssl_keyfile=network.tls_key,
            ws_max_size=network.max_frame_bytes,
            ws_ping_interval=network.ping_interval_s,
            ws_ping_timeout=network.ping_timeout_s,
            ws_per_message_deflate=False,  # PCM does not compress; it would cost time and 300 kB a socket
            timeout_graceful_shutdown=int(network.shutdown_grace_s),
            loop="asyncio",  # uvloop, where it is installed, cannot start engine processes in a group of their own
            http=Connection,
            server_header=False,
            proxy_headers=False,  # api.access.forwarded believes proxies as far as the settings say
        ),
        before_closing=server.drain,
    )
    scheme = "https" if network.tls_cert else "http"
    log.info("server.starting", url=f"{scheme}://{network.host}:{network.port}")
    say(f"\n{first_start.words(settings, server.store, now_s=time.time())}\n")
    # Uvicorn raises a signal anew once everything is closed; being asked to stop is no failure.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # the terminal was closed; nohup has it ignored
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with contextlib.suppress(KeyboardInterrupt):
        http.run(sockets)
    if fatal:
        reason = fatal[0].message if isinstance(fatal[0], VoicepodError) else "an engine could not be loaded"
        print(f"voicepod: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    leave(main())
