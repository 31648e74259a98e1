"""Mel-frequency cepstral coefficients, and the cheapest path between two sequences of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import AudioChunk, Samples

SAMPLE_RATE = 16_000
WINDOW = 400  # 25 ms
N_FFT = 512
N_MELS = 32
N_COEFFICIENTS = 13
FLOOR = 1e-5  # of the mel energies, of audio with an RMS of 1
LOUDNESS = 2.0  # how much the first coefficient counts against each other one
_Features = NDArray[np.float32]


def mfcc(audio: AudioChunk, centres: NDArray[np.float64]) -> _Features:
    """Coefficients and their slopes around the given samples at 16 kHz, float32 (n_centres, 26), of variance 1."""
    samples: Samples = audio.resampled(SAMPLE_RATE).samples
    samples = samples / max(float(np.sqrt(np.mean(samples**2))) if samples.size else 0.0, 1e-5)
    emphasised = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])
    padded = np.pad(emphasised, WINDOW)
    starts = np.rint(centres).astype(np.int64) + WINDOW - WINDOW // 2
    frames = padded[np.clip(starts, 0, padded.size - WINDOW)[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, N_FFT)) ** 2
    mel = np.log(power @ _mel_filters().T + FLOOR)
    k = np.arange(N_COEFFICIENTS)[:, None] * (np.arange(N_MELS)[None, :] + 0.5) * np.pi / N_MELS
    cepstra = mel @ np.cos(k).T
    wide = np.pad(cepstra, ((2, 2), (0, 0)), mode="edge")
    slopes = 2 * (wide[4:] - wide[:-4]) + (wide[3:-1] - wide[1:-3])
    features = np.hstack((cepstra, slopes))
    features -= features.mean(axis=0)
    features /= features.std(axis=0) + 1e-6
    features[:, 0] *= LOUDNESS
    return np.asarray(features, np.float32)


def path(here: _Features, there: _Features) -> NDArray[np.int64]:
    """For each frame of `here` the frame of `there` that it matches, never going back, from the first to the last.

    A step of `here` goes on by 0 to 3 frames of `there`, so the two should be about as long as each other.
    """
    n, m = len(here), len(there)
    squares = (here**2).sum(axis=1)[:, None] + (there**2).sum(axis=1)[None, :] - 2 * here @ there.T
    distance = np.sqrt(np.maximum(squares, 0.0))
    typical = float(np.median(distance))
    extra = np.array([0.15, 0.0, 0.15, 0.6], np.float32) * typical  # a tempo far from the other's costs something
    cost = np.full(m + 3, np.inf, np.float32)  # three columns of padding before the first frame
    cost[3] = distance[0, 0]
    steps = np.zeros((n, m), np.int8)
    for i in range(1, n):
        ways = np.stack([cost[3 - step : m + 3 - step] + extra[step] for step in range(4)])
        best = ways.argmin(axis=0)
        steps[i] = best
        cost[3:] = ways[best, np.arange(m)] + distance[i]
    matched = np.zeros(n, np.int64)
    at = m - 1
    for i in range(n - 1, -1, -1):
        matched[i] = at
        at -= int(steps[i, at]) if i else 0
    return matched


def _mel_filters() -> NDArray[np.float64]:
    """Triangles from 80 to 7600 Hz, float64 (n_mels, n_fft // 2 + 1)."""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (80.0, 7600.0))
    edges = 700 * (10 ** (np.linspace(low, high, N_MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)
    rising = (bins[None, :] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None, :]) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0.0, np.minimum(rising, falling))
