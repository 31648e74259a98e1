"""Sockets that are open under a credential, and the news that it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from api.access.principal import Principal


class LiveCredentials:
    """Which credentials hold sockets now. Of the event loop alone."""

    def __init__(self) -> None:
        self._ended: dict[asyncio.Event, Principal] = {}

    def __len__(self) -> int:
        return len(self._ended)

    @contextlib.contextmanager
    def holding(self, principal: Principal) -> Iterator[asyncio.Event]:
        """The event is set as soon as the credential is known to have ended; the block is the socket's life."""
        ended = asyncio.Event()
        self._ended[ended] = principal
        try:
            yield ended
        finally:
            del self._ended[ended]

    def credentials(self) -> set[str]:
        """All credentials that hold a socket."""
        return {principal.credential for principal in self._ended.values()}

    def of_owner(self, owner: str) -> int:
        """How many sockets this owner has open."""
        return sum(principal.owner == owner for principal in self._ended.values())

    def end(self, credential: str) -> None:
        """Tell the sockets of this credential that it ended."""
        for ended, principal in self._ended.items():
            if principal.credential == credential:
                ended.set()
