"""How much one caller may ask for, and all callers together, in each class.

Sliding windows of the `limits` library over a storage of our own: its memory storage follows the wall clock (a clock
that is set back locks callers out, one that is set forward doubles their share) and never forgets a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import structlog
from limits import RateLimitItemPerSecond
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from api.access.limit_storage import WindowStorage
from api.access.principal import Principal
from pipeline.errors import RateLimited
from settings import SecuritySettings

log = structlog.get_logger()

# api: every REST call. upload, generation: those that bring audio or make speech. audio_s, characters: how much of it.
# message: events and frames on a socket. page: what the page asks of Gradio. login: attempts to log in.
Kind = Literal["api", "upload", "generation", "audio_s", "characters", "message", "page", "login"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

# All callers together may have as much as so many of them: what stops a hundred keys from adding up to an outage.
ALL_TOGETHER: Final = 10


@dataclass(frozen=True, slots=True)
class Limit:
    """So much in so many seconds."""

    amount: int
    window_s: int


def limits_of(security: SecuritySettings) -> dict[Kind, Limit]:
    """The classes. api, upload and generation are the admin guide's figures."""
    return {
        "api": Limit(security.max_requests_per_minute, 60),
        "upload": Limit(10, 300),
        "generation": Limit(30, 60),
        "audio_s": Limit(1800, 300),  # ten of the longest reference recordings, or a talk six times as fast as speech
        "characters": Limit(30_000, 60),  # six texts of the greatest length, half an hour of speech
        "message": Limit(60_000, 60),  # twenty talks of 50 frames a second: only a flood comes near
        "page": Limit(1200, 60),  # an open page asks once in two seconds; loading one takes about 80 requests
        "login": Limit(30, 60),
    }


class Limiter:
    """Counts what callers spend. `security.rate_limiting` off counts nothing."""

    def __init__(
        self,
        security: SecuritySettings,
        *,
        clock: Callable[[], float],
        on_rejected: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._is_on = security.rate_limiting
        self._storage = WindowStorage(clock)
        self._windows = SlidingWindowCounterRateLimiter(self._storage)
        self._items = {
            kind: (
                RateLimitItemPerSecond(limit.amount, limit.window_s, kind),
                RateLimitItemPerSecond(limit.amount * ALL_TOGETHER, limit.window_s, f"all {kind}"),
            )
            for kind, limit in limits_of(security).items()
        }
        self._rejected = on_rejected

    async def spend(self, principal: Principal, kind: Kind, amount: float = 1) -> None:
        """Take `amount` from the share of this credential and from everybody's. `RateLimited` when it is used up."""
        await self.spend_as(principal.credential, kind, amount)

    async def spend_as(self, who: str, kind: Kind, amount: float = 1) -> None:
        """The same for somebody who is not known yet; `who` is an address as far as it can be trusted."""
        own, everybody = self._items[kind]  # a class that does not exist is a mistake of ours and must not go unlimited
        if not self._is_on or amount <= 0:
            return
        cost = math.ceil(amount)
        for item, name in ((own, who), (everybody, "all")):
            if not await self._windows.test(item, name, cost=cost):
                self._refuse(kind, item.key_for(name), item.amount, item.get_expiry(), cost)
        await self._windows.hit(own, who, cost=cost)
        await self._windows.hit(everybody, "all", cost=cost)

    def _refuse(self, kind: Kind, key: str, amount: int, window_s: int, cost: int) -> None:
        self._rejected("rate_limited")
        retry_after_s = self._storage.wait_s(key, amount, window_s, cost)
        if self._storage.is_first_refusal(key, window_s):
            log.info("limit.hit", kind=kind, everybody=key.startswith("all "))
        raise RateLimited(f"too much at once; the limit is {amount} in {window_s} s", retry_after_s=retry_after_s)
