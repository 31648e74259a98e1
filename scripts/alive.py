"""Whether the server on this machine answers, for a container's health check: `python -m scripts.alive`.

Exit status: 0 it does, 1 it does not. It is asked where its own command line and this program's environment say; where
no server runs, where config.json on the volume says. A server with TLS is asked without a check of its certificate,
which names a host and not this machine.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

import httpx
import psutil

from pipeline.errors import ConfigError
from settings_sources import load_settings

_APP: Final = Path(__file__).resolve().parent.parent / "app.py"
_TIMEOUT_S: Final = 4.0
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - names compared, nothing is bound


def main() -> int:
    """Ask /health/live; gives the exit status."""
    try:
        network = load_settings(_command_line(), os.environ, _on_the_volume()).settings.network
    except ConfigError as error:
        sys.stderr.write(error.message + "\n")
        return 1
    scheme = "https" if network.tls_cert else "http"
    host = _EVERYWHERE.get(network.host, network.host)
    url = httpx.URL(scheme=scheme, host=host, port=network.port, path="/health/live")
    try:
        # Not through a proxy: it would answer for itself.
        with httpx.Client(verify=False, trust_env=False, timeout=_TIMEOUT_S) as client:  # noqa: S501 - this machine
            answer = client.get(url)
    except httpx.RequestError as error:
        sys.stderr.write(f"no answer: {type(error).__name__}\n")
        return 1
    if answer.status_code != 200:
        sys.stderr.write(f"it answered {answer.status_code}\n")
        return 1
    return 0


def _command_line() -> list[str]:
    """What the server of this installation was started with; nothing when none runs."""
    for process in psutil.process_iter(["cmdline"]):
        program, *options = (process.info["cmdline"] or [""])[1:] or [""]
        folder = Path()
        with contextlib.suppress(psutil.Error):  # another user's process, which it is for a container's root
            folder = Path(process.cwd())
        if program.endswith("app.py") and (folder / program).resolve() == _APP:
            return options
    return []


def _on_the_volume() -> Path | None:
    """The configuration that container_startup.sh takes from the volume."""
    file = Path(os.environ.get("VOICEPOD_WORKSPACE") or "/nowhere", "configs", "config.json")
    return file if file.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
