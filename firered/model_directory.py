"""Writing a model directory: one writer at a time, room beforehand, progress in lines."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from firered.errors import CheckpointError

Say = Callable[[str], None]

# Room beside the weights: headers, configs, the tokenizer (11 MB published).
_MARGIN_BYTES = 64 << 20


@contextlib.contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Make the directory and hold its lock; CheckpointError when another process has it."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(directory, "is being written by another process") from error
        yield
    finally:
        os.close(descriptor)  # gives the lock back


def require_space(directory: Path, n_bytes: int) -> None:
    """CheckpointError when the volume cannot take `n_bytes` and a little more."""
    needed, free = n_bytes + _MARGIN_BYTES, shutil.disk_usage(directory).free
    if n_bytes and free < needed:
        problem = "is on a volume without enough space"
        raise CheckpointError(directory, problem, expected=f"{size_text(needed)} free", found=size_text(free))


def size_text(n_bytes: int) -> str:
    """A size in decimal units, as disks and hubs show it."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 10**9 else f"{n_bytes / 1e6:.1f} MB"


class Progress:
    """Says how much of `n_bytes` is written, a line each quarter."""

    def __init__(self, n_bytes: int, say: Say) -> None:
        self._n_bytes = n_bytes
        self._say = say
        self._n_written = 0

    def advance(self, n_bytes: int) -> None:
        """So many more bytes are written."""
        before = 4 * self._n_written // self._n_bytes
        self._n_written += n_bytes
        quarters = 4 * self._n_written // self._n_bytes
        if quarters > before:
            self._say(f"  {25 * quarters} %")
