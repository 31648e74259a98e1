"""Weights of a model directory: every key and shape checked at open, each tensor read when it is taken.

A directory holds, side by side or one of them, upstream's files and those of `scripts/convert_firered.py`:

    config_llm.json  config_codec.json  Qwen2.5-1.5B/ (tokenizer)
    llm_posttrain.pt  llm_pretrain.pt  codec.pt                          upstream: fp32, pickled
    llm_posttrain.safetensors  llm_pretrain.safetensors  codec.safetensors      converted

A converted file is preferred unless the upstream file beside it is not the one it was made from.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from firered.config import CODEC_CONFIG_NAME, LLM_CONFIG_NAME, CodecConfig, LlmConfig
from firered.errors import CheckpointError
from firered.key_table import Form, KeyTable, Shape, codec_shapes, codec_table, llm_shapes, llm_table
from firered.tensor_files import (
    SafetensorsFile,
    TensorsInMemory,
    TensorSource,
    TorchArchive,
    archive_fingerprint,
)

__all__ = [
    "CODEC_CONFIG_NAME",
    "CODEC_STEM",
    "LLM_CONFIG_NAME",
    "LLM_STEMS",
    "TOKENIZER_NAME",
    "Variant",
    "Weights",
    "codec_shapes",
    "llm_shapes",
    "open_codec",
    "open_llm",
    "weights_from",
]

Variant = Literal["dialogue", "monologue"]

# Upstream's file names: the dialogue model is the monologue model after further training.
LLM_STEMS: Mapping[Variant, str] = {"dialogue": "llm_posttrain", "monologue": "llm_pretrain"}
CODEC_STEM = "codec"
TOKENIZER_NAME = "Qwen2.5-1.5B"

# Upstream's top keys in the pickled files.
LLM_TOP_KEY = "model"
CODEC_TOP_KEY = "generator"

# Metadata of a converted file. The format changes when a tensor's name or meaning does.
FORMAT_KEY, FORMAT = "firered_format", "1"
SOURCE_KEY = "source_fingerprint"
DTYPE_KEY = "dtype"

_log = logging.getLogger(__name__)


class Weights:
    """Tensors by name, each in the target device and dtype, in memory of its own; nothing is kept once taken.

    Keys are relative to the scope: `weights.scope("backbone.norm").take("scale")`.
    """

    def __init__(
        self,
        source: TensorSource,
        forms: Mapping[str, Form],
        device: torch.device | str,
        dtype: torch.dtype,
        prefix: str = "",
    ) -> None:
        self._source = source
        self._forms = forms
        self._device = torch.device(device)
        self._dtype = dtype
        self._prefix = prefix

    @property
    def device(self) -> torch.device:
        """Where the tensors go."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """What the tensors become."""
        return self._dtype

    def scope(self, prefix: str) -> Weights:
        """The tensors whose names begin with `prefix` and a dot, by the rest of their names."""
        return Weights(self._source, self._forms, self._device, self._dtype, f"{self._prefix}{prefix}.")

    def take(self, key: str, *, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor `key` of this scope, as `dtype` if that is given; KeyError when the model has no such tensor."""
        form = self._forms[self._prefix + key]
        tensor = form.build(*(self._source.read(name) for name in form.stored))
        # Always a copy: a view into the mapped file would die with it when the file is overwritten.
        taken = torch.empty(tensor.shape, device=self._device, dtype=dtype or self._dtype)
        return taken.copy_(tensor)


def open_llm(
    directory: Path,
    config: LlmConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    variant: Variant = "dialogue",
) -> Weights:
    """The language model's tensors, names and shapes as in `llm_shapes(config)`."""
    source = open_source(directory, LLM_STEMS[variant], LLM_TOP_KEY, dtype)
    return Weights(source, matched_forms(source, llm_table(config)), device, dtype)


def open_codec(directory: Path, config: CodecConfig, device: torch.device | str, dtype: torch.dtype) -> Weights:
    """The codec's tensors, names and shapes as in `codec_shapes(config)`."""
    source = open_source(directory, CODEC_STEM, CODEC_TOP_KEY, dtype)
    return Weights(source, matched_forms(source, codec_table(config)), device, dtype)


def weights_from(
    tensors: Mapping[str, Tensor], table: KeyTable, device: torch.device | str, dtype: torch.dtype
) -> Weights:
    """Tensors in memory under the names of an upstream state dict (or of a converted file), checked the same way."""
    source = TensorsInMemory(tensors)
    return Weights(source, matched_forms(source, table), device, dtype)


def open_source(directory: Path, stem: str, top_key: str, dtype: torch.dtype) -> TensorSource:
    """The converted file of that name, else upstream's; a warning says when a conversion is passed over or coarse."""
    converted, official = directory / f"{stem}.safetensors", directory / f"{stem}.pt"
    if not converted.is_file():
        if not official.is_file():
            expected = f"{converted.name} or {official.name} in this directory"
            raise CheckpointError(directory, "has no such checkpoint", expected=expected, found=_listing(directory))
        return TorchArchive(official, top_key)
    source = open_converted(converted)
    if official.is_file() and not _is_conversion_of(source, official):
        _log.warning("%s was not made from the %s beside it, which is read: convert it again", converted, official.name)
        return TorchArchive(official, top_key)
    stored = source.metadata.get(DTYPE_KEY, "fp32")
    if dtype == torch.float32 and stored != "fp32":
        _log.warning("%s holds %s: as float32 its weights are no finer than that", converted, stored)
    return source


def open_converted(path: Path) -> SafetensorsFile:
    """A safetensors file of a format version that is known; one without a version is judged by its keys alone."""
    source = SafetensorsFile(path)
    found = source.metadata.get(FORMAT_KEY, FORMAT)
    if found != FORMAT:
        raise CheckpointError(path, "has another format version", key=FORMAT_KEY, expected=FORMAT, found=found)
    return source


def matched_forms(source: TensorSource, table: KeyTable) -> dict[str, Form]:
    """The form in which `source` holds each tensor of `table`; CheckpointError names the first key that is wrong."""
    forms: dict[str, Form] = {}
    faults: list[_Fault] = []
    for key, possible in table.forms.items():
        fitting = [form for form in possible if all(source.shapes.get(k) == s for k, s in form.stored.items())]
        if fitting:
            forms[key] = fitting[0]
        else:
            faults.append(_fault(source, key, possible))
    known = {key for possible in table.forms.values() for form in possible for key in form.stored} | set(table.skipped)
    faults += [_Fault(key, "is unknown") for key in source.shapes if key not in known]
    used = (key for form in forms.values() for key in form.stored)
    faults += [
        _Fault(key, "is no weight", "a floating type", source.not_floating[key])
        for key in used
        if key in source.not_floating
    ]
    if faults:
        first, rest = faults[0], len(faults) - 1
        problem = first.problem + (f", and {rest} more key{'s' if rest > 1 else ''} cannot be used" if rest else "")
        raise CheckpointError(source.path, problem, key=first.key, expected=first.expected, found=first.found)
    return forms


class _Fault(NamedTuple):
    key: str
    problem: str
    expected: str = ""
    found: str = ""


def _fault(source: TensorSource, key: str, possible: tuple[Form, ...]) -> _Fault:
    """What is wrong with a tensor that no form fits: a key that has another shape, else one that is missing."""
    shapes: dict[str, list[Shape]] = {}
    for form in possible:
        for name, shape in form.stored.items():
            shapes.setdefault(name, []).append(shape)
    for name, expected in shapes.items():
        if name in source.shapes and source.shapes[name] not in expected:
            return _Fault(name, "has another shape", " or ".join(map(str, expected)), str(source.shapes[name]))
    most = max(possible, key=lambda form: sum(name in source.shapes for name in form.stored))
    missing = next((name for name in most.stored if name not in source.shapes), key)
    return _Fault(missing, "is missing", f"a tensor of shape {' or '.join(map(str, shapes[missing]))}")


def _is_conversion_of(converted: TensorSource, official: Path) -> bool:
    """Whether the file was made from `official`; taken for granted when either cannot tell."""
    made_from = converted.metadata.get(SOURCE_KEY)
    return made_from is None or archive_fingerprint(official) in (None, made_from)


def _listing(directory: Path) -> str:
    """A few names of what is in the directory, for a message."""
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError:
        return "no such directory"
    return ", ".join(names[:8] + ["..."] * (len(names) > 8)) or "an empty directory"
