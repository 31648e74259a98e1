from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audio import AudioChunk, Samples
from pipeline.echo import is_echo, sounds_like
from tests.support.scripted import babble

REPLY = "Once upon a time there was a small house by the sea. An old man lived there with his dog."


@pytest.mark.parametrize(
    "heard",
    [
        "there was a small house",
        "A SMALL HOUSE, by the sea!",
        "small house by sea an old man",
        "old man lived here with his dog",
    ],
)
def test_the_replys_own_words_are_echo(heard: str) -> None:
    assert is_echo(heard, REPLY)


@pytest.mark.parametrize(
    "heard",
    [
        "",
        "the dog",
        "stop please now",
        "what was the name of the dog",
        "once there was his dog",
        "dog his with there lived",
    ],
)
def test_the_users_words_are_not(heard: str) -> None:
    assert not is_echo(heard, REPLY)


def test_nothing_is_an_echo_of_nothing() -> None:
    assert not is_echo("stop please now", "")
    assert not is_echo("", "")


@given(st.integers(0, 16), st.integers(3, 19))
def test_any_stretch_of_three_words_or_more_is_echo(start: int, length: int) -> None:
    words = REPLY.split()[start : start + length]
    assert is_echo(" ".join(words), REPLY) is (len(words) >= 3)


def sound(samples: np.ndarray, rate: int = 16_000) -> AudioChunk:
    return AudioChunk(samples.astype(np.float32), rate)


def in_a_room(samples: Samples) -> Samples:
    """With noise 20 dB below, and reflections that die away in a fifth of a second."""
    rng = np.random.default_rng(1)
    t = np.arange(3_200) / 16_000
    room = rng.standard_normal(3_200) * np.exp(-t / 0.05) * 0.02
    room[0] = 1.0
    wet = np.convolve(samples, room)[: samples.size]
    noisy: Samples = (wet + rng.standard_normal(samples.size) * wet.std() * 0.1).astype(np.float32)
    return noisy


OURS = babble(3.0, seed=1, rate=16_000)


@pytest.mark.parametrize("end_s", [1.0, 1.7, 3.0])
@pytest.mark.parametrize("level", [1.0, 0.01])
def test_a_late_and_quiet_copy_is_our_voice(end_s: float, level: float) -> None:
    end = round(end_s * 16_000)
    assert sounds_like(sound(OURS[end - 9_600 : end] * level), sound(OURS))
    assert sounds_like(sound(in_a_room(OURS)[end - 9_600 : end] * level), sound(OURS))


def test_rates_may_differ() -> None:
    at_24 = sound(OURS).resampled(24_000)
    assert sounds_like(sound(OURS[16_000:25_600]), at_24)


@pytest.mark.parametrize("seed", range(2, 12))
def test_other_words_are_not_our_voice_also_over_its_echo(seed: int) -> None:
    user = babble(0.6, seed=seed, rate=16_000)
    assert not sounds_like(sound(user), sound(OURS))
    assert not sounds_like(sound(user + 0.1 * OURS[16_000:25_600]), sound(OURS))


@pytest.mark.parametrize(
    "heard",
    [
        np.zeros(0),
        np.zeros(9_600),
        np.full(9_600, 0.5),
        OURS[16_000:16_300],
        np.eye(1, 9_600, 5_000).ravel(),  # a click
    ],
)
def test_silence_clicks_and_snippets_are_not_told_to_be_ours(heard: np.ndarray) -> None:
    assert not sounds_like(sound(heard), sound(OURS))
    assert not sounds_like(sound(heard), sound(np.eye(1, 32_000, 9_000).ravel()))


def test_nothing_is_like_nothing_played() -> None:
    assert not sounds_like(sound(OURS[:9_600]), sound(np.zeros(0)))
    assert not sounds_like(sound(OURS[:9_600]), sound(np.zeros(32_000)))
