"""Where voices, results and models are kept: one protocol over S3 and over a directory, and what can go wrong.

Everything here blocks and is safe to call from several threads. Keys come from `serverless.keys`.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pipeline.errors import StorageError

__all__ = [
    "AlreadyStored",
    "NotStored",
    "Storage",
    "StorageError",
    "StoredObject",
    "clamp_seconds",
    "content_type_of",
    "disposition",
]

DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
MIN_SIGNED_S, MAX_SIGNED_S = 1, 7 * 24 * 3600
CONTENT_TYPES: Final = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "ogg": "audio/ogg",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "csv": "text/csv",
    "json": "application/json",
    "ass": "text/x-ssa",
    "txt": "text/plain; charset=utf-8",
}


class NotStored(StorageError):
    """There is no object under that key."""

    code = "not_stored"
    retryable = False


class AlreadyStored(StorageError):
    """There is an object under that key already, and the caller did not want to replace it."""

    code = "already_stored"
    retryable = False


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as the storage lists it. `modified_s` is Unix time; `etag` changes whenever the bytes do."""

    key: str
    size: int
    modified_s: float
    etag: str


class Storage(Protocol):
    """Objects by key. Every method may raise `StorageError`: its code says what is wrong, its text how to fix it."""

    def put(
        self, key: str, data: bytes | Path, *, content_type: str, filename: str | None = None, if_absent: bool = False
    ) -> None:
        """Store the bytes, or those of a file, in one step.

        `filename` is what a browser calls the download. With `if_absent` an object that is there already stays:
        `AlreadyStored`.
        """
        ...

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """The whole object; `NotStored`, or `StorageError` (object_too_large) past `max_bytes`."""
        ...

    def download(self, key: str, target: Path, *, size: int) -> None:
        """The object of `size` bytes as the file `target`, large ones in parallel ranges.

        What a call that was cut off brought is kept beside `target` and gone on from. The file is not checked beyond
        its size: that is for whoever knows its sha256.
        """
        ...

    def head(self, key: str) -> StoredObject | None:
        """What is known of the object, or None."""
        ...

    def list(
        self, prefix: str, *, cursor: str | None = None, limit: int = 1000
    ) -> tuple[list[StoredObject], str | None]:
        """Up to `limit` objects in the order of their keys, and the cursor for the next ones (None at the end).

        A cursor is the key after which the listing goes on.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object; no error when there is none."""
        ...

    def presign_get(self, key: str, *, seconds: int, filename: str | None = None) -> str:
        """A URL that anybody may read the object from for `seconds` (1 s to 7 days, clamped). Never log it."""
        ...

    def presign_put(self, key: str, *, seconds: int, content_type: str, max_bytes: int) -> str:
        """A URL that anybody may store the object through, with that Content-Type.

        S3 cannot bound the size of such a PUT: whoever reads the object must look at its size first.
        """
        ...

    def check(self) -> None:
        """Write, read and delete a tiny object; `StorageError` whose code and text tell what to change."""
        ...


def clamp_seconds(seconds: int) -> int:
    """A time of life that every store signs: 1 second to 7 days."""
    return max(MIN_SIGNED_S, min(int(seconds), MAX_SIGNED_S))


def content_type_of(key: str) -> str:
    """The media type by the suffix of a key."""
    return CONTENT_TYPES.get(key.rpartition(".")[2], "application/octet-stream")


def disposition(filename: str) -> str:
    """A Content-Disposition that makes browsers save under `filename`, whatever characters that holds."""
    return f'attachment; filename="{re.sub(r"[^A-Za-z0-9_. -]", "_", filename)[:128]}"'


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Errors of the disk as `StorageError` that names no path; `doing` as in "written"."""
    try:
        yield
    except OSError as error:
        full = error.errno in DISK_FULL
        raise StorageError(
            "the disk is full" if full else f"a file could not be {doing}: {error.strerror}",
            code="no_space" if full else "disk_error",
            retryable=not full,
        ) from None
