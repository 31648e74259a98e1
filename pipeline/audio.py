"""Audio as the pipeline passes it: float32 mono chunks that carry their rate; framing, resampling and decoding."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.errors import InvalidInput, TooLarge

Samples = NDArray[np.float32]

PCM16_SCALE = 32768.0


@dataclass(frozen=True, slots=True, eq=False)
class AudioChunk:
    """A stretch of mono audio: `samples` float32 (n_samples,) in [-1, 1], `sample_rate` in hertz."""

    samples: Samples
    sample_rate: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise InvalidInput(
                f"audio must be float32 of shape (n_samples,), not {self.samples.dtype} {self.samples.shape}"
            )
        if self.sample_rate <= 0:
            raise InvalidInput("sample_rate must be positive")

    @property
    def n_samples(self) -> int:
        """Samples in the chunk."""
        return int(self.samples.shape[0])

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.n_samples / self.sample_rate

    @classmethod
    def silence(cls, seconds: float, sample_rate: int) -> AudioChunk:
        """Zeros of the given duration."""
        return cls(np.zeros(round(seconds * sample_rate), np.float32), sample_rate)

    @classmethod
    def from_pcm16(cls, data: bytes | memoryview, sample_rate: int) -> AudioChunk:
        """Little-endian 16-bit PCM as a chunk; `InvalidInput` when the byte count is odd."""
        if len(data) % 2:
            raise InvalidInput("PCM16 audio needs an even number of bytes", code="odd_byte_count")
        return cls(np.frombuffer(data, "<i2").astype(np.float32) / PCM16_SCALE, sample_rate)

    def to_pcm16(self) -> bytes:
        """Little-endian 16-bit PCM, clipped to the 16-bit range."""
        scaled = np.clip(np.rint(self.samples * PCM16_SCALE), -32768, 32767)
        return bytes(scaled.astype("<i2").tobytes())

    def slice(self, start_sample: int, end_sample: int | None = None) -> AudioChunk:
        """Samples `[start_sample, end_sample)` as a chunk that shares memory."""
        return AudioChunk(self.samples[start_sample:end_sample], self.sample_rate)

    def resampled(self, sample_rate: int) -> AudioChunk:
        """The whole chunk at another rate. For a stream use `Resampler`: per-chunk resampling clicks at each seam."""
        if sample_rate == self.sample_rate:
            return self
        out = soxr.resample(self.samples, self.sample_rate, sample_rate, quality="HQ")
        return AudioChunk(np.ascontiguousarray(out, dtype=np.float32), sample_rate)


def concat(chunks: Iterable[AudioChunk], sample_rate: int) -> AudioChunk:
    """Chunks of one rate joined; empty input gives an empty chunk at `sample_rate`."""
    parts = []
    for chunk in chunks:
        if chunk.sample_rate != sample_rate:
            raise InvalidInput(f"cannot join audio at {chunk.sample_rate} Hz to {sample_rate} Hz")
        parts.append(chunk.samples)
    return AudioChunk(np.concatenate(parts) if parts else np.zeros(0, np.float32), sample_rate)


class Framer:
    """Cuts a stream into windows of exactly `frame_samples`; what is left over waits for the next `feed`."""

    def __init__(self, frame_samples: int) -> None:
        self.frame_samples = frame_samples
        self._rest = np.zeros(0, np.float32)

    def feed(self, samples: Samples) -> Iterator[Samples]:
        """Yield whole frames, each float32 (frame_samples,)."""
        joined = np.concatenate((self._rest, samples)) if self._rest.size else samples
        n_frames = joined.size // self.frame_samples
        self._rest = joined[n_frames * self.frame_samples :].copy()
        for i in range(n_frames):
            yield joined[i * self.frame_samples : (i + 1) * self.frame_samples]

    def clear(self) -> None:
        """Drop the left-over samples."""
        self._rest = np.zeros(0, np.float32)


class Resampler:
    """Streaming rate conversion (soxr). Equal to converting the whole signal at once; MQ delays about 15 ms."""

    def __init__(self, from_rate: int, to_rate: int, quality: str = "MQ") -> None:
        self.from_rate, self.to_rate = from_rate, to_rate
        self._stream = (
            None
            if from_rate == to_rate
            else soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality=quality)
        )

    def feed(self, chunk: AudioChunk, *, last: bool = False) -> AudioChunk:
        """The samples that are ready at `to_rate`; `last=True` also gives the tail."""
        if chunk.sample_rate != self.from_rate:
            raise InvalidInput(f"expected audio at {self.from_rate} Hz, not {chunk.sample_rate} Hz")
        if self._stream is None:
            return chunk
        return AudioChunk(self._stream.resample_chunk(chunk.samples, last=last), self.to_rate)


def decode_file(data: bytes, *, max_seconds: float) -> AudioChunk:
    """WAV, FLAC, OGG or MP3 bytes as a mono chunk at the file's own rate.

    Reads in blocks and stops with `TooLarge` past `max_seconds`, so a small file that unpacks to gigabytes costs
    nothing. Non-finite samples, no samples and unreadable files are `InvalidInput`. Bytes only, never a path: some
    formats can name other files.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, limit = int(file.samplerate), int(max_seconds * file.samplerate)
            blocks: list[Samples] = []
            n_samples = 0
            while True:
                block = file.read(65536, dtype="float32", always_2d=True)
                if not len(block):
                    break
                n_samples += len(block)
                if n_samples > limit:
                    raise TooLarge(f"audio is longer than {max_seconds:g} s", code="audio_too_long")
                blocks.append(block.mean(axis=1, dtype=np.float32))
    except soundfile.SoundFileError as error:
        raise InvalidInput("this is not an audio file that can be read", code="audio_unreadable") from error
    if not blocks:
        raise InvalidInput("the audio file holds no samples", code="audio_empty")
    samples = np.concatenate(blocks)
    if not np.isfinite(samples).all():
        raise InvalidInput("the audio holds values that are not numbers", code="audio_not_finite")
    return AudioChunk(np.clip(samples, -1.0, 1.0), rate)


def file_bytes(chunk: AudioChunk, container: str) -> bytes:
    """The chunk as a 16-bit mono file; `container` is wav or flac."""
    buffer = io.BytesIO()
    soundfile.write(buffer, chunk.samples, chunk.sample_rate, format=container.upper(), subtype="PCM_16")
    return buffer.getvalue()
