from __future__ import annotations

import pytest

from pipeline.hums import goes_on

TOLD = "Once upon a time there was a small house"
ASKED = "Once upon a time there was a house. Do you know it? It was"


@pytest.mark.parametrize("text", ["Mm-hm.", "MMHM", "mm mm", "Mmm.", "HMM", "Uh-huh.", "uh huh", "Um...", "Mhm", "Erm"])
def test_a_listeners_hum_wants_more_whatever_was_said(text: str) -> None:
    assert goes_on(text, TOLD)
    assert goes_on(text, ASKED)


@pytest.mark.parametrize("text", ["Okay.", "OK", "Yeah.", "Yes!", "Right.", "Oh, okay.", "Mm, yeah.", "Yeah, yeah."])
def test_a_nod_wants_more_unless_it_answers(text: str) -> None:
    assert goes_on(text, TOLD)
    assert goes_on(text, "")
    assert goes_on(text, "Are you there? " + "It is a long way to the sea from here. " * 2)
    assert not goes_on(text, ASKED)


def test_a_nod_answers_a_question_before_its_last_word_as_well() -> None:
    heard = "It has two floors, and a garden behind it that nobody has looked after. Shall I go"
    assert not goes_on("Yes.", heard, " on? It is a long story.")
    assert goes_on("Yes.", heard + " on.", " Do you know it?")
    assert goes_on("Yes.", heard, " on, then to the sea, and after it to all the other places in the world?")
    assert goes_on("Mm-hm.", heard, " on?")
    assert goes_on("Yes.", "", "Do you know it?")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "No.",
        "Okay?",
        "Okay, okay, okay.",
        "Okay, stop.",
        "Yes, but why",
        "Um, wait.",
        "Hmm, why?",
        "Mum",
        "M1",
    ],
)
def test_other_words_want_something_else(text: str) -> None:
    assert not goes_on(text, TOLD)
