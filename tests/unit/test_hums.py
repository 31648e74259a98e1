from __future__ import annotations

import pytest

from pipeline.hums import is_hum


@pytest.mark.parametrize("text", ["Mm-hm.", "MMHM", "mm mm", "Mmm.", "HMM", "Uh-huh.", "uh huh", "Um...", "Mhm", "Erm"])
def test_a_listeners_hum_is_one(text: str) -> None:
    assert is_hum(text)


@pytest.mark.parametrize("text", ["", "...", "No.", "Okay.", "Yeah.", "Um, wait.", "Hmm, why?", "Huhn", "Mum", "M1"])
def test_words_are_none(text: str) -> None:
    assert not is_hum(text)
