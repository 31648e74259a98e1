"""`python -m serverless.bake [--tiny] DIRECTORY`: an F5-TTS model into a directory, which F5_MODEL_DIR then names.

--tiny writes a model of a megabyte that makes noise, for a try. Without it the published one is downloaded and checked:
for the build of an image with weights (serverless/Dockerfile, WEIGHTS=baked); a worker never runs it. The weights are
CC-BY-NC 4.0: an image that holds them may not serve a commercial purpose. A token for the hub is read from HF_TOKEN.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError
from serverless.model_cache import find_model
from serverless.model_files import F5TTS_V1_BASE, ModelSpec, missing
from serverless.model_hub import HubSource
from serverless.model_source import pinned


def bake(directory: Path, hub: HubSource, spec: ModelSpec) -> None:
    """Download what is not there and check it.

    Raises:
        ConfigError: the directory holds something else than a complete model, or what the hub refused.
    """
    directory = directory.resolve()
    lack = missing(directory, spec)
    if lack and directory.is_dir() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty and holds no complete model ({lack}); name another directory")
    growing = directory.with_name(f".{directory.name}-new")
    found = find_model(spec, local_dir=growing, baked_dir=directory, hub_caches=(), hub=hub)
    if found != directory:
        found.replace(directory)  # of a directory that is not there, or empty
    shutil.rmtree(growing, ignore_errors=True)


def main(argv: Sequence[str]) -> int:
    """0 when the model is there; 1 with the reason; 2 when the command is not understood."""
    is_tiny = argv[:1] == ["--tiny"]
    names = list(argv[1:] if is_tiny else argv)
    if len(names) != 1 or names[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    directory = Path(names[0])
    try:
        if is_tiny:
            from pipeline.engines.tiny_f5 import write_tiny_f5

            write_tiny_f5(directory)
            return 0
        directory.parent.mkdir(parents=True, exist_ok=True)
        bake(directory, HubSource(token=os.environ.get("HF_TOKEN") or None), pinned(F5TTS_V1_BASE))
    except (ConfigError, OSError) as error:
        print(f"bake: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
