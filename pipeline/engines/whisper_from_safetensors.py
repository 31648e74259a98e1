"""Whisper's weights out of the files that the openai/whisper-* repositories of Hugging Face hold.

The names are transformers' (models/whisper/modeling_whisper.py). A model is one file or several shards with a list of
which tensor is where.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.engines.whisper_weights import (
    N_AUDIO_POSITIONS,
    N_TEXT_POSITIONS,
    Shape,
    WhisperSizes,
    WhisperWeights,
    alignment_heads,
    broken,
    checked,
    read_config,
    tensor_shapes,
)
from pipeline.errors import ConfigError

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATING: Final = ("F16", "BF16", "F32")
_MAX_SHARDS: Final = 64

_PARTS: Final = {
    "attn": "self_attn",
    "attn_ln": "self_attn_layer_norm",
    "cross_attn": "encoder_attn",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "mlp_ln": "final_layer_norm",
}
_PROJECTIONS: Final = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
_MLP: Final = {"0": "fc1", "2": "fc2"}
_TOP: Final = {
    "encoder.positional_embedding": "model.encoder.embed_positions.weight",
    "decoder.positional_embedding": "model.decoder.embed_positions.weight",
    "decoder.token_embedding.weight": "model.decoder.embed_tokens.weight",
}


def from_safetensors(directory: Path) -> WhisperWeights:
    """The weights of a Hugging Face directory; ConfigError when it holds something else."""
    sizes = _sizes(read_config(directory / "config.json"))
    generation = directory / "generation_config.json"
    found = read_config(generation) if generation.is_file() else {}
    heads = alignment_heads(found, sizes, generation.name)
    shapes, shards = tensor_shapes(sizes), _Shards(directory)
    return WhisperWeights(sizes, lambda name: shards.read(stored_name(name), shapes[name]), heads)


def stored_name(name: str) -> str:
    """Hugging Face's name of openai-whisper's tensor `name`."""
    if name in _TOP:
        return _TOP[name]
    half, *path, kind = name.split(".")
    if path[0] in ("conv1", "conv2"):
        return f"model.{half}.{path[0]}.{kind}"
    if path[0] != "blocks":  # the norm after the last block
        return f"model.{half}.layer_norm.{kind}"
    layer, part = f"model.{half}.layers.{path[1]}", path[2]
    if part == "mlp":
        return f"{layer}.{_MLP[path[3]]}.{kind}"
    projection = f".{_PROJECTIONS[path[3]]}" if len(path) == 4 else ""
    return f"{layer}.{_PARTS[part]}{projection}.{kind}"


def _sizes(config: Mapping[str, Any]) -> WhisperSizes:
    def number(key: str) -> int:
        found = config.get(key)
        if type(found) is not int:
            raise broken("config.json", f"{key} is no whole number")
        return found

    if config.get("model_type") != "whisper":
        raise broken("config.json", "it is not of a Whisper model")
    heads = number("decoder_attention_heads")
    if number("encoder_attention_heads") != heads:
        raise broken("config.json", "encoder and decoder differ in heads")
    positions = number("max_source_positions"), number("max_target_positions")
    if positions != (N_AUDIO_POSITIONS, N_TEXT_POSITIONS):
        raise broken("config.json", f"it has {positions} positions")
    sizes = WhisperSizes(
        n_mels=number("num_mel_bins"),
        width=number("d_model"),
        n_heads=heads,
        n_audio_layers=number("encoder_layers"),
        n_text_layers=number("decoder_layers"),
        n_vocabulary=number("vocab_size"),
    )
    return checked(sizes, "config.json")


class _Shards:
    """The tensors of one or several safetensors files, mapped into memory."""

    def __init__(self, directory: Path) -> None:
        names = [_WEIGHTS] if (directory / _WEIGHTS).is_file() else _shard_names(directory)
        self._files: list[tuple[str, Any]] = [(name, _opened(directory / name)) for name in names]
        self._where = {key: (name, file) for name, file in self._files for key in file.keys()}  # noqa: SIM118 (no mapping)

    def read(self, key: str, shape: Shape) -> Tensor:
        """The tensor as the file has it; ConfigError when it is missing, of another shape or no floating number."""
        if key not in self._where:
            raise broken(self._files[0][0], f"it has no {key}")
        name, file = self._where[key]
        about = file.get_slice(key)
        found = tuple(about.get_shape())
        if found != shape:
            raise broken(name, f"{key} has the shape {found} instead of {shape}")
        if about.get_dtype() not in _FLOATING:
            raise broken(name, f"{key} holds {about.get_dtype()}")
        tensor: Tensor = file.get_tensor(key)
        return tensor


def _shard_names(directory: Path) -> list[str]:
    listed = read_config(directory / _INDEX).get("weight_map")
    names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    if not 0 < len(names) <= _MAX_SHARDS or any(Path(n).name != n or not n.endswith(".safetensors") for n in names):
        raise broken(_INDEX, "it does not list safetensors files")
    return names


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"The model file {path.name} is missing, damaged or no safetensors file.") from error
