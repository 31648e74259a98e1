"""Text from outside made fit to be spoken, stored and shown: one normal form, nothing invisible, a bounded length."""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import Final

from pipeline.errors import InvalidInput, TooLarge

# Characters that change how other text is shown or are not seen at all (Unicode 15.1, chapters 9.2 and 23): bidi marks,
# embeddings and isolates, zero-width space and word joiners, invisible operators, annotation marks, tags. The
# zero-width (non-)joiner stays: it is part of how Persian, Hindi and emoji are spelled.
_UNSEEN: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff"
)
_CONTROLS: Final = "\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f"
_DROPPED: Final = re.compile(f"[{_CONTROLS}{_UNSEEN}]")
_LINE_ENDS: Final = re.compile("\r\n|[\n\v\f\r\u0085\u2028\u2029]")
_MAX_MARKS: Final = 30  # on one letter: the stream-safe format of Unicode annex 15, which also bounds the work
_RAW_PER_CLEAN: Final = 4  # what is dropped or composed may make this much of the raw text


def clean_user_text(text: str, *, max_characters: int, allow_newlines: bool = False) -> str:
    """`text` in NFC without control, bidi and invisible characters; tabs and, unless allowed, line ends are spaces.

    `TooLarge` past `max_characters`; `InvalidInput` when it holds lone surrogates, which are no text in any encoding.
    """
    if len(text) > max_characters * _RAW_PER_CLEAN:
        raise _too_long(max_characters)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("the text holds characters that are not valid Unicode", code="invalid_text") from error
    cleaned = without_unseen(text, allow_newlines=allow_newlines)
    if len(cleaned) > max_characters:
        raise _too_long(max_characters)
    return cleaned


def without_unseen(text: str, *, allow_newlines: bool = False) -> str:
    """The cleaning alone, for text of a length that is already bounded and without lone surrogates."""
    lines = _LINE_ENDS.sub("\n" if allow_newlines else " ", text).replace("\t", " ")
    return unicodedata.normalize("NFC", _with_few_marks(_DROPPED.sub("", lines)))


def _with_few_marks(text: str) -> str:
    if text.isascii():
        return text
    kept = (
        run if not is_mark else itertools.islice(run, _MAX_MARKS)
        for is_mark, run in itertools.groupby(text, key=lambda character: unicodedata.combining(character) != 0)
    )
    return "".join(itertools.chain.from_iterable(kept))


def _too_long(max_characters: int) -> TooLarge:
    return TooLarge(f"the text is longer than {max_characters} characters", code="text_too_long")
