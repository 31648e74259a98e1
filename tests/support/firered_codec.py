"""The tiny codec of the golden vectors, built once a process."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from firered.checkpoint import Weights, weights_from
from firered.codec_decoder import CodecDecoder
from firered.codec_encoder import CodecEncoder
from firered.config import CodecConfig, read_codec_config
from firered.key_table import codec_table
from tests.support.firered_tiny import FIXTURES, Array, codec_weights

TOKEN_SAMPLES = 1920
LAG_SAMPLES = 360  # what a stream has not given out yet after a token


@cache
def golden() -> dict[str, Array]:
    """Upstream's values; tests/fixtures/firered/README.md says what each key holds."""
    with np.load(FIXTURES / "codec.npz") as file:
        return dict(file)


@cache
def config() -> CodecConfig:
    return read_codec_config(FIXTURES / "tiny" / "config_codec.json")


@cache
def weights(dtype: torch.dtype = torch.float32) -> Weights:
    tensors = {name: torch.from_numpy(value) for name, value in codec_weights().items()}
    return weights_from(tensors, codec_table(config()), "cpu", dtype)


@cache
def decoder(dtype: torch.dtype = torch.float32) -> CodecDecoder:
    return CodecDecoder(config(), weights(dtype))


@cache
def encoder() -> CodecEncoder:
    return CodecEncoder(config(), weights())


def random_codes(n_tokens: int, seed: int) -> Tensor:
    """(n_tokens, 16) codes."""
    rvq = config().rvq
    shape = (n_tokens, rvq.n_quantizers)
    return torch.randint(rvq.codebook_size, shape, generator=torch.Generator().manual_seed(seed))
