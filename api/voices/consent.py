"""What whoever makes a voice agrees to, and the phrases that show that the voice is theirs.

The statement has a version: a consent names the one that was shown, and keeps its words.
"""

from __future__ import annotations

import secrets
import unicodedata
from difflib import SequenceMatcher
from typing import Final

from pipeline.errors import InvalidInput
from pipeline.untrusted_text import clean_user_text

STATEMENT_VERSION: Final = "2026-11"
STATEMENT: Final = (
    "This is a recording of my own voice, or of a person who has clearly agreed that a voice is made from it and used "
    "by me. I will not use the voice to deceive anybody, to pose as somebody, or against the law. The recording and "
    "the voice are stored on this server until I delete them; this consent is stored for a time beyond that, as proof."
)
# FireRedTTS-2's README.
_RESEARCH: Final = "The authors of FireRedTTS-2 made its voice cloning available for academic research only."
_NOT_COMMERCIAL: Final = "The weights of F5-TTS are CC-BY-NC-4.0: what it says is not for commercial use."
ENGINE_NOTICES: Final = {"firered": _RESEARCH, "firered_upstream": _RESEARCH, "f5": _NOT_COMMERCIAL}
MAX_NAME_CHARS: Final = 100

N_WORDS: Final = 8
# Of the words of a phrase that must be heard, in order. A small recogniser gets one or two of eight wrong.
HEARD_SHARE: Final = 0.6
# The cosine of two recordings: two clips of one reader have 0.87, clips of two real people 0.49, of a real
# and a synthetic one up to 0.65.
SAME_PERSON: Final = 0.72
# Common words of two syllables or so that sound like no other: whole sentences could be guessed and recorded before.
_WORDS: Final = {
    "en": "river window garden yellow winter orange mountain paper candle silver morning bottle flower mirror "
    "pencil summer island kitchen letter dragon button forest planet rabbit",
    "de": "Fenster Garten Winter Orange Papier Kerze Silber Morgen Flasche Blume Spiegel Sommer Insel Küche Brief "
    "Drache Wald Planet Hase Wolke Brücke Lampe Apfel Teppich",
    "es": "ventana jardín invierno naranja montaña papel plata mañana botella espejo lápiz verano cocina carta "
    "bosque planeta conejo puente manzana zapato caballo camisa lámpara amigo",
    "fr": "fenêtre jardin hiver orange montagne papier bougie argent matin bouteille fleur miroir crayon cuisine "
    "lettre dragon bouton planète lapin chapeau fromage cheval musique valise",
}


def check_agreement(agreed: bool, statement: str | None, typed_name: str) -> str:
    """The typed name, cleaned. `InvalidInput` without a tick, for an older statement, or for a name without letters."""
    if not agreed:
        raise InvalidInput("a voice is made only with your consent: agree to the statement", code="consent_missing")
    if statement is not None and statement != STATEMENT_VERSION:
        raise InvalidInput("the statement has changed: read and agree to the new one", code="statement_outdated")
    name = clean_user_text(typed_name, max_characters=MAX_NAME_CHARS).strip()
    if sum(character.isalpha() for character in name) < 2:
        raise InvalidInput("type your name under the statement", code="consent_name_missing", param="consent")
    return name


def new_phrase(language: str) -> str:
    """Words to read aloud that nobody could record beforehand; English ones where there are none of the language."""
    words = _WORDS.get(language, _WORDS["en"]).split()
    chosen = [words.pop(secrets.randbelow(len(words))) for _ in range(N_WORDS)]
    return ", ".join(chosen)


def heard_share(phrase: str, heard: str) -> float:
    """The share of the phrase's words that were heard, in order; a word may be off by a letter or two."""
    wanted, words = _words(phrase), _words(heard)
    found = start = 0
    for word in wanted:
        for index in range(start, len(words)):
            if SequenceMatcher(None, word, words[index]).ratio() >= 0.75:
                found, start = found + 1, index + 1
                break
    return found / max(len(wanted), 1)


def _words(text: str) -> list[str]:
    """Letters and digits alone, without accents: recognisers are not sure of those."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    kept = (character for character in folded if not unicodedata.combining(character))
    return "".join(character if character.isalnum() else " " for character in kept).split()
