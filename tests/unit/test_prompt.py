"""Which voice a reply gets, in which language it is asked for."""

from __future__ import annotations

import pytest

from pipeline.engines.base import Voice
from pipeline.errors import InvalidInput
from pipeline.options import SessionOptions
from pipeline.prompt import instructions_for, speaks, voice_for

ANNA = Voice("anna", "Anna", "en")
BRUNO = Voice("bruno", "Bruno", "de")
POLYGLOT = Voice("poly", "Poly", "en", languages=("en", "de", "zh"), cloned=True)
VOICES = {voice.id: voice for voice in (ANNA, BRUNO, POLYGLOT)}


def options(voice: str, language: str | None) -> SessionOptions:
    return SessionOptions("Be brief.", voice, None, language=language, speed=1.2)


@pytest.mark.parametrize(
    ("chosen", "language", "spoken_by", "spoken"),
    [
        ("anna", None, "anna", "en"),
        ("anna", "en", "anna", "en"),
        ("anna", "de", "bruno", "de"),
        ("anna", "zh", "poly", "zh"),
        ("anna", "fr", "anna", "en"),
        ("poly", None, "poly", "en"),
        ("poly", "de", "poly", "de"),
        ("poly", "zh", "poly", "zh"),
        ("poly", "fr", "poly", "en"),
    ],
)
def test_a_voice_stays_if_it_speaks_the_language_and_gives_way_to_one_that_does(
    chosen: str, language: str | None, spoken_by: str, spoken: str
) -> None:
    voice = voice_for(options(chosen, language), VOICES)
    assert (voice.id, voice.language, voice.speed) == (spoken_by, spoken, 1.2)
    assert speaks(voice, spoken)


@pytest.mark.parametrize(
    ("voice", "language", "named"),
    [
        (ANNA, "de", "English"),
        (BRUNO, "de", "German"),
        (POLYGLOT, "de", "German"),
        (POLYGLOT, "zh", "Chinese"),
        (POLYGLOT, "fr", "English"),
    ],
)
def test_the_model_is_asked_for_a_language_that_the_voice_speaks(voice: Voice, language: str, named: str) -> None:
    assert instructions_for(options(voice.id, language), voice) == f"Be brief. Answer in {named}."


def test_without_a_language_nothing_is_said_of_it() -> None:
    assert instructions_for(options("anna", None), ANNA) == "Be brief."


def test_a_clone_speaks_as_a_clone_in_any_language() -> None:
    assert voice_for(options("poly", "de"), VOICES).cloned


def test_a_voice_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidInput, match="does not exist") as refused:
        voice_for(options("nobody", None), VOICES)
    assert refused.value.code == "voice_not_found"
