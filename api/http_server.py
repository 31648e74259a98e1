"""Uvicorn as Voicepod runs it: however it is asked to stop, it ends, and in good order where that is possible."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import NoReturn

import structlog
import uvicorn

from pipeline.engines import lanes

log = structlog.get_logger()

# Beyond the time that talks have to end: engines wait for their last step up to ten seconds, and free their weights.
CLOSING_S = 20.0
LAST_WORD_S = 2.0


class HttpServer(uvicorn.Server):
    """Closes the engines after a second Ctrl-C too, and ends the process when they cannot be closed.

    `before_closing` has its word before the sockets are closed; it must take no more than moments.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        closing_s: float = CLOSING_S,
        before_closing: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(config)
        self._before_closing = before_closing
        self._limit_s = (config.timeout_graceful_shutdown or 0) + closing_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal. The second one ends the waiting for talks; uvicorn alone would also leave the engines open."""
        if self.should_exit:
            self.force_exit = True
            return
        last = threading.Timer(self._limit_s, _end_anyway)
        last.daemon = True  # it must not be waited for itself
        last.start()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but the application is always told."""
        if self._before_closing is not None and not self.force_exit:
            await self._before_closing()
        await super().shutdown(sockets)
        if self.force_exit:
            for connection in list(self.server_state.connections):
                connection.transport.close()  # a request learns that its client is gone; cancelled, it would be a fault
            if self.server_state.tasks:
                await asyncio.wait(list(self.server_state.tasks), timeout=LAST_WORD_S)
            await self.lifespan.shutdown()


def leave(status: int) -> NoReturn:
    """End the process. A step of an engine that never ends is not waited for, as the interpreter would."""
    if not lanes.abandoned:
        sys.exit(status)
    _end(status)


def _end_anyway() -> None:
    # A closed output fails, and one that nobody reads holds whoever writes: the end waits for neither.
    last_word = threading.Thread(target=_say_last_word, daemon=True)
    last_word.start()
    last_word.join(LAST_WORD_S)
    os._exit(1)


def _say_last_word() -> None:
    with contextlib.suppress(OSError):
        log.error("server.stop_forced", lanes=sorted(lanes.abandoned))
        _flush()


def _end(status: int) -> NoReturn:
    with contextlib.suppress(OSError):
        _flush()
    os._exit(status)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
