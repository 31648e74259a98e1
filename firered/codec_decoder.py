"""Codes to 24 kHz audio: latents, upsampling to 100 Hz, a causal transformer, inverse STFT.

`decode` takes a whole utterance; `step` takes one token (80 ms) of many streams at once and gives the same audio. Three
exact rewritings against the published graph: codebooks and their output projections are one table; the upsampling by 4
and the first of the two transposed convolutions, with nothing but linear maps between them, are one matrix; transposed
and plain convolutions are products with windows of past frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from firered.codec_blocks import (
    Affine,
    Norm,
    TransformerBlock,
    gelu,
    read_convolution,
    read_linear,
    read_norm,
    read_transposed_convolution,
    silu,
)
from firered.codec_context import Context, OneToken, WholeUtterance
from firered.codec_state import HISTORY, DecoderState, StateShape
from firered.errors import InputError
from firered.istft import InverseStft
from firered.quantizer import latent_table

if TYPE_CHECKING:
    from firered.checkpoint import Weights
    from firered.config import CodecConfig

__all__ = ["CodecDecoder", "DecoderState"]

# Stride of the first transposed convolution: 50 Hz latents to 100 Hz frames (fact: not in the config).
_FRAMES_PER_LATENT = 2
# Residual blocks before and after the transformer (fact: keys prior_net.0, .1 and post_net.0, .1).
_BLOCKS_PER_NET = 2
# The decoder's last norm has an epsilon of its own (fact).
_FINAL_NORM_EPS = 1e-6
_NARROW, _WIDE = 3, HISTORY + 1  # kernels of the causal convolutions (fact: shapes of their weights)


class CodecDecoder:
    """Decodes codes (16 a token) into float32 samples, 1920 a token at full size. Device and dtype are the weights'."""

    def __init__(self, config: CodecConfig, weights: Weights) -> None:
        decoder = weights.scope("acoustic_decoder")
        backbone = decoder.scope("backbone")
        self._rvq = config.rvq
        self._n_frames = config.upsample.factor * _FRAMES_PER_LATENT  # decoder frames of a token: 8
        if self._n_frames < HISTORY:
            raise ValueError(f"a token must be at least {HISTORY} decoder frames, not {self._n_frames}")
        self._dtype, self._device = weights.dtype, weights.device
        self._table = latent_table(config.rvq, weights.scope("rvq"))  # (codebooks * size, width)
        self._offsets = torch.arange(config.rvq.n_quantizers, device=self._device) * config.rvq.codebook_size
        self._expand = _read_expansion(weights.scope("upsample"), decoder.scope("upsample_conv.0"))
        self._smooth = read_transposed_convolution(decoder.scope("upsample_conv.2"))
        self._in = read_convolution(backbone.scope("in_proj"))
        self._prior, self._post = _read_net(backbone.scope("prior_net")), _read_net(backbone.scope("post_net"))
        n_layers = config.acoustic_decoder.n_layers
        self._blocks = [TransformerBlock(backbone.scope(f"transformers.{n}")) for n in range(n_layers)]
        self._final_norm = read_norm(backbone.scope("final_norm"), _FINAL_NORM_EPS)
        self._head = read_linear(decoder.scope("isift.out"))  # "isift" is the file's spelling
        self._istft = InverseStft(decoder.take("isift.istft.window", dtype=torch.float32), self._n_frames)
        self._state_shape = StateShape(
            n_layers=n_layers,
            n_heads=config.acoustic_decoder.n_heads,
            width=config.acoustic_decoder.width,
            n_convolutions=2 + len(self._prior) + len(self._post),
            n_frames=self._n_frames,
            n_fft=self._istft.n_fft,
        )

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """`codes` (n, codebooks) -> samples (1920 * n,). Raises InputError for codes that no codebook has."""
        codes = self._checked(codes)
        if len(codes) == 0:
            return torch.zeros(0, device=codes.device)
        context = WholeUtterance(len(codes), self._n_frames, self._state_shape.n_heads, codes.device)
        head, _ = self._run(codes, context)
        return self._istft.whole(self._istft.frames(head))

    def new_state(self, n_slots: int, max_tokens: int, kv_dtype: torch.dtype) -> DecoderState:
        """Room for `n_slots` streams of up to `max_tokens` tokens each, on the decoder's device."""
        return DecoderState(
            self._state_shape, n_slots, max_tokens, dtype=self._dtype, kv_dtype=kv_dtype, device=self._device
        )

    @torch.inference_mode()
    def step(self, codes: Tensor, state: DecoderState, active: Tensor, n_kv_tokens: int) -> Tensor:
        """Decodes the next token of each active slot among 0..B-1, at the slot's own position.

        `codes` (B, codebooks) int in 0..size-1, unchecked; `active` (B,) bool: the others' state is left as it is and
        their output means nothing; `n_kv_tokens` must exceed every active slot's position.
        -> (B, 1920 + 360) float32: the samples of this token, which lag 360 behind its frames (drop the first 360 of a
        stream's first token), then the 360 that follow if the stream ends here.

        Static shapes, no allocation that outlives the call, no synchronisation: a CUDA graph can hold it.
        """
        n_batch = len(active)
        head, expanded = self._run(codes, OneToken(state, active, n_kv_tokens))
        new = self._istft.frames(head).view(n_batch, self._n_frames, -1)  # (B, 8, n_fft)
        is_first = state.position[:n_batch, None] == 0  # (B, 1)
        samples, last = self._istft.step(state.spectral[:n_batch], new, is_first)
        state.advance(active, expanded[:, -1], last)
        return samples

    def _run(self, codes: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The network.

        `codes` (tokens, codebooks) -> head (tokens * 8, n_fft + 2), expanded tokens (tokens, 8 + 1, d).
        """
        latents = F.embedding(codes + self._offsets, self._table).sum(1, dtype=torch.float32)  # (tokens, d)
        expanded = self._expand(latents.to(self._dtype)).view(len(codes), self._n_frames + 1, -1)
        x = self._smooth(context.windows(0, _NARROW, gelu, context.join(expanded)))  # (n, d), n = tokens * 8
        x = self._in(context.windows(1, _WIDE, gelu, x))
        x = _apply_net(self._prior, 2, x, context)
        for layer, block in enumerate(self._blocks):
            x = block.finish(x, context.attend(layer, block.queries_keys_values(x)))
        x = _apply_net(self._post, 2 + len(self._prior), x, context)
        return self._head(self._final_norm(x)), expanded

    def _checked(self, codes: Tensor) -> Tensor:
        """The codes on the decoder's device, if they are codes of this codec."""
        n_codebooks, size = self._rvq.n_quantizers, self._rvq.codebook_size
        if codes.ndim != 2 or codes.shape[1] != n_codebooks or codes.is_floating_point():
            raise InputError(
                f"Codes must be integers of shape (tokens, {n_codebooks}), not {tuple(codes.shape)} {codes.dtype}."
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise InputError(f"Codes must be 0..{size - 1}; these reach from {int(codes.min())} to {int(codes.max())}.")
        return codes.to(self._device, torch.int64)


def _apply_net(net: list[tuple[Norm, Affine]], first: int, x: Tensor, context: Context) -> Tensor:
    """Causal residual blocks, each x + conv(silu(norm(conv(silu(norm x))))): `x` (n, d) -> (n, d).

    `net` holds two layers a block; `first` is the number of its first convolution in the state.
    """
    for start in range(0, len(net), 2):
        y = x
        for index in (start, start + 1):
            norm, convolution = net[index]
            y = convolution(context.windows(first + index, _NARROW, silu, norm(y)))
        x = x + y
    return x


def _read_net(weights: Weights) -> list[tuple[Norm, Affine]]:
    """Norm and convolution of the two layers of each residual block at this scope."""
    layers = []
    for block in range(_BLOCKS_PER_NET):
        for norm, convolution in (("block1.1", "block1.4"), ("block2.1", "block2.5")):
            scope = weights.scope(str(block))
            layers.append((read_norm(scope.scope(norm)), read_convolution(scope.scope(convolution))))
    return layers


def _read_expansion(upsample: Weights, convolution: Weights) -> Affine:
    """Latent to the 8 frames of its token, before the activation, and to its part in the next token's first frame.

    Upsampling gives x_0..x_3 = U_k (A latent + a). The transposed convolution of kernel 3 and stride 2 gives frames
    h_2k = W_0 x_k + W_2 x_(k-1) + b and h_(2k+1) = W_1 x_k + b. Folded in float64 into d -> (8 + 1) * d, whose last
    part is W_2 x_3. A bias is the last row of its matrix until the end.
    """
    inward = torch.cat([_double(upsample, "in_proj.weight").T, _double(upsample, "in_proj.bias")[None]])  # (d + 1, 4d)
    latents = [inward @ matrix for matrix in _double(upsample, "up_conv.weight").unbind(2)]  # x_k: (d + 1, d) each
    here, between, next_one = _double(convolution, "weight").unbind(2)  # W_0, W_1, W_2: (in, out) each
    parts = []
    past = torch.zeros_like(latents[0])
    for latent in latents:
        parts += [latent @ here + past, latent @ between]
        past = latent @ next_one
    folded = torch.cat([*parts, past], 1)  # (d + 1, (8 + 1) * d)
    bias = _double(convolution, "bias")
    folded[-1] += torch.cat([bias.repeat(len(parts)), torch.zeros_like(bias)])
    return Affine(folded[:-1].to(upsample.dtype), folded[-1].to(upsample.dtype))


def _double(weights: Weights, key: str) -> Tensor:
    return weights.take(key, dtype=torch.float64)
