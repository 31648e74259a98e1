"""American English IPA of espeak-ng as the phones of the CMU dictionary, for words that the dictionary lacks."""

from __future__ import annotations

from pipeline.errors import EngineTimeout, VoicepodError
from serverless.timings.words import Unusable

# Longest first. espeak's signs for length, stress and syllables carry nothing that the acoustic model knows.
_PHONES = {
    "aɪɚ": "AY ER",
    "aɪə": "AY AH",
    "aʊɚ": "AW ER",
    "oːɹ": "AO R",
    "ɔːɹ": "AO R",
    "ɑːɹ": "AA R",
    "aɪ": "AY",
    "aʊ": "AW",
    "eɪ": "EY",
    "oʊ": "OW",
    "əʊ": "OW",
    "ɔɪ": "OY",
    "tʃ": "CH",
    "dʒ": "JH",
    "əl": "AH L",
    "n\u0329": "AH N",
    "ɜː": "ER",
    "ɚ": "ER",
    "ɝ": "ER",
    "iː": "IY",
    "uː": "UW",
    "a": "AA",
    "æ": "AE",
    "ɑ": "AA",
    "ɒ": "AA",
    "ʌ": "AH",
    "ə": "AH",
    "ɐ": "AH",
    "ɔ": "AO",
    "o": "OW",
    "e": "EY",
    "ɛ": "EH",
    "ɜ": "ER",
    "ɪ": "IH",
    "i": "IY",
    "ᵻ": "IH",
    "ʊ": "UH",
    "u": "UW",
    "y": "UW",
    "b": "B",
    "d": "D",
    "ð": "DH",
    "f": "F",
    "ɡ": "G",
    "g": "G",
    "h": "HH",
    "j": "Y",
    "k": "K",
    "l": "L",
    "ɬ": "L",
    "m": "M",
    "n": "N",
    "ŋ": "NG",
    "ɲ": "N Y",
    "p": "P",
    "ɹ": "R",
    "r": "R",
    "ʁ": "R",
    "s": "S",
    "ʃ": "SH",
    "t": "T",
    "ɾ": "T",
    "ʔ": "T",
    "θ": "TH",
    "v": "V",
    "β": "V",
    "w": "W",
    "ʍ": "W",
    "x": "K",
    "χ": "K",
    "ç": "HH",
    "z": "Z",
    "ʒ": "ZH",
}
_LONGEST = max(map(len, _PHONES))


def pronunciation(word: str) -> str:
    """Phones of an English word, separated by spaces; empty when espeak-ng finds nothing to say in it.

    `VoicepodError` when the program is missing or fails.
    """
    from pipeline.engines.phonemes import phonemes, require_program

    require_program()
    return phones_of(phonemes(word, "en-us"))


def phones_of(ipa: str) -> str:
    """IPA to phones; signs that are not in the table are left out."""
    phones: list[str] = []
    position = 0
    while position < len(ipa):
        for length in range(_LONGEST, 0, -1):
            if phone := _PHONES.get(ipa[position : position + length]):
                phones.append(phone)
                position += length
                break
        else:
            position += 1
    return " ".join(phones)


def pronounced(word: str) -> str | None:
    """`pronunciation`, or None where there is none. `Unusable` when espeak-ng hangs: so would it at the next word."""
    try:
        return pronunciation(word) or None
    except EngineTimeout as error:
        raise Unusable("espeak-ng took too long") from error
    except VoicepodError:
        return None
