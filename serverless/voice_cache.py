"""Recordings on the disk by the hash of where they came from, the least used ones deleted; and work that is done once.

One file an entry: a line of JSON, then PCM16 at 24 kHz. Several processes may share the directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline.audio import AudioChunk
from pipeline.errors import InvalidInput
from private_files import write_private

SAMPLE_RATE: Final = 24_000
_SUFFIX: Final = ".voice"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Recording:
    """Mono audio at 24 kHz, the sha256 of the file that it was read from, and what is said in it if that is known."""

    audio: AudioChunk
    sha256: str
    text: str = ""
    language: str | None = None


class VoiceCache:
    """At most `max_bytes` of recordings under `directory`. Blocking; any thread may call it."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory, self._max_bytes = directory, max_bytes

    def get(self, *origin: str) -> Recording | None:
        """The recording that came from `origin`, None when it is not there (any more)."""
        path = self._path(origin)
        try:
            head, _, pcm = path.read_bytes().partition(b"\n")
            known = json.loads(head)
            recording = Recording(
                AudioChunk.from_pcm16(pcm, SAMPLE_RATE), known["sha256"], known["text"], known["language"]
            )
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, InvalidInput):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return recording

    def put(self, recording: Recording, *origin: str) -> None:
        """Keep a recording; a full disk only means that it is not kept."""
        head = {"sha256": recording.sha256, "text": recording.text, "language": recording.language}
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path(origin), json.dumps(head).encode() + b"\n" + recording.audio.to_pcm16())
            self._prune()

    def _path(self, origin: tuple[str, ...]) -> Path:
        return self._directory / (hashlib.sha256("\0".join(origin).encode()).hexdigest()[:40] + _SUFFIX)

    def _prune(self) -> None:
        found = []
        for path in self._directory.glob(f"*{_SUFFIX}*"):  # with what a killed process left half written
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found)[:-1]:  # the newest is being used
            if total <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


class Once:
    """Calls of the same name at the same time share one piece of work. One event loop only."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[Any]] = {}

    async def __call__(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` gives. Whoever is cancelled leaves; the work goes on for the others."""
        task = self._running.get(name)
        if task is None:
            task = asyncio.ensure_future(work())
            self._running[name] = task
            task.add_done_callback(lambda done: self._finished(name, done))
        result: T = await asyncio.shield(task)
        return result

    def _finished(self, name: str, task: asyncio.Task[Any]) -> None:
        self._running.pop(name, None)
        if not task.cancelled():
            task.exception()  # somebody may have left without taking it
