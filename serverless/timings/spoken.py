"""How each written word is said: numbers and symbols as words, by the code that prepares text for speech."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from serverless.timings.tokens import is_spoken

_WORD = re.compile(r"[^\W_]+(?:['’.][^\W_]+)*\.?|[^\W_]")


def spoken_words(tokens: Sequence[str], language: str) -> list[tuple[str, ...]]:
    """For each token the words that are said for it; none for a token that is said as part of its neighbour.

    "$5 million" is read as a whole ("five million dollars"), so the reading of the whole text is laid over the
    readings of the single tokens, and where the two differ its words are shared out in order.
    """
    from pipeline.sentences import speakable  # brings sentencex and num2words, 0.1 s

    single = [_words(speakable(token, language)) for token in tokens]
    whole = _words(speakable(" ".join(tokens), language))
    flat = [word for words in single for word in words]
    if whole == flat:
        return [tuple(words) for words in single]
    owners = [i for i, words in enumerate(single) for _ in words]
    said: list[list[str]] = [[] for _ in tokens]
    for kind, a, b, c, d in SequenceMatcher(None, flat, whole, autojunk=False).get_opcodes():
        if kind == "insert":
            before = owners[a - 1] if a else -1
            after = owners[a] if a < len(owners) else len(tokens)
            signs = [i for i in range(before + 1, after) if is_spoken(tokens[i])]  # "50 %": "percent" is its second
            said[signs[0] if signs else max(before, 0)] += whole[c:d]
        elif kind in ("equal", "replace"):
            for j in range(c, d):
                said[owners[a + (j - c) * (b - a) // (d - c)]].append(whole[j])
    for i in range(1, len(tokens)):
        if single[i] and not said[i] and len(said[i - 1]) > 1:  # "$5 million": "dollars" comes after "million"
            kept = len(said[i - 1]) // 2
            said[i - 1], said[i] = said[i - 1][:kept], said[i - 1][kept:]
    return [tuple(words) for words in said]


def _words(text: str) -> list[str]:
    # The dot of "U.S." is its own, that of a last word is the sentence's.
    return [word if "." in word[:-1] else word.rstrip(".") for word in _WORD.findall(text)]
