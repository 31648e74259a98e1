"""Conversion of upstream's pickled files to safetensors, once: half the bytes as bf16, and nothing to unpickle.

What the engine never uses is left out, weight norm is fused, the special audio ids are cut: the file holds what
`Weights.take` gives. Its metadata say which file it was made from, so that a changed original is noticed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from firered.checkpoint import (
    CODEC_CONFIG_NAME,
    CODEC_STEM,
    CODEC_TOP_KEY,
    DTYPE_KEY,
    FORMAT,
    FORMAT_KEY,
    LLM_CONFIG_NAME,
    LLM_STEMS,
    LLM_TOP_KEY,
    SOURCE_KEY,
    TOKENIZER_NAME,
    Variant,
    matched_forms,
    open_converted,
)
from firered.config import read_codec_config, read_llm_config, require_same_codes
from firered.errors import CheckpointError
from firered.key_table import Form, KeyTable, codec_table, llm_table
from firered.model_directory import Progress, Say, only_writer, require_space, size_text
from firered.safetensors_writer import DTYPES, n_bytes_of, write_safetensors
from firered.tensor_files import SafetensorsFile, TensorSource, TorchArchive, archive_fingerprint


@dataclass(frozen=True, slots=True)
class Part:
    """One file to be converted."""

    stem: str
    top_key: str
    table: KeyTable
    dtype_name: str

    @property
    def n_bytes(self) -> int:
        """Size of the converted file, near enough."""
        return n_bytes_of(self.table.shapes, self.dtype_name)


def parts_of(
    directory: Path, variants: Sequence[Variant], llm_dtype_name: str, codec_dtype_name: str
) -> tuple[Part, ...]:
    """The files of an upstream directory, by its own configs; CheckpointError when these cannot be used."""
    llm = read_llm_config(directory / LLM_CONFIG_NAME)
    codec = read_codec_config(directory / CODEC_CONFIG_NAME)
    require_same_codes(llm, codec, directory)
    llms = tuple(Part(LLM_STEMS[variant], LLM_TOP_KEY, llm_table(llm), llm_dtype_name) for variant in variants)
    return (*llms, Part(CODEC_STEM, CODEC_TOP_KEY, codec_table(codec), codec_dtype_name))


def convert(source: Path, target: Path, parts: Sequence[Part], say: Say, *, verify: bool = False) -> None:
    """Make each part in `target`, which may be `source`, unless it is there already; `say` gets a line a step."""
    with only_writer(target):
        missing = [part for part in parts if not _is_done(source, target, part)]
        require_space(target, sum(part.n_bytes for part in missing))
        if target.resolve() != source.resolve():
            copy_small_files(source, target)
        for part in parts:
            if part in missing:
                _convert_part(source, target, part, say)
            else:
                say(f"{part.stem}.safetensors: there already, as {part.dtype_name}")
            if verify:
                _verify_part(source, target, part, say)


def copy_small_files(source: Path, target: Path) -> None:
    """The two configs and the tokenizer's folder, without any weights that may lie there."""
    tokenizer = source / TOKENIZER_NAME
    if not tokenizer.is_dir():
        raise CheckpointError(tokenizer, "is not there", expected="the folder of the tokenizer's files")
    for name in (LLM_CONFIG_NAME, CODEC_CONFIG_NAME):
        shutil.copyfile(source / name, target / name)
    weights = shutil.ignore_patterns("*.safetensors", "*.bin", "*.pt", "*.gguf", ".*")
    shutil.copytree(tokenizer, target / TOKENIZER_NAME, ignore=weights, dirs_exist_ok=True)


def _official(source: Path, part: Part) -> Path:
    return source / f"{part.stem}.pt"


def _converted(target: Path, part: Part) -> Path:
    return target / f"{part.stem}.safetensors"


def _is_done(source: Path, target: Path, part: Part) -> bool:
    """Whether the target has this part whole, of the type asked for and from this source (or the source is gone)."""
    path, official = _converted(target, part), _official(source, part)
    if not path.exists():
        return False
    try:
        found = open_converted(path)
        matched_forms(found, part.table)
    except CheckpointError:
        return False
    made_from = archive_fingerprint(official) if official.exists() else found.metadata.get(SOURCE_KEY)
    return found.metadata.get(DTYPE_KEY) == part.dtype_name and found.metadata.get(SOURCE_KEY) == made_from


def _convert_part(source: Path, target: Path, part: Part, say: Say) -> None:
    path, official = _converted(target, part), _official(source, part)
    archive = TorchArchive(official, part.top_key)
    forms = matched_forms(archive, part.table)
    metadata = {
        FORMAT_KEY: FORMAT,
        DTYPE_KEY: part.dtype_name,
        "source": official.name,
        "source_bytes": str(official.stat().st_size),
        SOURCE_KEY: archive_fingerprint(official) or "",
    }

    def read(key: str) -> torch.Tensor:
        return _built(archive, forms[key])

    say(f"{path.name}: {size_text(part.n_bytes)} as {part.dtype_name}, from {official}")
    with torch.inference_mode():
        advance = Progress(part.n_bytes, say).advance
        write_safetensors(path, part.table.shapes, part.dtype_name, metadata, read, advance)


def _built(source: TensorSource, form: Form) -> torch.Tensor:
    return form.build(*(source.read(name) for name in form.stored))


def _verify_part(source: Path, target: Path, part: Part, say: Say) -> None:
    """Compare every tensor with the original, rounded; without the original only check that all can be read."""
    path, official = _converted(target, part), _official(source, part)
    if not official.exists():
        say(f"{path.name}: {official.name} is gone, nothing to compare with")
        return
    archive, converted = TorchArchive(official, part.top_key), SafetensorsFile(path)
    forms = matched_forms(archive, part.table)
    with torch.inference_mode():
        for key, form in forms.items():
            expected = _built(archive, form).to(DTYPES[part.dtype_name])
            if not torch.equal(converted.read(key), expected):
                raise CheckpointError(path, f"differs from {official.name}", key=key)
    say(f"{path.name}: all {len(forms)} tensors equal those of {official.name}")
