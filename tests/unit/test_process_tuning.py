"""Memory that was freed is there for the next job without asking the system."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import process_tuning

SIZE = 64 * 2**20
SET_THP_DISABLE = 41  # linux/prctl.h


@pytest.fixture
def _small_pages() -> Iterator[None]:
    """With huge pages a new block would have few faults, too."""
    libc = ctypes.CDLL(None)
    libc.prctl(SET_THP_DISABLE, 1, 0, 0, 0)
    yield
    libc.prctl(SET_THP_DISABLE, 0, 0, 0, 0)


@pytest.mark.usefixtures("_small_pages")
def test_a_large_block_is_cleared_by_the_system_once() -> None:
    for _ in range(2):  # the heap grows here
        block = b"x" * SIZE
        del block
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b"y" * SIZE
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    assert len(block) == SIZE
    assert faults < SIZE // 4096 // 10


def test_onnxruntime_gets_no_identity_and_keeps_nothing_to_send(tmp_path: Path) -> None:
    """Else it makes an id for the machine and collects events for its maker's server in the user's home."""
    environ = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    root = Path(process_tuning.__file__).parent
    code = "import process_tuning, onnxruntime; onnxruntime.get_available_providers()"
    here = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], cwd=root, env={**environ, **here}, check=True)
    assert list(tmp_path.iterdir()) == []
