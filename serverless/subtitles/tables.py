"""Word times for programs: CSV that is safe to open in a spreadsheet, and JSON with a version."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from serverless.subtitles.cues import Cue, CueWord, text_of
from serverless.timings import WordTimings

SCHEMA_VERSION = 1
# A spreadsheet runs what begins with one of these; with Japanese settings the wide ones too.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def table(cues: Sequence[Cue], *, column: str) -> str:
    """CSV: what is said, start and end in seconds with three places, and confidence, empty where there is none.

    All is quoted: where lists are separated by semicolons, one in a word would begin a cell of its own.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow([column, "start_time", "end_time", "confidence"])
    for cue in cues:
        text = text_of(cue.words)
        shown = f"'{text}" if text.startswith(_FORMULA) else text
        confidence = mean_confidence(cue.words)
        written = "" if confidence is None else f"{confidence:.3f}"
        writer.writerow([shown, f"{cue.start / 1000:.3f}", f"{cue.end / 1000:.3f}", written])
    return buffer.getvalue()


def document(
    words: Sequence[CueWord],
    segments: Sequence[Cue] | None,
    timings: WordTimings,
    *,
    duration_s: float,
    job_id: str,
    created: datetime,
) -> str:
    """JSON, `schema_version` 1: times in seconds; `segments` only when asked for."""
    body: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "job_id": job_id,
        "created_at": created.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "language": timings.language,
        "method": timings.method,
        "coverage": round(timings.coverage, 4),
        "approximate": timings.approximate,
        "duration": round(duration_s, 3),
        "text": text_of(words),
        "words": [
            {"word": w.text, "start_time": w.start / 1000, "end_time": w.end / 1000, "confidence": _rounded(w)}
            for w in words
        ],
    }
    if segments is not None:
        body["segments"] = [
            {"text": text_of(cue.words), "start_time": cue.start / 1000, "end_time": cue.end / 1000} for cue in segments
        ]
    return json.dumps(body, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def mean_confidence(words: Sequence[CueWord]) -> float | None:
    """Of the words that have one."""
    known = [word.confidence for word in words if word.confidence is not None]
    return sum(known) / len(known) if known else None


def _rounded(word: CueWord) -> float | None:
    return None if word.confidence is None else round(word.confidence, 4)
