"""Consent to a voice: what has to be there, and whether the phrase was read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.voices.consent import (
    HEARD_SHARE,
    N_WORDS,
    STATEMENT_VERSION,
    check_agreement,
    heard_share,
    new_phrase,
)
from pipeline.errors import InvalidInput, RequestError


@pytest.mark.parametrize("name", ["Ada Lovelace", "  Ada  ", "José", "王小明", "Ѳеодоръ", "O'Neill-Smith"])
def test_a_tick_the_shown_statement_and_a_name_are_a_consent(name: str) -> None:
    assert check_agreement(True, STATEMENT_VERSION, name) == name.strip()
    assert check_agreement(True, None, name) == name.strip()


@pytest.mark.parametrize(
    ("agreed", "statement", "name", "code"),
    [
        (False, STATEMENT_VERSION, "Ada", "consent_missing"),
        (True, "2020-01", "Ada", "statement_outdated"),
        (True, STATEMENT_VERSION, "", "consent_name_missing"),
        (True, STATEMENT_VERSION, "  \t ", "consent_name_missing"),
        (True, STATEMENT_VERSION, "1234 !?", "consent_name_missing"),
        (True, STATEMENT_VERSION, "\u202e\u200b", "consent_name_missing"),
        (True, STATEMENT_VERSION, "x", "consent_name_missing"),
        (True, STATEMENT_VERSION, "a" * 101, "text_too_long"),
    ],
)
def test_without_one_of_them_there_is_none(agreed: bool, statement: str, name: str, code: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_agreement(agreed, statement, name)
    assert refused.value.code == code


def test_a_name_cannot_forge_a_line_of_the_record() -> None:
    assert check_agreement(True, None, "Ada\nadmin: yes\u202e") == "Ada admin: yes"


def test_every_phrase_is_another_one() -> None:
    phrases = {new_phrase("en") for _ in range(50)}
    assert len(phrases) == 50
    for phrase in phrases:
        words = phrase.split(", ")
        assert len(set(words)) == len(words) == N_WORDS


@pytest.mark.parametrize("language", ["de", "es", "fr"])
def test_a_phrase_is_in_the_language_of_the_speaker(language: str) -> None:
    english = {word for _ in range(20) for word in new_phrase("en").split(", ")}
    assert not english & set(new_phrase(language).split(", ")) - {"orange", "dragon"}


def test_an_unknown_language_reads_english() -> None:
    english = {word for _ in range(60) for word in new_phrase("en").split(", ")}
    assert set(new_phrase("xx").split(", ")) <= english


PHRASE = "river, window, garden, yellow, winter, orange, mountain, paper"


@pytest.mark.parametrize(
    "heard",
    [
        "River, window, garden, yellow, winter, orange, mountain, paper.",
        "River window guarden yellow, winter. Orange mountains paper",
        "um river window garden yellow winter orange mountain",
    ],
)
def test_a_phrase_that_was_read_is_heard_though_not_perfectly(heard: str) -> None:
    assert heard_share(PHRASE, heard) >= HEARD_SHARE


@pytest.mark.parametrize(
    "heard",
    [
        "",
        "Ask not what your country can do for you",
        "paper mountain orange winter yellow garden window river",
        "river window",
    ],
)
def test_other_words_or_another_order_are_not_the_phrase(heard: str) -> None:
    assert heard_share(PHRASE, heard) < HEARD_SHARE


def test_accents_do_not_matter() -> None:
    assert heard_share("fenêtre, planète", "Fenetre planete") == 1


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_has_a_share(phrase: str, heard: str) -> None:
    assert 0 <= heard_share(phrase, heard) <= 1


def test_the_errors_say_what_to_do() -> None:
    with pytest.raises(InvalidInput, match="agree to the statement"):
        check_agreement(False, None, "Ada")
