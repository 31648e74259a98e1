"""Tensors out of a CTranslate2 `model.bin`, without CTranslate2: data only, every length checked against the file.

Format (CTranslate2's python/ctranslate2/specs/model_spec.py), little-endian throughout, `str` = u16 length, then that
many bytes, the last one NUL: u32 version, str name of the specification, u32 its revision, u32 number of variables; for
each str name, u8 rank, u32 per dimension, u8 type, u32 number of bytes, the bytes; u32 number of aliases, for each str
alias, str name.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

VERSION: Final = 6  # since 2022
_TYPES: Final = ("<f4", "|i1", "<i2", "<i4", "<f2")
_MAX_DIMENSIONS: Final = 8
_MAX_NAME_BYTES: Final = 512


class _Broken(Exception):
    """What is wrong with the file, in words."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies in the file: numpy's name of its type, its shape and its first byte."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


class CTranslate2File:
    """The variables of one `model.bin` by name, aliases included; ConfigError when it is none, damaged or cut off."""

    def __init__(self, path: Path) -> None:
        self.file_name = path.name
        try:
            with path.open("rb") as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            reason = error.strerror if isinstance(error, OSError) else "it is empty"
            raise ConfigError(f"The model file {path.name} cannot be read: {reason}.") from error
        try:
            self.specification, self.variables = _scan(self._data)
        except _Broken as error:
            self.close()
            self.refuse(str(error), cause=error)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor; ConfigError when there is none of that name."""
        found = self.variables.get(name)
        if found is None:
            self.refuse(f"it has no {name}")
        return found.shape

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """A copy of the tensor; ConfigError when there is none of that name or it has another shape."""
        if self.shape(name) != shape:
            self.refuse(f"{name} has the shape {self.shape(name)} instead of {shape}")
        found = self.variables[name]
        numbers = np.frombuffer(self._data, found.dtype, math.prod(found.shape), found.offset)
        return numbers.reshape(found.shape).copy()

    def close(self) -> None:
        """Unmap the file."""
        self._data.close()

    def refuse(self, wrong: str, cause: Exception | None = None) -> NoReturn:
        """Raise the ConfigError that says what is wrong with the file."""
        raise ConfigError(f"The model file {self.file_name} is not what it should be: {wrong}.") from cause


class _Reader:
    """Reads one field after another; `_Broken` where the file ends too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.position = data, 0

    def skip(self, n_bytes: int) -> int:
        """The position before the step."""
        begin, self.position = self.position, self.position + n_bytes
        if self.position > len(self._data):
            raise _Broken("it is cut off")
        return begin

    def number(self, form: str) -> int:
        value: int = struct.unpack_from(f"<{form}", self._data, self.skip(struct.calcsize(form)))[0]
        return value

    def text(self) -> str:
        n_bytes = self.number("H")
        begin = self.skip(n_bytes)
        raw = bytes(self._data[begin : begin + n_bytes])
        if (
            not 2 <= n_bytes <= _MAX_NAME_BYTES
            or raw[-1]
            or not raw[:-1].isascii()
            or not raw[:-1].decode().isprintable()
        ):
            raise _Broken("a name in it is no text")
        return raw[:-1].decode("ascii")


def _scan(data: mmap.mmap) -> tuple[str, Mapping[str, Stored]]:
    reader = _Reader(data)
    if (version := reader.number("I")) != VERSION:
        raise _Broken(f"its format is no CTranslate2 model of version {VERSION} (found {version})")
    specification = reader.text()
    reader.number("I")  # the specification's revision
    variables: dict[str, Stored] = {}
    for _ in range(reader.number("I")):  # a number that is too large ends at the end of the file
        name = reader.text()
        if name in variables:
            raise _Broken(f"it has {name} twice")
        variables[name] = _variable(reader, name)
    for _ in range(reader.number("I")):
        alias, name = reader.text(), reader.text()
        if alias in variables or name not in variables:
            raise _Broken(f"the alias {alias} is wrong")
        variables[alias] = variables[name]
    if reader.position != len(data):
        raise _Broken("bytes follow its end")
    return specification, variables


def _variable(reader: _Reader, name: str) -> Stored:
    rank = reader.number("B")
    if rank > _MAX_DIMENSIONS:
        raise _Broken(f"{name} has {rank} dimensions")
    shape = tuple(reader.number("I") for _ in range(rank))
    kind = reader.number("B")
    if kind >= len(_TYPES):
        raise _Broken(f"{name} has a number format that is not known")
    dtype = _TYPES[kind]
    n_bytes = reader.number("I")
    if math.prod(shape) * np.dtype(dtype).itemsize != n_bytes:
        raise _Broken(f"the size of {name} does not fit its shape")
    return Stored(dtype, shape, reader.skip(n_bytes))
