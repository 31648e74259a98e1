"""A transcript in the forms that clients ask for: OpenAI's JSON, plain text, SubRip and WebVTT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pipeline.engines.base import Word
from pipeline.transcription import Stretch, cues

TranscriptFormat = Literal["json", "text", "srt", "vtt", "verbose_json"]
Granularity = Literal["word", "segment"]

MEDIA_TYPES: Final[dict[TranscriptFormat, str]] = {
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}
# Players read these as tags, and an arrow as the times of a cue. WebVTT has entities for them, SubRip has nothing.
_VTT_SPECIAL: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_SRT_SPECIAL: Final = str.maketrans({"<": "‹", ">": "›", "{": "(", "}": ")"})


@dataclass(frozen=True, slots=True)
class Whole:
    """All of a recording."""

    stretches: Sequence[Stretch]
    audio_s: float

    @property
    def text(self) -> str:
        """The words, in order."""
        return " ".join(text for stretch in self.stretches if (text := stretch.transcript.text.strip()))

    @property
    def language(self) -> str:
        """The language of the first words; of nothing it is the recogniser's guess."""
        said = [stretch for stretch in self.stretches if stretch.transcript.text.strip()] or self.stretches
        return said[0].transcript.language

    @property
    def usage(self) -> dict[str, Any]:
        """What OpenAI bills by."""
        return {"type": "duration", "seconds": round(self.audio_s, 3)}

    @property
    def cues(self) -> list[Word]:
        """Lines with their times."""
        return [cue for stretch in self.stretches for cue in cues(stretch)]


def needs_words(kind: TranscriptFormat) -> bool:
    """Whether a format shows times."""
    return kind in ("srt", "vtt", "verbose_json")


def as_json(whole: Whole, kind: TranscriptFormat, granularities: Sequence[Granularity]) -> dict[str, Any] | str:
    """What a job keeps as its result: an object, or the text of a subtitle file."""
    if kind == "verbose_json":
        return verbose(whole, granularities)
    if kind == "json":
        return {"text": whole.text, "usage": whole.usage}
    return {"srt": srt, "vtt": vtt, "text": plain}[kind](whole)


def body(whole: Whole, kind: TranscriptFormat, granularities: Sequence[Granularity]) -> bytes:
    """What an answer holds."""
    value = as_json(whole, kind, granularities)
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()


def plain(whole: Whole) -> str:
    """The words and a line end."""
    return whole.text + "\n"


def verbose(whole: Whole, granularities: Sequence[Granularity]) -> dict[str, Any]:
    """OpenAI's verbose object. What the engine does not tell is null."""
    shown: dict[str, Any] = {
        "task": "transcribe",
        "language": whole.language,
        "duration": round(whole.audio_s, 3),
        "text": whole.text,
    }
    if "segment" in granularities:
        shown["segments"] = [_segment(i, cue) for i, cue in enumerate(whole.cues)]
    if "word" in granularities:
        words = [word for stretch in whole.stretches for word in stretch.transcript.words]
        shown["words"] = [
            {"word": word.text, "start": round(word.start_s, 3), "end": round(word.end_s, 3)} for word in words
        ]
    return {**shown, "usage": whole.usage}


def _segment(number: int, cue: Word) -> dict[str, Any]:
    return {
        "id": number,
        "seek": 0,
        "start": round(cue.start_s, 3),
        "end": round(cue.end_s, 3),
        "text": cue.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": None,
        "compression_ratio": None,
        "no_speech_prob": None,
    }


def srt(whole: Whole) -> str:
    """A SubRip file."""
    return "".join(
        f"{number}\n{_time(cue.start_s, ',')} --> {_time(cue.end_s, ',')}\n{_line(cue.text, _SRT_SPECIAL)}\n\n"
        for number, cue in enumerate(whole.cues, start=1)
    )


def vtt(whole: Whole) -> str:
    """A WebVTT file."""
    return "WEBVTT\n\n" + "".join(
        f"{_time(cue.start_s, '.')} --> {_time(cue.end_s, '.')}\n{_line(cue.text, _VTT_SPECIAL)}\n\n"
        for cue in whole.cues
    )


def _time(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def _line(text: str, special: dict[int, str]) -> str:
    """One line without anything that a player would take for more than text; an empty line would end the cue."""
    return " ".join(text.split()).translate(special)
