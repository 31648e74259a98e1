"""Golden event files: what a client was told in a talk, one event a line, times in milliseconds."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import VoicepodError
from pipeline.events import Event
from pipeline.records import TurnRecord


def lines_of(told: list[Event], *, since_s: float) -> list[str]:
    """Each event as a line of JSON that begins with its time and name; times count from `since_s`."""
    return [_line(event, since_s) for event in told]


def check(path: Path, lines: list[str], *, update: bool) -> None:
    """Compare with the file, or write it."""
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
    assert path.exists(), f"there is no {path.name}: run pytest --update-golden and read what it wrote"
    assert lines == path.read_text().splitlines()


def _line(event: Event, since_s: float) -> str:
    shown: dict[str, Any] = {"at_ms": _ms(event.at_s - since_s), "event": type(event).__name__}
    if event.turn_id:
        shown["turn"] = event.turn_id
    for field in fields(event):
        if field.name not in ("at_s", "turn_id"):
            shown[field.name] = _value(getattr(event, field.name), since_s)
    return json.dumps(shown, ensure_ascii=False)


def _value(value: Any, since_s: float) -> Any:
    if isinstance(value, TurnRecord):
        return {
            "outcome": value.outcome,
            "error_code": value.error_code,
            "parts_ms": {name: round(part) for name, part in value.parts_ms.items()},
            "utterance_ms": _ms(value.utterance_s),
            "spoken_ms": _ms(value.spoken_s),
            "heard_ms": _ms(value.heard_s),
            "barge_in_stop_ms": None if value.barge_in_stop_s is None else _ms(value.barge_in_stop_s),
        }
    if isinstance(value, VoicepodError):
        return value.code
    if is_dataclass(value):
        return {field.name: _value(getattr(value, field.name), since_s) for field in fields(value)}
    if isinstance(value, float):
        return round(value, 3)
    return [_value(one, since_s) for one in value] if isinstance(value, tuple) else value


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
