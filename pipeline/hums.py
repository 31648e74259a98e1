"""What a listener says to mean "go on", and no more: it interrupts nobody."""

from __future__ import annotations

import re
from typing import Final

_HUM = re.compile(r"m+|h+m+|m+h+m+|m+h+u+h+|u+h+|h+u+h+|u+m+|e+r+m*")
_NODS: Final = {"ah", "aha", "oh", "ok", "okay", "right", "yeah", "yep", "yes"}
_MAX_NODS: Final = 2  # "okay, okay, okay" is impatient
_ASKED_CHARS: Final = 60  # about four seconds of speech, within which a question is answered
_QUESTION = re.compile(r"[?？؟]")
_ENDS: Final = (".", "!", "。", "…")
_GOES_ON_TO_ASK = re.compile(rf"[^{''.join(_ENDS)}]*[?？؟]")
_WORD = re.compile(r"[^\W_]+")


def goes_on(text: str, heard: str, unheard: str = "") -> bool:
    """Whether it is "mm-hm" or the like, or "okay" and the like alone when the reply `heard` so far asked nothing.

    A question is answered in its last words already, so the sentence that was under way counts with its `unheard` end.
    """
    words = _WORD.findall(text.lower())
    nods = [word for word in words if not _HUM.fullmatch(word)]
    if not words or not nods:
        return bool(words)
    is_under_way = heard.strip() and not heard.rstrip().endswith(_ENDS)
    under_way = unheard[:_ASKED_CHARS] if is_under_way else ""
    asks = _QUESTION.search(text + heard[-_ASKED_CHARS:]) or _GOES_ON_TO_ASK.match(under_way)
    return not asks and len(nods) <= _MAX_NODS and set(nods) <= _NODS
