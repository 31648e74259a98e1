"""How fast a worker gets its model: from the bucket, from the hub, and from its own disk.

    python -m benchmarks.model_cache             the worker's own bucket and the real model, by its variables
    python -m benchmarks.model_cache --mb 256    random bytes through an S3 server on loopback: what our side costs

Each place is asked into an empty directory. The ratio of the hub to the bucket is what ENABLE_S3_MODEL_CACHE gains.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, VoicepodError
from serverless.model_cache import FoundModel, find_model
from serverless.model_files import F5TTS_V1_BASE, ModelFile, ModelSpec, mark_complete
from serverless.model_hub import HubSource
from serverless.model_upload import upload_model
from serverless.storage import Storage


def measured(label: str, spec: ModelSpec, **places: Any) -> float | None:
    """One line; gives the seconds, or None where the place does not have the model."""
    found: list[FoundModel] = []
    try:
        find_model(spec, hub_caches=(), noted=found.append, **places)
    except ConfigError as error:
        print(f"{label:<8} {error.message}")
        return None
    seconds, megabytes = found[0].seconds, found[0].n_bytes / 1e6
    rate = f"{megabytes / seconds:8.0f} MB/s" if megabytes else ""
    print(f"{label:<8} {seconds:8.2f} s {megabytes:8.0f} MB {rate}")
    return seconds


def loopback(n_megabytes: int, folder: Path) -> None:
    """The part that is ours: multipart upload, parallel ranges, sha256, rename."""
    from tests.support.s3_servers import start_nanio

    data = os.urandom(n_megabytes << 20)
    spec = ModelSpec("bench", "r1", (ModelFile("weights.safetensors", "org/none", "weights.safetensors"),))
    (folder / "made").mkdir()
    (folder / "made" / "weights.safetensors").write_bytes(data)
    mark_complete(folder / "made", spec, {"weights.safetensors": hashlib.sha256(data).hexdigest()})
    with start_nanio() as server:
        storage = server.storage()
        upload_model(spec, folder / "made", storage, worker="bench")
        measured("bucket", spec, local_dir=folder / "s3", storage=storage)
        measured("disk", spec, local_dir=folder / "s3")


def real(storage: Storage, hub: HubSource, folder: Path) -> None:
    """The published model from each place that has it."""
    from_s3 = measured("bucket", F5TTS_V1_BASE, local_dir=folder / "s3", storage=storage)
    from_hub = measured("hub", F5TTS_V1_BASE, local_dir=folder / "hub", hub=hub)
    if from_s3 and from_hub:
        print(f"the bucket is {from_hub / from_s3:.1f} times as fast as the hub")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when the worker's variables are wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_cache", description=__doc__.split("\n")[0])
    parser.add_argument("--mb", type=int, help="random bytes through a server on loopback, in MiB")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.mb:
            loopback(options.mb, Path(folder))
            return 0
        from serverless.parts import make_storage
        from serverless.settings import load

        try:
            settings = load(os.environ)
            token = settings.hf_token.get_secret_value() if settings.hf_token else None
            real(make_storage(settings), HubSource(token=token), Path(folder))
        except VoicepodError as error:
            print(error.message, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
