"""Speech at another rate: pitch, length and time are kept, and nothing depends on how the input is cut up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import Samples
from pipeline.engines.stretching import HOP_S, MAX_SPEED, MIN_SPEED, TimeStretch

RATE = 24_000
FRAME = 1920  # what the engine gives at a time
SPEEDS = [0.5, 0.8, 1.0, 1.1, 1.5, 2.0]


def stretched(samples: Samples, speed: float, *cuts: int) -> Samples:
    """All the output for `samples`, fed in chunks that end at `cuts`."""
    stretch = TimeStretch(speed, RATE)
    chunks = np.split(samples, sorted(cut for cut in cuts if cut <= samples.size))
    return np.concatenate([*(stretch.feed(chunk) for chunk in chunks), stretch.flush()])


def sine(hertz: float, seconds: float = 1.0) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def syllables(n_samples: int, seed: int = 1) -> Samples:
    """A gliding, pulsing hum with hiss: nothing in it repeats exactly."""
    t = np.arange(n_samples) / RATE
    hum = np.sin(2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 1.3 * t)) / RATE)
    hiss = np.random.default_rng(seed).standard_normal(n_samples) * 0.05
    return (0.5 * np.clip(np.sin(2 * np.pi * 3 * t), 0, 1) * hum + hiss).astype(np.float32)


def pitch(samples: Samples) -> float:
    """The strongest frequency, in Hz."""
    inner = samples[RATE // 20 : -RATE // 20]
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(inner.size), 1 << 18))
    return float(spectrum.argmax() * RATE / (1 << 18))


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("hertz", [80.0, 220.0, 1000.0, 4000.0])
def test_a_tone_keeps_its_pitch_and_its_loudness(speed: float, hertz: float) -> None:
    tone = sine(hertz)
    out = stretched(tone, speed)
    assert pitch(out) == pytest.approx(hertz, abs=0.5)
    inner = out[RATE // 20 : -RATE // 20]
    assert np.sqrt(np.mean(inner**2)) == pytest.approx(np.sqrt(np.mean(tone**2)), rel=0.01)


@given(n_samples=st.integers(0, 6000), speed=st.floats(MIN_SPEED, MAX_SPEED))
@settings(deadline=None, max_examples=50)
def test_the_length_is_exact_however_short_the_speech(n_samples: int, speed: float) -> None:
    out = stretched(syllables(n_samples), speed)
    assert out.size == round(n_samples / speed)
    assert out.dtype == np.float32


@given(cuts=st.lists(st.integers(0, 6000), max_size=12), speed=st.floats(MIN_SPEED, MAX_SPEED))
@settings(deadline=None, max_examples=50)
def test_the_output_is_the_same_however_the_input_is_cut_up(cuts: list[int], speed: float) -> None:
    speech = syllables(6000)
    np.testing.assert_array_equal(stretched(speech, speed, *cuts), stretched(speech, speed))


def test_single_samples_give_the_same_output_too() -> None:
    speech = syllables(1500)
    np.testing.assert_array_equal(stretched(speech, 1.3, *range(1500)), stretched(speech, 1.3))


@pytest.mark.parametrize("speed", SPEEDS)
def test_what_happens_at_a_time_happens_at_its_share_of_the_new_time(speed: float) -> None:
    tone = sine(300.0, 2.0)
    onsets, ends = np.array([0.3, 0.9, 1.5]), np.array([0.6, 1.2, 1.8])
    gate = np.zeros(tone.size, np.float32)
    for onset, end in zip(onsets, ends, strict=True):
        gate[round(onset * RATE) : round(end * RATE)] = 1
    out = stretched(tone * gate, speed)
    loud = np.convolve(np.abs(out), np.ones(240) / 240, "same") > 0.1
    edges = np.flatnonzero(np.diff(loud.astype(int))) / RATE
    np.testing.assert_allclose(edges, np.sort(np.concatenate((onsets, ends))) / speed, atol=HOP_S + 0.01)


@pytest.mark.parametrize("speed", SPEEDS)
def test_silence_stays_silence(speed: float) -> None:
    assert not stretched(np.zeros(RATE, np.float32), speed).any()


def test_speed_one_changes_nothing() -> None:
    speech = syllables(20_000)
    np.testing.assert_allclose(stretched(speech, 1.0), speech, atol=1e-6)


@pytest.mark.parametrize("speed", SPEEDS)
def test_no_more_than_a_frame_is_held_back(speed: float) -> None:
    stretch = TimeStretch(speed, RATE)
    speech = syllables(20 * FRAME)
    n_out = 0
    for n_frames in range(1, 21):
        n_out += stretch.feed(speech[(n_frames - 1) * FRAME : n_frames * FRAME]).size
        n_fed = n_frames * FRAME
        assert n_fed - 0.04 * RATE <= n_out * speed <= n_fed


def test_after_a_flush_it_begins_anew() -> None:
    first, second = syllables(5000, seed=1), syllables(7000, seed=2)
    stretch = TimeStretch(1.4, RATE)
    stretch.feed(first)
    stretch.flush()
    assert stretch.flush().size == 0
    again = np.concatenate((stretch.feed(second), stretch.flush()))
    np.testing.assert_array_equal(again, stretched(second, 1.4))


@pytest.mark.parametrize("speed", [0.49, 2.01, 0.0, -1.0, float("nan")])
def test_a_speed_out_of_range_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        TimeStretch(speed, RATE)
