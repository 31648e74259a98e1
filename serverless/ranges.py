"""A file that is filled range by range, in any order and from several threads, and gone on with after a crash.

Beside the file lies `<name>.ranges`: what it is a copy of, then a line for each range that was written. A range is
noted after its bytes, so what is noted is there; a process that is killed loses only what was on its way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

Range = tuple[int, int]
"""`[begin, end)` in bytes."""


def ranges_of(size: int, range_bytes: int) -> list[Range]:
    """The ranges that make up `size` bytes."""
    return [(begin, min(begin + range_bytes, size)) for begin in range(0, size, range_bytes)]


@dataclass(slots=True)
class RangeRecord:
    """An open file and the ranges that it has; made by `open`."""

    path: Path
    notes: Path
    file: int
    notes_file: int
    size: int
    done: set[Range]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    @contextmanager
    def open(cls, path: Path, etag: str, size: int, range_bytes: int) -> Iterator[RangeRecord]:
        """Open or go on with `path`; notes about another object or other ranges are thrown away with the bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        notes = path.with_name(path.name + ".ranges")
        head = f"{etag} {size} {range_bytes}"
        done = _read(notes, head, path, size)
        if done is None:
            path.unlink(missing_ok=True)
            notes.write_text(head + "\n", encoding="ascii")
        flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(path, flags, 0o600)
        notes_file = os.open(notes, flags | os.O_APPEND, 0o600)
        try:
            os.ftruncate(file, size)
            yield cls(path, notes, file, notes_file, size, done or set())
        finally:
            os.close(notes_file)
            os.close(file)

    def write(self, begin: int, end: int, data: bytes) -> None:
        """Put the bytes of a range in place and note it."""
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self.file, view, begin + len(data) - len(view)) :]
        with self._lock:
            os.write(self.notes_file, f"{begin} {end}\n".encode())
            self.done.add((begin, end))

    def finish(self) -> None:
        """Sync the file and forget the notes."""
        os.fsync(self.file)
        self.notes.unlink(missing_ok=True)


def _read(notes: Path, head: str, path: Path, size: int) -> set[Range] | None:
    """The ranges noted for exactly this object, None when there is nothing to go on with."""
    try:
        lines = notes.read_text(encoding="ascii").split("\n")
        if lines[0] != head or path.stat().st_size != size:
            return None
        # The last piece is empty, or a line that was cut off.
        return {(int(begin), int(end)) for begin, end in (line.split() for line in lines[1:-1])}
    except (OSError, ValueError):
        return None
