"""Who speaks: a voice as a vector of 256 numbers, by the network of Resemblyzer 0.1.4 in numpy.

The network (Wan et al., "Generalized End-to-End Loss for Speaker Verification", 2018): mel spectrogram, three LSTM
layers, one linear layer. It hears stretches of 1.6 s; a voice is the mean of their vectors. The steps and constants
before it are those that the weights were trained with, so the vectors are those of the library to four digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import webrtcvad

from pipeline.audio import PCM16_SCALE, AudioChunk, Samples
from pipeline.errors import InvalidInput
from pipeline.torch_file import Weights, read_weights

MODEL_ID: Final = "resemblyzer"
FILE_NAME: Final = "pretrained.pt"
SAMPLE_RATE: Final = 16_000
N_DIMENSIONS: Final = 256

_LOUDNESS_DB: Final = -30.0  # of full scale; louder speech stays as it is
_WINDOW_SAMPLES: Final = 480  # 30 ms, what is voiced or not
_VAD_MODE: Final = 3
_SMOOTHED_WINDOWS: Final = 8
_KEPT_WINDOWS: Final = 3  # unvoiced ones kept on either side of voiced ones

_N_FFT, _HOP, _N_MELS = 400, 160, 40
_PARTIAL_FRAMES: Final = 160
_PARTIAL_STEP: Final = 77  # 1.3 partials a second
_MIN_COVERAGE: Final = 0.75  # of the last partial, which silence fills up
_BATCH: Final = 16  # partials at a time: 10 MB for the gates


class _Layer(NamedTuple):
    """One LSTM layer: gates in the order input, forget, candidate, output; both biases added up."""

    from_input: Samples  # (n_in, 1024)
    from_state: Samples  # (256, 1024)
    bias: Samples  # (1024,)


class SpeakerEncoder:
    """Holds the weights (6 MB); every method may be called from any thread, and none belongs on an event loop.

    A clip of 10 s takes about 0.1 s of a core.
    """

    def __init__(self, weights: Weights) -> None:
        n, sizes = N_DIMENSIONS, (_N_MELS, N_DIMENSIONS, N_DIMENSIONS)
        self._layers = tuple(_layer(weights, index, n_in) for index, n_in in enumerate(sizes))
        self._linear = np.ascontiguousarray(weights.take("linear.weight", (n, n)).T)
        self._bias = weights.take("linear.bias", (n,))

    @classmethod
    def load(cls, directory: Path) -> SpeakerEncoder:
        """From the model's directory, as `pipeline.models.locate` gives it; ConfigError when the file is not right."""
        return cls(read_weights(directory / FILE_NAME, "model_state"))

    def embed(self, audio: AudioChunk) -> Samples:
        """The voice in `audio` (any rate): float32 (256,) of length 1. `InvalidInput` when nobody speaks."""
        mean: Samples = self.partials(audio).mean(axis=0)
        return _unit(mean)

    def partials(self, audio: AudioChunk) -> Samples:
        """The voice in each stretch of 1.6 s, one every 0.77 s of speech: float32 (n, 256), each of length 1.

        Long silences are cut out first, so the stretches have no place in `audio`. `InvalidInput` when nobody speaks.
        """
        speech = _without_silence(_at_least_as_loud(audio.resampled(SAMPLE_RATE).samples))
        if not speech.size:
            raise InvalidInput("there is no speech in this recording", code="no_speech")
        starts = _partial_starts(speech.size)
        n_samples = (starts[-1] + _PARTIAL_FRAMES) * _HOP
        mel = _mel_power(np.pad(speech, (0, max(0, n_samples - speech.size))))
        stretches = np.stack([mel[start : start + _PARTIAL_FRAMES] for start in starts])
        return np.concatenate([self._run(stretches[i : i + _BATCH]) for i in range(0, len(starts), _BATCH)])

    def _run(self, mels: Samples) -> Samples:
        """float32 (n, 160, 40) to (n, 256)."""
        sequence = np.ascontiguousarray(mels.transpose(1, 0, 2))
        for layer in self._layers:
            sequence = _lstm(sequence, layer)
        raw = np.maximum(sequence[-1] @ self._linear + self._bias, 0.0)
        return _unit(raw)


def similarity(a: Samples, b: Samples) -> float:
    """How alike two voices are: the cosine of their vectors, in [0, 1] because no vector has a negative part."""
    return min(float(np.dot(a, b)), 1.0)


def _unit(vectors: Samples) -> Samples:
    """Made as long as 1, along the last axis."""
    scaled: Samples = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
    return scaled


def _layer(weights: Weights, index: int, n_in: int) -> _Layer:
    n_gates = 4 * N_DIMENSIONS
    return _Layer(
        np.ascontiguousarray(weights.take(f"lstm.weight_ih_l{index}", (n_gates, n_in)).T),
        np.ascontiguousarray(weights.take(f"lstm.weight_hh_l{index}", (n_gates, N_DIMENSIONS)).T),
        weights.take(f"lstm.bias_ih_l{index}", (n_gates,)) + weights.take(f"lstm.bias_hh_l{index}", (n_gates,)),
    )


def _lstm(sequence: Samples, layer: _Layer) -> Samples:
    """float32 (n_steps, n, n_in) to (n_steps, n, 256)."""
    n_steps, n, _ = sequence.shape
    known = sequence @ layer.from_input + layer.bias
    out = np.empty((n_steps, n, N_DIMENSIONS), np.float32)
    state = np.zeros((n, N_DIMENSIONS), np.float32)
    cell = np.zeros((n, N_DIMENSIONS), np.float32)
    for step in range(n_steps):
        let_in, keep, candidate, let_out = np.split(known[step] + state @ layer.from_state, 4, axis=1)
        cell = _sigmoid(keep) * cell + _sigmoid(let_in) * np.tanh(candidate)
        state = _sigmoid(let_out) * np.tanh(cell)
        out[step] = state
    return out


def _sigmoid(x: Samples) -> Samples:
    """By the tangent, which cannot overflow."""
    y: Samples = 0.5 + 0.5 * np.tanh(0.5 * x)
    return y


def _at_least_as_loud(samples: Samples) -> Samples:
    """Made louder where the whole is quieter than `_LOUDNESS_DB`."""
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0
    wanted = 10 ** (_LOUDNESS_DB / 20)
    return samples * np.float32(wanted / rms) if 0 < rms < wanted else samples


def _without_silence(samples: Samples) -> Samples:
    """The windows in which somebody speaks, and up to 90 ms on either side of them."""
    n_windows = samples.size // _WINDOW_SAMPLES
    if not n_windows:
        return samples[:0]
    windows = samples[: n_windows * _WINDOW_SAMPLES].reshape(n_windows, _WINDOW_SAMPLES)
    # The scale of the library: 32767, and not the 32768 of `to_pcm16`.
    pcm = np.clip(np.rint(windows * (PCM16_SCALE - 1)), -32768, 32767).astype("<i2")
    vad = webrtcvad.Vad(_VAD_MODE)
    voiced = np.array([vad.is_speech(window.tobytes(), SAMPLE_RATE) for window in pcm], bool)
    ahead, behind = (_SMOOTHED_WINDOWS - 1) // 2, _SMOOTHED_WINDOWS // 2
    near = np.lib.stride_tricks.sliding_window_view(np.pad(voiced, (ahead, behind)), _SMOOTHED_WINDOWS)
    mostly = near.sum(axis=1) > _SMOOTHED_WINDOWS / 2
    around = np.lib.stride_tricks.sliding_window_view(np.pad(mostly, _KEPT_WINDOWS), 2 * _KEPT_WINDOWS + 1)
    kept: Samples = windows[around.any(axis=1)].reshape(-1)
    return kept


def _partial_starts(n_samples: int) -> list[int]:
    """The first frame of each stretch; the last one goes when speech covers too little of it."""
    n_frames = -(-(n_samples + 1) // _HOP)
    starts = list(range(0, max(1, n_frames - _PARTIAL_FRAMES + _PARTIAL_STEP + 1), _PARTIAL_STEP))
    covered = (n_samples / _HOP - starts[-1]) / _PARTIAL_FRAMES
    return starts[:-1] if covered < _MIN_COVERAGE and len(starts) > 1 else starts


def _mel_power(samples: Samples) -> Samples:
    """Power in 40 mel bands every 10 ms: float32 (n_samples // 160 + 1, 40); zeros stand before and after."""
    padded = np.pad(samples, _N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::_HOP]
    spectrum = np.fft.rfft(frames * _WINDOW, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    mel: Samples = power @ _FILTERS
    return mel


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Slaney's scale: 15 mel to 1000 Hz in equal steps, from there on 27 steps for a factor of 6.4."""
    linear = mel * (200.0 / 3.0)
    return np.where(mel < 15.0, linear, 1000.0 * np.exp((mel - 15.0) * (np.log(6.4) / 27.0)))


def _mel_filters() -> Samples:
    """Triangles of equal area, float32 (201, 40)."""
    top = 15.0 + np.log(SAMPLE_RATE / 2 / 1000.0) / (np.log(6.4) / 27.0)
    edges = _mel_to_hz(np.linspace(0.0, top, _N_MELS + 2))
    hz = np.linspace(0.0, SAMPLE_RATE / 2, _N_FFT // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0.0, np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)))
    filters: Samples = (triangles * (2.0 / (high - low))).astype(np.float32)
    return filters


_WINDOW: Final = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_N_FFT) / _N_FFT)).astype(np.float32)
_FILTERS: Final = _mel_filters()
