"""How long a text takes to say, roughly: for splitting text into segments and for ending runaway generation."""

from __future__ import annotations

import math
import re
import unicodedata
from functools import lru_cache

FRAME_SECONDS = 0.08

# One segment is one generation of at most 30 s (upstream's cap, fireredtts2.py:304), and cutting is worse than
# splitting: a segment is planned for half of that, so that even a voice of half the usual speed can finish it.
MAX_SEGMENT_FRAMES = 375
MAX_SEGMENT_SECONDS = 15.0

# Reading aloud, 436 adults, 17 languages (IReST, Trauzettel-Klosinski and Dietz 2012): 68 ms a character in alphabetic
# scripts, spaces and punctuation among them; 370 syllables and 184 words a minute over all languages; 255 characters a
# minute in Chinese. LJ Speech agrees: 1 308 674 characters in 86 117 s, 66 ms each.
_LETTER_SECONDS = 0.068
_HANGUL_SECONDS = 60 / 370  # a block is a syllable
_HAN_SECONDS = 60 / 255
_KANA_SECONDS = 1 / 7.84  # Japanese syllables a second (Pellegrino, Coupe and Marsico 2011)
_WORD_SECONDS = 60 / 184  # a digit or a symbol is said as a word
_TAG_SECONDS = 1.0  # a laugh or a sigh: an estimate

# A frame limit of three times the estimate and two seconds: slow voices, pauses and long numbers pass, a loop does not.
_SLOWEST = 3.0
_GRACE_SECONDS = 2.0

_TAG = re.compile(r"<\|[^|<>\s]{1,40}\|>")
_HAN = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile("[\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff\uff66-\uff9d]")
_HANGUL = re.compile("[\uac00-\ud7a3\u3131-\u318e]")
_SYMBOLS_SAID = "%&@#§°"


def estimated_seconds(text: str) -> float:
    """Time to say `text` at an average pace. Additive: the parts of a text add up to the whole."""
    words = _TAG.sub("", text)
    n_tags = text.count("<|") and len(_TAG.findall(text))
    return n_tags * _TAG_SECONDS + sum(map(_seconds, words))


def max_frames(text: str) -> int:
    """Frames of 80 ms after which the audio of `text` has gone wrong: generous, and 30 s at the most."""
    seconds = _SLOWEST * estimated_seconds(text) + _GRACE_SECONDS
    return min(MAX_SEGMENT_FRAMES, math.ceil(seconds / FRAME_SECONDS))


@lru_cache(maxsize=4096)
def _seconds(character: str) -> float:
    if _HAN.match(character):
        return _HAN_SECONDS
    if _KANA.match(character):
        return _KANA_SECONDS
    if _HANGUL.match(character):
        return _HANGUL_SECONDS
    if character.isnumeric() or character in _SYMBOLS_SAID or unicodedata.category(character) in ("Sc", "Sm"):
        return _WORD_SECONDS
    return _LETTER_SECONDS
