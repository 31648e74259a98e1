"""How numpy, malloc, onnxruntime and garbage collection work here. Import it before those, and before threads begin.

numpy: one thread for each product of matrices. OpenBLAS would split every small one over all cores and wait in a busy
loop for the slowest: measured on two busy cores, a speaker's vector took 60 times as long as with one thread. What is
worth several threads has its own pool.

malloc: memory that was freed is kept for the next job. glibc asks the system for a very large block anew each time and
returns it at once, and the system clears every page of it again: Whisper, which needs 600 MB for each utterance, spent
three tenths of its processor time there. The price is that a process goes on to hold what it needed at most;
`give_back_memory` is for the moments after which less is needed.

onnxruntime: no telemetry. It would make an id for the machine and keep events for its maker's server.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h
_LIBC: Final = ctypes.CDLL(None)


def give_back_memory() -> None:
    """Return to the system what is free, in some 0.1 s for each GB: after loading, and where a model was closed."""
    if hasattr(_LIBC, "malloc_trim"):  # glibc alone has it
        _LIBC.malloc_trim(0)


@contextmanager
def long_import() -> Iterator[None]:
    """No garbage collection meanwhile: what an import makes stays, and looking through it takes up to a sixth."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _keep_memory() -> None:
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_ARENA_MAX, 1)  # any other arena is made of pieces of 64 MB and holds no larger block
        _LIBC.mallopt(_MMAP_MAX, 0)
        _LIBC.mallopt(_TRIM_THRESHOLD, 2**31 - 1)  # the largest number that it takes


os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_keep_memory()
