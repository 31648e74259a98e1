"""The page's own scripts and styles, under addresses that change with them.

A browser keeps what it has loaded and asks for nothing again until an update: with 150 ms to the server and back, two
of the three seconds in which a page opened were questions whether its modules had changed.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from fastapi import Response
from fastapi.staticfiles import StaticFiles

STATIC: Final = Path(__file__).parent / "static"
MOUNTED_AT: Final = "/vx"
_KEPT: Final = "public, max-age=31536000, immutable"
_NO_MODULES: Final = ("mic-worklet.js", "player-worklet.js", "steady-fetch.js")


def version_of(directory: Path) -> str:
    """A name for the content of all files of a directory."""
    digest = sha256()
    for path in sorted(directory.iterdir()):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


VERSION: Final = version_of(STATIC)
BASE: Final = f"{MOUNTED_AT[1:]}/{VERSION}/"  # relative: behind a proxy the page may live below a path


def modules() -> list[str]:
    """The addresses of all modules of the page, for the browser to load before the first one asks for the next."""
    return [BASE + path.name for path in sorted(STATIC.glob("*.js")) if path.name not in _NO_MODULES]


class OwnFiles(StaticFiles):
    """The files with and without a version in front.

    A page that was opened before an update goes on: what it asks for under its old version it gets, but may not keep.
    """

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    async def get_response(self, path: str, scope: Any) -> Response:
        """The file, whatever version is asked for, and how long it may be kept."""
        version, _, name = path.rpartition(os.sep)
        response = await super().get_response(name, scope)
        response.headers["Cache-Control"] = _KEPT if version == VERSION else "no-cache"
        return response
