"""Words spoken by espeak-ng with known edges, in any of its languages.

The program tells nobody when it says a word, so a long pause is put between every two words: the sentence is
pronounced as a sentence, and the pauses show where its words begin and end. espeak-ng is GPL-3 and runs as a program
of its own; its library is never loaded here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence

import numpy as np

from pipeline.audio import AudioChunk, concat, decode_file
from serverless.timings.spoken import spoken_words
from serverless.timings.tokens import is_cjk, is_spoken, japanese_reading
from serverless.timings.voiced import runs
from serverless.timings.words import NotAligned, Unusable

PROGRAM = "espeak-ng"
TIMEOUT_S = 20.0
WORDS_A_CALL = 16  # espeak breaks a long line where it likes
MIN_PAUSE_S = 0.2  # an Italian double consonant is silent for 0.12 s
_PAUSE = " [[_:_:_:_:_:]] "  # about 0.28 s
_QUIET = 1e-4
_DIGITS = re.compile(r"[0-9]{1,12}")
_VOICES = {"en": "en-us", "fr": "fr-fr", "zh": "cmn-latn-pinyin"}


def readings(tokens: Sequence[str], language: str) -> list[tuple[str, ...]]:
    """For each token the words that espeak can read: kana for Japanese, pinyin for Chinese, numbers as words."""
    if language == "ja":
        return [(kana,) if (kana := _cleaned(japanese_reading(_numbers_as_words(token)))) else () for token in tokens]
    if language == "zh":
        return [(pinyin,) if (pinyin := _pinyin(token)) else () for token in tokens]
    said = spoken_words(tokens, language)
    return [
        tuple(clean for word in words if (clean := _cleaned(word))) or _sign(token)
        for token, words in zip(tokens, said, strict=True)
    ]


def speak(words: Sequence[str], language: str, *, variant: str | None = None) -> tuple[AudioChunk, list[int]]:
    """The words without the pauses between them, and the sample at which each begins, then that at which all end.

    `variant` is one of espeak's changes of a voice, such as f2. `NotAligned` when espeak-ng is missing, fails, or does
    not know the language.
    """
    if shutil.which(PROGRAM) is None:
        raise Unusable("espeak-ng is not installed")
    voice = _VOICES.get(language, language) + (f"+{variant}" if variant else "")
    parts: list[AudioChunk] = []
    for begin in range(0, len(words), WORDS_A_CALL):
        some = words[begin : begin + WORDS_A_CALL]
        spoken = _split(_said(_PAUSE.join(some), voice), len(some))
        if spoken is None:  # one of them is nothing to espeak, or a pause of its own
            spoken = [_alone(word, voice) for word in some]
        parts += spoken
    rate = parts[0].sample_rate
    edges = np.cumsum([0, *(part.n_samples for part in parts)])
    return concat(parts, rate), [int(edge) for edge in edges]


def _alone(word: str, voice: str) -> AudioChunk:
    spoken = _split(_said(word, voice), 1)
    if spoken is None:
        raise NotAligned("espeak-ng cannot say a word of the text")
    return spoken[0]


def _said(text: str, voice: str) -> AudioChunk:
    try:
        done = subprocess.run(
            [PROGRAM, "-b", "1", "-z", "-v", voice, "--stdin", "--stdout"],
            input=text.encode(),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unusable("espeak-ng could not be run, or took too long") from error
    if done.returncode or len(done.stdout) <= 44:  # a header and nothing behind it
        raise NotAligned("espeak-ng has no voice for the language, or nothing to say")
    return decode_file(done.stdout, max_seconds=600)


def _split(audio: AudioChunk, n_words: int) -> list[AudioChunk] | None:
    """The words between the long pauses; None when there are not as many.

    What a pause is longer than the shortest of them is the closure of the stop that follows, and belongs to it.
    """
    rate = audio.sample_rate
    sounding = np.flatnonzero(np.abs(audio.samples) > _QUIET)
    if not sounding.size:
        return None
    first, last = int(sounding[0]), int(sounding[-1]) + 1
    quiet = np.asarray(np.abs(audio.samples[first:last]) <= _QUIET, np.bool_)
    pauses = [(first + a, first + b) for a, b in runs(quiet) if b - a > MIN_PAUSE_S * rate]
    if len(pauses) != n_words - 1:
        return None
    nominal = min((b - a for a, b in pauses), default=0)
    starts = [first, *(a + nominal for a, _ in pauses)]
    ends = [*(a for a, _ in pauses), last]
    return [audio.slice(start, end) for start, end in zip(starts, ends, strict=True)]


def _sign(token: str) -> tuple[str, ...]:
    """A sign that stands alone, such as % or €: espeak has a word for it in each language."""
    signs = "".join(char for char in token if not char.isalnum() and is_spoken(char))
    return (signs[0],) if signs and not any(char.isalnum() for char in token) else ()


def _numbers_as_words(token: str) -> str:
    from num2words import num2words

    return _DIGITS.sub(lambda digits: str(num2words(int(digits[0]), lang="ja")), token)


def _pinyin(token: str) -> str:
    from pypinyin import Style, lazy_pinyin

    from pipeline.sentences import speakable

    # A number is read in Chinese characters first: espeak's pinyin voice reads no digits.
    text = "".join(c for c in speakable(token, "zh") if c.isalnum())
    syllables = lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True)
    return "".join(syllable for syllable in syllables if not any(is_cjk(c) for c in syllable))


def _cleaned(word: str) -> str:
    """Letters, marks and apostrophes: brackets and dots are commands or clause ends to espeak."""
    kept = (c for c in unicodedata.normalize("NFC", word.replace("’", "'")) if c == "'" or _is_letter(c))
    return "".join(kept).strip("'")


def _is_letter(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char)[0] == "M" or char == "ー"
