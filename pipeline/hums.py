"""Sounds by which a listener says "go on", and no more: they interrupt nobody."""

from __future__ import annotations

import re

_HUM = re.compile(r"m+|h+m+|m+h+m+|m+h+u+h+|u+h+|h+u+h+|u+m+|e+r+m*")
_WORD = re.compile(r"[^\W_]+")


def is_hum(text: str) -> bool:
    """Whether it is "mm-hm", "uh-huh", "hmm" or the like. "Okay", "yes" and "right" may mean more, and are none."""
    words = _WORD.findall(text.lower())
    return bool(words) and all(_HUM.fullmatch(word) for word in words)
