"""The last turns, of the server and of each session: what percentiles and the page's figures are made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.records import Outcome, TurnRecord

WINDOW: Final = 512  # turns of the whole server
SESSION_WINDOW: Final = 64  # turns of one session
MAX_SESSIONS: Final = 256  # a session that had no turn for longest is forgotten first


@dataclass(slots=True)
class SessionTurns:
    """What is remembered of one session."""

    n_turns: int = 0
    n_interruptions: int = 0
    v2v_ms: deque[float] = field(default_factory=lambda: deque(maxlen=SESSION_WINDOW))


class RecentTurns:
    """Bounded in every direction. Written on the event loop; the readers may stand in any thread."""

    def __init__(self) -> None:
        self._turns: deque[tuple[Outcome, float | None]] = deque(maxlen=WINDOW)
        self._sessions: dict[str, SessionTurns] = {}

    def add(self, session_id: str, record: TurnRecord, first_audio_s: float | None) -> None:
        """A turn ended; `first_audio_s` from the end of speech to the first audio sent, if any was."""
        self._turns.append((record.outcome, None if first_audio_s is None else first_audio_s * 1000))
        turns = self._sessions.pop(session_id, None) or SessionTurns()
        self._sessions[session_id] = turns  # now the youngest
        turns.n_turns += 1
        turns.n_interruptions += record.outcome == "interrupted"
        if record.total_ms is not None:
            turns.v2v_ms.append(record.total_ms)
        while len(self._sessions) > MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def summary(self) -> dict[str, Any]:
        """Of the last `WINDOW` turns: None where nothing is known, never 0.

        `average_response_time` (milliseconds, the admin guide's name) and `first_audio_*_ms` are about turns whose
        audio began; `error_rate` is the share of all turns that failed.
        """
        turns = list(self._turns)
        first_audio_ms = [ms for _, ms in turns if ms is not None]
        n_failed = sum(outcome == "failed" for outcome, _ in turns)
        return {
            "average_response_time": round(sum(first_audio_ms) / len(first_audio_ms), 1) if first_audio_ms else None,
            "error_rate": round(n_failed / len(turns), 4) if turns else None,
            "first_audio_p50_ms": percentile(first_audio_ms, 0.50),
            "first_audio_p95_ms": percentile(first_audio_ms, 0.95),
            "first_audio_p99_ms": percentile(first_audio_ms, 0.99),
            "n_turns": len(turns),
        }

    def of_session(self, session_id: str) -> dict[str, Any] | None:
        """A session's own figures; None when it had no turn yet or was forgotten."""
        turns = self._sessions.get(session_id)
        if turns is None:
            return None
        v2v_ms = list(turns.v2v_ms)
        return {
            "turns": turns.n_turns,
            "interruptions": turns.n_interruptions,
            "v2v_p50_ms": percentile(v2v_ms, 0.50),
            "v2v_last_ms": v2v_ms[-1] if v2v_ms else None,
        }


def percentile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank: a value that was measured, not one between two. None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(-int(-share * len(ordered) // 1), 1)  # ceiling
    return round(ordered[rank - 1], 1)
