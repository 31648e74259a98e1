"""Directories and files that only the server's user may read, and that are never half written."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from pipeline.errors import ConfigError


def make_private_directory(path: Path, key: str) -> None:
    """Makes `path` so that only this user can look into it; ConfigError names `key` when that cannot be.

    A directory that somebody else prepared at a predictable place (such as /tmp/audio_cache) is refused.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigError(f"{key} {path} is no directory of this user; choose another")
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{key} {path} cannot be made: {error.strerror}") from None


def write_private(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step, readable by this user alone; after a failure there is what was there before."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
