"""Imports Gradio without what only its developers want of an import: half of the time that it takes.

At every import Gradio 6.31 (`gradio/component_meta.py`) parses the source of each component, renders a type stub of it
and writes it beside the source. It leaves out a class whose file cannot be told, so none is told while it is imported.
The documentation of each event of each component is a template of its own, of which there are few different ones: here
each is compiled once. And the garbage collector looks again and again through what an import makes and nobody drops:
it is off meanwhile, and is told afterwards that all of it stays.
"""

from __future__ import annotations

import gc
import inspect
from functools import cache
from typing import Any

import jinja2

from process_tuning import long_import

_getfile, _template = inspect.getfile, jinja2.Template


def no_file_of_a_component(object: Any) -> str:
    """`inspect.getfile`, which refuses Gradio's components as it does what was typed in."""
    if type(object).__name__ == "ComponentMeta" or getattr(object, "__name__", "") == "BlocksEvents":
        raise OSError("no type stubs are wanted")
    return _getfile(object)


inspect.getfile = no_file_of_a_component
jinja2.Template = cache(jinja2.Template)  # type: ignore[assignment,misc]
try:
    with long_import():
        import gradio

        gc.freeze()
finally:
    jinja2.Template = _template  # type: ignore[misc]
    inspect.getfile = _getfile

__all__ = ["gradio"]
