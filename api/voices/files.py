"""The files of users' voices: the reference recording, and what each engine made of it.

    <storage.dir>/voices/<voice id>.wav              the recording
    <storage.dir>/voices/<voice id>.<engine>.voice   an engine's own data

Readable by the server's user alone, and never half written. Every function belongs in the store's thread.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

import structlog

from private_files import make_private_directory, write_private

log = structlog.get_logger()

RECORDING: Final = ".wav"
_DATA: Final = ".voice"


class VoiceFiles:
    """The directory, made where it is missing."""

    def __init__(self, directory: Path) -> None:
        make_private_directory(directory, "storage.dir")
        self._directory = directory

    def recording(self, voice_id: str) -> bytes | None:
        """The reference recording as a WAV file, None when it is not there."""
        return self._read(f"{voice_id}{RECORDING}")

    def data(self, voice_id: str, engine: str) -> bytes | None:
        """What `engine` made of it, None when it made nothing yet."""
        return self._read(f"{voice_id}.{engine}{_DATA}")

    def write_recording(self, voice_id: str, wav: bytes) -> None:
        """Keep the recording."""
        self._write(f"{voice_id}{RECORDING}", wav)

    def write_data(self, voice_id: str, engine: str, data: bytes) -> None:
        """Keep what `engine` made of it."""
        self._write(f"{voice_id}.{engine}{_DATA}", data)

    def remove(self, voice_id: str) -> None:
        """All files of the voice."""
        for path in self._directory.glob(f"{voice_id}.*"):
            path.unlink(missing_ok=True)

    def sweep(self, known: Collection[str]) -> int:
        """Remove what belongs to no known voice: of a program that ended in between. Gives the number of files."""
        there = (path for path in self._directory.iterdir() if not path.is_dir())  # lost+found
        strays = [path for path in there if path.name.partition(".")[0] not in known]
        for path in strays:
            path.unlink(missing_ok=True)
        if strays:
            log.warning("voices.strays_removed", n_files=len(strays))
        return len(strays)

    def _read(self, name: str) -> bytes | None:
        try:
            descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def _write(self, name: str, data: bytes) -> None:
        write_private(self._directory / name, data)
