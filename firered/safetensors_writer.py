"""Writes a safetensors file tensor by tensor: the memory it needs does not grow with the file.

Layout (safetensors' README): the length of the header as 8 bytes, little-endian; the header, a JSON object of names
with dtype, shape and offsets into the rest; the tensors' bytes, one after another without a gap.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from firered.errors import CheckpointError
from firered.key_table import Shape

# Names on the command line and in metadata; safetensors' own names for them.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SAFETENSORS_NAMES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}

# Numbers converted and written at a time: 64 MB of fp32.
_PIECE = 1 << 24
# The data begins at a multiple of this many bytes, so that mapped tensors are aligned (the reader asks for 8).
_ALIGNMENT = 64


def n_bytes_of(shapes: Mapping[str, Shape], dtype_name: str) -> int:
    """Size of all tensors together as that type."""
    return sum(math.prod(shape) for shape in shapes.values()) * DTYPES[dtype_name].itemsize


def write_safetensors(
    path: Path,
    shapes: Mapping[str, Shape],
    dtype_name: str,
    metadata: Mapping[str, str],
    read: Callable[[str], Tensor],
    advance: Callable[[int], None],
) -> None:
    """Write `read(key)` for each of `shapes`, as the type of that name; the file appears only when it is whole.

    `advance` is called with each number of bytes written. CheckpointError when a value is not finite in that type.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            stream.write(_header(shapes, dtype_name, metadata))
            for key in shapes:
                _write_tensor(stream, path, key, read(key), dtype_name, advance)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _header(shapes: Mapping[str, Shape], dtype_name: str, metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for key, shape in shapes.items():
        end = offset + math.prod(shape) * DTYPES[dtype_name].itemsize
        header[key] = {"dtype": _SAFETENSORS_NAMES[dtype_name], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(
    stream: BinaryIO, path: Path, key: str, tensor: Tensor, dtype_name: str, advance: Callable[[int], None]
) -> None:
    for piece in torch.split(tensor.reshape(-1), _PIECE):
        converted = piece.to(DTYPES[dtype_name])
        if not torch.isfinite(converted).all():
            largest = f"{piece.abs().max().item():g}"
            raise CheckpointError(path, f"has values that are not finite as {dtype_name}", key=key, found=largest)
        stream.write(converted.view(torch.uint8).numpy().data)
        advance(converted.nbytes)


def _sync_directory(directory: Path) -> None:
    """Make the new name survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
