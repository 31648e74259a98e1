from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.engines.ctranslate2_file import CTranslate2File
from pipeline.errors import ConfigError
from tests.support.whisper_files import Numbers, ctranslate2_bytes

VARIABLES: dict[str, Numbers] = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "single": np.array([1.5, -2.5], np.float32),
    "scalar": np.array(8, np.int16),
    "none": np.zeros((0, 4), np.float32),
}
WHOLE = ctranslate2_bytes(VARIABLES, {"alias": "half"})
HALF_AT = WHOLE.index(b"half\0")
RANK_AT = HALF_AT + 5  # then two dimensions, the type and the number of bytes


def opened(data: bytes, directory: Path) -> CTranslate2File:
    path = directory / "model.bin"
    path.write_bytes(data)
    return CTranslate2File(path)


def with_bytes(at: int, new: bytes) -> bytes:
    return WHOLE[:at] + new + WHOLE[at + len(new) :]


def test_tensors_come_out_as_they_were_written(tmp_path: Path) -> None:
    file = opened(WHOLE, tmp_path)
    assert file.specification == "WhisperSpec"
    for name, numbers in VARIABLES.items():
        assert file.shape(name) == numbers.shape
        found = file.read(name, numbers.shape)
        assert found.dtype == numbers.dtype
        assert np.array_equal(found, numbers)
    assert np.array_equal(file.read("alias", (2, 3)), VARIABLES["half"])
    file.close()


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"", "it is empty"),
        (WHOLE[:3], "cut off"),
        (WHOLE[:-1], "cut off"),
        (WHOLE + b"\0", "bytes follow"),
        (ctranslate2_bytes(VARIABLES, {}, version=5), "version 6"),
        (ctranslate2_bytes({}, {"alias": "half"}), "alias"),
        (ctranslate2_bytes(VARIABLES, {"half": "single"}), "alias"),
        (with_bytes(HALF_AT, b"\xff"), "no text"),
        (with_bytes(HALF_AT + 4, b"x"), "no text"),
        (with_bytes(RANK_AT, b"\xff"), "255 dimensions"),
        (with_bytes(RANK_AT + 1, struct.pack("<I", 2**32 - 1)), "does not fit its shape"),
        (with_bytes(RANK_AT + 9, b"\x09"), "number format"),
        (with_bytes(RANK_AT + 10, struct.pack("<I", 2**32 - 1)), "does not fit its shape"),
        (with_bytes(WHOLE.index(b"half") - 6, struct.pack("<I", 2**32 - 1)), "twice|cut off|no text"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(tmp_path: Path, data: bytes, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        opened(data, tmp_path)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    twice = ctranslate2_bytes({"half": VARIABLES["half"], "hals": VARIABLES["half"]}, {}).replace(b"hals", b"half")
    with pytest.raises(ConfigError, match="half twice"):
        opened(twice, tmp_path)


def test_a_tensor_that_is_missing_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = opened(WHOLE, tmp_path)
    with pytest.raises(ConfigError, match="it has no whole"):
        file.read("whole", (2, 3))
    with pytest.raises(ConfigError, match=r"\(2, 3\) instead of \(3, 2\)"):
        file.read("half", (3, 2))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        CTranslate2File(tmp_path / "model.bin")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    cut=st.integers(0, len(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    tail=st.binary(max_size=12),
)
def test_whatever_the_bytes_are_they_are_read_or_refused(
    tmp_path: Path, cut: int, changes: list[tuple[int, int]], tail: bytes
) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    try:
        file = opened(bytes(data[:cut]) + tail, tmp_path)
    except ConfigError:
        return
    for name in file.variables:  # what was admitted lies inside the file
        shape = file.shape(name)
        assert file.read(name, shape).shape == shape
    file.close()
