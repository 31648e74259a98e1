"""The words of the text that is spoken, as they are written, and the language it is written in.

Japanese is cut by Sudachi (an auxiliary verb or a suffix stays with the word it belongs to), Chinese by jieba, all
else at white space. Punctuation stays with its word, so nothing of the text is lost but the white space.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from serverless.timings.words import LANGUAGES

SURE = 0.4  # of 1: less is a word or two that could be anything; then it is English
_LOCK = threading.Lock()  # neither Sudachi's tokenizer nor the loading of a model may run twice at once
_DETECTED = tuple(language for language in LANGUAGES if language not in ("ja", "zh"))


def words_of(text: str, language: str) -> list[str]:
    """The words in order, with their punctuation; empty when nothing in the text can be said."""
    pieces: list[str] = []
    for stretch in text.split():
        if language in ("ja", "zh") and any(is_cjk(char) for char in stretch):
            pieces += _segmented(stretch, language)
        else:
            pieces.append(stretch)
    return _attached(pieces)


def joined(left: str, right: str) -> str:
    """What stands between two words: nothing between characters of Chinese or Japanese, else a space."""
    return "" if left and right and (is_cjk(left[-1]) or is_cjk(right[0])) else " "


def language_of(text: str) -> str:
    """One of `LANGUAGES`: by script, and Latin letters by a detector; English when it is not sure."""
    if any("\u3040" <= char <= "\u30ff" or "\uff66" <= char <= "\uff9f" for char in text):
        return "ja"
    letters = [char for char in text if char.isalpha()]
    if sum(is_cjk(char) for char in letters) * 4 > len(letters):
        return "zh"
    if len(letters) < 3:
        return "en"
    with _LOCK:
        language, share = _detector().classify(text[:2000])
    return str(language) if share >= SURE else "en"


def is_cjk(char: str) -> bool:
    """A character of Chinese or Japanese, or its full-width punctuation: words of these have no spaces between."""
    return (
        "\u2e80" <= char <= "\u30ff"
        or "\u31f0" <= char <= "\u9fff"
        or "\uf900" <= char <= "\ufaff"
        or "\uff01" <= char <= "\uff9f"
        or "\U00020000" <= char <= "\U0003ffff"
    )


def is_spoken(text: str) -> bool:
    """Something in it is said: a letter, a digit, or a sign such as % or &."""
    return any(char.isalnum() or char in "%&@#§°" or unicodedata.category(char) in ("Sc", "Sm") for char in text)


def _attached(pieces: list[str]) -> list[str]:
    """Punctuation that stands alone goes to the word before it; opening brackets and what comes first to the next."""
    words: list[str] = []
    waiting = ""
    for piece in pieces:
        if is_spoken(piece):
            words.append(waiting + piece)
            waiting = ""
        elif not words or waiting or unicodedata.category(piece[-1]) in ("Ps", "Pi"):
            waiting += piece + ("" if is_cjk(piece[-1]) or unicodedata.category(piece[-1]) in ("Ps", "Pi") else " ")
        else:
            words[-1] += joined(words[-1], piece) + piece
    if waiting and words:
        words[-1] += waiting.rstrip()
    return words


def _segmented(stretch: str, language: str) -> Iterator[str]:
    if language == "zh":
        import rjieba

        yield from (str(word) for word in rjieba.cut(stretch))
        return
    word = ""
    with _LOCK:
        morphemes = [(m.surface(), m.part_of_speech()[0]) for m in japanese().tokenize(stretch)]
    for surface, part in morphemes:
        if word and part not in ("助動詞", "接尾辞"):
            yield word
            word = ""
        word += surface
    if word:
        yield word


@lru_cache(1)
def japanese() -> Any:
    """Sudachi's tokenizer with the small dictionary, in its longest units."""
    import sudachipy  # type: ignore[import-untyped]

    return sudachipy.Dictionary(dict="small").tokenizer(sudachipy.SplitMode.C)


@lru_cache(1)
def _detector() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    detector = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    detector.set_languages(list(_DETECTED))
    return detector


def japanese_reading(text: str) -> str:
    """The text in kana, as Sudachi reads it."""
    with _LOCK:
        morphemes = japanese().tokenize(text)
        return "".join(str(m.reading_form()) for m in morphemes if m.part_of_speech()[0] not in ("補助記号", "空白"))
