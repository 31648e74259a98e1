"""The verdict on a recording that is to become a voice: real speech, made worse in one way at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import AudioChunk, Samples, concat, decode_file
from pipeline.engines.vad_webrtc import WebrtcVad
from pipeline.errors import InvalidInput
from pipeline.sample_quality import (
    AUDIBLE_NOISE_DB,
    LONG_SILENCE_S,
    NOISY_DB,
    Speakers,
    Verdict,
    judge,
)
from tests.support.scripted import ScriptedVad

SPEECH = Path(__file__).parents[1] / "fixtures" / "speech"
RATE = 24_000


def clip(name: str) -> AudioChunk:
    return decode_file((SPEECH / name).read_bytes(), max_seconds=60).resampled(RATE)


JFK = clip("jfk.flac")
VAD = WebrtcVad()


@pytest.fixture(autouse=True)
async def loaded() -> None:
    await VAD.load()


def changed(audio: AudioChunk, samples: Samples) -> AudioChunk:
    return AudioChunk(samples.astype(np.float32), audio.sample_rate)


def verdict(audio: AudioChunk, *, speakers: Speakers | None = None, min_s: float = 3.0, max_s: float = 30.0) -> Verdict:
    return judge(audio, vad=VAD, speakers=speakers, min_s=min_s, max_s=max_s)


def codes(found: Verdict, severity: str) -> set[str]:
    return {problem.code for problem in found.problems if problem.severity == severity}


def with_noise(audio: AudioChunk, snr_db: float) -> AudioChunk:
    power = float(np.mean(np.square(audio.samples[np.abs(audio.samples) > 1e-3])))
    noise = np.random.default_rng(1).standard_normal(audio.n_samples) * np.sqrt(power / 10 ** (snr_db / 10))
    return changed(audio, np.clip(audio.samples + noise, -1, 1))


def test_a_clear_recording_of_one_person_is_good() -> None:
    found = verdict(JFK)
    assert (found.grade, found.usable, found.problems) == ("good", True, ())
    assert found.seconds == pytest.approx(11.0, abs=0.1)
    assert 6 < found.speech_s < 11
    assert found.snr_db > 20
    assert -3 < found.peak_db < 0
    assert found.clipped_share == 0


@pytest.mark.parametrize("name", [path.name for path in sorted(SPEECH.iterdir()) if path.suffix in (".wav", ".flac")])
def test_no_clear_recording_is_called_noisy_or_quiet_or_clipped(name: str) -> None:
    found = verdict(clip(name), min_s=0.3)
    assert not {"clipped", "noisy", "too_quiet", "silence_inside"} & {problem.code for problem in found.problems}


@pytest.mark.parametrize("snr_db", [25, 20, 15, 5])
def test_noise_is_measured_to_some_decibels_and_judged_by_them(snr_db: int) -> None:
    found = verdict(with_noise(JFK, snr_db))
    assert found.snr_db == pytest.approx(snr_db, abs=5)
    if found.snr_db < NOISY_DB:
        assert codes(found, "error") == {"noisy"}
    else:
        assert codes(found, "warning") == ({"noisy"} if found.snr_db < AUDIBLE_NOISE_DB else set())


def test_more_noise_never_makes_a_better_grade() -> None:
    order = ["good", "fair", "poor"]
    grades = [order.index(verdict(with_noise(JFK, snr_db)).grade) for snr_db in (30, 20, 15, 10, 5)]
    assert grades == sorted(grades)
    assert (grades[0], grades[-1]) == (0, 2)


@pytest.mark.parametrize("rate", [16_000, RATE, 48_000])
@pytest.mark.parametrize("volume", [1.0, 0.4])
def test_cut_off_tops_are_found_at_any_volume_and_after_a_change_of_rate(rate: int, volume: float) -> None:
    at_rate = JFK.resampled(rate)
    limit = 0.5 * float(np.abs(at_rate.samples).max())
    cut = changed(at_rate, np.clip(at_rate.samples, -limit, limit) * volume).resampled(RATE)
    found = verdict(cut)
    assert "clipped" in codes(found, "error")
    assert found.clipped_share > 0.02


def test_a_quiet_voice_is_warned_of_and_a_very_quiet_one_refused() -> None:
    assert codes(verdict(changed(JFK, JFK.samples * 0.03)), "warning") == {"too_quiet"}
    very_quiet = judge(changed(JFK, JFK.samples * 0.006), vad=KeenVad(), speakers=None, min_s=3, max_s=30)
    assert "too_quiet" in codes(very_quiet, "error")


def test_too_little_and_too_much_are_refused() -> None:
    assert codes(verdict(clip("yes.wav")), "error") == {"too_short"}
    assert codes(verdict(JFK, max_s=10), "error") == {"too_long"}


def test_a_long_recording_with_few_words_is_too_short() -> None:
    word = clip("yes.wav")
    found = verdict(concat([word, AudioChunk.silence(6, RATE)], RATE))
    assert codes(found, "error") == {"too_short"}
    assert "of speech" in found.problems[0].message


@pytest.mark.parametrize("samples", [np.zeros(5 * RATE), 0.3 * np.ones(5 * RATE), np.zeros(0)], ids=len)
def test_where_nobody_speaks_that_is_said(samples: Samples) -> None:
    assert "no_speech" in codes(verdict(changed(JFK, samples)), "error")


def test_a_long_pause_between_words_is_told_and_one_at_the_end_is_not() -> None:
    pause = AudioChunk.silence(LONG_SILENCE_S + 1, RATE)
    assert codes(verdict(concat([JFK, pause, JFK], RATE)), "warning") == {"silence_inside"}
    assert verdict(concat([pause, JFK, pause], RATE)).grade == "good"


@dataclass
class Stretches:
    """Gives the stretches that it was made with."""

    vectors: Samples

    def embed(self, audio: AudioChunk) -> Samples:
        first: Samples = self.vectors[0]
        return first

    def partials(self, audio: AudioChunk) -> Samples:
        return self.vectors


class KeenStream:
    """Hears speech in everything."""

    def probability(self, frame: Samples) -> float:
        return 1.0

    def reset(self) -> None:
        return


class KeenVad(ScriptedVad):
    def stream(self) -> KeenStream:  # type: ignore[override]
        return KeenStream()


def stretches(n_first: int, n_second: int, alike: float, *, spread: float = 0.02) -> Stretches:
    """Two voices, as alike as said; each stretch is a little off its voice."""
    first = np.eye(256)[0]
    second = alike * first + np.sqrt(1 - alike**2) * np.eye(256)[1]
    noise = np.random.default_rng(2).standard_normal((n_first + n_second, 256)) * spread
    vectors = np.concatenate([np.tile(first, (n_first, 1)), np.tile(second, (n_second, 1))]) + noise
    return Stretches((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))


def test_two_voices_are_refused_and_two_similar_ones_warned_of() -> None:
    found = verdict(JFK, speakers=stretches(6, 5, 0.4))
    assert codes(found, "error") == {"several_speakers"}
    assert found.several_speakers
    assert codes(verdict(JFK, speakers=stretches(6, 5, 0.8)), "warning") == {"several_speakers"}


@pytest.mark.parametrize("heard", [stretches(11, 0, 0.4), stretches(9, 2, 0.4), stretches(2, 3, 0.4)])
def test_one_voice_and_a_stretch_or_two_of_something_else_is_one_speaker(heard: Stretches) -> None:
    assert not verdict(JFK, speakers=heard).several_speakers


class Deaf(Stretches):
    """Hears no voice where the VAD hears speech."""

    def partials(self, audio: AudioChunk) -> Samples:
        raise InvalidInput("there is no speech in this recording", code="no_speech")


def test_speech_in_which_no_voice_can_be_made_out_is_refused() -> None:
    found = verdict(JFK, speakers=Deaf(np.zeros((1, 256), np.float32)))
    assert codes(found, "error") == {"no_speech"}
    assert not found.several_speakers


@given(
    kind=st.sampled_from(["noise", "clicks", "constant", "square"]),
    seconds=st.floats(0.0, 4.0),
    level=st.floats(0.0, 1.0),
)
@settings(max_examples=40, deadline=None)
def test_any_sound_gets_a_verdict_in_numbers(kind: str, seconds: float, level: float) -> None:
    n = round(seconds * RATE)
    time = np.arange(n)
    sound = {
        "noise": np.random.default_rng(n).uniform(-1, 1, n),
        "clicks": (time % 5000 == 0) * 1.0,
        "constant": np.ones(n),
        "square": np.sign(np.sin(time / 20)),
    }[kind]
    for vad in (KeenVad(), ScriptedVad()):
        found = judge(changed(JFK, level * sound), vad=vad, speakers=None, min_s=1, max_s=3)
        assert np.isfinite([found.snr_db, found.peak_db, found.clipped_share, found.speech_s]).all()
        assert 0 <= found.clipped_share <= 1
        assert 0 <= found.speech_s <= seconds + 0.05


def test_errors_stand_before_warnings() -> None:
    both = changed(JFK, np.clip(np.concatenate([JFK.samples, np.zeros(4 * RATE), JFK.samples]) * 10, -0.3, 0.3))
    severities = [problem.severity for problem in verdict(both).problems]
    assert severities == sorted(severities)
    assert set(severities) == {"error", "warning"}


def test_any_engine_that_hears_speech_serves() -> None:
    found = judge(JFK, vad=ScriptedVad(), speakers=None, min_s=3, max_s=30)
    assert found.usable
