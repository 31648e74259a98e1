"""A module that stays out: another takes its place while a library that names it is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class StandIn(ModuleType):
    """Has every name that is imported from it, as an empty class: some are bases of classes, none is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "Stands in for a module of which nothing is called.")
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None)  # who looks whether a package is there, asks for it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init_subclass__": classmethod(lambda cls, **_: None)})


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
