"""Tells our own voice, come back through the microphone, from an interruption."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
# One or two words may well be the user's own, quoted from the reply ("Paris?").
MIN_WORDS = 3
MIN_SHARE = 0.8


def is_echo(heard: str, reply: str) -> bool:
    """Whether at least 80 % of the words of `heard` (three or more) stand in `reply`, in order and close together."""
    words, spoken = _words(heard), _words(reply)
    if len(words) < MIN_WORDS or len(spoken) < MIN_WORDS:
        return False
    blocks = [b for b in SequenceMatcher(None, words, spoken, autojunk=False).get_matching_blocks() if b.size]
    matched = sum(block.size for block in blocks)
    if matched < MIN_SHARE * len(words):
        return False
    stretch = blocks[-1].b + blocks[-1].size - blocks[0].b
    return stretch <= 1.5 * len(words) + 1


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
