"""The errors of the engine.

FireRedError
├─ CheckpointError      a file of the model directory is missing, broken, or of another model
├─ InputError           bad text, voice audio, speaker tag or parameter: the message is for the caller
├─ EngineClosedError    the engine was closed before or during the call
└─ GenerationError      the device failed in mid-stream
"""

from __future__ import annotations

from pathlib import Path


class FireRedError(Exception):
    """Every error this package raises on purpose."""


class CheckpointError(FireRedError):
    """A file of the checkpoint directory cannot be used; says which file, which key, what was expected and found.

    The message names the file as it was given. `key`, `expected` and `found` are empty where they do not apply.
    """

    def __init__(self, file: Path | str, problem: str, *, key: str = "", expected: str = "", found: str = "") -> None:
        self.file = Path(file)
        self.problem = problem
        self.key = key
        self.expected = expected
        self.found = found
        where = f"{file}: {key}: " if key else f"{file}: "
        parts = [f"expected {expected}" if expected else "", f"found {found}" if found else ""]
        detail = ", ".join(part for part in parts if part)
        super().__init__(where + problem + (f" ({detail})" if detail else ""))


class InputError(FireRedError):
    """What the caller gave cannot be used; the message says what would be right and is fit to be shown."""


class EngineClosedError(FireRedError):
    """The engine was closed before or during the call."""


class GenerationError(FireRedError):
    """The device failed in mid-stream; the stream's audio so far is all there is."""
