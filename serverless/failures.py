"""What is logged of an error that nobody foresaw: its kind and where it rose. Its message may quote the caller."""

from __future__ import annotations

import traceback
from pathlib import PurePath
from typing import Any

_MAX_FRAMES = 12


def traced(error: BaseException) -> dict[str, Any]:
    """Fields for the log: the kind of the error, of its causes, and the innermost frames, outermost first."""
    kinds: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(kinds) < _MAX_FRAMES:
        kinds.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    where = [f"{'/'.join(PurePath(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": " from ".join(kinds), "where": where}
