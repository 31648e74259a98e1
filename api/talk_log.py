"""The log lines of a talk: `conversation.started`, `turn.failed`, and one `turn.done` with the latency record.

No words of anybody: lengths, times and codes only.
"""

from __future__ import annotations

from typing import Any

import structlog

from pipeline import events
from pipeline.errors import EngineError, EngineFailed
from pipeline.records import TurnRecord
from pipeline.session import Session

log = structlog.get_logger()


def log_event(session: Session, event: events.Event) -> None:
    """A session's listener: what an operator wants to see of a talk."""
    if isinstance(event, events.ReplyStarted):
        replies = [item.id for item in session.conversation if item.role == "assistant"]
        if replies == [event.item_id]:  # the first one; again when the client has emptied the history
            log.info("conversation.started", session_id=session.id, turn_id=event.turn_id, spoken=event.spoken)
    elif isinstance(event, events.TurnFailed):
        error = event.error
        log.warning(
            "turn.failed",
            session_id=session.id,
            turn_id=event.turn_id,
            code=error.code,
            stage=error.stage if isinstance(error, EngineError) else None,
            # what nobody foresaw needs its traceback; a timeout or a busy engine is told by its code
            exc_info=error.__cause__ if isinstance(error, EngineFailed) else None,
        )
    elif isinstance(event, events.TurnDone):
        log.info("turn.done", session_id=session.id, **record_fields(event.record))


def record_fields(record: TurnRecord) -> dict[str, Any]:
    """The latency record as plain values; `parts_ms` sums to `total_ms`."""
    stop_s = record.barge_in_stop_s
    return {
        "turn_id": record.turn_id,
        "outcome": record.outcome,
        "error_code": record.error_code,
        "total_ms": record.total_ms,
        "parts_ms": record.parts_ms,
        "utterance_s": round(record.utterance_s, 3),
        "spoken_s": round(record.spoken_s, 3),
        "heard_s": round(record.heard_s, 3),
        "barge_in_stop_ms": None if stop_s is None else round(stop_s * 1000, 1),
        "n_output_tokens": record.n_output_tokens,
        "reply_chars": record.reply_chars,
    }
