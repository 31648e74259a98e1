from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.torch_file import Weights, read_weights

LAYOUTS = ("zip", "stream")


def saved(value: object, layout: str) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=layout == "zip")
    return buffer.getvalue()


def checkpoint() -> dict[str, object]:
    """Two tensors in one storage, as cuDNN lays out the weights of an LSTM, one of its own, and what else there is."""
    flat = torch.arange(10, dtype=torch.float32)
    state = OrderedDict(a=flat[:6].reshape(2, 3), b=flat[6:], scale=torch.tensor([0.5]))
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return {"step": 3, "model": state, "groups": [{"rate": 0.1, "betas": (0.9, 0.99), "amsgrad": False, "x": None}]}


CHECKPOINTS = {layout: saved(checkpoint(), layout) for layout in LAYOUTS}


def read(data: bytes, directory: Path, section: str = "model") -> Weights:
    path = directory / "tiny.pt"
    path.write_bytes(data)
    return read_weights(path, section)


def pickled(program: bytes) -> bytes:
    """A zip of torch's layout around the instructions of a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return buffer.getvalue()


def in_stream(program: bytes) -> bytes:
    """The older layout around the instructions of a pickle."""
    whole = CHECKPOINTS["stream"]
    third = [i for i in range(len(whole)) if whole[i : i + 2] == b"\x80\x02"][3]  # magic, version, system, then this
    return whole[:third] + program


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_come_out_as_torch_saved_them(tmp_path: Path, layout: str) -> None:
    weights = read(CHECKPOINTS[layout], tmp_path)
    assert len(weights) == 3
    assert weights.take("a", (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert weights.take("b", (4,)).tolist() == [6, 7, 8, 9]
    assert weights.take("scale", (1,)).dtype == np.float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_as_expected_is_named(tmp_path: Path, layout: str) -> None:
    state = {"a": torch.zeros(2), "bad": torch.tensor([1.0, float("nan")])}
    weights = read(saved({"model": state}, layout), tmp_path)
    with pytest.raises(ConfigError, match=r"tiny\.pt .* it has no missing"):
        weights.take("missing", (2,))
    with pytest.raises(ConfigError, match=r"tiny\.pt .* a has the shape \(2,\) instead of \(3,\)"):
        weights.take("a", (3,))
    with pytest.raises(ConfigError, match=r"tiny\.pt .* bad holds values that are not numbers"):
        weights.take("bad", (2,))
    with pytest.raises(ConfigError, match=r"tiny\.pt .* it has no dict optimizer"):
        read(saved({"model": state}, layout), tmp_path, "optimizer")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)])
def test_numbers_of_another_kind_are_refused(tmp_path: Path, layout: str, tensor: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"which is not allowed"):
        read(saved({"model": {"a": tensor}}, layout), tmp_path)


def test_a_tensor_that_does_not_lie_in_one_piece_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not lie in one piece"):
        read(saved({"model": {"a": torch.zeros(2, 3).T}}, "zip"), tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.pt cannot be read"):
        read_weights(tmp_path / "absent.pt", "model")


def hostile(canary: Path) -> dict[str, bytes]:
    """Pickles that do more than hold weights."""
    command = f"touch {canary}".encode()
    call = b"X" + struct.pack("<I", len(command)) + command + b"\x85R."
    deep = b"\x80\x02}(" + b")" + b"q\x00h\x00\x86" * 60 + b"K\x01u."
    return {
        "a command by a name": b"\x80\x02cposix\nsystem\n" + call,
        "a command by two strings": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + call,
        "an instance": b"(X" + struct.pack("<I", len(command)) + command + b"iposix\nsystem\n.",
        "a builtin": b"\x80\x02cbuiltins\nexec\n" + call,
        "something of torch": b"\x80\x02ctorch\nload\n" + call,
        "a call of a string": b"\x80\x02X\x01\x00\x00\x00aX\x01\x00\x00\x00b\x85R.",
        "a dict as a key": b"\x80\x02}}K\x01s.",
        "a key that takes for ever to hash": deep,
        "a mark without an end": b"\x80\x02(((((.",
        "nothing on the stack": b"\x80\x02.",
        "a length beyond the file": b"\x80\x02X\xff\xff\xff\x7fab.",
    }


@pytest.mark.parametrize("wrap", [pickled, in_stream])
@pytest.mark.parametrize("name", hostile(Path("x")))
def test_nothing_in_the_file_is_run(tmp_path: Path, name: str, wrap: object) -> None:
    assert callable(wrap)
    with pytest.raises(ConfigError, match=r"tiny\.pt"):
        read(wrap(hostile(tmp_path / "canary")[name]), tmp_path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(("n_numbers", "is_right"), [(3, True), (2, False)])
def test_a_tensor_may_not_reach_beyond_its_numbers(tmp_path: Path, n_numbers: int, is_right: bool) -> None:
    text = {name: b"X" + struct.pack("<I", len(name)) + name for name in (b"model", b"a", b"storage", b"0", b"cpu")}
    storage = b"(" + text[b"storage"] + b"ctorch\nFloatStorage\n" + text[b"0"] + text[b"cpu"] + bytes([75, n_numbers])
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQK\0K\3\x85K\1\x85\x89ccollections\nOrderedDict\n)RtR"
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + text[b"model"] + b"}" + text[b"a"] + tensor + b"ss.")
        archive.writestr("archive/data/0", bytes(4 * n_numbers))
    if is_right:
        assert read(buffer.getvalue(), tmp_path).take("a", (3,)).tolist() == [0, 0, 0]
        return
    with pytest.raises(ConfigError, match="a reaches beyond its numbers"):
        read(buffer.getvalue(), tmp_path)


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(5_000_000))
    with pytest.raises(ConfigError, match="packed"):
        read(buffer.getvalue(), tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"PK\x03\x04" + bytes(64), b"\x80\x02.", bytes(100), b"GGUF"])
def test_what_torch_did_not_write_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"tiny\.pt"):
        read(data, tmp_path)


def only_weights(data: bytes, directory: Path) -> None:
    """Weights or a named refusal, and nothing else."""
    try:
        weights = read(data, directory)
        weights.take("a", (2, 3))
    except ConfigError as error:
        assert "tiny.pt" in error.message  # noqa: PT017 (both ends are fine)


FUZZED = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZED
@given(layout=st.sampled_from(LAYOUTS), share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, layout: str, share: float) -> None:
    data = CHECKPOINTS[layout]
    with pytest.raises(ConfigError):
        read(data[: int(len(data) * share)], tmp_path)


@FUZZED
@given(
    layout=st.sampled_from(LAYOUTS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_a_damaged_file_gives_weights_or_a_named_refusal(
    tmp_path: Path, layout: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(CHECKPOINTS[layout])
    for place, change in changes:
        data[int(len(data) * place)] ^= change
    only_weights(bytes(data), tmp_path)


@FUZZED
@given(program=st.binary(max_size=60))
def test_random_instructions_give_a_named_refusal(tmp_path: Path, program: bytes) -> None:
    for wrap in (pickled, in_stream):
        with pytest.raises(ConfigError):
            read(wrap(b"\x80\x02" + program), tmp_path)
