import math

import pytest
import torch

from pipeline.engines.chat_sampling import Picker, Sampling, pick

LOGITS = torch.tensor([1.0, 4.0, 3.0, -2.0, 3.5, 0.0])


def drawn(sampling: Sampling, prompt: list[int] | None = None, times: int = 2000) -> set[int]:
    torch.manual_seed(1)
    picker = Picker(sampling, prompt or [])
    return {int(picker.pick(LOGITS)) for _ in range(times)}


def test_temperature_zero_takes_the_likeliest() -> None:
    assert drawn(Sampling(0, top_k=20, top_p=0.9, repetition_penalty=1)) == {1}


def test_top_k_leaves_the_k_likeliest() -> None:
    assert drawn(Sampling(2.0, top_k=3, top_p=1, repetition_penalty=1)) == {1, 2, 4}


@pytest.mark.parametrize(("top_p", "left"), [(0.01, {1}), (0.55, {1, 4}), (0.8, {1, 2, 4}), (0.995, {0, 1, 2, 4, 5})])
def test_top_p_leaves_the_fewest_that_together_reach_it(top_p: float, left: set[int]) -> None:
    assert drawn(Sampling(1.0, top_k=6, top_p=top_p, repetition_penalty=1)) == left


def test_tokens_are_drawn_by_their_share() -> None:
    torch.manual_seed(1)
    picker = Picker(Sampling(1.0, top_k=2, top_p=1, repetition_penalty=1), [])
    share = sum(int(picker.pick(LOGITS)) == 1 for _ in range(4000)) / 4000
    assert share == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.03)


def test_the_penalty_counts_the_prompt_and_what_was_said() -> None:
    picker = Picker(Sampling(0, top_k=6, top_p=1, repetition_penalty=1.5), [1])
    assert int(picker.pick(LOGITS)) == 4  # 4.0 / 1.5 is less than 3.5
    picker.saw(4)
    assert int(picker.pick(LOGITS)) == 2


def test_the_penalty_lowers_what_is_below_zero_too() -> None:
    picker = Picker(Sampling(0, top_k=6, top_p=1, repetition_penalty=2.0), [0])
    assert int(picker.pick(torch.tensor([-1.0, -1.5]))) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_row_that_is_no_number_gives_no_token_and_spoils_no_other(temperature: float, wrong: float) -> None:
    sampling = Sampling(temperature, top_k=1, top_p=1, repetition_penalty=1)
    rows = torch.stack([LOGITS, LOGITS, LOGITS])
    rows[1, 3] = wrong
    assert pick(rows, [Picker(sampling, []) for _ in rows]) == [1, None, 1]


def test_tokens_that_are_never_said_may_have_minus_infinity() -> None:
    row = torch.tensor([[-math.inf, 0.0, -math.inf]])
    assert pick(row, [Picker(Sampling(1.0, top_k=3, top_p=1, repetition_penalty=1), [])]) == [1]
