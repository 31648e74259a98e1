"""Imports Gradio without the files that it writes for editors: more than half of its import.

At every import Gradio 6.31 (`gradio/component_meta.py`) parses the source of each component, renders a type stub of it
and writes it beside the source. It leaves out a class whose file cannot be told, so none is told while it is imported.
"""

from __future__ import annotations

import inspect
from typing import Any

_getfile = inspect.getfile


def no_file_of_a_component(object: Any) -> str:
    """`inspect.getfile`, which refuses Gradio's components as it does what was typed in."""
    if type(object).__name__ == "ComponentMeta":
        raise OSError("no type stubs are wanted")
    return _getfile(object)


inspect.getfile = no_file_of_a_component
try:
    import gradio
finally:
    inspect.getfile = _getfile

__all__ = ["gradio"]
