"""Wrong keys, cookies and links: counted, answered ever more slowly, and never at the cost of anybody else.

A right credential always enters at once: it has 256 random bits, so nobody can lock its owner out by guessing beside
them, and nobody behind the same proxy waits for a neighbour's mistakes. What grows is the answer to the next *wrong*
one of the same key id, or of the same client where the client can be told from its proxy: 429 with a `Retry-After`
that doubles.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from pipeline.errors import RateLimited, Unauthorized

log = structlog.get_logger()

FREE: Final = 5  # a person who pastes the wrong text a few times reads what was wrong with it
FIRST_WAIT_S: Final = 1.0
MAX_WAIT_S: Final = 300.0
FORGET_S: Final = 900.0  # without another failure for so long, counting starts anew
MAX_SUBJECTS: Final = 4096  # about 1 MB; the ones that failed longest ago are forgotten first
ALARM_EVERY: Final = 100  # failures of all together between two warnings in the log


@dataclass(slots=True)
class _Failures:
    n: int = 0
    last_s: float = 0.0


class Guesses:
    """Failures by subject: a key id, a client. Of the event loop alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        self.n_all = 0

    def __len__(self) -> int:
        return len(self._failures)

    def failed(self, subjects: Iterable[str], error: Unauthorized) -> tuple[Unauthorized | RateLimited, bool]:
        """What to answer to this failure, and whether it is worth a record: the 1st, 2nd, 4th, 8th ... of a subject."""
        now_s = self._clock()
        worst = 0
        for subject in subjects:
            found = self._failures.pop(subject, None) or _Failures()
            if now_s - found.last_s >= FORGET_S:
                found.n = 0
            found.n, found.last_s = found.n + 1, now_s
            self._failures[subject] = found
            worst = max(worst, found.n)
        while len(self._failures) > MAX_SUBJECTS:
            self._failures.popitem(last=False)
        self.n_all += 1
        if self.n_all % ALARM_EVERY == 0:
            log.warning("auth.guessing", n_failures=self.n_all)
        is_notable = worst & (worst - 1) == 0
        if worst <= FREE:
            return error, is_notable
        wait_s = min(FIRST_WAIT_S * 2.0 ** min(worst - FREE - 1, 30), MAX_WAIT_S)
        return RateLimited("too many wrong credentials; please wait", retry_after_s=wait_s), is_notable
