"""An inaudible mark in generated speech, and its detector: the networks of PerTh (resemble-perth 1.0.1) in numpy.

The mark is a pattern of small gains (1.7 dB on average) in the 128 bands of 15.6 Hz below 2 kHz, chosen by a network
from the loudness of the bands, where speech hides it. Only the difference is added to the signal, so all else of it
stays as it was. A second network hears the pattern again. The weights expect 32 kHz, windows of 64 ms and steps of
10 ms; the bands below 2 kHz look the same at any rate with windows of as many milliseconds, so nothing is resampled.

The library marks a whole utterance. Here frames are marked as they come, four at a time: what the network would hear
after a block is taken as silence, and what it heard before is kept. The detector does not tell the two apart
(docs/measurements.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from pipeline.audio import AudioChunk, Samples
from pipeline.models import locate
from pipeline.torch_file import Weights, read_weights

MODEL_ID: Final = "perth-implicit"
FILE_NAME: Final = "perth_net_250000.pth.tar"

MAX_HELD_S: Final = 0.1  # of a stream, between what goes in and what comes out
THRESHOLD: Final = 0.9
"""Confidence from which speech counts as marked. Noisy recordings without a mark reach 0.8 (docs/measurements.md);
marked speech stays above 0.9 through codecs and telephones, and falls below it in noise."""

STRETCH_S: Final = 5.0
"""Speech that the detector judges as one: ten marked seconds in a row are found anywhere in a long recording."""

_WINDOW_S, _STEP_S = 0.064, 0.010
_N_BANDS: Final = 128
_TRAINED_N_FFT: Final = 2048  # at 32 kHz: a longer window gives larger magnitudes
_FLOOR_DB, _RANGE_DB = -180.0, 195.0  # magnitudes in dB as numbers from 0 to 1
_SILENT: Final = 0.05  # of the loudest frame's mean band; below is digital silence, which cannot carry a mark
_BLOCK_FRAMES: Final = 4

_HIDDEN, _KERNEL, _N_LAYERS = 256, 7, 7
_BRANCHES: Final = (("slow", 1.25), ("normal", 1.0), ("fast", 0.75))


class _Layer(NamedTuple):
    """A convolution over time: `weight` (n_taps * n_in, n_out), `bias` (n_out,)."""

    weight: Samples
    bias: Samples
    n_taps: int


class Watermarker:
    """Holds the weights (36 MB); every method may be called from any thread, and none belongs on an event loop."""

    def __init__(self, weights: Weights) -> None:
        self._encoder = _layers(weights, "encoder.layers", _N_BANDS)
        self._decoder = [(_layers(weights, f"decoder.{name}_layers", 2), speed) for name, speed in _BRANCHES]

    @classmethod
    def load(cls, directory: Path) -> Watermarker:
        """From the model's directory, as `pipeline.models.locate` gives it; ConfigError when the file is not right."""
        return cls(read_weights(directory / FILE_NAME, "model"))

    @classmethod
    def installed(cls, models_dir: Path) -> Watermarker:
        """As downloaded into `models_dir`; ConfigError names the command when it is not."""
        return cls.load(locate(models_dir, MODEL_ID))

    def stream(self, sample_rate: int) -> WatermarkStream:
        """Fresh state for one stretch of speech at `sample_rate` (8 to 48 kHz). Takes 7 % of a core."""
        return WatermarkStream(self._encoder, sample_rate)

    def detect(self, audio: AudioChunk) -> float:
        """How sure the detector is that some stretch of `audio` is marked, in [0, 1]; compare with `THRESHOLD`.

        Each stretch of about 5 s is judged for itself. Takes 3 % of a core for the audio's time.
        """
        frames = _Frames(audio.sample_rate)
        rest = frames.window.size // 2
        spectrum = frames.spectrum(np.pad(audio.samples, (rest, rest + frames.step)))
        bands, loudness = frames.bands(spectrum)
        audible = loudness > _SILENT * loudness.max(initial=0.0)
        n_stretches = max(1, round(audio.seconds / STRETCH_S))
        stretches = zip(np.array_split(bands, n_stretches), np.array_split(audible, n_stretches), strict=True)
        return max(self._judged(stretch, mask) for stretch, mask in stretches)

    def _judged(self, bands: Samples, audible: np.ndarray) -> float:
        """The three branches listen at three speeds, so that a mark in stretched speech is heard too."""
        if not audible.any():
            return 0.0
        votes, weights = [], []
        for layers, speed in self._decoder:
            n_frames = int(len(bands) * speed)
            heard = _through(layers, _stretched(bands, n_frames), _nothing_before())
            mask = audible[np.arange(n_frames) * len(bands) // max(n_frames, 1)]
            weight, vote = heard[mask].mean(axis=0) if mask.any() else (0.0, 0.0)
            weights.append(np.exp(weight))
            votes.append(vote)
        return float(np.clip(np.average(votes, weights=weights), 0.0, 1.0))


class WatermarkStream:
    """Marks speech as it comes; at most `MAX_HELD_S` of it is held back. In all as many samples leave as came in."""

    def __init__(self, layers: Sequence[_Layer], sample_rate: int) -> None:
        self._layers = layers
        self._frames = _Frames(sample_rate)
        self._begin()

    def _begin(self) -> None:
        before = self._frames.window.size // 2
        self._signal = np.zeros(before, np.float32)  # from the start of the next frame on
        self._mark = np.zeros(before, np.float32)  # what is to be added to it
        self._n_skipped = before  # the silence put before the first sample
        self._past = _nothing_before()
        self._loudest = 0.0

    def add(self, samples: Samples) -> Samples:
        """The samples that are ready, marked: float32, clipped to [-1, 1]."""
        self._signal = np.concatenate((self._signal, samples))
        self._mark = np.concatenate((self._mark, np.zeros(samples.size, np.float32)))
        frames = self._frames
        n_frames = max(0, (self._signal.size - frames.window.size) // frames.step + 1)
        n_frames -= n_frames % _BLOCK_FRAMES
        return self._advance(n_frames) if n_frames else np.zeros(0, np.float32)

    def flush(self) -> Samples:
        """The samples held back; the next `add` begins a new stretch."""
        n_left = self._signal.size - self._n_skipped
        frames = self._frames
        out = self.add(np.zeros(frames.window.size + _BLOCK_FRAMES * frames.step, np.float32))[:n_left]
        self._begin()
        return out

    def _advance(self, n_frames: int) -> Samples:
        """Mark so many frames, and give the samples that no later frame reaches."""
        frames = self._frames
        spectrum = frames.spectrum(self._signal[: (n_frames - 1) * frames.step + frames.window.size])
        bands, loudness = frames.bands(spectrum)
        loudest = np.maximum.accumulate(np.maximum(loudness, self._loudest))
        self._loudest = float(loudest[-1])
        blocks = range(0, n_frames, _BLOCK_FRAMES)
        change = np.concatenate([_through(self._layers, bands[i : i + _BLOCK_FRAMES], self._past) for i in blocks])
        change *= (loudness > _SILENT * loudest)[:, None]
        for i, waves in enumerate(frames.waves(spectrum[:, :_N_BANDS] * (10 ** (change * (_RANGE_DB / 20)) - 1))):
            self._mark[i * frames.step : i * frames.step + waves.size] += waves
        n_ready = n_frames * frames.step
        out: Samples = np.clip(self._signal[:n_ready] + self._mark[:n_ready], -1.0, 1.0)[self._n_skipped :]
        self._n_skipped = max(0, self._n_skipped - n_ready)
        self._signal, self._mark = self._signal[n_ready:], self._mark[n_ready:]
        return out


class _Frames:
    """Between samples at one rate and spectra of 64 ms, 10 ms apart."""

    def __init__(self, sample_rate: int) -> None:
        n = 2 * round(sample_rate * _WINDOW_S / 2)
        self.step = round(sample_rate * _STEP_S)
        self.window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)).astype(np.float32)
        self._magnitude = _TRAINED_N_FFT / n
        self._overlap = float(np.square(self.window).sum()) / self.step

    def spectrum(self, samples: Samples) -> np.ndarray:
        """complex64 (n_frames, n_bins); the first window begins with the first sample."""
        cut = np.lib.stride_tricks.sliding_window_view(samples, self.window.size)[:: self.step]
        return np.fft.rfft(cut * self.window, axis=1)

    def bands(self, spectrum: np.ndarray) -> tuple[Samples, Samples]:
        """Loudness of the marked bands as the networks read it, float32 (n_frames, 128), and the mean over bands."""
        magnitude = np.abs(spectrum[:, :_N_BANDS]) * self._magnitude
        bands = (20 * np.log10(np.maximum(magnitude, 10 ** (_FLOOR_DB / 20))) - _FLOOR_DB) / _RANGE_DB
        bands = bands.astype(np.float32)
        return bands, bands.mean(axis=1)

    def waves(self, low_bins: np.ndarray) -> Samples:
        """float32 (n_frames, n_window): what the bins stand for, ready to be added up."""
        waves = np.fft.irfft(low_bins, self.window.size, axis=1) * (self.window / self._overlap)
        added: Samples = waves.astype(np.float32)
        return added


def _layers(weights: Weights, prefix: str, n_out: int) -> list[_Layer]:
    first, last = (0, _N_BANDS, _HIDDEN, 1), (_N_LAYERS - 1, _HIDDEN, n_out, 1)
    shapes = (first, *((i, _HIDDEN, _HIDDEN, _KERNEL) for i in range(1, _N_LAYERS - 1)), last)
    return [_layer(weights, f"{prefix}.{i}.conv", n_in, n_out, n_taps) for i, n_in, n_out, n_taps in shapes]


def _layer(weights: Weights, key: str, n_in: int, n_out: int, n_taps: int) -> _Layer:
    kernel = weights.take(f"{key}.weight", (n_out, n_in, n_taps)).transpose(2, 1, 0)
    weight = np.ascontiguousarray(kernel.reshape(n_taps * n_in, n_out))
    return _Layer(weight, weights.take(f"{key}.bias", (n_out,)), n_taps)


def _nothing_before() -> list[Samples]:
    return [np.zeros((_KERNEL // 2, _HIDDEN), np.float32) for _ in range(_N_LAYERS)]


def _through(layers: Sequence[_Layer], frames: Samples, past: list[Samples]) -> Samples:
    """float32 (n_frames, n_in) to (n_frames, n_out). `past` is what each layer heard before; it is brought up to date.

    After the last frame the layers hear nothing.
    """
    for i, layer in enumerate(layers):
        if layer.n_taps > 1:
            joined = np.concatenate((past[i], frames))
            past[i] = joined[-(_KERNEL // 2) :]
            padded = np.concatenate((joined, np.zeros((_KERNEL // 2, _HIDDEN), np.float32)))
            taps = np.lib.stride_tricks.sliding_window_view(padded, _KERNEL, axis=0)
            frames_in = taps.transpose(0, 2, 1).reshape(len(frames), -1)
        else:
            frames_in = frames
        frames = frames_in @ layer.weight + layer.bias
        if i < len(layers) - 1:
            frames = np.maximum(frames, np.float32(0.01) * frames)
    return frames


def _stretched(frames: Samples, n_frames: int) -> Samples:
    """`frames` played at another speed, first and last in place."""
    if n_frames == len(frames):
        return frames
    place = np.linspace(0.0, len(frames) - 1, n_frames)
    below = place.astype(int)
    above = np.minimum(below + 1, len(frames) - 1)
    share = (place - below).astype(np.float32)[:, None]
    mixed: Samples = frames[below] * (1 - share) + frames[above] * share
    return mixed
