"""The card's memory: what the engines took, what one talk more takes, and how many talks that leaves.

Nothing here is guessed. The card is read when the engines are loaded, after one turn, and after two turns at once; the
difference of the last two is what a talk takes. Where there is no card, the setting alone counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from pipeline.errors import ConfigError

log = structlog.get_logger()

GB = 1_000_000_000
READ_TIMEOUT_S = 5.0  # a driver that hangs must not keep the server from starting


@dataclass(frozen=True, slots=True)
class CardMemory:
    """Of one card, in bytes; `used_bytes` counts every process on it."""

    used_bytes: int
    total_bytes: int


class Ledger:
    """All methods belong to the event loop, `read` alone runs in a thread."""

    def __init__(self, read: Callable[[], CardMemory | None], *, fraction: float, max_talks: int) -> None:
        """`read` looks at the card now. `fraction` in (0, 1] is the share of it that may be used."""
        self.seats = max_talks
        self.loaded_bytes: int | None = None
        self.talk_bytes: int | None = None
        self._read, self._fraction, self._max_talks = read, fraction, max_talks
        self._has_card = True  # until it is not found
        self._n_served = 2  # talks at once whose memory the engines already hold

    async def look(self) -> CardMemory | None:
        """The card now; None without one, or when its driver does not answer, which is not asked again."""
        if not self._has_card:
            return None
        card = None
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                card = await asyncio.to_thread(self._read)
        except TimeoutError:
            log.warning("ledger.card_does_not_answer")
        self._has_card = card is not None
        return card

    async def measure(self, turn: Callable[[], Awaitable[None]]) -> None:
        """Run `turn` once and then twice at once, and reckon the seats. `ConfigError` when not even one talk fits."""
        loaded = await self.look()
        await turn()
        if loaded is None:
            return
        one = await self.look() or loaded
        await asyncio.gather(turn(), turn())
        two = await self.look() or one
        self._reckon(loaded, one, two)

    def _reckon(self, loaded: CardMemory, one: CardMemory, two: CardMemory) -> None:
        allowed = round(self._fraction * one.total_bytes)
        self.loaded_bytes, self.talk_bytes = loaded.used_bytes, max(two.used_bytes - one.used_bytes, 0)
        if one.used_bytes > allowed:
            raise ConfigError(
                f"the engines take {one.used_bytes / GB:.1f} of the card's {one.total_bytes / GB:.1f} GB, more than "
                f"performance.gpu_memory_fraction {self._fraction:g} allows: choose smaller models or a larger card"
            )
        fits = self._max_talks
        if self.talk_bytes:
            fits = 1 + (allowed - one.used_bytes) // self.talk_bytes
        self.seats = min(fits, self._max_talks)
        log.info("ledger.measured", seats=self.seats, **self.as_dict())
        if self.seats < self._max_talks:
            log.warning("ledger.fewer_talks_fit", seats=self.seats, max_concurrent_users=self._max_talks)

    def has_room(self, n_active: int, card: CardMemory | None) -> bool:
        """Whether one talk more fits beside `n_active`, by what `card` shows. The seats are counted elsewhere.

        As many talks as there were already find their memory in what the engines keep for themselves.
        """
        if card is None or not self.talk_bytes or n_active < self._n_served:
            return True
        if card.used_bytes + self.talk_bytes > self._fraction * card.total_bytes:
            return False
        self._n_served = n_active + 1
        return True

    def as_dict(self) -> dict[str, Any]:
        """The figures, for the log and the self-test."""
        return {"loaded_bytes": self.loaded_bytes, "talk_bytes": self.talk_bytes, "fraction": self._fraction}
