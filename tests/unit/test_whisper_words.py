from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.base import Word
from pipeline.engines.whisper_words import cheapest_path, joined, shortened


def cheapest(cost: np.ndarray) -> float:
    """The least sum over all ways from corner to corner, one step right, down or both at a time."""
    total = np.full(cost.shape, np.inf)
    for i in range(cost.shape[0]):
        for j in range(cost.shape[1]):
            before = [total[a, b] for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0]
            total[i, j] = cost[i, j] + (min(before) if before else 0.0)
    return float(total[-1, -1])


@given(n_rows=st.integers(1, 7), n_columns=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_the_path_is_the_cheapest_one_and_has_no_gap(n_rows: int, n_columns: int, seed: int) -> None:
    cost = np.random.default_rng(seed).standard_normal((n_rows, n_columns)).astype(np.float32)
    rows, columns = cheapest_path(cost)
    path = list(zip(rows.tolist(), columns.tolist(), strict=True))
    assert (path[0], path[-1]) == ((0, 0), (n_rows - 1, n_columns - 1))
    assert all((c - a, d - b) in {(0, 1), (1, 0), (1, 1)} for (a, b), (c, d) in pairwise(path))
    assert cost[rows, columns].sum() == pytest.approx(cheapest(cost), abs=1e-4)


def test_values_that_are_no_numbers_still_give_a_path() -> None:
    rows, columns = cheapest_path(np.full((3, 5), np.nan, np.float32))
    assert len(rows) == len(columns) > 0


def words(*texts: str) -> list[Word]:
    return [Word(text, float(i), float(i + 1)) for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((" Hello", ",", " world", "!"), [" Hello,", " world!"]),
        ((" He", " said", ' "', "yes", '"', "."), [" He", " said", ' "yes".']),
        ((".", " no"), [".", " no"]),
        ((" so", " -"), [" so", " -"]),
        ((), []),
    ],
)
def test_marks_belong_to_words(given: tuple[str, ...], expected: list[str]) -> None:
    assert [word.text for word in joined(words(*given))] == expected


def test_a_joined_word_keeps_its_own_end_and_an_opening_mark_begins_it() -> None:
    assert joined(words(" Hello", ",", " (", "you"))[0] == Word(" Hello,", 0.0, 1.0)
    assert joined(words(" Hello", ",", " (", "you"))[1] == Word(" (you", 2.0, 4.0)


def test_pauses_are_no_part_of_a_word() -> None:
    spoken = [
        Word(" Yes", 0.0, 3.0),  # silence before the first word
        Word(" it", 3.0, 3.2),
        Word(" is.", 3.2, 6.0),  # a pause after a sentence, which the next word's beginning ends
        Word(" Good", 6.0, 9.0),  # and one before the next
        Word(" to", 9.0, 9.2),
        Word(" know", 9.2, 9.4),
        Word(" slooowly", 9.4, 11.4),  # long in the midst of a sentence: it is said so
    ]
    times = [(word.start_s, word.end_s) for word in shortened(spoken)]
    # Twice the median, and that counts as 0.7 s at most.
    assert times == [(1.6, 3.0), (3.0, 3.2), (3.2, 4.6), (7.6, 9.0), (9.0, 9.2), (9.2, 9.4), (9.4, 11.4)]
    assert shortened([Word(" a", 1.0, 1.0)]) == [Word(" a", 1.0, 1.0)]
