"""Random weights of any shape, drawn where and when they are taken.

What a step costs does not depend on the values, so full-size random weights time a device honestly. The spreads keep
the activations of every layer near 1, and nothing is left at a value that would hide an error (a bias of 0, a scale
of 1).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from firered.checkpoint import Weights
from firered.key_table import Form, Shape, as_stored
from firered.tensor_files import TensorSource

# Drawn at a time, in fp32 whatever the result's type: 64 MB, and the same values in every type but for rounding.
_PIECE = 1 << 24


class RandomTensors(TensorSource):
    """Tensors that follow from `seed` and their own names, on the device they are wanted on.

    The same on every machine with the same kind of device and the same torch; a CPU and a GPU draw differently.
    """

    def __init__(self, shapes: Mapping[str, Shape], device: torch.device | str, dtype: torch.dtype, seed: int) -> None:
        super().__init__(Path(f"random weights {seed}"), shapes, not_floating={}, metadata={})
        self._device = torch.device(device)
        self._dtype = dtype
        self._seed = seed

    def read(self, key: str) -> Tensor:
        """A fresh tensor with the values of `key`."""
        shape = self.shapes[key]
        if key.endswith("istft.window"):  # any other window would let the overlap-add divide by nearly 0
            return torch.hann_window(shape[0], device=self._device).to(self._dtype)
        if key.endswith(".inited"):
            return torch.ones(shape, dtype=torch.bool, device=self._device)
        values = torch.empty(math.prod(shape), dtype=self._dtype, device=self._device)
        random = torch.Generator(self._device).manual_seed(self._seed_of(key))
        is_scale = _is_scale(key, shape)
        for piece in torch.split(values, _PIECE):
            if is_scale:
                piece.copy_(torch.rand(piece.shape, generator=random, device=self._device) + 0.5)
            else:
                piece.copy_(torch.randn(piece.shape, generator=random, device=self._device) * _spread(key, shape))
        return values.view(shape)

    def _seed_of(self, key: str) -> int:
        """63 bits: torch takes signed numbers."""
        digest = hashlib.sha256(f"{self._seed}/{key}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1


def random_weights(
    shapes: Mapping[str, Shape], device: torch.device | str, dtype: torch.dtype, seed: int = 0
) -> Weights:
    """Weights of `llm_shapes(config)` or `codec_shapes(config)` without any file; each is drawn when it is taken."""
    forms = {key: Form({key: shape}, as_stored) for key, shape in shapes.items()}
    return Weights(RandomTensors(shapes, device, dtype, seed), forms, device, dtype)


def _is_scale(key: str, shape: Shape) -> bool:
    """Scales of norms, lengths of weight-normed rows, counts of codebook entries: positive, around 1."""
    return key.endswith(("original0", "weight_g", "cluster_size")) or (len(shape) == 1 and not key.endswith("bias"))


def _spread(key: str, shape: Shape) -> float:
    """The standard deviation of a tensor's values: 1 / sqrt(inputs of one output) for a linear map."""
    if key.endswith("bias"):
        return 0.1
    if key.endswith(("codebook", "embed_avg")):
        return 0.3
    if key.endswith(("embeddings.weight", "positions.weight")):
        return 0.5
    if key.endswith("up_conv.weight"):  # transposed, stride = kernel: one tap an output
        return 1 / math.sqrt(shape[0])
    if "upsample_conv" in key:  # transposed, kernel 3, strides 2 and 1: two taps an output, more or less
        return 1 / math.sqrt(2 * shape[0])
    if key == "audio_head":  # (codebook, in, out)
        return 1 / math.sqrt(shape[1])
    return 1 / math.sqrt(math.prod(shape[1:]))
