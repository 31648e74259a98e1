"""The operator's token: whoever may read a file of the server's user may see its figures and manage it.

For scripts on the same machine. A new one is written at each start; the file is what counts, so that two servers of one
directory do not lock each other's operator out.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final

from api.access import credentials
from api.access.principal import Principal

FILE: Final = "operator.token"
OPERATOR: Final = Principal("operator", "operator", frozenset(("metrics", "admin")))


def write_token(directory: Path) -> None:
    """Write a new token."""
    write_private(directory / FILE, credentials.mint_token(credentials.OPERATOR) + "\n")


def write_private(path: Path, text: str) -> None:
    """Put `text` at `path` in one step, readable by this user alone."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(text)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        raise


def is_token(directory: Path, text: str) -> bool:
    """Whether this is the token in the file."""
    try:
        kept = (directory / FILE).read_text().strip()
    except FileNotFoundError:
        return False
    return hmac.compare_digest(kept.encode(), text.encode())
