"""Residual vector quantization: features to codes, and the table that turns codes back into latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from firered.codec_blocks import Affine

if TYPE_CHECKING:
    from firered.checkpoint import Weights
    from firered.config import RvqConfig


class ResidualQuantizer:
    """Picks codes one codebook after the other, each for what the ones before left over. Works in float32."""

    def __init__(self, config: RvqConfig, weights: Weights) -> None:
        self._input = _pointwise(weights.scope("input_proj"), torch.float32)
        scopes = [weights.scope(f"quantizers.{n}") for n in range(config.n_quantizers)]
        self._inward = [_pointwise(scope.scope("in_project"), torch.float32) for scope in scopes]
        self._outward = [_pointwise(scope.scope("out_project"), torch.float32) for scope in scopes]
        self._codebooks = [
            scope.take("codebook", dtype=torch.float32) for scope in scopes
        ]  # (size, codebook width) each

    def __call__(self, features: Tensor) -> Tensor:
        """`features` (n, in width) -> codes (n, quantizers) int64."""
        residual = self._input(features.float())  # (n, width)
        codes = []
        for inward, outward, codebook in zip(self._inward, self._outward, self._codebooks, strict=True):
            nearest = _nearest(inward(residual), codebook)  # (n,)
            residual = residual - outward(codebook[nearest])
            codes.append(nearest)
        return torch.stack(codes, 1)


def latent_table(config: RvqConfig, weights: Weights) -> Tensor:
    """out_project(codebook) of all codebooks, (quantizers * size, width): a latent is the sum of one row per codebook.

    Folded in float64, so that neither TF32 settings nor the order of sums matter; 50 MB in a 16-bit dtype at full size.
    """
    tables = []
    for n in range(config.n_quantizers):
        scope = weights.scope(f"quantizers.{n}")
        codebook = scope.take("codebook", dtype=torch.float64)  # (size, codebook width)
        table = _pointwise(scope.scope("out_project"), torch.float64)(codebook)  # (size, width)
        tables.append(table.to(weights.dtype))
    return torch.cat(tables)


def _pointwise(weights: Weights, dtype: torch.dtype) -> Affine:
    """The convolution of width 1 at this scope, stored (out, in, 1)."""
    return Affine(weights.take("weight", dtype=dtype)[..., 0].T.contiguous(), weights.take("bias", dtype=dtype))


def _nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Index of the row of `codebook` (size, d) with the smallest Euclidean distance to each `x` (n, d): (n,) int64.

    |x - c|^2 = |x|^2 - 2 x.c + |c|^2, of which |x|^2 is the same for all rows.
    """
    lengths = codebook.square().sum(1)  # (size,)
    return torch.addmm(lengths, x, codebook.T, alpha=-2).argmin(1)
