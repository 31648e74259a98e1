"""Memory that was freed is there for the next job without asking the system."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator

import pytest

import process_tuning  # noqa: F401 (what is tested)

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
