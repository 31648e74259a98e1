"""One-time tickets for a WebSocket: a browser cannot put an `Authorization` header on one."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from api.access.principal import Principal

TICKET_S: Final = 60.0  # the page asks for one right before it connects
MAX_TICKETS: Final = 10_000


class Tickets:
    """Who asked for which ticket; a ticket is gone when it was used."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._issued: OrderedDict[str, tuple[Principal, float]] = OrderedDict()

    def mint(self, principal: Principal) -> str:
        """A new ticket, for the socket of this principal."""
        ticket = secrets.token_urlsafe(24)
        self._issued[ticket] = principal, self._clock() + TICKET_S
        while len(self._issued) > MAX_TICKETS:
            self._issued.popitem(last=False)
        return ticket

    def use(self, ticket: str) -> Principal | None:
        """Whose ticket it is, once and in time; else None."""
        principal, expires_s = self._issued.pop(ticket, (None, 0.0))
        return principal if expires_s > self._clock() else None
