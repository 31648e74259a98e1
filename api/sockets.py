"""All open sockets, and the word to all of them at once.

Each is told by a task of its own with the same short time for it: one whose client does not read holds up nobody, and
no more tasks run than there may be sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Literal

import structlog

log = structlog.get_logger()

Json = dict[str, Any]
Kind = Literal["drain", "restart", "maintenance"]

TOLD_S: Final = 1.0  # a client that reads takes milliseconds
DRAIN: Final = "The server is shutting down. The page connects again by itself as soon as there is one."


def notice(kind: Kind, message: str) -> Json:
    """The event that pages get; it belongs to no session's count of events."""
    return {"event_id": "event_0", "type": "voicepod.notice", "kind": kind, "message": message}


class Sockets:
    """Of one server, on its event loop."""

    def __init__(self) -> None:
        self._tell: dict[object, Callable[[Json], Awaitable[None]]] = {}

    @contextlib.contextmanager
    def holding(self, tell: Callable[[Json], Awaitable[None]]) -> Iterator[None]:
        """A socket that understands notices, for as long as the block lasts."""
        socket = object()
        self._tell[socket] = tell
        try:
            yield
        finally:
            del self._tell[socket]

    async def broadcast(self, kind: Kind, message: str, *, within_s: float = TOLD_S) -> int:
        """Tell everybody; gives how many took it in time."""
        if not self._tell:
            return 0
        telling = [asyncio.ensure_future(tell(notice(kind, message))) for tell in list(self._tell.values())]
        done, late = await asyncio.wait(telling, timeout=within_s)
        for task in late:
            task.cancel()
        results = await asyncio.gather(*telling, return_exceptions=True)
        n_told = sum(not isinstance(result, BaseException) for result in results)
        log.info("sockets.told", kind=kind, n_told=n_told, n_late=len(late), n_gone=len(done) - n_told)
        return n_told
