"""What the streaming codec decoder remembers of each stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firered.istft import N_PAST

# Past inputs kept for each causal convolution: the widest has a kernel of 7 (fact: shape of backbone.in_proj), the
# others of 3 use the last two of them. One length for all makes their update one operation.
HISTORY = 6


@dataclass(frozen=True, slots=True)
class StateShape:
    """Sizes that follow from the decoder."""

    n_layers: int
    n_heads: int
    width: int
    n_convolutions: int
    n_frames: int  # decoder frames of one token: 8
    n_fft: int


class DecoderState:
    """Fixed tensors for `n_slots` streams, updated in place and never allocated again; slot s is entry s of each.

    position (slots,) int64: tokens decoded so far.
    carry (slots, d): effect of the last token on the next one's first frame.
    inputs (convolutions, slots, 6 + 8, d): last inputs of each causal convolution, then room for a token's own.
    kv (layers, slots, 2, H, 8 * (max_tokens + 1), D): keys and values; idle slots of a batch write to the token behind
    the last one.
    spectral (slots, 3, n_fft) float32: the last windowed inverse transforms.
    """

    def __init__(
        self,
        shape: StateShape,
        n_slots: int,
        max_tokens: int,
        *,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape = shape
        self.max_tokens = max_tokens
        n, width = shape.n_frames, shape.width
        self.position = torch.zeros(n_slots, dtype=torch.int64, device=device)
        self.carry = torch.zeros(n_slots, width, dtype=dtype, device=device)
        self.inputs = torch.zeros(shape.n_convolutions, n_slots, HISTORY + n, width, dtype=dtype, device=device)
        kv_shape = (shape.n_layers, n_slots, 2, shape.n_heads, n * (max_tokens + 1), width // shape.n_heads)
        self.kv = torch.zeros(kv_shape, dtype=kv_dtype, device=device)
        self.spectral = torch.zeros(n_slots, N_PAST, shape.n_fft, device=device)

        # Constants of a step, on the device so that no step has to send them there.
        self.slots = torch.arange(n_slots, device=device)[:, None]  # (slots, 1)
        self.idle_position = torch.tensor(max_tokens, device=device)
        self.frames_of_token = torch.arange(n * (max_tokens + 1), device=device).view(-1, n)  # (max_tokens + 1, 8)
        self.visible, self.hidden = torch.tensor([0.0, -torch.inf], dtype=kv_dtype, device=device)

    @torch.inference_mode()
    def reset(self, slot: int) -> None:
        """Makes `slot` ready for a new stream.

        Keys and values are cleared although the mask hides them: a hidden NaN, say from an overflow in 16 bits, would
        still spoil every later stream of the slot.
        """
        for part in (self.position, self.carry, self.spectral):
            part[slot].zero_()
        self.inputs[:, slot].zero_()
        self.kv[:, slot].zero_()

    @torch.inference_mode()
    def move(self, source: int, target: int, n_tokens: int | None = None) -> None:
        """Copies the stream of slot `source` to slot `target`; `source` stays as it is.

        `n_tokens` is the stream's position where the caller knows it: then only so many keys and values are copied, the
        rest cleared (see `reset`).
        """
        for part in (self.position, self.carry, self.spectral):
            part[target].copy_(part[source])
        self.inputs[:, target].copy_(self.inputs[:, source])
        n_frames = self.shape.n_frames * (self.max_tokens if n_tokens is None else n_tokens)
        self.kv[:, target, :, :, :n_frames].copy_(self.kv[:, source, :, :, :n_frames])
        self.kv[:, target, :, :, n_frames:].zero_()

    def advance(self, active: Tensor, carry: Tensor, spectral: Tensor) -> None:
        """Takes over a token of the active slots: `active` (B,) bool, `carry` (B, d), `spectral` (B, 3, n_fft).

        The inputs of the convolutions lie in the buffers already.
        """
        n_batch, n = len(active), self.shape.n_frames
        inputs = self.inputs[:, :n_batch]
        by_row, by_frame = active[:, None], active[:, None, None]  # (B, 1), (B, 1, 1)
        _overwrite(self.carry[:n_batch], by_row, carry)
        _overwrite(inputs[:, :, :HISTORY], by_frame, inputs[:, :, n:])
        _overwrite(self.spectral[:n_batch], by_frame, spectral)
        self.position[:n_batch].add_(active)


def _overwrite(old: Tensor, where: Tensor, new: Tensor) -> None:
    torch.where(where, new, old, out=old)
