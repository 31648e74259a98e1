"""The configurations that come with the project, by name: profiles, and presets for cards of the usual sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from settings import Settings
from settings_sources import CONFIGS, PROFILE_FILES, load_settings

PRESETS: Final[dict[str, Path]] = {f"{size}gb": CONFIGS / f"gpu-{size}gb.json" for size in (24, 48, 80)}


def settings_of(file: Path | None, environ: Mapping[str, str], sets: Iterable[str] = ()) -> Settings:
    """The settings of a file (None: the one that the server finds) and of `--set` options, as the server sees them."""
    return load_settings([f"--set={given}" for given in sets], environ, file).settings


def file_of(name: str) -> Path:
    """The configuration of the profile `cpu` or `gpu`, or of a preset such as `48gb`."""
    return PRESETS.get(name) or PROFILE_FILES[name]
