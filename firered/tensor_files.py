"""Files of named tensors, read one tensor at a time: safetensors, and the zip archives that `torch.save` writes.

Both are mapped into memory, so opening costs nothing and a tensor's pages are read when it is. A `torch.save` archive
holds a pickle, which could run any program: it is read with `weights_only=True`, which builds tensors, plain containers
and numbers, and here `argparse.Namespace` (the published files carry their training options); all else is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from firered.errors import CheckpointError
from firered.key_table import Shape

# safetensors' names of the floating types that a weight may have.
_FLOATING = ("F64", "F32", "F16", "BF16")


class TensorSource(ABC):
    """Named tensors and where they are from.

    `shapes` lists them all; `not_floating` gives the types of those that cannot be weights; `path` is for messages.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Shape],
        not_floating: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> None:
        self.path = path
        self.shapes = shapes
        self.not_floating = not_floating
        self.metadata = metadata

    @abstractmethod
    def read(self, key: str) -> Tensor:
        """The tensor as the source holds it; it may be a view into a mapped file."""


class TensorsInMemory(TensorSource):
    """Tensors that are there already, under a made-up path for messages."""

    def __init__(self, tensors: Mapping[str, Tensor], path: Path = Path("tensors in memory")) -> None:
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        not_floating = {key: str(t.dtype) for key, t in tensors.items() if not t.dtype.is_floating_point}
        super().__init__(path, shapes, not_floating, metadata={})
        self._tensors = tensors

    def read(self, key: str) -> Tensor:
        """The tensor given under `key`."""
        return self._tensors[key]


class TorchArchive(TensorsInMemory):
    """The state dict under `top_key` of a file that `torch.save` wrote; CheckpointError when it is something else."""

    def __init__(self, path: Path, top_key: str) -> None:
        super().__init__(_state_dict(path, top_key), path)


class SafetensorsFile(TensorSource):
    """A safetensors file; CheckpointError when it is none or is cut off."""

    def __init__(self, path: Path) -> None:
        self._file: Any  # its methods are native and carry no types
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            expected = "a whole safetensors file"
            raise CheckpointError(path, "cannot be read", expected=expected, found=_first_sentence(error)) from error
        slices = {key: self._file.get_slice(key) for key in self._file.keys()}  # noqa: SIM118 (no mapping)
        dtypes = {key: found.get_dtype() for key, found in slices.items()}
        super().__init__(
            path,
            shapes={key: tuple(found.get_shape()) for key, found in slices.items()},
            not_floating={key: dtype for key, dtype in dtypes.items() if dtype not in _FLOATING},
            metadata=self._file.metadata() or {},
        )

    def read(self, key: str) -> Tensor:
        """A view into the mapped file."""
        tensor: Tensor = self._file.get_tensor(key)
        return tensor


def archive_fingerprint(path: Path) -> str | None:
    """A hash of the checksums of all members of a zip archive, read from its last few kB; None when it is no archive.

    Two files that `torch.save` wrote have the same one only when they hold the same bytes.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                # The archive's inner folder is called as the file was when it was saved.
                digest.update(f"{member.filename.partition('/')[2]} {member.CRC} {member.file_size}\n".encode())
    except (OSError, zipfile.BadZipFile):
        return None
    return digest.hexdigest()


def _state_dict(path: Path, top_key: str) -> dict[str, Tensor]:
    loaded = _load(path)
    whole = f'a state dict under the top key "{top_key}"'
    if not isinstance(loaded, dict) or top_key not in loaded:
        found = ", ".join(str(key) for key in list(loaded)[:5]) if isinstance(loaded, dict) else type(loaded).__name__
        raise CheckpointError(path, "is another kind of checkpoint", expected=whole, found=found or "an empty dict")
    state = loaded[top_key]
    if not isinstance(state, dict):
        raise CheckpointError(path, "holds no state dict", key=top_key, expected=whole, found=type(state).__name__)
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            found = type(value).__name__
            raise CheckpointError(path, "is no tensor", key=str(key), expected="a dense tensor", found=found)
    return state


def _load(path: Path) -> Any:
    """What the archive holds, tensors mapped; whatever a broken or hostile file makes of it is a CheckpointError."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception as error:  # the reader's many ways of failing on bytes that torch.save did not write
        refused = _refused_globals(path)
        if refused:
            problem = "is refused: unpickling it would run code that no checkpoint needs"
            raise CheckpointError(path, problem, expected="tensors only", found=", ".join(refused)) from error
        expected = "a whole zip archive of torch.save (1.6 or later)"
        raise CheckpointError(path, "cannot be read", expected=expected, found=_ailment(path, error)) from error


def _refused_globals(path: Path) -> list[str]:
    """Classes and functions that the pickle names and that are not allowed; [] when it cannot even be scanned."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # as above: the bytes may be anything
        return []


def _ailment(path: Path, error: Exception) -> str:
    """What is wrong with a file that torch could not read."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return str(error.strerror)
    if not zipfile.is_zipfile(path):
        n_bytes = path.stat().st_size
        return f"{n_bytes} bytes that are no zip archive or not all of one" if n_bytes else "an empty file"
    with zipfile.ZipFile(path) as archive:
        is_pickled = any(name.endswith("/data.pkl") for name in archive.namelist())
    return _first_sentence(error) if is_pickled else "a zip archive of something else"


def _first_sentence(error: Exception) -> str:
    """The beginning of an error, for a message: torch adds advice and native stack traces."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0][:160] if lines else type(error).__name__
