"""One tiny checkpoint directory, and the models built from it, for all tests of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from firered import EngineOptions, FireRedEngine, GuardLimits
from tests.support.firered_tiny import write_checkpoint

torch.set_num_threads(1)

WAIT_S = 60.0  # only a fault waits this long
LOOSE = GuardLimits(silent_frames=10**9, loop_frames=10**6)
OPTIONS = EngineOptions(max_streams=3, capacity=1024, limits=LOOSE)
# Random weights never end a piece themselves. Here every frame counts as silence, and so many of them end it.
BRIEF_FRAMES = 10
BRIEF = GuardLimits(silent_frames=BRIEF_FRAMES, silence_rms=10.0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official directory with the weights that the golden vectors were made with."""
    return write_checkpoint(tmp_path_factory.mktemp("firered") / "tiny")


@pytest.fixture
def engine(checkpoint: Path) -> Iterator[FireRedEngine]:
    with FireRedEngine.from_pretrained(checkpoint, "cpu", torch.float32, options=OPTIONS) as engine:
        yield engine


@pytest.fixture
def brief_engine(checkpoint: Path) -> Iterator[FireRedEngine]:
    """Its pieces have ten frames each."""
    options = replace(OPTIONS, limits=BRIEF)
    with FireRedEngine.from_pretrained(checkpoint, "cpu", torch.float32, options=options) as engine:
        yield engine
