from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.echo import is_echo

REPLY = "Once upon a time there was a small house by the sea. An old man lived there with his dog."


@pytest.mark.parametrize(
    "heard",
    [
        "there was a small house",
        "A SMALL HOUSE, by the sea!",
        "small house by sea an old man",
        "old man lived here with his dog",
    ],
)
def test_the_replys_own_words_are_echo(heard: str) -> None:
    assert is_echo(heard, REPLY)


@pytest.mark.parametrize(
    "heard",
    [
        "",
        "the dog",
        "stop please now",
        "what was the name of the dog",
        "once there was his dog",
        "dog his with there lived",
    ],
)
def test_the_users_words_are_not(heard: str) -> None:
    assert not is_echo(heard, REPLY)


def test_nothing_is_an_echo_of_nothing() -> None:
    assert not is_echo("stop please now", "")
    assert not is_echo("", "")


@given(st.integers(0, 16), st.integers(3, 19))
def test_any_stretch_of_three_words_or_more_is_echo(start: int, length: int) -> None:
    words = REPLY.split()[start : start + length]
    assert is_echo(" ".join(words), REPLY) is (len(words) >= 3)
