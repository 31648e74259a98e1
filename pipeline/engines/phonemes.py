"""English text to phonemes (IPA) with punctuation, by the `espeak-ng` program.

espeak-ng is GPL-3: it runs as a program of its own, a few milliseconds for each piece of speech, and its library is
never loaded here. Punctuation is what gives a neural voice its pauses and its melody, and espeak drops it, so the text
is cut at punctuation first and the marks are put back between the phonemes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import unicodedata

from pipeline.errors import ConfigError, EngineFailed, EngineTimeout

PROGRAM = "espeak-ng"
TIMEOUT_S = 10.0  # a piece takes about 15 ms; this is for a machine that swaps

# A mark counts only at the end of a word: 3.14 and 12:30 stay whole.
_MARK = re.compile(r"[;:,.!?…]+(?=\s|$)|—")
_UNSPOKEN = str.maketrans({'"': " ", "“": " ", "”": " ", "(": ", ", ")": ", ", "–": "—"})
# Kokoro learned English with a letter for each diphthong and affricate; espeak spells them with two. Raw espeak is
# understood about as well (WER 0.01 to 0.02 over 8 sentences either way), but "boyish" came out as "bodyish".
_KOKORO = (
    ("oʊ", "O"),
    ("əʊ", "Q"),
    ("eɪ", "A"),
    ("aɪ", "I"),
    ("aʊ", "W"),
    ("ɔɪ", "Y"),
    ("tʃ", "ʧ"),
    ("dʒ", "ʤ"),
    ("əl", "ᵊl"),
    ("n\u0329", "ᵊn"),
    ("ɐ", "ə"),
)
_KOKORO_AMERICAN = (("ɜː", "ɜɹ"), ("oːɹ", "ɔɹ"), ("ɚɹ", "ɚ"), ("ɚ", "əɹ"), ("ɾ", "T"), ("ː", ""))

_LANGUAGE_SWITCH = re.compile(r"\([a-z]{2,3}(?:-[a-z]+)*\)")


def require_program() -> None:
    """`ConfigError` with the command to run when espeak-ng is missing."""
    if shutil.which(PROGRAM) is None:
        raise ConfigError("the program espeak-ng is missing: run `apt-get install espeak-ng`")


def pronounceable(text: str) -> str:
    """`text` without what an English voice cannot say: emoji, other scripts, control characters."""
    kept = (char if _is_sayable(char) else " " for char in unicodedata.normalize("NFC", text))
    spoken = " ".join("".join(kept).translate(_UNSPOKEN).split())
    return spoken if any(char.isalnum() for char in spoken) else ""


def phonemes(text: str, accent: str) -> str:
    """IPA with stress and punctuation for `text`; `accent` is `en-us` or `en-gb`. Blocking, for a lane's thread.

    Empty when nothing can be said. `EngineFailed` when espeak-ng fails or is killed, `EngineTimeout` when it hangs.
    """
    spoken = pronounceable(text)
    words, marks = _cut(spoken)
    if not words:
        return ""
    # A blank line ends a paragraph, so that each stretch comes back as one line.
    lines = _espeak("\n\n".join(words), accent)
    if len(lines) != len(words):  # espeak saw a clause boundary that we did not
        lines = [" ".join(_espeak(stretch, accent)) for stretch in words]
    return "".join(line + mark for line, mark in zip(lines, marks, strict=True)).strip()


def kokoro_spelling(ipa: str, accent: str) -> str:
    """IPA of espeak in the symbols that Kokoro learned for English."""
    for espeak, kokoro in (*_KOKORO, *(_KOKORO_AMERICAN if accent == "en-us" else ())):
        ipa = ipa.replace(espeak, kokoro)
    return ipa


def _is_sayable(char: str) -> bool:
    category = unicodedata.category(char)
    if category[0] == "L":
        return unicodedata.name(char, "").startswith(("LATIN", "GREEK"))
    if category[0] == "M":  # accents that NFC could not fold
        return char <= "\u036f"
    return category[0] in "NP" or category in ("Sc", "Sm", "Zs") or char in "^`"


def _cut(text: str) -> tuple[list[str], list[str]]:
    """Stretches of words, and the mark with its space that follows each."""
    words: list[str] = []
    marks: list[str] = []
    position = 0
    for match in [*_MARK.finditer(text), None]:
        stretch = text[position : match.start() if match else None].strip()
        mark = match.group().strip()[:1] if match else ""
        position = match.end() if match else position
        if any(char.isalnum() for char in stretch):
            words.append(stretch)
            marks.append(mark + " ")
        elif marks and mark and marks[-1] in (" ", ", "):
            marks[-1] = mark + " "
    return words, marks


def _espeak(text: str, accent: str) -> list[str]:
    try:
        done = subprocess.run(
            [PROGRAM, "-q", "--ipa", "-b", "1", "-v", accent, "--stdin"],
            input=text.encode(),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineTimeout("pronouncing the text took too long", stage="tts") from error
    except OSError as error:
        raise EngineFailed(f"{PROGRAM} could not be started: {error.strerror}", stage="tts") from error
    if done.returncode != 0:
        raise EngineFailed(f"the pronunciation program ended with status {done.returncode}", stage="tts")
    lines = _LANGUAGE_SWITCH.sub("", done.stdout.decode("utf-8", "replace")).splitlines()
    return [stripped for line in lines if (stripped := line.strip())]
