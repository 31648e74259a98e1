"""A module that stays out: another takes its place while a library that names it is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def in_place_of(stand_in: ModuleType) -> Iterator[None]:
    """`stand_in` is what an import of its name finds in the block; what was there before is there again after it."""
    absent = object()
    real = sys.modules.get(stand_in.__name__, absent)
    sys.modules[stand_in.__name__] = stand_in
    try:
        yield
    finally:
        if isinstance(real, ModuleType):
            sys.modules[stand_in.__name__] = real
        else:
            del sys.modules[stand_in.__name__]
