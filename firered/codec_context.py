"""How the layers of the codec decoder reach frames of the past: in the utterance itself, or in a state.

The layers ask a context for three things: the effect of the token before (`join`), the frames before a convolution's
(`windows`), the keys and values before (`attend`). Streaming and full decode differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from firered import codec_blocks
from firered.codec_state import HISTORY, DecoderState

# An activation, with the tensor it may write to as the keyword `out`: `gelu` or `silu` of codec_blocks.
Activation = Callable[..., Tensor]


class Context(Protocol):
    """The past of the frames that the layers work on; n = all frames of the call, in rows."""

    def join(self, expanded: Tensor) -> Tensor:
        """Adds what each token does to the next one's first frame: (tokens, 8 + 1, d) -> (tokens, 8, d)."""

    def windows(self, convolution: int, size: int, activation: Activation, x: Tensor) -> Tensor:
        """Each frame of activation(x) and the size - 1 before it, side by side: (n, d) -> (n, size * d).

        `x` may come as (tokens, 8, d); `convolution` says whose inputs these are.
        """

    def attend(self, layer: int, heads: Tensor) -> Tensor:
        """Attention to all earlier frames and to those of the own token: (n, 3 * d) -> (n, d)."""


class WholeUtterance:
    """All tokens of one stream at once; before the first there is nothing."""

    def __init__(self, n_tokens: int, n_frames: int, n_heads: int, device: torch.device) -> None:
        self._n_heads = n_heads
        token = torch.arange(n_tokens * n_frames, device=device) // n_frames  # (n,): the token of each frame
        self._mask = token[:, None] >= token  # (n, n)

    def join(self, expanded: Tensor) -> Tensor:
        """See Context."""
        frames = expanded[:, :-1].clone()  # (tokens, 8, d)
        frames[1:, 0] += expanded[:-1, -1]
        return frames

    def windows(self, convolution: int, size: int, activation: Activation, x: Tensor) -> Tensor:
        """See Context. What is missing before the first frame is zero *after* the activation."""
        rows = activation(x).reshape(1, -1, x.shape[-1])  # (1, n, d)
        return codec_blocks.windows(F.pad(rows, (0, 0, size - 1, 0)), size)

    def attend(self, layer: int, heads: Tensor) -> Tensor:
        """See Context."""
        return codec_blocks.attention(heads.view(1, len(heads), 3, self._n_heads, -1), self._mask)


class OneToken:
    """The next token of the slots 0..B-1 of a state, each at its own position.

    All views of the state are made here, for all layers at once: without a CUDA graph each would cost a call per layer.
    """

    def __init__(self, state: DecoderState, active: Tensor, n_kv_tokens: int) -> None:
        """`active` (B,) bool; `n_kv_tokens` bounds the positions of the active slots, the new token included."""
        n_batch, n = len(active), state.shape.n_frames
        self._heads_shape = (n_batch, n, 3, state.shape.n_heads, state.shape.width // state.shape.n_heads)
        self._carry = state.carry[:n_batch]  # (B, d)
        inputs = state.inputs[:, :n_batch]
        self._inputs, self._room = inputs.unbind(), inputs[:, :, HISTORY:].unbind()  # (B, 6 + 8, d), (B, 8, d) each

        # The 8 frames of a token see the same frames: all up to the last of their own. The mask is added to the scores.
        position = torch.where(active, state.position[:n_batch], state.idle_position)  # (B,)
        self._slots = state.slots[:n_batch]  # (B, 1)
        self._own_frames = state.frames_of_token[position]  # (B, 8)
        frames = state.frames_of_token[:n_kv_tokens].view(-1)  # (keys,)
        sees = frames <= self._own_frames[:, -1:]  # (B, keys)
        self._mask = torch.where(sees, state.visible, state.hidden)[:, None, None]  # (B, 1, 1, keys)

        by_frame = state.kv.permute(0, 1, 4, 2, 3, 5)  # (layers, slots, frames, 2, H, D)
        self._by_frame = by_frame.unbind()
        prefix = state.kv[:, :n_batch, :, :, : len(frames)]  # (layers, B, 2, H, keys, D)
        self._keys, self._values = prefix[:, :, 0].unbind(), prefix[:, :, 1].unbind()  # (B, H, keys, D) each

    def join(self, expanded: Tensor) -> Tensor:
        """See Context; one token of each slot. Works in place."""
        expanded[:, 0].add_(self._carry)
        return expanded[:, :-1]

    def windows(self, convolution: int, size: int, activation: Activation, x: Tensor) -> Tensor:
        """See Context. The activation writes into the state, behind the stream's last inputs."""
        room = self._room[convolution]
        activation(x.view(room.shape), out=room)
        return codec_blocks.windows(self._inputs[convolution], size, start=HISTORY - size + 1)

    def attend(self, layer: int, heads: Tensor) -> Tensor:
        """See Context. Keys and values go into the state first; queries take on their dtype for the attention."""
        parts = heads.view(self._heads_shape).to(self._mask.dtype)  # (B, 8, 3, H, D)
        self._by_frame[layer].index_put_((self._slots, self._own_frames), parts[:, :, 1:])
        queries = parts[:, :, 0].transpose(1, 2)  # (B, H, 8, D)
        mixed = F.scaled_dot_product_attention(queries, self._keys[layer], self._values[layer], attn_mask=self._mask)
        return mixed.transpose(1, 2).reshape(len(heads), -1).to(heads.dtype)  # (B * 8, d)
