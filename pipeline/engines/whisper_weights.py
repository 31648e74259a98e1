"""A Whisper model's weights, wherever they are from: sizes, tensors by openai-whisper's own names, alignment heads.

openai-whisper's own files are pickles, which are programs; they are not read. Two layouts are:

- CTranslate2 (`model.bin` + `config.json`), the one of faster-whisper: `whisper_from_ctranslate2.py`;
- Hugging Face (`model.safetensors` or its shards + `config.json` + `generation_config.json`), the one of the
  openai/whisper-* repositories: `whisper_from_safetensors.py`.

Both hold the numbers that openai-whisper's file holds, so nothing is lost on the way. This module needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["ctranslate2", "safetensors"]
Shape = tuple[int, ...]

MAX_CONFIG_BYTES: Final = 1 << 22  # config.json of large-v3 has 2 kB; the list of a model's shards up to 100 kB
MAX_LAYERS, MAX_WIDTH, MAX_HEADS = 64, 4096, 64  # large-v3 has 32, 1280 and 20
MELS: Final = (80, 128)
N_AUDIO_POSITIONS, N_TEXT_POSITIONS = 1500, 448  # of every Whisper: 30 s of audio; openai-whisper needs the former
ENGLISH_VOCABULARY, MULTILINGUAL_VOCABULARIES = 51_864, (51_865, 51_866)


@dataclass(frozen=True, slots=True)
class WhisperSizes:
    """The numbers that make one Whisper differ from another; `width` of encoder and decoder are the same."""

    n_mels: int
    width: int
    n_heads: int
    n_audio_layers: int
    n_text_layers: int
    n_vocabulary: int

    @property
    def fault(self) -> str | None:
        """What no Whisper has, None when all is well."""
        if self.n_mels not in MELS:
            return f"{self.n_mels} mel bands"
        if self.n_vocabulary not in (ENGLISH_VOCABULARY, *MULTILINGUAL_VOCABULARIES):
            return f"a vocabulary of {self.n_vocabulary}"
        if not 0 < self.n_heads <= MAX_HEADS or not 4 <= self.width <= MAX_WIDTH or self.width % (2 * self.n_heads):
            return f"{self.n_heads} heads for a width of {self.width}"
        if not (0 < self.n_audio_layers <= MAX_LAYERS and 0 < self.n_text_layers <= MAX_LAYERS):
            return f"{self.n_audio_layers} and {self.n_text_layers} layers"
        return None


@dataclass(frozen=True, slots=True, eq=False)
class WhisperWeights:
    """`read` gives one tensor by name; `alignment_heads` are the decoder's (layer, head), () where none are named."""

    sizes: WhisperSizes
    read: Callable[[str], Tensor]
    alignment_heads: tuple[tuple[int, int], ...]


def tensor_shapes(sizes: WhisperSizes) -> dict[str, Shape]:
    """The name of every tensor of a Whisper of these sizes, as openai-whisper calls it, with its shape."""
    width = sizes.width
    shapes: dict[str, Shape] = {
        "encoder.conv1.weight": (width, sizes.n_mels, 3),
        "encoder.conv1.bias": (width,),
        "encoder.conv2.weight": (width, width, 3),
        "encoder.conv2.bias": (width,),
        "encoder.positional_embedding": (N_AUDIO_POSITIONS, width),
        "decoder.token_embedding.weight": (sizes.n_vocabulary, width),
        "decoder.positional_embedding": (N_TEXT_POSITIONS, width),
        **_norm("encoder.ln_post", width),
        **_norm("decoder.ln", width),
    }
    for layer in range(sizes.n_audio_layers):
        shapes |= _block(f"encoder.blocks.{layer}", width)
    for layer in range(sizes.n_text_layers):
        shapes |= _block(f"decoder.blocks.{layer}", width)
        shapes |= _attention(f"decoder.blocks.{layer}.cross_attn", width)
    return shapes


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str, width: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {f"{name}.{part}.weight": (width, width) for part in ("query", "key", "value", "out")}
    return shapes | {f"{name}.{part}.bias": (width,) for part in ("query", "value", "out")} | _norm(f"{name}_ln", width)


def _block(name: str, width: int) -> dict[str, Shape]:
    return {
        **_attention(f"{name}.attn", width),
        f"{name}.mlp.0.weight": (4 * width, width),
        f"{name}.mlp.0.bias": (4 * width,),
        f"{name}.mlp.2.weight": (width, 4 * width),
        f"{name}.mlp.2.bias": (width,),
        **_norm(f"{name}.mlp_ln", width),
    }


def layout_of(directory: Path) -> Layout:
    """The layout that a directory has; ConfigError when there is no such directory, or it holds neither."""
    if not directory.is_dir():
        raise ConfigError(f"There is no directory {directory} with a Whisper model.")
    if (directory / "model.bin").is_file():
        return "ctranslate2"
    if any((directory / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return "safetensors"
    pickles = [path.name for path in directory.glob("*") if path.suffix in (".pt", ".bin", ".pth")]
    found = f"; {min(pickles)} is a pickle, which is a program and is not read" if pickles else ""
    raise ConfigError(
        f"{directory} holds no Whisper model: there is neither model.bin (CTranslate2) nor model.safetensors "
        f"(Hugging Face){found}."
    )


def read_whisper(directory: Path) -> WhisperWeights:
    """The weights in a directory of either layout; ConfigError says what is wrong with them."""
    if layout_of(directory) == "ctranslate2":
        from pipeline.engines.whisper_from_ctranslate2 import from_ctranslate2

        return from_ctranslate2(directory)
    from pipeline.engines.whisper_from_safetensors import from_safetensors

    return from_safetensors(directory)


def broken(file_name: str, wrong: str) -> ConfigError:
    """The error for a model file that is not what it should be."""
    return ConfigError(f"The model file {file_name} is not what it should be: {wrong}.")


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a small file; ConfigError when it is missing or something else."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
        found = json.loads(data) if len(data) <= MAX_CONFIG_BYTES else None
    except OSError as error:
        raise ConfigError(f"The model file {path.name} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise broken(path.name, "it is no JSON") from error
    if not isinstance(found, dict):
        raise broken(path.name, "it holds no JSON object")
    return found


def checked(sizes: WhisperSizes, file_name: str) -> WhisperSizes:
    """The sizes, or a ConfigError that names what no Whisper has."""
    if sizes.fault:
        raise broken(file_name, f"it has {sizes.fault}")
    return sizes


def alignment_heads(found: Mapping[str, Any], sizes: WhisperSizes, file_name: str) -> tuple[tuple[int, int], ...]:
    """The list under that key, which both layouts have; () when it is missing or null."""
    heads = found.get("alignment_heads")
    if heads is None:
        return ()
    is_list = isinstance(heads, list) and len(heads) <= sizes.n_text_layers * sizes.n_heads
    if not is_list or not all(_is_head(head, sizes) for head in heads):
        raise broken(file_name, "its alignment_heads are no heads")
    return tuple((layer, head) for layer, head in heads)


def _is_head(head: object, sizes: WhisperSizes) -> bool:
    if not isinstance(head, list) or len(head) != 2 or any(type(n) is not int for n in head):
        return False
    return head[0] in range(sizes.n_text_layers) and head[1] in range(sizes.n_heads)
