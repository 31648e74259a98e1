"""Counters of sliding windows in memory, for the `limits` library: by a clock that only goes forward, and bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import floor
from typing import Final

from limits.aio.storage import SlidingWindowCounterSupport, Storage

MAX_NAMES: Final = 10_000  # about 3 MB; the names that were used longest ago are forgotten first

A_MOMENT_S: Final = 0.01  # at the very end of the wait it would not fit yet


@dataclass(slots=True)
class _Window:
    number: int  # which window of the clock `n` counts
    n: int = 0
    n_before: int = 0
    refused: int = -1  # the window in which a refusal was told last


class WindowStorage(Storage, SlidingWindowCounterSupport):
    """One name's count in this window of the clock and in the one before it, which counts by the share that is left."""

    STORAGE_SCHEME = None  # made by hand, never from a URL

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def base_exceptions(self) -> type[Exception]:
        """Memory does not fail."""
        return MemoryError

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` if it fits."""
        window = self._window(key, expiry)
        if floor(self._used(window, expiry)) + amount > limit:
            return False
        window.n += amount
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """The earlier count, how long it still matters, this count, and how long this one will."""
        window = self._window(key, expiry)
        left_s = self._left_s(expiry)
        return window.n_before, left_s if window.n_before else 0.0, window.n, left_s + expiry

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget this name."""
        self._windows.pop(key, None)

    def wait_s(self, key: str, limit: int, expiry: int, amount: int) -> float:
        """Seconds until `amount` fits, if nothing else comes; at most two windows."""
        window, left_s = self._window(key, expiry), self._left_s(expiry)
        room = limit - amount
        if room < 0:  # it never fits in one piece
            return float(expiry)
        if window.n_before and window.n <= room:
            # The earlier window fades by n_before / expiry each second.
            wait_s = left_s - (room + 1 - window.n) * expiry / window.n_before
        else:
            wait_s = left_s + max(1.0 - (room + 1) / max(window.n, 1), 0.0) * expiry
        return max(wait_s, 0.0) + A_MOMENT_S

    def is_first_refusal(self, key: str, expiry: int) -> bool:
        """Whether this name was not refused in this window yet."""
        window = self._window(key, expiry)
        told, window.refused = window.refused == window.number, window.number
        return not told

    def _window(self, key: str, expiry: int) -> _Window:
        number = floor(self._clock() / expiry)
        window = self._windows.pop(key, None) or _Window(number)
        if window.number != number:
            window.n_before = window.n if window.number == number - 1 else 0
            window.number, window.n = number, 0
        self._windows[key] = window
        while len(self._windows) > MAX_NAMES:
            self._windows.popitem(last=False)
        return window

    def _left_s(self, expiry: int) -> float:
        return expiry - self._clock() % expiry

    def _used(self, window: _Window, expiry: int) -> float:
        return window.n_before * self._left_s(expiry) / expiry + window.n

    # --- parts of the library's interface that sliding windows do not use

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count `amount` in this window; gives the count."""
        window = self._window(key, expiry)
        window.n += amount
        return window.n

    async def get(self, key: str) -> int:
        """The count of the newest window."""
        return self._windows[key].n if key in self._windows else 0

    async def get_expiry(self, key: str) -> float:
        """Now: windows follow each other without a pause."""
        return self._clock()

    async def check(self) -> bool:
        """Memory is there."""
        return True

    async def reset(self) -> int:
        """Forget all names; gives how many there were."""
        n = len(self._windows)
        self._windows.clear()
        return n

    async def clear(self, key: str) -> None:
        """Forget this name."""
        self._windows.pop(key, None)
