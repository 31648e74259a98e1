"""Cues in whole units of time: one for each word, or words gathered to lines that can be read."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal

from serverless.timings import TimedWord
from serverless.timings.tokens import is_cjk, joined

LINE_WIDTH = 42  # Latin letters; a Chinese or Japanese character is twice as wide
N_LINES = 2
MAX_SEGMENT_MS = 7000
MIN_SEGMENT_MS = 1000
PAUSE_MS = 300
MAX_WIDTH_PER_S = 20


@dataclass(frozen=True, slots=True)
class CueWord:
    """A word of a cue; text on one line, times in the unit of the cue."""

    text: str
    start: int
    end: int
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown from `start` to `end`: one or two lines of words. Milliseconds, or centiseconds where said."""

    start: int
    end: int
    lines: tuple[tuple[CueWord, ...], ...]

    @property
    def words(self) -> tuple[CueWord, ...]:
        """The words of all lines."""
        return tuple(word for line in self.lines for word in line)


def milliseconds(seconds: float, *, floor: bool = False) -> int:
    """Rounded half up, or down; by the decimal number that is written, so 1.0005 is 1001."""
    rounding = ROUND_FLOOR if floor else ROUND_HALF_UP
    return int(Decimal(repr(float(seconds))).scaleb(3).to_integral_value(rounding))


def word_times(words: Sequence[TimedWord], duration_s: float) -> list[CueWord]:
    """The words in milliseconds: in order, not overlapping, none empty, none beyond the audio."""
    times = [(milliseconds(word.start_s), milliseconds(word.end_s)) for word in words]
    placed = fitted(times, milliseconds(duration_s, floor=True))
    return [
        CueWord(one_line(word.text), start, end, word.confidence)
        for word, (start, end) in zip(words, placed, strict=True)
    ]


def fitted(times: Sequence[tuple[int, int]], last: int) -> list[tuple[int, int]]:
    """Start and end of each in order inside `[0, last]`, at least 1 long; beyond `last` only when there is no room."""
    n = len(times)
    if not n:
        return []
    last = max(last, n)
    starts: list[int] = []
    for i, (start, _) in enumerate(times):
        start = min(max(start, 0), last - (n - i))
        starts.append(max(start, starts[-1] + 1) if starts else start)
    limits = [*starts[1:], last]
    return [
        (start, max(min(end, limit), start + 1)) for start, (_, end), limit in zip(starts, times, limits, strict=True)
    ]


def word_cues(words: Sequence[CueWord]) -> list[Cue]:
    """A cue for each word."""
    return [Cue(word.start, word.end, ((word,),)) for word in words]


def segment_cues(words: Sequence[CueWord], duration_s: float, language: str) -> list[Cue]:
    """Words gathered up to a sentence's end, a pause, two full lines or seven seconds, whatever comes first.

    A cue that would be gone too soon to be read stays on into the silence behind it.
    """
    groups = list(_groups(words, language))
    last = milliseconds(duration_s, floor=True)
    cues = []
    for i, group in enumerate(groups):
        limit = groups[i + 1][0].start if i + 1 < len(groups) else max(last, group[-1].end)
        needed = max(MIN_SEGMENT_MS, -(-1000 * _width(group) // MAX_WIDTH_PER_S))
        end = max(group[-1].end, min(group[0].start + needed, limit))
        cues.append(Cue(group[0].start, end, tuple(tuple(line) for line in _balanced(group))))
    return cues


def in_centiseconds(cues: Sequence[Cue], duration_s: float) -> list[Cue]:
    """The cues on a grid of 10 ms, rounded half up; one that ended where the next began still does."""
    last = milliseconds(duration_s, floor=True) // 10
    placed = fitted([((cue.start + 5) // 10, (cue.end + 5) // 10) for cue in cues], last)
    out = []
    for cue, (start, end) in zip(cues, placed, strict=True):
        lines = tuple(
            tuple(CueWord(w.text, (w.start + 5) // 10, (w.end + 5) // 10, w.confidence) for w in line)
            for line in cue.lines
        )
        out.append(Cue(start, end, lines))
    return out


def text_of(words: Sequence[CueWord]) -> str:
    """The words as running text."""
    text = ""
    for word in words:
        text += (joined(text, word.text) if text else "") + word.text
    return text


def one_line(text: str) -> str:
    """The text without line breaks, control characters, lone surrogates and byte order marks."""
    spaced = " ".join(text.split())
    return "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cs") and c != "\ufeff")


def _groups(words: Sequence[CueWord], language: str) -> Iterator[list[CueWord]]:
    group: list[CueWord] = []
    begins_sentence = _sentence_begins(words, language)
    for i, word in enumerate(words):
        if group and (
            word.start - group[-1].end > PAUSE_MS
            or i in begins_sentence
            or word.end - group[0].start > MAX_SEGMENT_MS
            or len(_lines([*group, word])) > N_LINES
        ):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _sentence_begins(words: Sequence[CueWord], language: str) -> set[int]:
    """Indexes of the words behind the end of a sentence; the dot of "Dr." ends none."""
    from sentencex import segment

    text, ends = "", []
    for word in words:
        text += (joined(text, word.text) if text else "") + word.text
        ends.append(len(text))
    position, cuts = 0, set()
    for sentence in segment(language, text):
        cuts.add(position + len(sentence.rstrip()))
        position += len(sentence)
    return {i + 1 for i, end in enumerate(ends) if end in cuts}


def _width(words: Sequence[CueWord]) -> int:
    return sum(2 if is_cjk(char) else 1 for char in text_of(words))


def _lines(words: Sequence[CueWord]) -> list[list[CueWord]]:
    lines: list[list[CueWord]] = []
    for word in words:
        if lines and _width([*lines[-1], word]) <= LINE_WIDTH:
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines


def _balanced(words: Sequence[CueWord]) -> list[Sequence[CueWord]]:
    if len(_lines(words)) < N_LINES:
        return [words]
    cut = min(range(1, len(words)), key=lambda i: max(_width(words[:i]), _width(words[i:])))
    return [words[:cut], words[cut:]]
