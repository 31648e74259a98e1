"""Matrices of the feed-forward layers: plain, or with 8-bit weights.

A frame of one stream is bound by reading weights; the depth decoder's are read 15 times a frame. Int8 with one scale
per output channel halves the bytes of bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firered.errors import InputError

# Symmetric int8: -127..127, so that the scale is max |w| / 127 and zero stays zero.
_INT8_MAX = 127


class Matrix:
    """Weights (inputs, outputs) without bias."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (n, inputs) -> (n, outputs)."""
        return x @ self.weights

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` (n, outputs) + `x` (n, inputs) times the weights, in one kernel."""
        return torch.addmm(residual, x, self.weights)


class Int8Matrix(Matrix):
    """The same with int8 weights and a scale per output; activations keep their dtype (weight-only quantization)."""

    def __init__(self, weights: Tensor) -> None:
        by_output = weights.T.float()  # (outputs, inputs)
        scales = by_output.abs().amax(1, keepdim=True).clamp_min(1e-12) / _INT8_MAX  # (outputs, 1)
        self._int8 = (by_output / scales).round().to(torch.int8).contiguous()  # (outputs, inputs)
        self._scales = scales[:, 0].to(weights.dtype)  # (outputs,)
        try:
            self(torch.zeros(1, len(weights), dtype=weights.dtype, device=weights.device))
        except (NotImplementedError, RuntimeError) as error:
            raise InputError(f"this torch has no 8-bit matrix product for {weights.device.type}: {error}") from error

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (n, inputs) -> (n, outputs)."""
        return torch._weight_int8pack_mm(x, self._int8, self._scales)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` (n, outputs) + `x` (n, inputs) times the weights."""
        return residual + self(x)


def matrix(weights: Tensor, int8: bool) -> Matrix:
    """A matrix of `weights` (inputs, outputs), quantized to int8 or as it is."""
    return Int8Matrix(weights) if int8 else Matrix(weights)
