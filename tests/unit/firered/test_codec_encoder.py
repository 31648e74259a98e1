from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from firered.codec_encoder import CodecEncoder
from firered.errors import InputError
from tests.support.firered_codec import config, encoder, golden, weights
from tests.support.firered_tiny import speech_like

CASES = {"short": (8000, "short"), "long": (112_000, "d")}


@pytest.mark.parametrize("case", CASES)
def test_codes_are_upstreams(case: str) -> None:
    codes = encoder().encode(speech_like(*CASES[case]))
    assert codes.dtype == torch.int64
    assert np.array_equal(codes.numpy(), golden()[f"encode_{case}/codes"])


@pytest.mark.parametrize(("n_samples", "n_tokens"), [(1, 1), (1280, 1), (1281, 2), (16_001, 13), (96_001, 76)])
def test_a_token_is_80_ms_and_a_begun_one_counts(n_samples: int, n_tokens: int) -> None:
    codes = encoder().encode(speech_like(n_samples))
    assert codes.shape == (n_tokens, 16)


def test_a_minute_gives_the_codes_of_its_6_s_chunks() -> None:
    minute = np.resize(speech_like(112_000), 60 * 16_000)  # 7 s over and over: each chunk of 6 s is another piece
    codes = encoder().encode(minute)
    assert codes.shape == (750, 16)
    for chunk in (0, 4, 9):
        alone = encoder().encode(minute[chunk * 96_000 : (chunk + 1) * 96_000])
        assert torch.equal(codes[chunk * 75 : (chunk + 1) * 75], alone)


@pytest.mark.parametrize(
    "audio",
    [
        np.zeros(20_000, np.float32),
        np.sign(speech_like(20_000)),
        np.full(20_000, 1.2, np.float32),
        np.full(20_000, 1e-38, np.float32),
    ],
    ids=["silent", "clipped", "constant and over full scale", "denormal"],
)
def test_odd_audio_has_codes_too(audio: NDArray[np.float32]) -> None:
    codes = encoder().encode(audio)
    assert codes.shape == (16, 16)
    assert 0 <= int(codes.min()) <= int(codes.max()) < config().rvq.codebook_size


def test_any_array_of_floats_is_taken() -> None:
    audio = speech_like(8000, "short")
    read_only = np.frombuffer(audio.tobytes(), np.float32)
    backwards = audio[::-1].copy()[::-1]
    strided = np.stack([audio, audio], 1)[:, 0]
    for same in (read_only, backwards, strided, audio.astype(np.float64), torch.from_numpy(audio)):
        assert np.array_equal(encoder().encode(same).numpy(), golden()["encode_short/codes"])


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "is empty"),
        (np.array([0.0, np.nan], np.float32), "not finite"),
        (np.array([0.0, np.inf], np.float32), "not finite"),
        (np.zeros((2, 100), np.float32), r"one channel.*\(2, 100\)"),
        (np.zeros(100, np.int16), "must be floats.*int16"),
        (np.array([0.0, 20_000.0], np.float32), "its peak is 2e\\+04"),
    ],
    ids=["empty", "NaN", "infinite", "two channels", "integers", "integers as floats"],
)
def test_audio_that_cannot_be_encoded_is_refused_with_the_reason(audio: NDArray[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder().encode(audio)


def test_a_bfloat16_encoder_still_quantizes_in_float32() -> None:
    codes = CodecEncoder(config(), weights(torch.bfloat16)).encode(speech_like(8000, "short"))
    agreeing = (codes.numpy() == golden()["encode_short/codes"]).mean(0)
    assert codes.shape == (7, 16)
    assert agreeing[0] > 0.5  # the first codebook decides the most; chance is 1 in 64
