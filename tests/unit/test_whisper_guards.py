from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.audio import AudioChunk
from pipeline.engines.whisper_guards import has_sound, is_audible, is_speech, max_new_tokens

SURE = {"no_speech_prob": 0.02, "avg_logprob": -0.3, "compression_ratio": 1.2}


def test_a_tenth_of_a_second_of_sound_in_silence_is_audible() -> None:
    samples = np.zeros(16_000, np.float32)
    assert not has_sound(samples, 16_000)
    samples[8_000:9_600] = 0.01
    assert has_sound(samples, 16_000)
    assert is_audible(AudioChunk(samples, 16_000))


@pytest.mark.parametrize("samples", [np.zeros(0), np.full(1_599, 0.5), np.full(16_000, math.nan)])
def test_too_little_and_no_numbers_are_not_audible(samples: np.ndarray) -> None:
    assert not has_sound(samples.astype(np.float32), 16_000)


def test_text_that_whisper_is_sure_of_is_speech() -> None:
    assert is_speech("Thank you.", **SURE)


@pytest.mark.parametrize(
    "change",
    [
        {"avg_logprob": -1.01},
        {"avg_logprob": math.nan},
        {"avg_logprob": -0.8, "no_speech_prob": 0.3},
        {"compression_ratio": 6.1},
        {"compression_ratio": 2.5, "no_speech_prob": 0.3},
    ],
)
def test_text_that_whisper_doubts_or_repeats_is_none(change: dict[str, float]) -> None:
    assert not is_speech("Thank you.", **(SURE | change))


def test_marks_alone_are_no_speech() -> None:
    assert not is_speech(" ... !", **SURE)


@pytest.mark.parametrize(("seconds", "tokens"), [(0, 24), (1, 34), (10, 124), (30, 220), (90, 220)])
def test_the_longer_the_audio_the_more_tokens_up_to_a_bound(seconds: int, tokens: int) -> None:
    assert max_new_tokens(seconds * 16_000) == tokens
