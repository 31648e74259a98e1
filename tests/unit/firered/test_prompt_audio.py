"""Voice recordings of every kind: what is used of them, what is refused, and what is warned about."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from firered.errors import InputError
from firered.prompt_audio import SAMPLE_RATE, prepare_prompt_audio, read_audio_file

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
Samples = npt.NDArray[np.float32]


def voiced(seconds: float, sample_rate: int = SAMPLE_RATE, level: float = 0.3, hertz: float = 220.0) -> Samples:
    """A tone that swells four times a second, as syllables do; it never falls silent."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * time)
    return (level * swell * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def silence(seconds: float, sample_rate: int = SAMPLE_RATE) -> Samples:
    return np.zeros(round(seconds * sample_rate), np.float32)


def level_db(samples: Samples) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64))))


def test_speech_at_16_khz_passes_unchanged() -> None:
    samples = voiced(3)
    prepared = prepare_prompt_audio(samples, SAMPLE_RATE)
    np.testing.assert_array_equal(prepared.samples, samples)
    assert prepared.samples.dtype == np.float32
    assert (prepared.samples.ndim, prepared.seconds) == (1, 3.0)
    assert (prepared.kept_share, prepared.warnings) == (1.0, ())


@pytest.mark.parametrize("sample_rate", [8000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000])
def test_any_rate_becomes_16_khz_with_the_same_sound(sample_rate: int) -> None:
    prepared = prepare_prompt_audio(voiced(2, sample_rate), sample_rate)
    assert abs(len(prepared.samples) - 2 * SAMPLE_RATE) <= 2
    error = prepared.samples[1000:31_000] - voiced(2)[1000:31_000]
    assert level_db(error) < level_db(voiced(2)) - 60
    assert bool(prepared.warnings) == (sample_rate < SAMPLE_RATE)


def test_channels_are_averaged() -> None:
    left, right = voiced(2), voiced(2, hertz=330)
    prepared = prepare_prompt_audio(np.stack([left, right], axis=1), SAMPLE_RATE)
    np.testing.assert_allclose(prepared.samples, (left + right) / 2, atol=1e-7)


def test_channels_that_cancel_leave_the_loudest_and_a_warning() -> None:
    left = voiced(2)
    prepared = prepare_prompt_audio(np.stack([left, -0.99 * left], axis=1), SAMPLE_RATE)
    np.testing.assert_array_equal(prepared.samples, left)
    assert "cancel" in prepared.warnings[0]


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_integers_are_scaled_by_their_range(dtype: type[np.signedinteger]) -> None:
    full_scale = -float(np.iinfo(dtype).min)
    prepared = prepare_prompt_audio((voiced(1) * full_scale).astype(dtype), SAMPLE_RATE)
    np.testing.assert_allclose(prepared.samples, voiced(1), atol=1e-4)


def test_double_precision_is_taken() -> None:
    prepared = prepare_prompt_audio(voiced(1).astype(np.float64), SAMPLE_RATE)
    np.testing.assert_array_equal(prepared.samples, voiced(1))


# --- refused


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(bad: float) -> None:
    samples = voiced(2)
    samples[777] = bad
    with pytest.raises(InputError, match="no numbers"):
        prepare_prompt_audio(samples, SAMPLE_RATE)


@pytest.mark.parametrize(
    "samples", [silence(2), silence(2) + 0.5, voiced(2, level=0.001)], ids=["zeros", "a constant", "-65 dB"]
)
def test_a_silent_recording_is_refused_with_its_level(samples: Samples) -> None:
    with pytest.raises(InputError, match=r"silent .* dB"):
        prepare_prompt_audio(samples, SAMPLE_RATE)


@pytest.mark.parametrize("seconds", [0, 0.1, 0.49])
def test_less_than_half_a_second_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match=r"at least 0\.5 s"):
        prepare_prompt_audio(voiced(seconds), SAMPLE_RATE)


def test_half_a_second_is_enough() -> None:
    assert prepare_prompt_audio(voiced(0.5), SAMPLE_RATE).seconds == 0.5
    mostly_silent = np.concatenate([silence(0.2), voiced(0.05), silence(0.25)])
    assert prepare_prompt_audio(mostly_silent, SAMPLE_RATE).seconds == 0.5


def test_more_than_a_minute_is_refused() -> None:
    with pytest.raises(InputError, match="at most 60 s"):
        prepare_prompt_audio(voiced(60.1), SAMPLE_RATE)


@pytest.mark.parametrize("sample_rate", [0, -1, 7999, 192_001])
def test_an_absurd_sample_rate_is_refused(sample_rate: int) -> None:
    with pytest.raises(InputError, match="sample rate"):
        prepare_prompt_audio(voiced(1), sample_rate)


@pytest.mark.parametrize("shape", [(2, 16_000), (16_000, 0), (1000, 4, 4), ()])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shape"):
        prepare_prompt_audio(np.zeros(shape, np.float32), SAMPLE_RATE)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.complex64, np.object_])
def test_a_kind_of_sample_without_a_known_scale_is_refused(dtype: type[np.generic]) -> None:
    with pytest.raises(InputError, match="int16"):
        prepare_prompt_audio(np.zeros(16_000, dtype), SAMPLE_RATE)


def test_integers_that_were_only_cast_to_float_are_refused() -> None:
    with pytest.raises(InputError, match="within -1 and 1"):
        prepare_prompt_audio(voiced(1) * 32_768, SAMPLE_RATE)


# --- warned about


def test_a_clipped_recording_is_used_with_a_warning() -> None:
    clipped = np.clip(voiced(2) * 8, -1, 1)
    prepared = prepare_prompt_audio(clipped, SAMPLE_RATE)
    np.testing.assert_array_equal(prepared.samples, clipped)
    assert any("clipped" in warning for warning in prepared.warnings)


def test_samples_beyond_full_scale_are_clipped_with_a_warning() -> None:
    prepared = prepare_prompt_audio(voiced(2) * 5, SAMPLE_RATE)
    assert np.abs(prepared.samples).max() == 1
    assert any("clipped" in warning for warning in prepared.warnings)


def test_a_recording_that_only_touches_full_scale_is_not_called_clipped() -> None:
    loud = voiced(2)
    assert prepare_prompt_audio(loud / np.abs(loud).max(), SAMPLE_RATE).warnings == ()


def test_a_very_quiet_recording_is_used_with_a_warning() -> None:
    prepared = prepare_prompt_audio(voiced(2, level=0.012), SAMPLE_RATE)
    assert "very quiet" in prepared.warnings[0]


# --- trimmed


def test_silence_at_both_ends_is_trimmed_gently() -> None:
    noise = np.random.default_rng(0).normal(0, 1e-4, 16_000 * 8).astype(np.float32)  # -80 dB
    noise[3 * 16_000 : 5 * 16_000] += voiced(2)
    prepared = prepare_prompt_audio(noise, SAMPLE_RATE)
    assert prepared.seconds == pytest.approx(0.1 + 2 + 0.2, abs=0.05)
    np.testing.assert_array_equal(prepared.samples, noise[len(noise) - 5 * 16_000 - 1600 :][: len(prepared.samples)])
    assert prepared.kept_share == 1.0


def test_a_pause_within_the_speech_stays() -> None:
    samples = np.concatenate([voiced(1), silence(2), voiced(1)])
    np.testing.assert_array_equal(prepare_prompt_audio(samples, SAMPLE_RATE).samples, samples)


def test_a_minute_is_cut_in_its_last_pause_before_30_s() -> None:
    sentences = [np.concatenate([voiced(5.6), silence(0.4)]) for _ in range(10)]
    prepared = prepare_prompt_audio(np.concatenate(sentences), SAMPLE_RATE)
    assert prepared.seconds == pytest.approx(29.8, abs=0.1)  # the pause is at 29.6 to 30.0 s
    assert prepared.kept_share == pytest.approx(0.5, abs=0.01)
    assert "only the first 29.8 s" in prepared.warnings[0]


def test_a_minute_without_pause_is_cut_at_its_quietest_moment() -> None:
    samples = voiced(60)
    samples[22 * 16_000 : 22 * 16_000 + 4800] *= 0.3
    prepared = prepare_prompt_audio(samples, SAMPLE_RATE)
    assert prepared.seconds == pytest.approx(22.15, abs=0.1)


@settings(max_examples=20, deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from([0.05, 1, 8, 25]), st.sampled_from([0, 0.3, 4])), min_size=1, max_size=4),
    sample_rate=st.sampled_from([8000, 16_000, 24_000]),
)
def test_any_recording_gives_half_a_second_to_30_s_or_an_input_error(
    parts: list[tuple[float, float]], sample_rate: int
) -> None:
    pieces = [(voiced(loud, sample_rate), silence(quiet, sample_rate)) for loud, quiet in parts]
    samples = np.concatenate([piece for pair in pieces for piece in pair])
    if not 0.5 <= len(samples) / sample_rate <= 60:
        with pytest.raises(InputError):
            prepare_prompt_audio(samples, sample_rate)
        return
    prepared = prepare_prompt_audio(samples, sample_rate)
    assert 0.499 <= prepared.seconds <= 30
    assert 0 < prepared.kept_share <= 1
    assert np.isfinite(prepared.samples).all()
    assert np.abs(prepared.samples).max() <= 1


# --- files


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_files_of_common_kinds_are_read_whatever_their_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "voice.raw"
    stereo = np.stack([voiced(2, 24_000)] * 2, axis=1)
    soundfile.write(path, stereo, 24_000, format=kind)
    samples, sample_rate = read_audio_file(path)
    assert samples.dtype == np.float32
    assert (samples.shape[1], sample_rate) == (2, 24_000)
    assert prepare_prompt_audio(samples, sample_rate).seconds == pytest.approx(2, abs=0.15)


def test_real_speech_in_a_flac_file_is_prepared() -> None:
    samples, sample_rate = read_audio_file(SPEECH / "jfk.flac")
    prepared = prepare_prompt_audio(samples, sample_rate)
    assert 8 < prepared.seconds <= len(samples) / sample_rate
    assert prepared.warnings == ()


def test_an_open_file_is_read() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, voiced(1), SAMPLE_RATE, format="wav")
    buffer.seek(0)
    assert len(read_audio_file(buffer)[0]) == SAMPLE_RATE


@pytest.mark.parametrize("content", [b"", b"RIFF", b"hello " * 100, bytes(1000), b"fLaC" + bytes(500)])
def test_a_foreign_or_broken_file_is_an_input_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_audio_file(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_audio_file(io.BytesIO(content))


def test_a_missing_file_and_a_folder_are_input_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.wav", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_audio_file(path)


def test_a_flac_file_cut_short_is_refused_or_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "voice.flac"
    soundfile.write(path, voiced(4), SAMPLE_RATE)
    whole = path.read_bytes()
    for share in (0.05, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        try:
            samples, _ = read_audio_file(path)
        except InputError:
            continue
        assert len(samples) <= 4 * SAMPLE_RATE


def test_an_hour_long_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(61 * 8000, np.int16), 8000)
    with pytest.raises(InputError, match="at most 60 s"):
        read_audio_file(path)
