"""What a caller's text goes through before it is spoken, and the languages the model speaks.

`prepare_text` cleans (firered/text_cleaning.py), refuses what cannot be spoken, and splits (firered/text_splitting.py);
`max_frames` bounds the audio of each piece (firered/speech_time.py).
"""

from __future__ import annotations

import re

from firered.errors import InputError
from firered.speech_time import MAX_SEGMENT_FRAMES, MAX_SEGMENT_SECONDS, estimated_seconds, max_frames
from firered.text_cleaning import clean_text
from firered.text_splitting import leading_part, split_text

__all__ = [
    "LANGUAGES",
    "MAX_SEGMENT_FRAMES",
    "MAX_SEGMENT_SECONDS",
    "check_language",
    "check_script",
    "clean_text",
    "estimated_seconds",
    "max_frames",
    "prepare_text",
    "prepare_transcript",
    "split_text",
]

# The languages of the published checkpoints (upstream README).
LANGUAGES = {
    "en": "English",
    "zh": "Chinese",
    "ja": "Japanese",
    "ko": "Korean",
    "fr": "French",
    "de": "German",
    "ru": "Russian",
}
_TAG = re.compile(r"<\|[^|<>\s]{1,40}\|>")
# Their letters: Latin, Cyrillic, kana, Han, Hangul.
_KNOWN_LETTER = re.compile(
    "[A-Za-z\u00aa-\u024f\u1e00-\u1eff\u0400-\u052f\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]"
)


def prepare_text(text: str, *, keep_tags: bool = False) -> list[str]:
    """The segments to speak, in order, at least one; each is cleaned and takes about 15 s at the most.

    `keep_tags` lets tags such as `<|laugh|>` through. Raises InputError when nothing in `text` can be spoken, or when
    most of it is in a script of none of the model's languages.
    """
    segments = split_text(clean_text(text, keep_tags=keep_tags))
    if not any(_has_words(segment) for segment in segments):
        raise InputError("the text holds nothing to speak: no letter and no digit")
    check_script(" ".join(segments))
    return segments


def prepare_transcript(transcript: str, kept_share: float = 1.0) -> str:
    """The words of a voice recording as the prompt needs them: cleaned, without a speaker tag, in one piece.

    `kept_share` is the part of the recording's speech that is used (PromptAudio.kept_share); the words are cut about
    there, since text without its audio would be a wrong example. Raises InputError when there are no words.
    """
    cleaned = clean_text(transcript)
    if not _has_words(cleaned):
        raise InputError("a voice needs the words that are spoken in its recording")
    return leading_part(cleaned, kept_share) if kept_share < 1 else cleaned


def check_language(code: str) -> str:
    """The two-letter code in lower case ("en" for "en-US"); InputError for a language the model does not speak."""
    language = re.split(r"[-_]", code.strip().lower(), maxsplit=1)[0]
    if language not in LANGUAGES:
        known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
        raise InputError(f"the voice does not speak {code[:20]!r}: use one of {known}")
    return language


def check_script(text: str) -> None:
    """Raises InputError when most letters are of no script that the model's languages use."""
    letters = [character for character in _TAG.sub("", text) if character.isalpha()]
    n_known = sum(_KNOWN_LETTER.match(letter) is not None for letter in letters)
    if 2 * n_known < len(letters):
        raise InputError(f"most of the text is in a script that the voice cannot read; it speaks {_names()}")


def _has_words(text: str) -> bool:
    sounds = [tag for tag in _TAG.findall(text) if not tag.startswith("<|emotion")]
    return bool(sounds) or any(character.isalnum() for character in _TAG.sub("", text))


def _names() -> str:
    return ", ".join(LANGUAGES.values())
