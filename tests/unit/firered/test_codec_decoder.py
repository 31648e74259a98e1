from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from firered.errors import InputError
from tests.support.firered_codec import LAG_SAMPLES, TOKEN_SAMPLES, config, decoder, golden, random_codes


def test_decoded_samples_are_upstreams() -> None:
    samples = decoder().decode(torch.from_numpy(golden()["decode/codes"]))
    assert samples.dtype == torch.float32
    assert np.abs(samples.numpy() - golden()["decode/pcm"]).max() < 5e-6  # of peaks of 0.7


@pytest.mark.parametrize("n_tokens", [0, 1, 2, 13])
def test_a_token_is_1920_samples(n_tokens: int) -> None:
    assert decoder().decode(random_codes(n_tokens, 1)).shape == (n_tokens * TOKEN_SAMPLES,)


def test_a_token_changes_nothing_before_its_first_frame() -> None:
    codes = random_codes(9, 2)
    until = 6 * TOKEN_SAMPLES - LAG_SAMPLES
    start = decoder().decode(codes[:6])
    assert (decoder().decode(codes)[:until] - start[:until]).abs().max() < 1e-5
    assert (decoder().decode(codes)[until : len(start)] - start[until:]).abs().max() > 1e-3


def test_all_of_the_past_counts() -> None:
    codes = random_codes(40, 3)
    other = codes.clone()
    other[0] = random_codes(1, 4)
    difference = (decoder().decode(codes) - decoder().decode(other)).abs()
    assert difference[-TOKEN_SAMPLES:].max() > 1e-6


def test_a_16_bit_decoder_gives_nearly_the_same_sound() -> None:
    codes = torch.from_numpy(golden()["decode/codes"])
    exact = decoder().decode(codes)
    for dtype, noise in ((torch.bfloat16, 0.3), (torch.float16, 0.03)):
        error = decoder(dtype).decode(codes) - exact
        assert error.square().mean().sqrt() < noise * exact.square().mean().sqrt(), dtype


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((2, 16), config().rvq.codebook_size), "0..63; these reach from 64 to 64"),
        (torch.tensor([[-1] * 16]), "from -1 to -1"),
        (torch.zeros(16, 2, dtype=torch.int64), r"shape \(tokens, 16\), not \(16, 2\)"),
        (torch.zeros(16, dtype=torch.int64), r"not \(16,\)"),
        (torch.zeros(2, 16), "integers.*float32"),
    ],
)
def test_codes_that_no_codebook_has_are_refused(codes: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoder().decode(codes)
