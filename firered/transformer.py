"""The Qwen2 decoder blocks of FireRedTTS-2 (backbone and depth decoder), over a key-value cache with fixed slots.

The residual stream has the compute dtype; RMSNorm works in fp32 inside, RoPE tables and rotation are fp32. Three exact
rewritings against the textbook block: the scale of each norm is folded into the matrix that follows it, q/k/v and
gate/up are one matrix each, and the query heads that share a key head stand in the row dimension of the attention, so
that grouped keys are never copied out to all heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from firered.matrix import Matrix, matrix

if TYPE_CHECKING:
    from firered.checkpoint import Weights
    from firered.config import StackConfig


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Weights of one decoder block; H query heads, K key heads, D head width, d width, f feed-forward width.

    Matrices are (inputs, outputs), so that `x @ matrix` needs no transpose.
    """

    qkv: Tensor  # (d, (H + 2K) * D)
    qkv_bias: Tensor  # ((H + 2K) * D,)
    attention_out: Tensor  # (H * D, d)
    gate_up: Matrix  # (d, 2f)
    down: Matrix  # (f, d)


@dataclass(frozen=True, slots=True, eq=False)
class LayerCache:
    """Views of one layer's keys and values, made once for all frames: a view costs as much as a small kernel."""

    layer: Tensor  # (S, 2, K, capacity, D)
    keys: Tensor  # (B, K, end, D) what is read: the first `end` rows of the slots 0..B-1
    values: Tensor  # (B, K, end, D)
    new: Tensor  # (B, 2, K, end - start, D) what is written, when all slots write the same rows


class Transformer:
    """A stack of decoder blocks. Its output is the normed hidden state *without* the final norm's scale.

    `final_scale` (d,) float32 belongs into the matrices that read the output (see `absorb_scale`).
    """

    def __init__(self, config: StackConfig, weights: Weights, n_positions: int, *, int8: bool = False) -> None:
        self.config = config
        self.final_scale = weights.take("norm.scale", dtype=torch.float32)
        self.blocks = [_block(weights.scope(f"layers.{n}"), int8) for n in range(config.n_layers)]
        self._cos, self._sin = _rope_tables(config, n_positions, self.final_scale.device)

    def new_cache(self, n_slots: int, capacity: int, dtype: torch.dtype) -> Tensor:
        """Keys and values of n_slots sequences: (layers, slots, 2, K, capacity, D), zeros."""
        c = self.config
        shape = (c.n_layers, n_slots, 2, c.n_kv_heads, capacity, c.head_width)
        return torch.zeros(shape, dtype=dtype, device=self.final_scale.device)

    @staticmethod
    def views(cache: Tensor, n_batch: int, start: int, end: int) -> list[LayerCache]:
        """Each layer's views for slots 0..n_batch-1 that read the rows 0..end-1 and write start..end-1."""
        return [
            LayerCache(
                layer=layer,
                keys=layer[:n_batch, 0, :, :end],
                values=layer[:n_batch, 1, :, :end],
                new=layer[:n_batch, :, :, start:end],
            )
            for layer in cache
        ]

    def append(self, x: Tensor, views: list[LayerCache], start: int) -> Tensor:
        """Appends n rows, all from row `start` on, to each of B slots, causally.

        `x` (B, n, d), `views` for rows `start` to start + n - 1 -> (B, n, d).
        """
        n_batch, n, width = x.shape
        end = start + n
        cos, sin = self._cos[start:end], self._sin[start:end]  # (n, H + 2K, D)
        mask = None if n == 1 else self._causal_mask(start, end)
        x = x.reshape(n_batch * n, width)
        for block, kv in zip(self.blocks, views, strict=True):
            heads = self._heads(block, x, (n_batch, n), cos, sin)  # (B, n, H + 2K, D)
            kv.new.copy_(self._keys_values(heads).permute(0, 2, 3, 1, 4))  # (B, 2, K, n, D)
            x = self._finish(block, x, self._attend(heads, kv, mask))
        return rms_norm(x, self.config.norm_eps).view(n_batch, n, width)

    def step(self, x: Tensor, views: list[LayerCache], positions: Tensor, mask: Tensor) -> Tensor:
        """Appends one row to each of the slots 0..B-1, each at its own position. Static shapes: a graph can hold it.

        `x` (B, d), `views` of the first n rows, `positions` (B,) int64, `mask` (B, 1, 1, n) bool: which of those rows a
        slot sees, its own included -> (B, d).
        """
        n_batch = len(x)
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]  # (B, 1, H + 2K, D)
        slots = torch.arange(n_batch, device=x.device)
        for block, kv in zip(self.blocks, views, strict=True):
            heads = self._heads(block, x, (n_batch, 1), cos, sin)  # (B, 1, H + 2K, D)
            kv.layer[slots, :, :, positions] = self._keys_values(heads)[:, 0]  # (B, 2, K, D)
            x = self._finish(block, x, self._attend(heads, kv, mask))
        return rms_norm(x, self.config.norm_eps)

    def _heads(self, block: Block, x: Tensor, rows: tuple[int, int], cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated queries and keys, and values: (B * n, d) -> (B, n, H + 2K, D) in the dtype of x."""
        y = torch.addmm(block.qkv_bias, rms_norm(x, self.config.norm_eps), block.qkv)
        y = y.view(*rows, -1, self.config.head_width)
        rotated = torch.addcmul(y * cos, y.roll(self.config.head_width // 2, -1), sin)  # float32
        return rotated if rotated.dtype == x.dtype else rotated.to(x.dtype)

    def _keys_values(self, heads: Tensor) -> Tensor:
        """(B, n, H + 2K, D) -> (B, n, 2, K, D): keys, then values."""
        n_batch, n, _, width = heads.shape
        return heads[:, :, self.config.n_heads :].view(n_batch, n, 2, self.config.n_kv_heads, width)

    def _attend(self, heads: Tensor, kv: LayerCache, mask: Tensor | None) -> Tensor:
        """Grouped-query attention. `heads` (B, n, H + 2K, D) -> (B * n, H * D).

        Query head h reads key head h // G, G = H / K. The G heads of a group become G * n query rows.
        """
        n_batch, n, _, width = heads.shape
        groups = self.config.n_kv_heads, self.config.n_heads // self.config.n_kv_heads
        queries = heads[:, :, : self.config.n_heads].view(n_batch, n, *groups, width)  # (B, n, K, G, D)
        if n == 1:
            mixed = F.scaled_dot_product_attention(queries[:, 0], kv.keys, kv.values, attn_mask=mask)  # (B, K, G, D)
            return mixed.reshape(n_batch, -1)
        rows = queries.permute(0, 2, 3, 1, 4).flatten(2, 3)  # (B, K, G * n, D)
        mixed = F.scaled_dot_product_attention(rows, kv.keys, kv.values, attn_mask=mask)  # (B, K, G * n, D)
        mixed = mixed.view(n_batch, *groups, n, width).permute(0, 3, 1, 2, 4)  # (B, n, K, G, D)
        return mixed.reshape(n_batch * n, -1)

    def _finish(self, block: Block, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of a block after attention: both residual adds and the gated feed-forward. (B * n, d) -> same."""
        x = torch.addmm(x, mixed, block.attention_out)
        gate, up = block.gate_up(rms_norm(x, self.config.norm_eps)).chunk(2, -1)  # each (B * n, f)
        return block.down.add_to(x, F.silu(gate) * up)

    def _causal_mask(self, start: int, end: int) -> Tensor:
        """Rows start..end-1 see all rows up to themselves: (G * n, end) bool, the groups one below the other."""
        n_group = self.config.n_heads // self.config.n_kv_heads
        mask = torch.ones(end - start, end, dtype=torch.bool, device=self._cos.device).tril(start)  # (n, end)
        return mask.repeat(n_group, 1)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Gives x / sqrt(mean(x^2) + eps) over the last dimension, in fp32 inside; the scale lives in the next matrix."""
    if x.is_cuda or x.dtype != torch.float32:
        return F.rms_norm(x, x.shape[-1:], eps=eps)  # on a card one kernel
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)  # the same; on a CPU faster than the call


def absorb_scale(scale: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Folds the scale (d,) of a norm into the `weight` (outputs, d) that follows: -> (d, outputs) in `dtype`.

    Both are float32, so that the product is rounded once.
    """
    return (weight * scale).T.to(dtype).contiguous()


def _block(weights: Weights, int8: bool) -> Block:
    """Reads a block; keys as in the official checkpoint: w1 is the gate, w3 the up and w2 the down projection."""
    dtype = weights.dtype
    qkv = torch.cat([weights.take(f"attn.{part}_proj.weight", dtype=torch.float32) for part in "qkv"])
    gate_up = torch.cat([weights.take(f"mlp.{part}.weight", dtype=torch.float32) for part in ("w1", "w3")])
    attention_scale = weights.take("sa_norm.scale", dtype=torch.float32)
    mlp_scale = weights.take("mlp_norm.scale", dtype=torch.float32)
    return Block(
        qkv=absorb_scale(attention_scale, qkv, dtype),
        qkv_bias=torch.cat([weights.take(f"attn.{part}_proj.bias") for part in "qkv"]),
        attention_out=weights.take("attn.output_proj.weight").T.contiguous(),
        gate_up=matrix(absorb_scale(mlp_scale, gate_up, dtype), int8),
        down=matrix(weights.take("mlp.w2.weight").T.contiguous(), int8),
    )


def _rope_tables(config: StackConfig, n_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary position embedding for all heads: two of (n_positions, H + 2K, D) float32.

    "Half rotation": x' = x cos + (-x[D/2:], x[:D/2]) sin, angle = position * base^(-2j/D). The minus sign is kept in
    the sine table; value heads have cosine 1 and sine 0, so that one multiply-add serves the fused projection.
    """
    half = config.head_width // 2
    frequencies = config.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)  # (D/2,)
    angles = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies  # (positions, D/2)
    cos = torch.cat([angles.cos(), angles.cos()], -1)[:, None]  # (positions, 1, D)
    sin = torch.cat([-angles.sin(), angles.sin()], -1)[:, None]
    n_rotated, n_plain = config.n_heads + config.n_kv_heads, config.n_kv_heads
    cos = torch.cat([cos.expand(-1, n_rotated, -1), torch.ones_like(cos).expand(-1, n_plain, -1)], 1)
    sin = torch.cat([sin.expand(-1, n_rotated, -1), torch.zeros_like(sin).expand(-1, n_plain, -1)], 1)
    return cos.float().to(device), sin.float().to(device)
