"""The operator's token: whoever may read a file of the server's user may see its figures and manage it.

For scripts on the same machine. A new one is written at each start; the file is what counts, so that two servers of one
directory do not lock each other's operator out.
"""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Final

from api.access import credentials
from api.access.principal import Principal
from private_files import write_private

FILE: Final = "operator.token"
OPERATOR: Final = Principal("operator", "operator", frozenset(("metrics", "admin")))


def write_token(directory: Path) -> None:
    """Write a new token."""
    write_private(directory / FILE, f"{credentials.mint_token(credentials.OPERATOR)}\n".encode())


def is_token(directory: Path, text: str) -> bool:
    """Whether this is the token in the file."""
    try:
        kept = (directory / FILE).read_text().strip()
    except FileNotFoundError:
        return False
    return hmac.compare_digest(kept.encode(), text.encode())
