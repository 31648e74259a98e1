"""Sampling of audio codes: top-k and temperature by the Gumbel-max trick, with noise that each stream can repeat.

argmax(logits / T + gumbel) draws from softmax(logits / T) and needs no host. The noise comes from a counter-based hash
of (seed of the stream, number of the frame, codebook, code): a stream gives the same audio whatever else is in the
batch, on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK_32 = 0xFFFFFFFF
# The two multipliers of "lowbias32", an integer hash with low bias (C. Wellons, hash-prospector, public domain).
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
# 2^32 / golden ratio, odd: successive frames get keys far apart (Weyl sequence, Knuth TAOCP 3, 6.4).
_GOLDEN = 0x9E3779B9


def sample(logits: Tensor, kth: Tensor, temperature: Tensor | float, noise: Tensor) -> Tensor:
    """Codes drawn from the logits that are not below `kth`: equal ones stay, as in upstream.

    `logits` (B, V) float32, `kth` (B, 1) the k-th largest logit, `temperature` (B, 1) or one for all, `noise` (B, V)
    Gumbel noise (zeros: greedy) -> (B,) int64.
    """
    kept = logits.masked_fill(logits < kth, -torch.inf)
    return (kept / temperature + noise).argmax(-1)


def kth_largest(logits: Tensor, k: int) -> Tensor:
    """(B, V) -> (B, 1): the k-th largest logit, the same k for all."""
    return logits.topk(k, -1).values[:, -1:]


def kth_largest_each(logits: Tensor, k: Tensor) -> Tensor:
    """(B, V), `k` (B, 1) int64 from 1 to V -> (B, 1): each row's k-th largest logit."""
    return logits.sort(-1, descending=True).values.gather(-1, k - 1)


class GumbelNoise:
    """Gumbel noise for all codebooks of a frame at once."""

    def __init__(self, n_codebooks: int, codebook_size: int, device: torch.device) -> None:
        self._shape = (n_codebooks, codebook_size)
        self._hashes = _mix(torch.arange(n_codebooks * codebook_size, device=device))  # (n_codebooks * V,)

    def __call__(self, seeds: Tensor, frames: Tensor) -> Tensor:
        """`seeds` (B,) int64 below 2^32, `frames` (B,) int64 -> (B, n_codebooks, V) float32."""
        keys = _mix(_mix(frames * _GOLDEN & _MASK_32) ^ seeds)  # (B,)
        bits = _mix(self._hashes ^ keys[:, None]) >> 9  # (B, n_codebooks * V), 23 bits
        uniform = (bits + 0.5) * 2.0**-23  # exact in float32, inside (0, 1)
        return uniform.log().neg_().log_().neg_().view(-1, *self._shape)


def _mix(x: Tensor) -> Tensor:
    """lowbias32 over int64 tensors that hold 32-bit values."""
    x = x ^ (x >> 16)
    x = x * _MULTIPLIERS[0] & _MASK_32
    x = x ^ (x >> 15)
    x = x * _MULTIPLIERS[1] & _MASK_32
    return x ^ (x >> 16)
