"""Imports of seconds without the garbage collector, which takes up to a sixth of such an import."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def long_import() -> Iterator[None]:
    """What an import makes nobody drops: to look through it again and again finds nothing."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
