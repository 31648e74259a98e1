"""Subtitle files from word timings, by writers of our own: others let the user's text act as commands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from serverless.errors import invalid
from serverless.subtitles.ass import ass
from serverless.subtitles.cue_files import srt, vtt
from serverless.subtitles.cues import in_centiseconds, segment_cues, word_cues, word_times
from serverless.subtitles.tables import document, table
from serverless.timings import WordTimings

FORMATS: Final = ("srt", "vtt", "csv", "json", "ass")
GRANULARITIES: Final = ("words", "segments")
CONTENT_TYPES: Final = {
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "csv": "text/csv",
    "json": "application/json",
    "ass": "text/x-ssa",
}


@dataclass(frozen=True, slots=True)
class Subtitles:
    """A file: UTF-8 without a byte order mark; `suffix` has its dot."""

    data: bytes
    content_type: str
    suffix: str


def render(
    format: str,
    timings: WordTimings,
    *,
    duration_s: float,
    job_id: str,
    granularity: str = "words",
    crlf: bool = False,
    karaoke: bool = False,
    created: datetime,
) -> Subtitles:
    r"""One of `FORMATS`, with a cue for each word or for each of the segments that words are gathered to.

    `karaoke` marks in vtt and ass when each word begins. `duration_s` is the length of the audio: nothing is shown
    beyond it. `JobError` (INVALID_INPUT) for an unknown format or granularity.
    """
    if format not in FORMATS:
        raise invalid("timing_format", f"must be one of {', '.join(FORMATS)}")
    if granularity not in GRANULARITIES:
        raise invalid("timing_granularity", f"must be one of {', '.join(GRANULARITIES)}")
    words = word_times(timings.words, duration_s)
    segmented = granularity == "segments"
    cues = segment_cues(words, duration_s, timings.language) if segmented else word_cues(words)
    if format == "srt":
        text = srt(cues)
    elif format == "vtt":
        text = vtt(cues, karaoke=karaoke)
    elif format == "csv":
        text = table(cues, column="text" if segmented else "word")
    elif format == "ass":
        text = ass(in_centiseconds(cues, duration_s), karaoke=karaoke)
    else:
        segments = cues if segmented else None
        text = document(words, segments, timings, duration_s=duration_s, job_id=job_id, created=created)
    data = (text.replace("\n", "\r\n") if crlf else text).encode("utf-8")
    return Subtitles(data, CONTENT_TYPES[format], f".{format}")
