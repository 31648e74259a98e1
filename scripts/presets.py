"""The configurations that come with the project, by name: profiles, and presets for cards of the usual sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from settings import Settings
from settings_sources import CONFIGS, PROFILE_FILES, load_settings

PRESETS: Final[dict[str, Path]] = {f"{size}gb": CONFIGS / f"gpu-{size}gb.json" for size in (24, 48, 80)}


def settings_of(file: Path, environ: Mapping[str, str]) -> Settings:
    """The settings of one file, as the server would see them."""
    return load_settings(None, environ, file).settings


def file_of(name: str) -> Path:
    """The configuration of the profile `cpu` or `gpu`, or of a preset such as `48gb`."""
    return PRESETS.get(name) or PROFILE_FILES[name]
