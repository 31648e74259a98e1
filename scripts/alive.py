"""Whether the server on this machine answers, for a container's health check: `python -m scripts.alive`.

Exit status: 0 it does, 1 it does not. The port is that of the settings, with config.json on the volume if there is one;
a server with TLS is asked without a check of its certificate, which names a host and not this machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx

from pipeline.errors import ConfigError
from settings_sources import load_settings

_TIMEOUT_S = 4.0


def main() -> int:
    """Ask /health/live; gives the exit status."""
    try:
        network = load_settings(None, os.environ, _on_the_volume()).settings.network
    except ConfigError as error:
        sys.stderr.write(error.message + "\n")
        return 1
    scheme = "https" if network.tls_cert else "http"
    try:
        # Not through a proxy: it would answer for itself.
        with httpx.Client(verify=False, trust_env=False, timeout=_TIMEOUT_S) as client:  # noqa: S501 - this machine
            answer = client.get(f"{scheme}://127.0.0.1:{network.port}/health/live")
    except httpx.RequestError as error:
        sys.stderr.write(f"no answer: {type(error).__name__}\n")
        return 1
    if answer.status_code != 200:
        sys.stderr.write(f"it answered {answer.status_code}\n")
        return 1
    return 0


def _on_the_volume() -> Path | None:
    """The configuration that container_startup.sh takes from the volume."""
    file = Path(os.environ.get("VOICEPOD_WORKSPACE") or "/nowhere", "configs", "config.json")
    return file if file.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
