"""Sockets and answers that are open under a credential, and the news that it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from api.access.principal import Principal


class LiveCredentials:
    """Which credentials hold sockets now, and which are being answered. Of the event loop alone."""

    def __init__(self) -> None:
        self._sockets: dict[asyncio.Event, Principal] = {}
        self._answers: dict[asyncio.Event, Principal] = {}

    def __len__(self) -> int:
        """Open sockets."""
        return len(self._sockets)

    @contextlib.contextmanager
    def holding(self, principal: Principal) -> Iterator[asyncio.Event]:
        """The event is set as soon as the credential is known to have ended; the block is the socket's life."""
        with _listed(self._sockets, principal) as ended:
            yield ended

    @contextlib.contextmanager
    def answering(self, principal: Principal) -> Iterator[asyncio.Event]:
        """The same for the answer to an HTTP request, which is no sign of use and takes no socket's place."""
        with _listed(self._answers, principal) as ended:
            yield ended

    def credentials(self) -> set[str]:
        """All credentials that hold a socket or are being answered."""
        return self.in_use() | {principal.credential for principal in self._answers.values()}

    def in_use(self) -> set[str]:
        """All credentials that hold a socket."""
        return {principal.credential for principal in self._sockets.values()}

    def of_owner(self, owner: str) -> int:
        """How many sockets this owner has open."""
        return sum(principal.owner == owner for principal in self._sockets.values())

    def end(self, credential: str) -> None:
        """Tell the sockets and answers of this credential that it ended."""
        for ended, principal in [*self._sockets.items(), *self._answers.items()]:
            if principal.credential == credential:
                ended.set()


@contextlib.contextmanager
def _listed(among: dict[asyncio.Event, Principal], principal: Principal) -> Iterator[asyncio.Event]:
    ended = asyncio.Event()
    among[ended] = principal
    try:
        yield ended
    finally:
        del among[ended]
