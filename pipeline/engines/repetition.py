"""Notices when a language model goes round in circles, as small ones do."""

from __future__ import annotations

import re
from collections import deque

MIN_WORDS, MAX_WORDS = 4, 24  # length of the phrase that comes again; poems repeat short ones, loops are rarely longer
TIMES = 3

_WORD = re.compile(r"\w+")


class RepetitionGuard:
    """Reads a reply delta by delta: the same 4 to 24 words three times in a row are a loop."""

    def __init__(self) -> None:
        self._words: deque[str] = deque(maxlen=MAX_WORDS * TIMES)
        self._unfinished = ""

    def is_loop(self, delta: str) -> bool:
        """Whether the reply so far, `delta` included, ends in a loop. A word counts once the next one begins."""
        *finished, self._unfinished = re.split(r"(?<=\W)(?=\w)", self._unfinished + delta)
        for stretch in finished:
            for word in _WORD.findall(stretch):
                self._words.append(word.lower())
                if self._ends_in_loop():
                    return True
        return False

    def _ends_in_loop(self) -> bool:
        words = list(self._words)
        for n in range(MIN_WORDS, len(words) // TIMES + 1):
            phrase = words[-n:]
            if all(words[-n * (k + 1) : -n * k] == phrase for k in range(1, TIMES)):
                return True
        return False
