"""Whisper models written by hand, in the layouts that ours are read from: the writers know nothing of the readers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]
_CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

# openai-whisper's words -> Hugging Face's, applied one after another.
_RENAMED = [
    ("encoder.positional_embedding", "encoder.embed_positions.weight"),
    ("decoder.positional_embedding", "decoder.embed_positions.weight"),
    ("token_embedding", "embed_tokens"),
    ("blocks.", "layers."),
    ("cross_attn_ln", "encoder_attn_layer_norm"),
    (".attn_ln", ".self_attn_layer_norm"),
    ("mlp_ln", "final_layer_norm"),
    ("cross_attn.", "encoder_attn."),
    (".attn.", ".self_attn."),
    (".query.", ".q_proj."),
    (".key.", ".k_proj."),
    (".value.", ".v_proj."),
    (".out.", ".out_proj."),
    ("mlp.0", "fc1"),
    ("mlp.2", "fc2"),
    ("encoder.ln_post", "encoder.layer_norm"),
    ("decoder.ln.", "decoder.layer_norm."),
]


def hugging_face_name(name: str) -> str:
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return f"model.{name}"


def ctranslate2_bytes(
    variables: Mapping[str, Numbers],
    aliases: Mapping[str, str],
    *,
    version: int = 6,
    specification: str = "WhisperSpec",
) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", version), text(specification), struct.pack("<II", 3, len(variables))]
    for name, numbers in variables.items():
        parts += [text(name), struct.pack("<B", numbers.ndim), struct.pack(f"<{numbers.ndim}I", *numbers.shape)]
        parts += [struct.pack("<BI", _CODES[str(numbers.dtype)], numbers.nbytes), numbers.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [text(alias) + text(name) for alias, name in aliases.items()]
    return b"".join(parts)


def ctranslate2_variables(width: int = 8, heads: int = 2, vocabulary: int = 51_865) -> dict[str, Numbers]:
    """A Whisper of one layer a half, of small random numbers, as CTranslate2 keeps it."""
    random = np.random.default_rng(3)

    def drawn(*shape: int) -> Numbers:
        return random.standard_normal(shape).astype(np.float16)

    found: dict[str, Numbers] = {
        "encoder/num_heads": np.array(heads, np.int16),
        "decoder/num_heads": np.array(heads, np.int16),
        "encoder/conv1/weight": drawn(width, 80, 3),
        "encoder/conv1/bias": drawn(width),
        "encoder/conv2/weight": drawn(width, width, 3),
        "encoder/conv2/bias": drawn(width),
        "encoder/position_encodings/encodings": drawn(1500, width),
        "decoder/position_encodings/encodings": drawn(448, width),
        "decoder/embeddings/weight": drawn(vocabulary, width),
    }
    norms = ["encoder/layer_norm", "decoder/layer_norm"]
    linear: dict[str, tuple[int, int]] = {}
    for half in ("encoder", "decoder"):
        layer = f"{half}/layer_0"
        linear |= {
            f"{layer}/self_attention/linear_0": (3 * width, width),
            f"{layer}/self_attention/linear_1": (width, width),
            f"{layer}/ffn/linear_0": (4 * width, width),
            f"{layer}/ffn/linear_1": (width, 4 * width),
        }
        norms += [f"{layer}/self_attention/layer_norm", f"{layer}/ffn/layer_norm"]
    linear |= {
        "decoder/layer_0/attention/linear_0": (width, width),
        "decoder/layer_0/attention/linear_1": (2 * width, width),
        "decoder/layer_0/attention/linear_2": (width, width),
    }
    for name in [*norms, "decoder/layer_0/attention/layer_norm"]:
        found |= {f"{name}/gamma": drawn(width), f"{name}/beta": drawn(width)}
    for name, shape in linear.items():
        found |= {f"{name}/weight": drawn(*shape), f"{name}/bias": drawn(shape[0])}
    for half in ("encoder", "decoder"):
        found[f"{half}/layer_0/self_attention/linear_0/bias"][width : 2 * width] = 0  # keys have no bias
    found["decoder/layer_0/attention/linear_1/bias"][:width] = 0
    return found


def write_ctranslate2(directory: Path, variables: Mapping[str, Numbers], config: object = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    data = ctranslate2_bytes(variables, {"decoder/projection/weight": "decoder/embeddings/weight"})
    (directory / "model.bin").write_bytes(data)
    (directory / "config.json").write_text(json.dumps({} if config is None else config), encoding="utf-8")
    return directory
