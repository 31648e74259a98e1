from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.audio import AudioChunk, Framer, Resampler, concat, decode_file, file_bytes
from pipeline.errors import InvalidInput, TooLarge

CUTS = st.lists(st.integers(0, 700), max_size=12)


def noise(n_samples: int, seed: int = 1) -> AudioChunk:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, n_samples).astype(np.float32)
    return AudioChunk(samples, 24000)


def parts_of(chunk: AudioChunk, sizes: list[int]) -> list[AudioChunk]:
    parts, start = [], 0
    for size in [*sizes, chunk.n_samples]:
        parts.append(chunk.slice(start, start + size))
        start += size
    return parts


@given(CUTS, st.integers(1, 512))
def test_frames_are_the_stream_in_order_whatever_the_chunks(sizes: list[int], frame_samples: int) -> None:
    stream = noise(2000)
    framer = Framer(frame_samples)
    frames = [frame.copy() for part in parts_of(stream, sizes) for frame in framer.feed(part.samples)]
    assert all(frame.shape == (frame_samples,) for frame in frames)
    n_whole = stream.n_samples // frame_samples
    assert len(frames) == n_whole
    joined = np.concatenate([*frames, np.zeros(0, np.float32)])
    assert np.array_equal(joined, stream.samples[: n_whole * frame_samples])


def test_a_cleared_framer_forgets_its_left_over() -> None:
    framer = Framer(4)
    assert list(framer.feed(np.ones(3, np.float32))) == []
    framer.clear()
    (frame,) = framer.feed(np.zeros(5, np.float32))
    assert not frame.any()


@settings(deadline=None)
@given(CUTS, st.sampled_from([8000, 16000, 22050, 48000]))
def test_a_resampled_stream_has_no_seams(sizes: list[int], to_rate: int) -> None:
    stream = noise(3000)
    whole = Resampler(24000, to_rate).feed(stream, last=True)
    resampler = Resampler(24000, to_rate)
    parts = [resampler.feed(part) for part in parts_of(stream, sizes)]
    parts.append(resampler.feed(AudioChunk.silence(0, 24000), last=True))
    joined = concat(parts, to_rate)
    assert joined.n_samples == whole.n_samples
    assert joined.n_samples == pytest.approx(3000 * to_rate / 24000, abs=2)
    assert np.allclose(joined.samples, whole.samples, atol=1e-6)


def test_the_same_rate_is_passed_through_and_a_wrong_one_is_refused() -> None:
    chunk = noise(100)
    assert Resampler(24000, 24000).feed(chunk) is chunk
    assert chunk.resampled(24000) is chunk
    assert chunk.resampled(48000).n_samples == 200
    for to_rate in (24000, 16000):
        with pytest.raises(InvalidInput):
            Resampler(16000, to_rate).feed(chunk)


@given(arrays(np.int16, st.integers(0, 200)))
def test_pcm16_survives_the_round_trip(values: np.ndarray[tuple[int], np.dtype[np.int16]]) -> None:
    data = values.astype("<i2").tobytes()
    assert AudioChunk.from_pcm16(data, 16000).to_pcm16() == data


def test_pcm16_is_clipped_and_needs_whole_samples() -> None:
    loud = AudioChunk(np.array([2.0, -2.0, 1.0], np.float32), 16000)
    assert np.frombuffer(loud.to_pcm16(), "<i2").tolist() == [32767, -32768, 32767]
    with pytest.raises(InvalidInput) as caught:
        AudioChunk.from_pcm16(b"\0\0\0", 16000)
    assert caught.value.code == "odd_byte_count"


@pytest.mark.parametrize(
    ("samples", "rate"),
    [(np.zeros(3, np.float64), 16000), (np.zeros((3, 1), np.float32), 16000), (np.zeros(3, np.float32), 0)],
)
def test_a_chunk_refuses_what_is_not_mono_float32_at_a_rate(samples: np.ndarray, rate: int) -> None:
    with pytest.raises(InvalidInput):
        AudioChunk(samples, rate)


def test_joining_keeps_order_and_refuses_another_rate() -> None:
    a, b = noise(5, 1), noise(7, 2)
    joined = concat([a, b], 24000)
    assert np.array_equal(joined.samples, np.concatenate((a.samples, b.samples)))
    assert joined.seconds == pytest.approx(12 / 24000)
    assert concat([], 8000).n_samples == 0
    with pytest.raises(InvalidInput):
        concat([a, AudioChunk.silence(1, 8000)], 24000)


def test_files_of_any_rate_and_channels_become_mono_at_their_own_rate() -> None:
    chunk = noise(1000)
    decoded = decode_file(file_bytes(chunk, "wav"), max_seconds=1)
    assert decoded.sample_rate == 24000
    assert np.allclose(decoded.samples, chunk.samples, atol=1e-4)
    buffer = io.BytesIO()
    stereo = np.stack((np.full(800, 0.5), np.full(800, -0.25)), axis=1)
    soundfile.write(buffer, stereo, 8000, format="FLAC")
    decoded = decode_file(buffer.getvalue(), max_seconds=1)
    assert (decoded.sample_rate, decoded.n_samples) == (8000, 800)
    assert np.allclose(decoded.samples, 0.125, atol=1e-3)


def test_files_that_are_too_long_empty_broken_or_not_finite_are_refused() -> None:
    with pytest.raises(TooLarge):
        decode_file(file_bytes(AudioChunk.silence(1.1, 8000), "wav"), max_seconds=1)
    with pytest.raises(InvalidInput, match="no samples"):
        decode_file(file_bytes(AudioChunk.silence(0, 8000), "wav"), max_seconds=1)
    for broken in (b"", b"RIFF", b"/etc/passwd", file_bytes(noise(10), "wav")[:20]):
        with pytest.raises(InvalidInput):
            decode_file(broken, max_seconds=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.1, np.nan], np.float32), 8000, format="WAV", subtype="FLOAT")
    with pytest.raises(InvalidInput) as caught:
        decode_file(buffer.getvalue(), max_seconds=1)
    assert caught.value.code == "audio_not_finite"
