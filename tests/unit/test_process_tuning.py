"""Memory that was given back is there for the next job without asking the system."""

from __future__ import annotations

import resource

import process_tuning  # noqa: F401 (what is tested)

SIZE = 64 * 2**20


def test_a_large_block_is_cleared_by_the_system_once() -> None:
    for _ in range(2):  # the heap grows here
        block = b"x" * SIZE
        del block
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b"y" * SIZE
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    assert len(block) == SIZE
    assert faults < SIZE // 4096 // 10
