"""Text cut into stretches that one run of a speech model can speak."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator

from sentencex import segment

_CLAUSE_END = re.compile(r"[,;:—–](?=\s)|[，、；：。！？]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_HAN = re.compile(r"[\u3400-\u9fff]")


def is_speakable(text: str) -> bool:
    """Whether a letter or a digit of any script is in it."""
    return any(character.isalnum() for character in text)


def chunks_of(text: str, max_bytes: int) -> list[str]:
    """`text` in stretches of at most `max_bytes` bytes of UTF-8, which joined give `text` again.

    They end at a paragraph, else at a sentence, else at a clause, else between two words, and within a word only where
    the word alone is longer. As few as possible, and of about equal length, because very short ones sound clipped.
    White space at their ends does not count as bytes. `max_bytes` below 16 counts as 16.
    """
    max_bytes = max(max_bytes, 16)
    chunks = []
    for paragraph in re.findall(r"[^\n]*\n|[^\n]+", text):
        # A sentence that must be cut shares no chunk with its neighbours: their ends are where a breath belongs.
        for fits, sentences in itertools.groupby(_sentences(paragraph), key=lambda s: _n_bytes(s) <= max_bytes):
            if fits:
                chunks += _evenly(list(sentences), max_bytes)
            else:
                for sentence in sentences:
                    chunks += _evenly(list(_cut(sentence, max_bytes)), max_bytes)
    return chunks


def _evenly(pieces: list[str], max_bytes: int) -> list[str]:
    """Packed by the smallest limit that takes no more chunks than `max_bytes` does."""
    best = _packed(pieces, max_bytes)
    low, high = 1, max_bytes
    while low < high:
        middle = (low + high) // 2
        packed = _packed(pieces, middle)
        if len(packed) <= len(best):
            best, high = packed, middle
        else:
            low = middle + 1
    return best


def _packed(pieces: list[str], max_bytes: int) -> list[str]:
    packed: list[str] = []
    for piece in pieces:
        if packed and _n_bytes(packed[-1] + piece) <= max_bytes:
            packed[-1] += piece
        else:
            packed.append(piece)
    return packed


def _cut(sentence: str, max_bytes: int) -> Iterator[str]:
    """The clauses of a sentence, or their words where they are too long."""
    for clause in _cut_after(_CLAUSE_END, sentence):
        if _n_bytes(clause) <= max_bytes:
            yield clause
            continue
        for word in re.findall(r"\s*\S+\s*", clause):
            yield from [word] if _n_bytes(word) <= max_bytes else _word_parts(word, max_bytes)


def _word_parts(word: str, max_bytes: int) -> Iterator[str]:
    """Scripts without spaces by their words; what is longer still between two characters with their accents."""
    parts = list(_han_words(word)) if _HAN.search(word) or _KANA.search(word) else [word]
    for part in parts:
        yield from [part] if _n_bytes(part) <= max_bytes else _packed(_letters(part, max_bytes), max_bytes)


def _letters(text: str, max_bytes: int) -> list[str]:
    """Characters, each with its accents as far as they fit."""
    letters: list[str] = []
    for character in text:
        if letters and unicodedata.combining(character) and _n_bytes(letters[-1] + character) <= max_bytes:
            letters[-1] += character
        else:
            letters.append(character)
    return letters


def _han_words(text: str) -> list[str]:
    import rjieba

    words = list(rjieba.cut(text))
    return words if "".join(words) == text else [text]


def _sentences(paragraph: str) -> list[str]:
    language = "ja" if _KANA.search(paragraph) else "zh" if _HAN.search(paragraph) else "en"
    sentences = [sentence for sentence in segment(language, paragraph) if sentence]
    if "".join(sentences) != paragraph:
        return [paragraph]
    return sentences


def _cut_after(pattern: re.Pattern[str], text: str) -> list[str]:
    """The text cut behind every match and the white space after it."""
    ends = [match.end() for match in pattern.finditer(text)]
    ends = sorted({end + len(text[end:]) - len(text[end:].lstrip()) for end in ends} | {len(text)})
    return [text[start:end] for start, end in itertools.pairwise([0, *ends]) if end > start]


def _n_bytes(text: str) -> int:
    return len(text.strip().encode())
