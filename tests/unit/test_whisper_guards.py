from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.whisper_guards import (
    SAMPLE_RATE,
    goes_on,
    has_pause,
    has_sound,
    is_audible,
    is_speech,
    max_new_tokens,
    went_before,
)

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


@pytest.mark.parametrize("text", [" 2", " Stop.", " September"])
def test_one_word_needs_less_since_its_spellings_share_the_probability(text: str) -> None:
    assert is_speech(text, **(SURE | {"avg_logprob": -0.89, "no_speech_prob": 0.35}))
    assert not is_speech(text, **(SURE | {"avg_logprob": -0.91, "no_speech_prob": 0.35}))


@pytest.mark.parametrize("text", ["No! No!", "ご視聴ありがとうございました", " "])
def test_more_than_one_word_does_not(text: str) -> None:
    assert not is_speech(text, **(SURE | {"avg_logprob": -0.75, "no_speech_prob": 0.35}))


def test_marks_alone_are_no_speech() -> None:
    assert not is_speech(" ... !", **SURE)


@pytest.mark.parametrize(("seconds", "tokens"), [(0, 24), (1, 34), (10, 124), (30, 220), (90, 220)])
def test_the_longer_the_audio_the_more_tokens_up_to_a_bound(seconds: int, tokens: int) -> None:
    assert max_new_tokens(seconds * 16_000) == tokens


def talk(*seconds_and_levels: tuple[float, float]) -> Samples:
    """Stretches of a tone, each of so many seconds at such a level, over a quiet room."""
    parts = [np.sin(np.arange(round(seconds * SAMPLE_RATE)) * 0.3) * level for seconds, level in seconds_and_levels]
    samples = np.concatenate(parts)
    return (samples + np.random.default_rng(3).standard_normal(samples.size) * 0.002).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "is_paused"),
    [
        (talk((1, 0.3), (1, 0), (1, 0.3)), True),
        (talk((1, 0.3), (0.4, 0), (1, 0.3)), False),  # between two words
        (talk((1, 0.3), (3, 0)), False),  # nothing follows
        (talk((2, 0), (1, 0.3)), False),
        (talk((1, 0.3), (1, 0.1), (1, 0.3)), False),
        (talk((3, 0)), False),
        (np.zeros(0, np.float32), False),
        (np.zeros(SAMPLE_RATE, np.float32), False),
    ],
)
def test_a_pause_is_one_that_something_loud_follows(samples: Samples, is_paused: bool) -> None:
    assert has_pause(samples, SAMPLE_RATE) == is_paused


@pytest.mark.parametrize(("end_s", "more"), [(1.0, True), (1.8, True), (2.0, False), (3.0, False)])
def test_what_is_loud_a_second_after_the_last_word_goes_on(end_s: float, more: bool) -> None:
    assert goes_on(talk((1, 0.3), (1, 0), (1, 0.3), (2, 0)), SAMPLE_RATE, end_s) == more
    assert not goes_on(np.zeros(0, np.float32), SAMPLE_RATE, end_s)


@pytest.mark.parametrize(("start_s", "more"), [(4.0, True), (2.2, True), (1.9, False), (0.0, False)])
def test_what_is_loud_a_second_before_the_first_word_went_before(start_s: float, more: bool) -> None:
    assert went_before(talk((1, 0), (1, 0.3), (1, 0), (1, 0.3)), SAMPLE_RATE, start_s) == more
    assert not went_before(np.zeros(0, np.float32), SAMPLE_RATE, start_s)
