"""How long F5-TTS speaks, and the text that it is given: rules without weights, shared by all who drive the model.

The model fills a stretch of time that it is told; it does not find the length itself. As upstream does, the length
follows from the reference: seconds per byte of its text times the bytes of the new text, divided by the speed.
"""

from __future__ import annotations

import re
from typing import Final

SAMPLE_RATE: Final = 24_000
MAX_REFERENCE_S: Final = 12.0
MAX_TOTAL_S: Final = 22.0  # reference and new speech together; trained on at most 30 s, upstream stays below 22 s
# Upstream slows texts under 10 bytes to 0.3 whatever the speed, so that one word gets time enough. This is the time
# that a word gets here, and the speed still counts. An estimate: it was not tried on trained weights.
MIN_SPEECH_S: Final = 0.7
# What people say, in any script: slow English has 8 bytes a second, fast Chinese 25. Beyond the bounds the text is not
# what is said in the recording, and new speech would be drawn out or crammed without end.
MIN_BYTE_RATE, MAX_BYTE_RATE = 4.0, 40.0

_CAPITALS = re.compile(r"[^\W\d_]{2,}")
MAX_ACRONYM_LETTERS: Final = 5
_ENDS_SENTENCE: Final = (".", "!", "?", "。", "！", "？", "…")
_ENDS_CLAUSE: Final = " ,;:，、；："


def reference_text(text: str) -> str:
    """The reference's text as it stands before the new text: ended as a sentence, with a space if it uses them."""
    text = readable(text.strip())
    if not text.endswith(_ENDS_SENTENCE):
        text = text.rstrip(_ENDS_CLAUSE) + "."  # a recording is cut at clauses as well, and nobody writes ",."
    return f"{text} " if text[-1].isascii() else text


def readable(text: str) -> str:
    """`text` without shouting: the model spells words of capital letters.

    Words of more than 5 capitals are no acronyms and become lower case, and where no word of the text has a small
    letter, all do. NASA and BBC stay, and are spelled.
    """
    words = _CAPITALS.findall(text)
    is_shouted = len(words) > 1 and all(word.isupper() for word in words)
    limit = 1 if is_shouted else MAX_ACRONYM_LETTERS
    return _CAPITALS.sub(lambda m: m[0].lower() if m[0].isupper() and len(m[0]) > limit else m[0], text)


def byte_rate(reference_s: float, text: str) -> float:
    """Bytes of UTF-8 a second of the reference, within what people can say."""
    rate = len(reference_text(text).encode()) / reference_s
    return min(max(rate, MIN_BYTE_RATE), MAX_BYTE_RATE)


def speech_seconds(text: str, rate: float, speed: float) -> float:
    """How long `text` lasts, by the reference's bytes a second."""
    return max(len(text.encode()) / rate, MIN_SPEECH_S) / speed


def max_text_bytes(reference_s: float, rate: float, speed: float) -> int:
    """How much text one run of the model may speak, so that reference and speech together stay within 22 s."""
    return max(int((MAX_TOTAL_S - reference_s) * rate * speed), 1)
