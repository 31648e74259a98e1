"""From a piece of text to segments: stretches short enough to be spoken in one go, with their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from firered.prompt import Rows, check_speaker, continuation_prompt, segment_text
from firered.text import max_frames, prepare_text

if TYPE_CHECKING:
    from firered.stream import StreamOptions
    from firered.tokenizer import FireRedTokenizer


@dataclass(frozen=True, slots=True, eq=False)
class TextSegment:
    """A segment to speak: `rows` go in before its first frame, `frame_limit` bounds its audio."""

    piece: int
    text: str
    rows: Rows
    frame_limit: int
    ends_piece: bool


class Segmenter:
    """Cleans and splits text and turns it into rows. Immutable: any thread may use it."""

    def __init__(self, tokenizer: FireRedTokenizer) -> None:
        self._tokenizer = tokenizer

    def split(self, text: str, speaker: str, *, piece: int, options: StreamOptions) -> list[TextSegment]:
        """The segments of a piece, in order, at least one; InputError when there is nothing to speak."""
        check_speaker(speaker)
        parts = prepare_text(text)
        last = len(parts) - 1
        return [
            TextSegment(piece, part, self._rows(part, speaker, options), max_frames(part), ends_piece=index == last)
            for index, part in enumerate(parts)
        ]

    def _rows(self, text: str, speaker: str, options: StreamOptions) -> Rows:
        """Text rows in dialogue mode; the whole prompt, recording included, in continuation mode."""
        if options.mode == "continuation":
            (voice,) = options.voices.values()
            return continuation_prompt(self._tokenizer, voice, text)
        return segment_text(self._tokenizer, speaker, text)
