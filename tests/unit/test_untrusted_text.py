from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidInput, TooLarge
from pipeline.untrusted_text import clean_user_text

# Letters, and plenty of what has to go.
TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\0\x1b\x7f\x85\r\n\t\v\u200b\u200d\u202e\u2066\u2028\ufeff\u0301\u0327\U000e0041\U000e0100"),
    ),
    max_size=60,
)
BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@given(TEXT, st.booleans())
def test_what_comes_out_is_normal_visible_and_stays_as_it_is(text: str, allow_newlines: bool) -> None:
    cleaned = clean_user_text(text, max_characters=400, allow_newlines=allow_newlines)
    assert unicodedata.is_normalized("NFC", cleaned)
    controls = {character for character in cleaned if unicodedata.category(character) in ("Cc", "Zl", "Zp")}
    assert controls <= ({"\n"} if allow_newlines else set())
    assert {unicodedata.bidirectional(character) for character in cleaned} & BIDI == set()
    assert clean_user_text(cleaned, max_characters=400, allow_newlines=allow_newlines) == cleaned


@given(st.text(st.characters(categories=("Lu", "Ll", "Nd", "Po")), max_size=40), st.integers(0, 30))
def test_the_bound_is_on_what_comes_out(text: str, max_characters: int) -> None:
    try:
        assert len(clean_user_text(text, max_characters=max_characters)) <= max_characters
    except TooLarge:
        assert len(text) > max_characters


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Cafe\u0301", "Café"),
        ("e\u200b\u0301", "é"),
        ("safe\u202egpj.exe", "safegpj.exe"),
        ("a\tb\r\nc\u2028d", "a b c d"),
        ("\x1b[31mred\x07\0", "[31mred"),
        ("\U000e0041\U000e0042hidden orders", "hidden orders"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d🚀 ok ❤\ufe0f", "👩\u200d🚀 ok ❤\ufe0f"),
        ("Straße, 東京, Ω", "Straße, 東京, Ω"),
    ],
)
def test_words_stay_and_tricks_go(text: str, cleaned: str) -> None:
    assert clean_user_text(text, max_characters=100) == cleaned


def test_line_ends_stay_where_they_are_allowed() -> None:
    assert clean_user_text("a\r\nb\u2029c\x85d", max_characters=100, allow_newlines=True) == "a\nb\nc\nd"


def test_half_a_character_is_refused() -> None:
    with pytest.raises(InvalidInput):
        clean_user_text("a\ud800b", max_characters=100)


def test_a_tower_of_marks_becomes_a_stump() -> None:
    assert len(clean_user_text("a" + "\u0300\u0323" * 8000, max_characters=5000)) <= 31


@pytest.mark.parametrize("text", ["a" * 11, "\u200b" * 41, "a" * 10_000_000])
def test_too_much_is_too_large_whatever_it_is(text: str) -> None:
    with pytest.raises(TooLarge):
        clean_user_text(text, max_characters=10)
