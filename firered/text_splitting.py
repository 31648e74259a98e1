"""Cleaned text to segments short enough to be generated in one go.

A segment ends at a sentence end where that is possible, else after a clause, else between words, else between
characters. Segments are slices of the text, so nothing is lost, added or reordered but the white space between them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterator

from firered.speech_time import MAX_SEGMENT_SECONDS, estimated_seconds
from firered.text_cleaning import CJK

_SENTENCE_MARK = re.compile(r"[.!?。！？]+'*")
_CLAUSE_MARK = re.compile(r"[,;:，、；：]+'*")
_WIDE_MARKS = "。！？，、；："
_CJK_CHARACTER = re.compile(f"[{CJK}]")
_LAST_WORD = re.compile(r"[\w.]{1,12}$")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # J., e.g., z.B., U.S.A.
_TAG = re.compile(r"<\|[^|<>\s]{1,40}\|>")

# Shortened words before which a full stop ends no sentence; those that often close one (etc., usw.) are not here.
_ABBREVIATIONS = frozenset(
    [
        *("mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "mt", "fig", "vol", "approx", "gen", "rev"),
        *("mme", "mlle", "mm", "bzw", "ca", "nr", "hr", "fr", "evtl", "ggf", "inkl", "ул", "им", "стр", "рис", "др"),
    ]
)
# Never at the start of a line in Japanese typesetting; a mark or a vowel sign belongs to the character before it.
_CLINGING = frozenset("ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶーゝゞ々、。，．！？」』）】'.,!?")
_MAX_CLINGING = 4


def split_text(text: str, max_seconds: float = MAX_SEGMENT_SECONDS) -> list[str]:
    """Stripped pieces of cleaned text, each at most `max_seconds` to say; none when there is nothing to say."""
    pieces = (piece.strip() for piece in _fitted(text, 0, max_seconds))
    return [piece for piece in pieces if has_content(piece)]


def leading_part(text: str, share: float) -> str:
    """The start of `text` that takes nearest to `share` of its time and ends with a clause, or else with a word."""
    ends = [*_sentence_ends(text), *_clause_ends(text)] or [*_word_ends(text)]
    wanted = share * estimated_seconds(text)
    nearest = min([*ends, len(text)], key=lambda end: abs(estimated_seconds(text[:end]) - wanted))
    return text[:nearest].strip()


def has_content(text: str) -> bool:
    """Whether anything but punctuation and white space is in `text`."""
    return _TAG.search(text) is not None or any(unicodedata.category(character)[0] not in "PZC" for character in text)


def _fitted(text: str, level: int, max_seconds: float) -> list[str]:
    """`text` in slices that fit, cut as seldom and as gently as possible."""
    if level == len(_LEVELS) or estimated_seconds(text) <= max_seconds:
        return [text]
    parts = [part for coarse in _cut(text, _LEVELS[level](text)) for part in _fitted(coarse, level + 1, max_seconds)]
    return _merged(parts, max_seconds)


def _cut(text: str, positions: Iterator[int]) -> list[str]:
    parts, start = [], 0
    for position in positions:
        parts.append(text[start:position])
        start = position
    return [*parts, text[start:]]


def _merged(parts: list[str], max_seconds: float) -> list[str]:
    """Neighbours joined until all are about equally long: a last scrap of a word or two would sound clipped."""
    times = [estimated_seconds(part) for part in parts]
    merged: list[str] = []
    index, left = 0, sum(times)
    while index < len(parts):
        even = left / max(1, math.ceil(left / max_seconds))
        end, seconds = index + 1, times[index]
        while end < len(parts) and seconds + times[end] / 2 <= even and seconds + times[end] <= max_seconds:
            seconds += times[end]
            end += 1
        merged.append("".join(parts[index:end]))
        index, left = end, left - seconds
    return merged


# --- places to cut, from the best to the worst


def _sentence_ends(text: str) -> Iterator[int]:
    for mark in _SENTENCE_MARK.finditer(text):
        if _stands_alone(mark) and not (mark[0] == "." and _is_abbreviation(text, mark.start())):
            yield mark.end()


def _clause_ends(text: str) -> Iterator[int]:
    return (mark.end() for mark in _CLAUSE_MARK.finditer(text) if _stands_alone(mark))


def _word_ends(text: str) -> Iterator[int]:
    return (space.end() for space in re.finditer(r"\s+", text))


def _character_ends(text: str) -> Iterator[int]:
    """Between characters as readers count them: no mark, vowel sign, small kana, closing mark or tag is cut off."""
    position = 0
    while position < len(text):
        tag = _TAG.match(text, position)
        position = tag.end() if tag else position + 1
        limit = position + _MAX_CLINGING
        while position < min(limit, len(text)) and _clings(text[position]):
            position += 1
        yield position


_LEVELS: tuple[Callable[[str], Iterator[int]], ...] = (_sentence_ends, _clause_ends, _word_ends, _character_ends)


def _stands_alone(mark: re.Match[str]) -> bool:
    """Whether a new word may start after the mark: not within 3.14, 10,000, 9:30 or example.com."""
    after = mark.string[mark.end() : mark.end() + 1]
    return mark[0][0] in _WIDE_MARKS or after.isspace() or after == "<" or _CJK_CHARACTER.match(after) is not None


def _is_abbreviation(text: str, stop: int) -> bool:
    """Whether the word before the full stop is an initial, an ordinal, a list number or a known short form."""
    found = _LAST_WORD.search(text[max(0, stop - 12) : stop])
    word = found[0].lower() if found else ""
    is_ordinal = word.isdigit() and len(word) <= 2
    return is_ordinal or word in _ABBREVIATIONS or _INITIALS.fullmatch(word) is not None


def _clings(character: str) -> bool:
    is_jamo = "\u1160" <= character <= "\u11ff"  # vowels and finals of an old Korean syllable
    return character in _CLINGING or is_jamo or unicodedata.category(character)[0] == "M"
