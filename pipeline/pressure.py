"""How hard the engines are pressed, and what is left out step by step before anybody is refused.

    normal ─► first_clause ─► light_asr ─► refuse

`first_clause`: the first piece of a reply is cut shorter, so that it is heard sooner. `light_asr`: the smaller speech
recogniser of `asr.light_model` hears, where there is one. `refuse`: no new talk begins; those that run go on.

Two signals count, of the turns of the last seconds: how long jobs waited for an engine, and whether speech is made
about as slowly as it is heard. A step is taken when they say so, and taken back, one at a time, when they are well
below that.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Final, Literal

import structlog

from pipeline.errors import EngineTimeout
from pipeline.events import Event, TurnDone
from pipeline.records import TurnRecord

log = structlog.get_logger()

Step = Literal["normal", "first_clause", "light_asr", "refuse"]
STEPS: Final[tuple[Step, ...]] = ("normal", "first_clause", "light_asr", "refuse")

WINDOW_S: Final = 15.0  # what is older says nothing of now
HOLD_S: Final = 3.0  # between two steps: the last one needs turns to show what it did
SHARES: Final = (0.25, 0.5, 1.0)  # of `max_wait_s`: where each step begins
RELIEF: Final = 0.5  # a step is taken back below this part of where it began
FULL_RTF: Final = 0.9  # compute seconds over audio seconds: a listener would soon wait for every word
SHORT_FIRST_CLAUSE_CHARS, SHORT_FIRST_PIECE_CHARS = 6, 45


class Pressure:
    """One for all talks; its methods belong to the event loop. `max_wait_s` is the wait at which talks are refused."""

    def __init__(self, *, max_wait_s: float, clock: Callable[[], float]) -> None:
        self._max_wait_s, self._clock = max_wait_s, clock
        self._seen: deque[tuple[float, float, float]] = deque(maxlen=256)  # when, seconds waited, speech RTF
        self._level = 0
        self._changed_at_s = -HOLD_S

    @property
    def step(self) -> Step:
        """Where it stands now; without turns it falls back by itself."""
        self._adapt()
        return STEPS[self._level]

    @property
    def wait_s(self) -> float:
        """Seconds that jobs of a turn wait for engines at present, on average."""
        seen = self._recent()
        return sum(wait_s for _, wait_s, _ in seen) / len(seen) if seen else 0.0

    def at_least(self, step: Step) -> bool:
        """Whether it stands at `step` or beyond."""
        return STEPS.index(self.step) >= STEPS.index(step)

    def listen(self, session: object, event: Event) -> None:
        """An observer of sessions: takes the record of each turn."""
        if isinstance(event, TurnDone):
            self.note(event.record)

    def note(self, record: TurnRecord) -> None:
        """Take down what a turn waited for, and how fast its speech was made."""
        in_vain = record.error_code == EngineTimeout.code  # a job that was given up told nothing of its waiting
        if not record.lane_waits and not record.pieces_spoken and not in_vain:
            return
        audio_s = sum(piece.audio_s for piece in record.pieces_spoken)
        rtf = sum(piece.computed_s for piece in record.pieces_spoken) / audio_s if audio_s else 0.0
        longest = [max(waits) for waits in _by_lane(record)]
        self._seen.append((self._clock(), max(sum(longest), self._max_wait_s if in_vain else 0.0), rtf))
        self._adapt()

    def _recent(self) -> list[tuple[float, float, float]]:
        since_s = self._clock() - WINDOW_S
        while self._seen and self._seen[0][0] < since_s:
            self._seen.popleft()
        return list(self._seen)

    def _adapt(self) -> None:
        now_s, seen = self._clock(), self._recent()
        if now_s - self._changed_at_s < HOLD_S:
            return
        several = len(seen) > 1  # one slow turn is no load
        share = self.wait_s / self._max_wait_s if several else 0.0
        slow = several and sum(rtf for _, _, rtf in seen) / len(seen) >= FULL_RTF
        level = self._level
        if level < len(SHARES) and (share >= SHARES[level] or (slow and level < STEPS.index("refuse") - 1)):
            level += 1
        elif level and share < SHARES[level - 1] * RELIEF and not (slow and level < STEPS.index("refuse")):
            level -= 1
        if level != self._level:
            self._level, self._changed_at_s = level, now_s
            log.info("load.step", step=STEPS[level], wait_ms=round(self.wait_s * 1000), slow_speech=slow)


def _by_lane(record: TurnRecord) -> list[list[float]]:
    """The waits of a turn, lane by lane: a reply of many pieces waits many times, but is late only by the longest."""
    ordered = sorted(record.lane_waits, key=lambda waited: waited.lane)
    return [[waited.seconds for waited in group] for _, group in itertools.groupby(ordered, key=lambda w: w.lane)]
