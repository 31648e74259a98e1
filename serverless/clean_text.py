"""The caller's text as it is spoken and timed: no control characters, one kind of white space."""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import Final

from pipeline.text_chunks import is_speakable
from serverless.errors import invalid

# Categories that nobody speaks: control, format (bidirectional marks), surrogates, private use, not assigned.
_UNSPEAKABLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_LINE_BREAK = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028]")
_PARAGRAPH_END: Final = "\u2029"
_REPEATED = re.compile(r"([^\w\s])\1{3,}")  # a row of dots would be given as much time as words of its length


def clean(text: str) -> str:
    """NFC without control characters; paragraphs stay apart by one line break, all other white space is one space.

    `JobError` INVALID_INPUT for field text when nothing is left that can be spoken.
    """
    text = plain(text)
    if not is_speakable(text):
        raise invalid("text", "holds nothing that can be spoken", code="not_speakable")
    return text


def plain(text: str) -> str:
    """The same for text that may be empty."""
    text = _LINE_BREAK.sub("\n", text).replace(_PARAGRAPH_END, "\n\n")
    text = unicodedata.normalize("NFC", "".join(map(_character, text)))
    lines = (" ".join(line.split()) for line in _REPEATED.sub(r"\1\1\1", text).split("\n"))
    paragraphs = (list(group) for is_text, group in itertools.groupby(lines, key=bool) if is_text)
    return "\n".join(" ".join(paragraph) for paragraph in paragraphs)


def _character(character: str) -> str:
    if character.isspace():
        return "\n" if character == "\n" else " "
    return "" if unicodedata.category(character) in _UNSPEAKABLE else character
