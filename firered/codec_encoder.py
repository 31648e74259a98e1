"""Voice audio to codes: two Whisper-shaped encoders over 6 s chunks, down to 12.5 Hz, residual quantization.

It runs once per voice, so it is written for clarity; device and dtype are those of its weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from firered.codec_blocks import (
    TransformerBlock,
    attention,
    convolution_matrix,
    read_convolution,
    read_linear,
    read_norm,
    windows,
)
from firered.errors import InputError
from firered.mel import LogMel
from firered.quantizer import ResidualQuantizer

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from firered.checkpoint import Weights
    from firered.config import AdaptorConfig, CodecConfig, DownsampleConfig, EncoderConfig

# The codec was trained on, and splits audio into, independent chunks of 6 s.
_CHUNK_S = 6
# The stride of an encoder's second convolution.
_CONV_STRIDE = 2
# Chunks encoded together: bounds the activations of the largest encoder to about 100 MB in fp32.
_CHUNKS_AT_ONCE = 4
# Full scale is 1: resampling overshoots it a little, integers taken for floats by far more than this.
_PEAK_LIMIT = 10.0


class CodecEncoder:
    """Encodes mono audio at the rate of `config.mel` (16 kHz) into codes at 12.5 Hz."""

    def __init__(self, config: CodecConfig, weights: Weights) -> None:
        self._ssl = _SpectrogramEncoder(config.ssl, weights.scope("ssl"))
        self._adaptor = _Adaptor(config.ssl_adaptor, weights.scope("ssl_adaptor"))
        self._acoustic = _SpectrogramEncoder(config.acoustic_encoder, weights.scope("acoustic_encoder"))
        self._downsample = _Downsample(config.downsample, weights.scope("downsample"))
        self._quantizer = ResidualQuantizer(config.rvq, weights.scope("rvq"))
        self._device = weights.device
        self._mel = LogMel(config.mel, self._device)
        self._chunk_samples = _CHUNK_S * config.mel.sample_rate
        self._token_samples = config.mel.hop_length * _CONV_STRIDE * config.downsample.factor  # 1280

    @torch.inference_mode()
    def encode(self, audio: NDArray[np.floating[Any]] | Tensor) -> Tensor:
        """`audio` (samples,), floats of full scale 1 -> codes (ceil(samples / 1280), codebooks) int64 on this device.

        Raises InputError for audio that is empty, not one channel of floats, not finite, or far beyond full scale.
        """
        samples = _checked(audio).to(self._device, torch.float32)
        n_tokens = -(-len(samples) // self._token_samples)
        padded = F.pad(samples, (0, -len(samples) % self._chunk_samples))
        chunks = padded.view(-1, self._chunk_samples)  # (chunks, samples of a chunk)
        codes = torch.cat([self._encode_chunks(some) for some in torch.split(chunks, _CHUNKS_AT_ONCE)])
        return codes[:n_tokens]

    def _encode_chunks(self, chunks: Tensor) -> Tensor:
        """(items, samples of a chunk) -> codes (items * tokens of a chunk, codebooks)."""
        mel = self._mel(chunks)  # (items, 600, mels)
        semantic = self._adaptor(self._ssl(mel))  # (items, 300, width)
        acoustic = self._acoustic(mel)  # (items, 300, width)
        features = torch.cat([semantic, acoustic], -1)  # (items, 300, 2 * width)
        return self._quantizer(self._downsample(features))


class _SpectrogramEncoder:
    """Whisper's audio encoder: 100 Hz mel frames to 50 Hz features; each frame sees the whole chunk."""

    def __init__(self, config: EncoderConfig, weights: Weights) -> None:
        self._n_heads = config.n_heads
        self._convolutions = [read_convolution(weights.scope(f"conv{n}")) for n in (1, 2)]
        self._positions = weights.take("embed_positions.weight")  # (max positions, d)
        self._blocks = _read_blocks(weights, config.n_layers)
        self._norm = read_norm(weights.scope("layer_norm"))

    def __call__(self, mel: Tensor) -> Tensor:
        """`mel` (items, n, mels) float32 -> (items, ceil(n / 2), d)."""
        x = mel.to(self._positions.dtype)
        for convolution, stride in zip(self._convolutions, (1, _CONV_STRIDE), strict=True):
            surrounded = F.pad(x, (0, 0, 1, 1))  # (items, n + 2, channels): kernels are 3 wide
            frames = F.gelu(convolution(windows(surrounded, 3, step=stride)))  # (items * n / stride, d)
            x = frames.view(len(mel), -1, frames.shape[1])
        x = x + self._positions[: x.shape[1]]
        return self._norm(_transform(self._blocks, self._n_heads, x))


class _Adaptor:
    """Linear layer, transformer blocks without positions, norm, linear layer."""

    def __init__(self, config: AdaptorConfig, weights: Weights) -> None:
        self._n_heads = config.n_heads
        self._in = read_linear(weights.scope("in_proj"))
        self._blocks = _read_blocks(weights, config.n_layers)
        self._norm = read_norm(weights.scope("layer_norm"))
        self._out = read_linear(weights.scope("out_proj"))

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (items, n, in width) -> (items, n, out width)."""
        inner = self._in(x.flatten(0, 1)).view(*x.shape[:2], -1)  # (items, n, d)
        inner = _transform(self._blocks, self._n_heads, inner)
        return self._out(self._norm(inner).flatten(0, 1)).view(*x.shape[:2], -1)


class _Downsample:
    """Gated feed-forward over `factor` frames at a time, with those frames side by side as the residual."""

    def __init__(self, config: DownsampleConfig, weights: Weights) -> None:
        self._factor = config.factor
        self._gate = convolution_matrix(weights.take("gate_proj.weight"))  # (factor * width, inner width)
        self._up = convolution_matrix(weights.take("up_proj.weight"))
        self._down = weights.take("down_proj.weight").T.contiguous()  # (inner width, inner width)
        self._norm = read_norm(weights.scope("layer_norm"))
        self._out = read_linear(weights.scope("out_proj"))

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (items, n, width) -> (items * n / factor, width)."""
        frames = windows(x, self._factor, step=self._factor)  # (items * n / factor, inner width), frames in time order
        gated = F.silu(frames @ self._gate) * (frames @ self._up)  # (items * n / factor, inner width)
        return self._out(self._norm(torch.addmm(frames, gated, self._down)))


def _read_blocks(weights: Weights, n_layers: int) -> list[TransformerBlock]:
    return [TransformerBlock(weights.scope(f"layers.{n}")) for n in range(n_layers)]


def _transform(blocks: list[TransformerBlock], n_heads: int, x: Tensor) -> Tensor:
    """The blocks with full attention inside each item: `x` (items, n, d) -> same shape."""
    rows = x.flatten(0, 1)  # (items * n, d)
    for block in blocks:
        heads = block.queries_keys_values(rows).view(*x.shape[:2], 3, n_heads, -1)  # (items, n, 3, H, D)
        rows = block.finish(rows, attention(heads))
    return rows.view_as(x)


def _checked(audio: NDArray[np.floating[Any]] | Tensor) -> Tensor:
    """The audio as a tensor, if it is what `encode` takes."""
    # A copy, as torch takes neither read-only nor reversed arrays.
    samples = audio if isinstance(audio, Tensor) else torch.from_numpy(np.array(audio, order="C"))
    if samples.ndim != 1:
        raise InputError(
            f"Voice audio must be one channel, a flat array of samples; its shape is {tuple(samples.shape)}."
        )
    if not samples.is_floating_point():
        raise InputError(f"Voice audio must be floats between -1 and 1; its type is {samples.dtype}.")
    if len(samples) == 0:
        raise InputError("Voice audio is empty.")
    if not samples.isfinite().all():
        raise InputError("Voice audio holds samples that are not finite numbers.")
    peak = float(samples.abs().amax())
    if peak > _PEAK_LIMIT:
        raise InputError(f"Voice audio must be floats between -1 and 1; its peak is {peak:.4g}.")
    return samples
