"""Weights out of a file that `torch.save` wrote, without torch and without running the pickle inside.

A pickle is a program: `pickle.load` would run whatever the file says. Here its instructions are only listed
(`pickletools.genops` names them and runs none), and those that build dicts, tuples, numbers and float32 tensors are
interpreted; any other instruction or name is an error. Both layouts are read: the zip archive of today, and the stream
of pickles with the numbers behind them that torch wrote until 2020. The formats: torch/serialization.py.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from pipeline.audio import Samples
from pipeline.errors import ConfigError

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION: Final = 1001
_FLOAT_BYTES: Final = 4
_MAX_DIMENSIONS: Final = 8
_NAMES: Final = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage")
_ORDERED_DICT, _REBUILD, _FLOAT_STORAGE = _NAMES
_PLAIN: Final = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"))
_CONSTANTS: Final[Mapping[str, Any]] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Broken(Exception):
    """What is wrong with the file, in words."""


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    n_numbers: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]


class Weights:
    """The tensors of one state dict by name, float32. `file_name` is for messages."""

    def __init__(self, tensors: Mapping[str, Samples], file_name: str) -> None:
        self._tensors = tensors
        self._file_name = file_name

    def __len__(self) -> int:
        return len(self._tensors)

    def take(self, key: str, shape: tuple[int, ...]) -> Samples:
        """The tensor of that name; ConfigError when it is missing, of another shape, or holds what is no number."""
        found = self._tensors.get(key)
        if found is None:
            _refuse(self._file_name, f"it has no {key}")
        if found.shape != shape:
            _refuse(self._file_name, f"{key} has the shape {found.shape} instead of {shape}")
        if not np.isfinite(found).all():
            _refuse(self._file_name, f"{key} holds values that are not numbers")
        return found


def read_weights(path: Path, section: str) -> Weights:
    """The state dict under `section` of the dict that the file holds; ConfigError names the file and what is wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The model file {path.name} cannot be read: {error.strerror}.") from error
    try:
        top, numbers = _from_zip(data) if data.startswith(b"PK\x03\x04") else _from_stream(data)
        if not isinstance(top, dict) or not isinstance(top.get(section), dict):
            raise _Broken(f"it has no dict {section}")
        tensors = {key: _array(value, numbers, key) for key, value in top[section].items() if type(value) is _Tensor}
    except _Broken as error:
        _refuse(path.name, str(error), cause=error)
    return Weights(tensors, path.name)


def _refuse(file_name: str, wrong: str, cause: Exception | None = None) -> NoReturn:
    raise ConfigError(f"The model file {file_name} is not what it should be: {wrong}.") from cause


def _array(tensor: _Tensor, numbers: Callable[[_Storage], bytes | memoryview], key: str) -> Samples:
    n = math.prod(tensor.shape)
    if tensor.offset + n > tensor.storage.n_numbers:
        raise _Broken(f"{key} reaches beyond its numbers")
    flat = np.frombuffer(numbers(tensor.storage), "<f4", n, tensor.offset * _FLOAT_BYTES)
    return flat.astype(np.float32).reshape(tensor.shape)


def _from_zip(data: bytes) -> tuple[Any, Callable[[_Storage], bytes]]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, EOFError) as error:
        raise _Broken("it is no whole zip archive") from error
    if len(names) != 1:
        raise _Broken("it is no archive that torch wrote")
    folder = names[0].removesuffix("data.pkl")

    def member(name: str, n_bytes: int | None = None) -> bytes:
        try:
            record = archive.getinfo(folder + name)
            # torch never packs; and what is not packed cannot unpack to more than the file.
            if record.compress_type != zipfile.ZIP_STORED or record.file_size > len(data):
                raise _Broken(f"its part {name} is packed")
            if n_bytes not in (None, record.file_size):
                raise _Broken(f"its part {name} has {record.file_size} bytes instead of {n_bytes}")
            return archive.read(record)
        except KeyError as error:
            raise _Broken(f"it has no part {name}") from error
        except (zipfile.BadZipFile, ValueError, OSError, RuntimeError, struct.error, EOFError) as error:
            raise _Broken(f"its part {name} cannot be read") from error

    if f"{folder}byteorder" in archive.NameToInfo and member("byteorder") != b"little":
        raise _Broken("its numbers are big-endian")
    top = _interpreted(io.BytesIO(member("data.pkl")))
    return top, lambda storage: member(f"data/{storage.key}", storage.n_numbers * _FLOAT_BYTES)


def _from_stream(data: bytes) -> tuple[Any, Callable[[_Storage], memoryview]]:
    stream = io.BytesIO(data)
    if _interpreted(stream) != _MAGIC or _interpreted(stream) != _LEGACY_VERSION:
        raise _Broken("torch did not write it")
    system = _interpreted(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Broken("its numbers are big-endian")
    top = _interpreted(stream)
    keys = _interpreted(stream)
    if not isinstance(keys, list):
        raise _Broken("it has no list of storages")
    stored: dict[str, memoryview] = {}
    position = stream.tell()
    for key in keys:
        if not isinstance(key, str) or position + 8 > len(data):
            raise _Broken("it is cut off")
        n_bytes = int.from_bytes(data[position : position + 8], "little") * _FLOAT_BYTES
        position += 8
        if position + n_bytes > len(data):
            raise _Broken("it is cut off")
        stored[key] = memoryview(data)[position : position + n_bytes]
        position += n_bytes

    def numbers(storage: _Storage) -> memoryview:
        found = stored.get(storage.key)
        if found is None or len(found) != storage.n_numbers * _FLOAT_BYTES:
            raise _Broken(f"the storage {storage.key} is not there, or of another size")
        return found

    return top, numbers


def _interpreted(stream: io.BytesIO) -> Any:
    """The value that the next pickle of the stream stands for."""
    machine = _Machine()
    try:
        for name, argument in _instructions(stream):
            if name == "STOP":
                return machine.stack.pop()
            machine.step(name, argument)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise _Broken("its structure is broken") from error
    raise _Broken("it is cut off")


def _instructions(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _position in pickletools.genops(stream):
            yield opcode.name, argument
    except (ValueError, OverflowError, MemoryError, struct.error, EOFError) as error:
        raise _Broken("it is cut off or damaged") from error


class _Machine:
    """The stack of a pickle, for the few instructions that weights need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction; `_Broken` for those that are not on the list."""
        stack = self.stack
        if name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(stack)
            self.stack = []
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "TUPLE":
            self._since_mark(lambda below, items: below.append(tuple(items)))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "GLOBAL":
            stack.append(_known(argument))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            stack.append(_called(called, arguments))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _fill(stack[-1], [key, value])
        elif name == "SETITEMS":
            self._since_mark(lambda below, items: _fill(below[-1], items))
        elif name == "APPEND":
            item = stack.pop()
            _extend(stack[-1], [item])
        elif name == "APPENDS":
            self._since_mark(lambda below, items: _extend(below[-1], items))
        elif name == "BUILD":  # a state dict's attribute `_metadata`: of no use here
            stack.pop()
        elif name != "PROTO":
            raise _Broken(f"it holds the pickle instruction {name}")

    def _since_mark(self, use: Callable[[list[Any], list[Any]], None]) -> None:
        items, self.stack = self.stack, self._marks.pop()
        use(self.stack, items)


def _known(name: str) -> _Global:
    if name not in _NAMES:
        raise _Broken(f"it names {name[:80]!r}, which is not allowed")
    return _Global(name)


def _called(called: Any, arguments: Any) -> Any:
    if called == _Global(_ORDERED_DICT) and arguments == ():
        return {}
    if called == _Global(_REBUILD):
        storage, offset, shape, strides = arguments[:4]
        numbers = (offset, *shape, *strides)
        if type(storage) is not _Storage or len(shape) > _MAX_DIMENSIONS:
            raise _Broken("a tensor is not described as one")
        if any(type(n) is not int or not 0 <= n < 2**40 for n in numbers):
            raise _Broken("a tensor is not described as one")
        if strides != tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))):
            raise _Broken("a tensor does not lie in one piece")
        return _Tensor(storage, offset, shape)
    raise _Broken("it makes something that is neither dict nor tensor")


def _storage(described: Any) -> _Storage:
    kind, of, key, _device, n_numbers = described[:5]
    if kind != "storage" or of != _Global(_FLOAT_STORAGE):
        raise _Broken("it holds numbers that are not float32")
    if type(key) is not str or type(n_numbers) is not int or not 0 <= n_numbers < 2**40:
        raise _Broken("a storage is not described as one")
    return _Storage(key, n_numbers)


def _fill(target: Any, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    # No other keys: the hash of a tuple of tuples of tuples can take for ever.
    if type(target) is not dict or len(keys) != len(values) or any(type(key) not in (str, int) for key in keys):
        raise _Broken("its structure is broken")
    target.update(zip(keys, values, strict=True))


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise _Broken("its structure is broken")
    target.extend(items)
