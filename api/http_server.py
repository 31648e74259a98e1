"""Uvicorn as Voicepod runs it: however it is asked to stop, it ends, and in good order where that is possible."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from logs import Seldom
from pipeline.engines import lanes
from pipeline.errors import ConfigError

log = structlog.get_logger()

# Beyond the time that talks have to end: engines wait for their last step up to ten seconds, and free their weights.
CLOSING_S = 20.0
LAST_WORD_S = 2.0
BACKLOG: Final = 2048  # as uvicorn's
# A client that takes nothing of what was sent for so long, or that answers no probe, is gone: its connection is closed.
GONE_S: Final = 60


class Connection(H11Protocol):
    """Uvicorn's, for half as many clients as there are file descriptors, and not for those who ask nothing.

    Idle connections need no key. With all descriptors taken no engine could open a file or start a program, and every
    talk would end.
    """

    room = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] % 2**31, 65536) // 2
    silent_s: float = GONE_S
    _silent: asyncio.TimerHandle | None = None
    _seldom = Seldom()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Serve it, or refuse it at once."""
        super().connection_made(transport)
        if len(self.connections) > self.room:
            transport.abort()
            if self._seldom.passes():
                log.warning("server.too_many_connections", room=self.room)
        else:
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep nothing of it."""
        super().connection_lost(exc)
        if self._silent is not None:
            self._silent.cancel()

    def on_response_complete(self) -> None:
        """The next request has as much time: uvicorn's own limit ends with its first byte."""
        super().on_response_complete()
        self._await_request()

    def _await_request(self) -> None:
        if self._silent is not None:
            self._silent.cancel()
        self._silent = self.loop.call_later(self.silent_s, self.close_if_silent)

    def close_if_silent(self) -> None:
        """Close it when no request is being answered on it, and none became a WebSocket."""
        is_answered = getattr(self.cycle, "response_complete", True)
        if is_answered and self.transport.get_protocol() is self:
            self.transport.close()


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


def check_certificate(chain: Path, key: Path | None) -> None:
    """ConfigError when uvicorn could not use them."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)
    except OSError as error:
        files = f"network.tls_cert {chain}, network.tls_key {key}"
        raise ConfigError(f"{files}: no PEM certificate chain with its private key: {error.strerror}") from None


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address of `host` that this machine has, which take connections at once.

    ConfigError when there is none, or the port is taken. What clients are held to goes over to each connection: one
    whose machine vanished would keep its slot otherwise.
    """
    listening: list[socket.socket] = []
    absent: OSError | None = None
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                listening.append(socket.create_server(address, family=family, backlog=BACKLOG))
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                absent = error  # such as the IPv6 address of localhost on a machine without IPv6
        if absent is not None and not listening:
            raise absent
    except OSError as error:
        for listener in listening:
            listener.close()
        taken = error.errno == errno.EADDRINUSE
        what_to_do = "another server may run; --port takes another port" if taken else "see network.host, network.port"
        reason = str(error.strerror).partition(" (")[0]
        raise ConfigError(f"cannot listen on {host}, port {port}: {reason}; {what_to_do}") from None
    for listener in listening:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, GONE_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * GONE_S)
    return listening


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
