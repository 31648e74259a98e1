"""Runaway generation is ended, and ordinary speech is not."""

from __future__ import annotations

import numpy as np
import pytest

from firered.guards import EndReason, GuardLimits, RunawayGuard

LOUD = np.full(1920, 0.1, np.float32)
SILENT = np.zeros(1920, np.float32)


def watch(frames: list[tuple[int, np.ndarray[tuple[int], np.dtype[np.float32]]]], limit: int = 375) -> list[EndReason]:
    """The reasons that come up while all frames are shown."""
    guard = RunawayGuard(limit, GuardLimits())
    return [reason for code, samples in frames if (reason := guard.check(code, samples)) is not None]


def speech(n: int, seed: int = 1) -> list[tuple[int, np.ndarray[tuple[int], np.dtype[np.float32]]]]:
    return [(int(code), LOUD) for code in np.random.default_rng(seed).integers(0, 2048, n)]


def test_speech_of_half_a_minute_passes() -> None:
    assert watch(speech(374)) == []


def test_the_frame_limit_ends_a_segment_at_that_frame() -> None:
    assert watch(speech(12), limit=12) == ["frame_limit"]
    assert watch(speech(11), limit=12) == []


def test_a_pause_of_three_seconds_passes_and_a_longer_silence_does_not() -> None:
    pause = [(code, SILENT) for code, _ in speech(39, seed=2)]
    assert watch(speech(20) + pause + speech(20, seed=3)) == []
    assert watch(speech(20) + pause + [(7, SILENT)])[:1] == ["silence"]


@pytest.mark.parametrize("period", [1, 3, 10, 25])
def test_a_loop_is_found(period: int) -> None:
    loop = speech(period, seed=4)
    n_rounds = 110 // period + 1
    assert watch(speech(33) + loop * n_rounds)[:1] == ["repetition"]


def test_a_word_said_three_times_passes() -> None:
    word = speech(8, seed=5)
    assert watch(speech(21) + word * 3 + speech(30, seed=6)) == []
