"""One tiny checkpoint directory, and the models built from it, for all tests of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.firered_tiny import write_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official directory with the weights that the golden vectors were made with."""
    return write_checkpoint(tmp_path_factory.mktemp("firered") / "tiny")
