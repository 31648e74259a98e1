"""What a start needs beyond the download: FireRedTTS-2 as published becomes safetensors, once.

    python -m scripts.prepare_models --profile gpu
    python -m scripts.prepare_models --preset 48gb
    python -m scripts.prepare_models --config FILE

The published files are pickles of 12.6 GB. They are compared with the manifest, opened so that no code in them can run,
and written beside themselves as safetensors of 7.8 GB, which the engine prefers. In models.tts_model_path they are the
operator's own and only opened that way. A directory that cannot be written is used as it is.
Exit status: 0 nothing to do or done, 1 it could not be done, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.models import Manifest, faults, load_manifest
from scripts.presets import PRESETS, file_of, settings_of
from settings import Settings

FIRERED = "fireredtts-2"
_STEMS = ("llm_posttrain", "codec")

Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None, *, manifest: Manifest | None = None) -> int:
    """Run the command; gives the exit status."""
    try:
        options = _parse(arguments)
        file = options.config or file_of(options.preset or options.profile)
        settings = settings_of(file, os.environ, options.set)
    except ConfigError as error:
        sys.stderr.write(error.message + "\n")
        return 2
    try:
        prepare(settings, manifest or load_manifest(), _say)
    except ConfigError as error:
        sys.stderr.write(error.message + "\n")
        return 1
    return 0


def prepare(settings: Settings, manifest: Manifest, say: Say) -> None:
    """Convert FireRedTTS-2 where `settings` speak with it and it lies there as published only. Raises ConfigError."""
    if settings.tts.engine != "firered":
        return
    own = settings.models.tts_model_path
    directory = own or settings.models.dir / FIRERED
    if not needs_conversion(directory):
        return
    wrong = [] if own else faults(directory, manifest.model(FIRERED))
    if wrong:
        raise ConfigError(f"{FIRERED} in {directory}: {wrong[0]}. Run: python -m scripts.download_models --profile gpu")
    if not os.access(directory, os.W_OK):
        say(f"startup: {directory} cannot be written, so FireRedTTS-2 loads as published, which takes longer")
        return
    say("startup: FireRedTTS-2 is converted to safetensors, once (a few minutes)")
    _convert(directory, say)


def needs_conversion(directory: Path) -> bool:
    """Whether the published files are all there and a converted one is missing."""
    published = all((directory / f"{stem}.pt").is_file() for stem in _STEMS)
    return published and not all((directory / f"{stem}.safetensors").is_file() for stem in _STEMS)


def _convert(directory: Path, say: Say) -> None:
    try:
        from firered.conversion import convert, parts_of
        from firered.errors import CheckpointError
    except ImportError as error:
        raise ConfigError(
            "The conversion needs what the GPU profile installs. Run: .venv/bin/pip install -r requirements/gpu.txt"
        ) from error
    try:
        convert(directory, directory, parts_of(directory, ("dialogue",), "bf16", "fp32"), say)
    except CheckpointError as error:
        raise ConfigError(f"FireRedTTS-2 cannot be converted: {error}") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ConfigError(
            f"FireRedTTS-2 cannot be converted: {'the disk is full' if full else error.strerror}"
        ) from error


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.prepare_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument("--profile", choices=("cpu", "gpu"))
    ways.add_argument("--preset", choices=sorted(PRESETS))
    ways.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="a setting on top")
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
