"""The latency record of a turn: named marks on one clock, whose differences are the parts of the total."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.engines.lanes import Spoke, Waited, Work

Outcome = Literal["completed", "interrupted", "failed"]

# In the order in which they happen. Each part of the record runs from the mark before it that was set to this one.
MARKS: tuple[tuple[str, str], ...] = (
    ("speech_ended", ""),  # last speech sample came in: the zero of the record
    ("endpointed", "endpointing"),  # the silence was long enough
    ("asr_done", "asr"),
    ("llm_started", "prompt"),
    ("first_token", "llm_first_token"),
    ("first_piece", "first_clause"),
    ("first_audio", "tts_first_audio"),
    ("first_sent", "send"),
    ("first_heard", "playout"),  # the client's own report; absent for clients that report nothing
)
_ORDER = {name: i for i, (name, _) in enumerate(MARKS)}


@dataclass(slots=True)
class TurnRecord:
    """What one turn cost. Times in seconds on the session clock; `parts_ms` sums to `total_ms` by construction."""

    turn_id: int
    outcome: Outcome = "completed"
    error_code: str | None = None
    marks: dict[str, float] = field(default_factory=dict)
    utterance_s: float = 0.0
    n_output_tokens: int = 0
    reply_chars: int = 0
    spoken_s: float = 0.0
    heard_s: float = 0.0
    barge_in_stop_s: float | None = None
    lane_waits: list[Waited] = field(default_factory=list)  # of the jobs that began for this turn
    pieces_spoken: list[Spoke] = field(default_factory=list)

    def mark(self, name: str, at_s: float) -> None:
        """Set a mark once; later calls with the same name change nothing."""
        if name not in _ORDER:
            raise ValueError(f"unknown mark {name}")
        self.marks.setdefault(name, at_s)

    def note_work(self, work: Work) -> None:
        """Take down what lanes tell of this turn's jobs."""
        if isinstance(work, Waited):
            self.lane_waits.append(work)
        elif isinstance(work, Spoke):
            self.pieces_spoken.append(work)

    @property
    def parts_ms(self) -> dict[str, float]:
        """Milliseconds per part, in order, of the marks that were set."""
        parts: dict[str, float] = {}
        before: float | None = None
        for name, part in MARKS:
            if name not in self.marks:
                continue
            at_s = self.marks[name] if before is None else max(self.marks[name], before)
            if before is not None:
                parts[part] = round((at_s - before) * 1000, 1)
            before = at_s
        return parts

    @property
    def total_ms(self) -> float | None:
        """From the first mark to the last, or None when no audio left."""
        return round(sum(self.parts_ms.values()), 1) if "first_audio" in self.marks else None
