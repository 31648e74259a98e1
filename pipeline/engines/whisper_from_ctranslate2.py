"""Whisper's weights out of a CTranslate2 model, lossless: the same numbers under other names, some joined in one.

CTranslate2 joins the projections of the same input (query, key and value; key and value of the audio) and gives the
key a bias, which openai-whisper has not: it is all zero, which is checked. Models whose numbers were quantised are
refused. Names: CTranslate2's python/ctranslate2/specs/whisper_spec.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pipeline.engines.ctranslate2_file import CTranslate2File
from pipeline.engines.whisper_weights import (
    Shape,
    WhisperSizes,
    WhisperWeights,
    alignment_heads,
    checked,
    read_config,
    tensor_shapes,
)

_SPECIFICATION: Final = "WhisperSpec"
_FLOATING: Final = ("<f2", "<f4")
_KINDS: Final = {"weight": ("weight", "gamma"), "bias": ("bias", "beta")}  # of matrices, and of norms

# Parts of a block: openai-whisper's name -> CTranslate2's, the place among those that are joined, and their number.
_SELF: Final = {
    "query": ("linear_0", 0, 3),
    "key": ("linear_0", 1, 3),
    "value": ("linear_0", 2, 3),
    "out": ("linear_1", 0, 1),
}
_CROSS: Final = {
    "query": ("linear_0", 0, 1),
    "key": ("linear_1", 0, 2),
    "value": ("linear_1", 1, 2),
    "out": ("linear_2", 0, 1),
}
_NORMS: Final = {"attn_ln": "self_attention", "cross_attn_ln": "attention", "mlp_ln": "ffn"}
_MLP: Final = {"0": "linear_0", "2": "linear_1"}
_TOP: Final = {
    "encoder.positional_embedding": "encoder/position_encodings/encodings",
    "decoder.positional_embedding": "decoder/position_encodings/encodings",
    "decoder.token_embedding.weight": "decoder/embeddings/weight",
}


def from_ctranslate2(directory: Path) -> WhisperWeights:
    """The weights of a CTranslate2 directory; ConfigError when it holds something else."""
    file = CTranslate2File(directory / "model.bin")
    if file.specification != _SPECIFICATION:
        file.refuse(f"it is a {file.specification}, not a {_SPECIFICATION}")
    sizes = _sizes(file)
    heads = alignment_heads(read_config(directory / "config.json"), sizes, "config.json")
    shapes = tensor_shapes(sizes)
    _check_key_biases(file, sizes)
    return WhisperWeights(sizes, lambda name: _tensor(file, name, shapes[name]), heads)


def _sizes(file: CTranslate2File) -> WhisperSizes:
    first = file.shape("encoder/conv1/weight")
    if len(first) != 3:
        file.refuse("encoder/conv1/weight is no convolution")
    vocabulary = file.shape(_TOP["decoder.token_embedding.weight"])
    sizes = WhisperSizes(
        n_mels=first[1],
        width=first[0],
        n_heads=int(file.read("decoder/num_heads", ())),
        n_audio_layers=_n_layers(file, "encoder"),
        n_text_layers=_n_layers(file, "decoder"),
        n_vocabulary=vocabulary[0] if vocabulary else 0,
    )
    if file.read("encoder/num_heads", ()) != sizes.n_heads:
        file.refuse("encoder and decoder differ in their heads")
    return checked(sizes, file.file_name)


def _n_layers(file: CTranslate2File, half: str) -> int:
    return sum(name.startswith(f"{half}/layer_") and name.endswith("/ffn/linear_0/weight") for name in file.variables)


def _check_key_biases(file: CTranslate2File, sizes: WhisperSizes) -> None:
    """Refuse a file whose keys have a bias: openai-whisper's have none, so it would be lost."""
    width = sizes.width
    for half, n_layers in (("encoder", sizes.n_audio_layers), ("decoder", sizes.n_text_layers)):
        for layer in range(n_layers):
            joined = {f"{half}/layer_{layer}/self_attention/linear_0/bias": (3 * width, slice(width, 2 * width))}
            if half == "decoder":
                joined[f"{half}/layer_{layer}/attention/linear_1/bias"] = (2 * width, slice(0, width))
            for name, (n, keys) in joined.items():
                if file.read(name, (n,))[keys].any():
                    file.refuse(f"{name} gives the keys a bias")


def _tensor(file: CTranslate2File, name: str, shape: Shape) -> Tensor:
    stored, place, n_joined = stored_name(name)
    if file.variables.get(stored) is not None and file.variables[stored].dtype not in _FLOATING:
        file.refuse(f"{stored} is quantised; the float16 model of the same size is needed")
    whole = file.read(stored, (shape[0] * n_joined, *shape[1:]))
    return torch.from_numpy(np.ascontiguousarray(whole[place * shape[0] : (place + 1) * shape[0]]))


def stored_name(name: str) -> tuple[str, int, int]:
    """CTranslate2's variable that holds openai-whisper's tensor `name`, its place there and how many are joined."""
    if name in _TOP:
        return _TOP[name], 0, 1
    half, *path, kind = name.split(".")
    if path[0] in ("conv1", "conv2"):
        return f"{half}/{path[0]}/{kind}", 0, 1
    matrix, norm = _KINDS[kind]
    if path[0] != "blocks":  # the norm after the last block
        return f"{half}/layer_norm/{norm}", 0, 1
    layer, part = f"{half}/layer_{path[1]}", path[2]
    if part in _NORMS:
        return f"{layer}/{_NORMS[part]}/layer_norm/{norm}", 0, 1
    if part == "mlp":
        return f"{layer}/ffn/{_MLP[path[3]]}/{matrix}", 0, 1
    joined, place, n_joined = (_SELF if part == "attn" else _CROSS)[path[3]]
    return f"{layer}/{'self_attention' if part == 'attn' else 'attention'}/{joined}/{matrix}", place, n_joined
