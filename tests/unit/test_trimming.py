import numpy as np
import pytest

from pipeline.audio import Samples
from pipeline.engines.trimming import pause_after, trimmed

RATE = 24_000


def tone(seconds: float) -> Samples:
    samples: Samples = 0.5 * np.sin(np.arange(round(seconds * RATE), dtype=np.float32) * np.float32(0.2))
    return samples


def quiet(seconds: float) -> Samples:
    return np.random.default_rng(1).standard_normal(round(seconds * RATE), dtype=np.float32) * np.float32(0.0005)


@pytest.mark.parametrize("pause_s", [0.03, 0.1, 0.2])
def test_silence_at_both_ends_becomes_a_margin_and_the_pause(pause_s: float) -> None:
    out = trimmed(np.concatenate((quiet(0.4), tone(1.0), quiet(0.5))), RATE, pause_s=pause_s)
    assert out.size / RATE == pytest.approx(0.03 + 1.0 + pause_s, abs=0.025)
    loud = np.flatnonzero(np.abs(out) > 0.1)
    assert loud[0] / RATE == pytest.approx(0.03, abs=0.015)


def test_a_pause_inside_is_kept() -> None:
    out = trimmed(np.concatenate((tone(0.5), quiet(0.4), tone(0.5))), RATE, pause_s=0.0)
    assert out.size / RATE == pytest.approx(1.4, abs=0.02)


def test_the_ends_fade_so_that_they_do_not_click() -> None:
    out = trimmed(tone(0.3), RATE, pause_s=0.0)
    assert abs(out[0]) < 0.001
    assert abs(out[-1]) < 0.001


@pytest.mark.parametrize("n_samples", [0, 1, 100, 24_000])
def test_silence_alone_gives_nothing(n_samples: int) -> None:
    assert trimmed(np.zeros(n_samples, np.float32), RATE, pause_s=0.2).size == 0


def test_the_input_is_not_changed() -> None:
    samples = tone(0.2)
    before = samples.copy()
    trimmed(samples, RATE, pause_s=0.1)
    assert np.array_equal(samples, before)


@pytest.mark.parametrize(
    ("text", "pause_s"),
    [("Yes.", 0.2), ("Yes?", 0.2), ('He said "no!"', 0.2), ("Well,", 0.1), ("one —", 0.1), ("word", 0.03), ("", 0.03)],
)
def test_the_pause_follows_the_last_mark(text: str, pause_s: float) -> None:
    assert pause_after(text) == pause_s
