"""What the codec's encoders and decoder are made of: norm, affine map, convolution, transformer block.

Everything works on rows, (frames of all items, width), with matrices stored (inputs, outputs). A convolution is an
affine map of windows, so that it is exact in fp32 on every device (cuDNN would use TF32 there) and can stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from firered.checkpoint import Weights

# LayerNorm's epsilon everywhere but in the decoder's final norm (fact: torch's default, not in the config).
NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """LayerNorm over the last dimension."""

    scale: Tensor  # (d,)
    bias: Tensor  # (d,)
    eps: float = NORM_EPS

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (..., d) -> same shape."""
        return F.layer_norm(x, self.scale.shape, self.scale, self.bias, self.eps)


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """x @ matrix + bias."""

    matrix: Tensor  # (inputs, outputs)
    bias: Tensor  # (outputs,)

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (n, inputs) -> (n, outputs)."""
        return torch.addmm(self.bias, x, self.matrix)


def read_norm(weights: Weights, eps: float = NORM_EPS) -> Norm:
    """The LayerNorm at this scope."""
    return Norm(weights.take("weight"), weights.take("bias"), eps)


def read_linear(weights: Weights) -> Affine:
    """The linear layer at this scope, stored (out, in)."""
    return Affine(weights.take("weight").T.contiguous(), weights.take("bias"))


def read_convolution(weights: Weights) -> Affine:
    """The convolution at this scope, stored (out, in, k): an affine map of windows (k * in)."""
    return Affine(convolution_matrix(weights.take("weight")), weights.take("bias"))


def read_transposed_convolution(weights: Weights) -> Affine:
    """The transposed convolution of stride 1 at this scope, stored (in, out, k), its output cut to the input's length.

    out[s] = sum over j of W_j x[s - j]: a causal convolution with the taps in reverse order, oldest frame first.
    """
    taps = weights.take("weight").permute(2, 0, 1).flip(0)  # (k, in, out)
    return Affine(taps.flatten(0, 1).contiguous(), weights.take("bias"))


def convolution_matrix(weight: Tensor) -> Tensor:
    """(out, in, k) -> (k * in, out), oldest frame first as in `windows`."""
    return weight.permute(2, 1, 0).flatten(0, 1).contiguous()


def windows(x: Tensor, size: int, *, step: int = 1, start: int = 0) -> Tensor:
    """Windows of `size` frames, side by side in time order, which begin `step` apart from frame `start` on.

    `x` (items, n, d), the last two dimensions contiguous -> (items * ((n - start - size) // step + 1), size * d).
    """
    n_items, n_frames, width = x.shape
    shape = (n_items, (n_frames - start - size) // step + 1, size * width)
    strides = (x.stride(0), step * width, 1)  # neighbouring windows overlap in memory
    return x.as_strided(shape, strides, x.storage_offset() + start * width).reshape(-1, size * width)


class TransformerBlock:
    """Pre-norm block of multi-head attention and a GELU feed-forward; who attends to what is the caller's business.

    x <- x + out_proj(attention(norm x)); x <- x + fc2(gelu(fc1(norm x))).
    """

    def __init__(self, weights: Weights) -> None:
        attention = weights.scope("self_attn")
        parts = [attention.take(f"{part}_proj.weight") for part in "qkv"]  # (d, d) each
        query_bias, value_bias = attention.take("q_proj.bias"), attention.take("v_proj.bias")
        bias = torch.cat([query_bias, torch.zeros_like(query_bias), value_bias])  # keys have none
        self._heads = Affine(torch.cat(parts).T.contiguous(), bias)  # d -> 3d
        self._attention_out = read_linear(attention.scope("out_proj"))
        self._attention_norm = read_norm(weights.scope("self_attn_layer_norm"))
        self._norm = read_norm(weights.scope("final_layer_norm"))
        self._up = read_linear(weights.scope("fc1"))
        self._down = read_linear(weights.scope("fc2"))

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """`x` (n, d) -> (n, 3 * d): what attention takes."""
        return self._heads(self._attention_norm(x))

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block after attention: `x` (n, d), `mixed` values (n, d) -> (n, d)."""
        x = x + self._attention_out(mixed)
        return x + self._down(F.gelu(self._up(self._norm(x))))


def gelu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The exact (erf) GELU, into `out` if that is given."""
    # aten's own out form (torch 2.13, CPU, oneDNN) writes to the wrong places of an `out` with gaps.
    return F.gelu(x) if out is None else out.copy_(F.gelu(x))


def silu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The SiLU x * sigmoid(x), into `out` if that is given, which torch's functional form lacks."""
    return F.silu(x) if out is None else torch.ops.aten.silu.out(x, out=out)


def attention(heads: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention inside each item.

    `heads` (items, n, 3, H, D): queries, keys, values; `mask` (n, n) bool: row sees column -> (items * n, H * D).
    """
    queries, keys, values = heads.transpose(1, 3).unbind(2)  # (items, H, n, D) each
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)  # (items, H, n, D)
    return mixed.transpose(1, 2).reshape(-1, heads.shape[3] * heads.shape[4])
