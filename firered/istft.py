"""Inverse short-time Fourier transform as a matrix product, for whole utterances and token by token.

"Same" padding: n frames give n * hop samples; frame i is centred on the middle of hop i. The window is 4 hops long, so
a sample gets a share of 4 frames, and the overlap-add is divided by the overlap-added squared window (the envelope).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Window length in hops (fact: 960 / 240), and how many frames before a hop still reach it.
_OVERLAP = 4
N_PAST = _OVERLAP - 1
# Hops, begun and whole, that a tail of 1.5 hops reaches.
N_TAIL = 2
# Upstream's guard against overflow: the magnitude of a bin is at most 100.
_MAX_MAGNITUDE = 100.0


class InverseStft:
    """Frames of (log magnitude, phase) to samples, float32 throughout."""

    def __init__(self, window: Tensor, n_step_frames: int) -> None:
        """`window` (n_fft,) as stored in the checkpoint; `n_step_frames` are the new frames of one `step`."""
        self.n_fft = len(window)
        self.hop = self.n_fft // _OVERLAP
        self.trim = (self.n_fft - self.hop) // 2  # samples of the overlap-add cut at each end: 360
        self._squared_window = window.float().square()  # (n_fft,)
        self._basis = _windowed_basis(window)  # (n_fft + 2, n_fft)
        self._steady = self._step_gain(N_PAST, n_step_frames)
        self._first = self._step_gain(0, n_step_frames)
        self._nothing = torch.zeros(1, N_TAIL, self.n_fft, device=window.device)

    def frames(self, head: Tensor) -> Tensor:
        """Windowed inverse transforms: `head` (n, n_fft + 2), log magnitudes then phases -> (n, n_fft) float32."""
        log_magnitude, phase = head.float().chunk(2, 1)  # (n, bins) each
        spectrum = torch.polar(log_magnitude.exp().clamp(max=_MAX_MAGNITUDE), phase)  # (n, bins) complex
        return torch.mm(torch.view_as_real(spectrum).flatten(1), self._basis)

    def whole(self, frames: Tensor) -> Tensor:
        """All samples of an utterance: `frames` (n, n_fft) -> (n * hop,)."""
        around = (0, 0, N_PAST, N_PAST)
        envelope = F.pad(self._squared_window.expand_as(frames), around)  # (n + 6, n_fft)
        both = torch.stack([F.pad(frames, around), envelope])  # (2, n + 6, n_fft)
        samples, weight = overlap_add(both)[:, self.trim : -self.trim].unbind()  # (n * hop,) each
        return samples / weight

    def step(self, past: Tensor, new: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """Samples of the new frames of each stream in a fixed grid, and the tail that ends the stream there.

        `past` (B, 3, n_fft) and `new` (B, n, n_fft) frames; `is_first` (B, 1) bool: `past` is zeros, there was none.
        -> (B, n * hop + trim): n * hop samples that begin `trim` before the new frames' first hop (on a first step
        these `trim` do not exist and are 0), then the `trim` samples that follow when no frame does; and the past of
        the next step (B, 3, n_fft).
        """
        frames = torch.cat([past, new, self._nothing.expand(len(new), -1, -1)], 1)  # (B, 3 + n + 2, n_fft)
        samples = overlap_add(frames)[:, : len(self._steady)]
        return samples * torch.where(is_first, self._first, self._steady), new[:, -N_PAST:]

    def _step_gain(self, n_past: int, n_new: int) -> Tensor:
        """1 / envelope of a step with `n_past` frames before it, 0 where there is no sound: (n_new * hop + trim,)."""
        exists = torch.ones(N_PAST + n_new + N_TAIL, 1, device=self._squared_window.device)
        exists[: N_PAST - n_past] = exists[N_PAST + n_new :] = 0
        envelope = overlap_add((exists * self._squared_window)[None])[0, : n_new * self.hop + self.trim]
        gain = 1 / envelope
        gain[: 0 if n_past else self.trim] = 0
        return gain


def overlap_add(frames: Tensor) -> Tensor:
    """Sums each hop's share of the 4 frames that reach it, from the fourth frame's first hop on.

    `frames` (items, n, 4 * hop), contiguous -> (items, (n - 3) * hop). Hop s takes part 3 of frame s, part 2 of frame
    s + 1, part 1 of s + 2 and part 0 of s + 3: in memory, 3 hops apart.
    """
    n_items, n_frames, n_fft = frames.shape
    hop = n_fft // _OVERLAP
    shape = (n_items, n_frames - N_PAST, _OVERLAP, hop)
    strides = (n_frames * n_fft, n_fft, n_fft - hop, 1)
    shares = frames.as_strided(shape, strides, frames.storage_offset() + N_PAST * hop)
    return shares.sum(2).flatten(1)


def _windowed_basis(window: Tensor) -> Tensor:
    """Real and imaginary part of each bin in turn to windowed samples: (n_fft + 2, n_fft) float32.

    Computed in float64. The imaginary parts of bin 0 and of the last bin have no effect in an inverse real transform;
    the zeros are written down because not every FFT library guarantees it.
    """
    n_fft = len(window)
    units = torch.eye(n_fft // 2 + 1, dtype=torch.complex128, device=window.device)  # (bins, bins)
    real = torch.fft.irfft(units, n_fft)  # (bins, n_fft)
    imaginary = torch.fft.irfft(units * 1j, n_fft)
    imaginary[0] = imaginary[-1] = 0
    basis = torch.stack([real, imaginary], 1).flatten(0, 1)  # (2 * bins, n_fft)
    return (basis * window.double()).float()
