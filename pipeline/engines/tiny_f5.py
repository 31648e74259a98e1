"""An F5-TTS of a megabyte with random weights: it makes noise, in time and by seed, and loads as a real one does.

Laid out as what is downloaded: a .safetensors file with the names of an EMA checkpoint, the yaml of its sizes, and a
Vocos directory. The vocabulary is the package's own. Writing needs no torch, which takes seconds to import.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

VOCODER_FOLDER: Final = "vocos"

_N_SYMBOLS, _N_MELS, _N_FFT, _HOP = 2545, 100, 1024, 256  # the first is the size of the package's vocabulary
_DIM, _HEADS, _HEAD_DIM, _TEXT_DIM, _DEPTH = 64, 2, 64, 32, 2
_VOCOS_DIM = 32
_SEED: Final = 5
_LOUDNESS: Final = 0.4  # log magnitude of a bin: noise with peaks of about 0.4

Numbers = NDArray[np.float32]
Shape = tuple[int, ...]

_MODEL_YAML: Final = f"""\
model:
  name: F5TTS_tiny
  tokenizer: custom
  tokenizer_path: null
  backbone: DiT
  arch:
    dim: {_DIM}
    depth: {_DEPTH}
    heads: {_HEADS}
    ff_mult: 2
    text_dim: {_TEXT_DIM}
    text_mask_padding: true
    qk_norm: null
    conv_layers: 1
    pe_attn_head: null
    attn_backend: torch
    attn_mask_enabled: false
    checkpoint_activations: false
  mel_spec:
    target_sample_rate: 24000
    n_mel_channels: {_N_MELS}
    hop_length: {_HOP}
    win_length: {_N_FFT}
    n_fft: {_N_FFT}
    mel_spec_type: vocos
"""
_VOCOS_YAML: Final = f"""\
feature_extractor:
  class_path: vocos.feature_extractors.MelSpectrogramFeatures
  init_args: {{sample_rate: 24000, n_fft: {_N_FFT}, hop_length: {_HOP}, n_mels: {_N_MELS}, padding: center}}
backbone:
  class_path: vocos.models.VocosBackbone
  init_args: {{input_channels: {_N_MELS}, dim: {_VOCOS_DIM}, intermediate_dim: {2 * _VOCOS_DIM}, num_layers: 1}}
head:
  class_path: vocos.heads.ISTFTHead
  init_args: {{dim: {_VOCOS_DIM}, n_fft: {_N_FFT}, hop_length: {_HOP}, padding: center}}
"""


def write_tiny_f5(directory: Path, *, seed: int = _SEED) -> Path:
    """Write the model into `directory`, made when missing, and its vocoder into the folder vocos there.

    The same for the same seed; gives `directory`.
    """
    from safetensors.numpy import save_file

    vocoder = directory / VOCODER_FOLDER
    vocoder.mkdir(parents=True, exist_ok=True)
    (directory / "model.yaml").write_text(_MODEL_YAML, encoding="utf-8")
    (vocoder / "config.yaml").write_text(_VOCOS_YAML, encoding="utf-8")
    weights = {f"ema_model.{name}": numbers for name, numbers in _tensors(dict(_flow_shapes()), seed).items()}
    save_file(weights, directory / "model_tiny.safetensors")
    _write_torch_file(vocoder / "pytorch_model.bin", _vocoder_tensors(seed))
    return directory


def _write_torch_file(path: Path, tensors: dict[str, Numbers]) -> None:
    """As `torch.save` does: a zip archive of a pickled dictionary, spelled out here, and of each tensor's numbers."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    def whole(*values: int) -> bytes:
        return b"".join(b"J" + struct.pack("<i", value) for value in values)

    def several(*values: bytes) -> bytes:
        return b"(" + b"".join(values) + b"t"

    def called(function: bytes, *arguments: bytes) -> bytes:
        return b"c" + function + b"\n" + several(*arguments) + b"R"

    def write(name: str, data: bytes) -> None:
        archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)  # which has the same date each time

    items: list[bytes] = []
    with zipfile.ZipFile(path, "w") as archive:
        for n, (name, numbers) in enumerate(tensors.items()):
            kept = several(text("storage"), b"ctorch\nFloatStorage\n", text(str(n)), text("cpu"), whole(numbers.size))
            shape, strides = several(whole(*numbers.shape)), several(whole(*_strides(numbers.shape)))
            no_hooks = called(b"collections\nOrderedDict")
            tensor = called(
                b"torch._utils\n_rebuild_tensor_v2", kept + b"Q", whole(0), shape, strides, b"\x89", no_hooks
            )
            items += [text(name), tensor]
            write(f"data/{n}", np.ascontiguousarray(numbers, "<f4").tobytes())
        write("data.pkl", b"\x80\x02}(" + b"".join(items) + b"u.")
        write("version", b"3\n")


def _strides(shape: Shape) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _tensors(shapes: dict[str, Shape], seed: int) -> dict[str, Numbers]:
    return {name: _numbers(name, shape, seed) for name, shape in shapes.items()}


def _numbers(name: str, shape: Shape, seed: int) -> Numbers:
    """Each tensor from its own name, so that none depends on the order of the others."""
    if name.endswith("inv_freq"):
        return (1.0 / 10_000 ** (np.arange(shape[0]) / shape[0])).astype(np.float32)
    if name.endswith("window"):
        return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(shape[0]) / shape[0])).astype(np.float32)
    if len(shape) == 1 and "norm" in name and name.endswith("weight"):
        return np.ones(shape, np.float32)
    if name.endswith(("bias", ".beta")):
        return np.zeros(shape, np.float32)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    spread = 1 / math.sqrt(math.prod(shape[1:]))
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    numbers: Numbers = (random.standard_normal(shape) * spread).astype(np.float32)
    return numbers


def _linear(name: str, n_out: int, *others: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (n_out, *others)
    yield f"{name}.bias", (n_out,)


def _flow_shapes() -> Iterator[tuple[str, Shape]]:
    """The DiT's tensors, as `CFM.state_dict()` names them."""
    inner, wide = _HEADS * _HEAD_DIM, 2 * _DIM
    yield from _linear("transformer.time_embed.time_mlp.0", _DIM, 256)
    yield from _linear("transformer.time_embed.time_mlp.2", _DIM, _DIM)
    text = "transformer.text_embed"
    yield f"{text}.text_embed.weight", (_N_SYMBOLS + 1, _TEXT_DIM)
    yield from _linear(f"{text}.text_blocks.0.dwconv", _TEXT_DIM, 1, 7)
    yield from _linear(f"{text}.text_blocks.0.norm", _TEXT_DIM)
    yield from _linear(f"{text}.text_blocks.0.pwconv1", 2 * _TEXT_DIM, _TEXT_DIM)
    for name in ("gamma", "beta"):
        yield f"{text}.text_blocks.0.grn.{name}", (1, 1, 2 * _TEXT_DIM)
    yield from _linear(f"{text}.text_blocks.0.pwconv2", _TEXT_DIM, 2 * _TEXT_DIM)
    yield from _linear("transformer.input_embed.proj", _DIM, 2 * _N_MELS + _TEXT_DIM)
    for i in (0, 2):
        yield from _linear(f"transformer.input_embed.conv_pos_embed.conv1d.{i}", _DIM, _DIM // 16, 31)
    yield "transformer.rotary_embed.inv_freq", (_HEAD_DIM // 2,)
    for n in range(_DEPTH):
        block = f"transformer.transformer_blocks.{n}"
        yield from _linear(f"{block}.attn_norm.linear", 6 * _DIM, _DIM)
        for name in ("q", "k", "v"):
            yield from _linear(f"{block}.attn.to_{name}", inner, _DIM)
        yield from _linear(f"{block}.attn.to_out.0", _DIM, inner)
        yield from _linear(f"{block}.ff.ff.0.0", wide, _DIM)
        yield from _linear(f"{block}.ff.ff.2", _DIM, wide)
    yield from _linear("transformer.norm_out.linear", 2 * _DIM, _DIM)
    yield from _linear("transformer.proj_out", _N_MELS, _DIM)


def _vocoder_tensors(seed: int) -> dict[str, Numbers]:
    dim, n_bins = _VOCOS_DIM, _N_FFT // 2 + 1
    shapes: dict[str, Any] = {
        "feature_extractor.mel_spec.spectrogram.window": (_N_FFT,),
        "feature_extractor.mel_spec.mel_scale.fb": (n_bins, _N_MELS),
        "head.istft.window": (_N_FFT,),
        "backbone.convnext.0.gamma": (dim,),
    }
    for name, others in (
        ("backbone.embed", (dim, _N_MELS, 7)),
        ("backbone.norm", (dim,)),
        ("backbone.convnext.0.dwconv", (dim, 1, 7)),
        ("backbone.convnext.0.norm", (dim,)),
        ("backbone.convnext.0.pwconv1", (2 * dim, dim)),
        ("backbone.convnext.0.pwconv2", (dim, 2 * dim)),
        ("backbone.final_layer_norm", (dim,)),
        ("head.out", (2 * n_bins, dim)),
    ):
        shapes.update(_linear(name, *others))
    tensors = _tensors(shapes, seed)
    tensors["head.out.bias"][:n_bins] = _LOUDNESS
    return tensors
