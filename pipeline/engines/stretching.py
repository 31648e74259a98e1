"""Faster or slower speech at the same pitch, for voices that have no rate of their own (WSOLA, as a stream).

Waveform-similarity overlap-add (Verhelst and Roelands, ICASSP 1993): the output is laid in hops of 15 ms. For each the
input is read where its time is due, shifted by up to 8 ms to where it resembles most what would have followed the hop
before, and the two are cross-faded. Periods of the voice are dropped or repeated whole, so the pitch stays.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import Samples

MIN_SPEED, MAX_SPEED = 0.5, 2.0  # outside, words run together or fall apart

# Two hops, 30 ms, hold two periods of a deep voice; longer hops would double the sounds between two consonants.
HOP_S = 0.015
# The shift covers 16 ms, a whole period of a voice of 62 Hz: a place in phase is always within reach.
MAX_SHIFT_S = 0.008


class TimeStretch:
    """One stretch of speech at `speed` times its rate, fed in chunks of any size: the output is the same for all sizes.

    What was fed is out but for at most 40 ms; `flush` gives the rest, so that n samples become round(n / speed).
    """

    def __init__(self, speed: float, sample_rate: int) -> None:
        if not MIN_SPEED <= speed <= MAX_SPEED:
            raise ValueError(f"speed must be {MIN_SPEED} to {MAX_SPEED}, not {speed}")
        self._speed = speed
        self._hop, self._max_shift = round(HOP_S * sample_rate), round(MAX_SHIFT_S * sample_rate)
        fade = np.sin(np.linspace(0, np.pi / 2, self._hop, endpoint=False)) ** 2  # and its mirror: 1
        self._fade_in, self._fade_out = fade.astype(np.float32), (1 - fade).astype(np.float32)
        self._input: Samples = np.zeros(0, np.float32)
        self._first = 0  # number of the input's first sample that is still kept
        self._n_fed = self._n_hops = 0
        self._place = 0  # where the last hop was read

    def feed(self, samples: Samples) -> Samples:
        """The output that is certain now: float32 (n_samples,) in, whole hops out, often none."""
        self._n_fed += samples.size
        self._input = np.concatenate((self._input, samples))
        hops = []
        while self._needs() <= self._n_fed:
            hops.append(self._next_hop())
        self._forget()
        return np.concatenate(hops) if hops else np.zeros(0, np.float32)

    def flush(self) -> Samples:
        """The end of the output, as if silence followed; what is fed after it begins anew."""
        n_missing = round(self._n_fed / self._speed) - self._n_hops * self._hop
        hops = [np.zeros(0, np.float32)]
        for _ in range(-(-n_missing // self._hop)):
            n_beyond = max(self._needs() - self._first - self._input.size, 0)
            self._input = np.concatenate((self._input, np.zeros(n_beyond, np.float32)))
            hops.append(self._next_hop())
        self._restart()
        return np.concatenate(hops)[:n_missing]

    def _restart(self) -> None:
        self._input = np.zeros(0, np.float32)
        self._first = self._n_fed = self._n_hops = self._place = 0

    def _due(self) -> int:
        """Where the next hop would be read without a shift."""
        return round(self._n_hops * self._hop * self._speed)

    def _needs(self) -> int:
        """How much input the next hop takes: all that it can look at, and as much as it stands for."""
        stands_for = math.ceil((self._n_hops + 1) * self._hop * self._speed)
        if self._n_hops == 0:
            return max(self._hop, stands_for)
        return max(self._place + 2 * self._hop, self._due() + self._max_shift + self._hop, stands_for)

    def _next_hop(self) -> Samples:
        """The next hop of output, (hop,)."""
        if self._n_hops == 0:
            self._n_hops = 1
            return self._input[: self._hop]
        continuation = self._read(self._place + self._hop, self._hop)  # what would follow the last hop
        self._place = self._most_alike(continuation)
        self._n_hops += 1
        return continuation * self._fade_out + self._read(self._place, self._hop) * self._fade_in

    def _most_alike(self, continuation: Samples) -> int:
        """Where the input resembles `continuation` (hop,) most, by normalised cross-correlation; the due place if none.

        In float64: sums of squares of quiet and loud stretches lie far apart.
        """
        due = self._due()
        start = max(due - self._max_shift, 0)
        region = self._read(start, due + self._max_shift + self._hop - start).astype(np.float64)
        products = np.correlate(region, continuation.astype(np.float64), "valid")  # (places,)
        energies = _moving_sums(np.square(region), self._hop)  # (places,)
        alike = np.where(energies > 1e-9, products / np.sqrt(np.maximum(energies, 1e-9)), 0.0)
        best = int(alike.argmax())
        return start + best if alike[best] > 0 else due

    def _read(self, start: int, n_samples: int) -> Samples:
        return self._input[start - self._first : start - self._first + n_samples]

    def _forget(self) -> None:
        """Drops input that no later hop looks at."""
        if self._n_hops:
            keep_from = max(min(self._place + self._hop, self._due() - self._max_shift), self._first)
            self._input = self._input[keep_from - self._first :]
            self._first = keep_from


def _moving_sums(values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Sums over each n neighbours: (m,) -> (m - n + 1,)."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    windows: NDArray[np.float64] = sums[n:] - sums[:-n]
    return windows
