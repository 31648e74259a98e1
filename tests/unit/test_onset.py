"""Silence before a stream of speech."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audio import Samples
from pipeline.engines.onset import KEPT_S, OnsetTrim

RATE = 24_000
KEPT = round(KEPT_S * RATE)


def trimmed(samples: Samples, *cuts: int) -> Samples:
    trim = OnsetTrim(RATE)
    return np.concatenate([trim.feed(chunk) for chunk in np.split(samples, cuts)])


def speech_after(n_silent: int) -> Samples:
    rng = np.random.default_rng(1)
    silence, speech = rng.standard_normal(n_silent) * 1e-3, rng.uniform(0.02, 0.5, 4000)
    return np.concatenate((silence, speech)).astype(np.float32)


@pytest.mark.parametrize("n_silent", [0, 100, KEPT])
def test_a_short_silence_stays(n_silent: int) -> None:
    speech = speech_after(n_silent)
    np.testing.assert_array_equal(trimmed(speech, 500, 1500), speech)


@pytest.mark.parametrize("cuts", [(), (1560, 3480, 5400), (10_000,), tuple(range(0, 14_000, 7))])
def test_of_a_long_silence_the_end_stays_however_the_audio_is_cut_up(cuts: tuple[int, ...]) -> None:
    speech = speech_after(10_000)
    np.testing.assert_array_equal(trimmed(speech, *cuts), speech[10_000 - KEPT :])


def test_the_first_sound_leaves_with_the_chunk_that_brings_it() -> None:
    trim = OnsetTrim(RATE)
    assert trim.feed(np.zeros(1920, np.float32)).size == 0
    click = np.zeros(1920, np.float32)
    click[-1] = -0.5
    assert trim.feed(click)[-1] == -0.5
    assert trim.feed(np.zeros(1920, np.float32)).size == 1920  # pauses within speech stay


def test_nothing_but_silence_gives_nothing() -> None:
    assert trimmed(np.zeros(5 * RATE, np.float32), 1560, 3480).size == 0
