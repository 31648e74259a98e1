"""The model's files on this disk, from the nearest place that has them.

    baked into the image -> RunPod's cached model -> a complete copy on the volume -> the bucket -> the hub

Whatever kills the process leaves the whole model or none. A lock on the volume makes others wait, then use what the
first one brought.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import structlog

from pipeline.errors import ConfigError, StorageError
from serverless.model_download import download
from serverless.model_files import ModelFile, ModelSpec, complete, in_hub_cache, missing
from serverless.model_hub import HubSource
from serverless.model_upload import upload_model
from serverless.storage import Storage, disk_errors

log = structlog.get_logger()

Source = Literal["baked", "runpod", "volume", "s3", "hub"]
RUNPOD_CACHE: Final = Path("/runpod-volume/huggingface-cache/hub")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """Where the model is, which place it came from, and what it cost to bring it here."""

    directory: Path
    source: Source
    n_bytes: int = 0
    """Bytes that were downloaded."""
    seconds: float = 0.0
    reasons: tuple[str, ...] = ()
    """Why the places before `source` did not do."""


def find_model(
    spec: ModelSpec,
    *,
    local_dir: Path,
    baked_dir: Path | None = None,
    hub_caches: Sequence[Path] = (RUNPOD_CACHE,),
    storage: Storage | None = None,
    hub: HubSource | None = None,
    upload_to_s3: bool = False,
    worker: str = "worker",
    noted: Callable[[FoundModel], None] | None = None,
) -> Path:
    """The directory of the model; `noted` is told what it took.

    Args:
        spec: the files that are wanted.
        local_dir: where a downloaded model is kept as `{name}/{revision}`: on the volume where there is one.
        baked_dir: a directory in the image that may hold all files.
        hub_caches: caches of huggingface_hub to look into, RunPod's first.
        storage: the bucket with `models/`; None does not ask it.
        hub: the model hub; None does not ask it.
        upload_to_s3: after a download from the hub put the model into the bucket, unless another worker does.
        worker: who we are, for the lease of the upload.
        noted: gets the source, the bytes and the seconds.

    Raises:
        ConfigError: no place has the model; the text lists every place with its reason.
    """
    started = time.monotonic()
    found = _find(spec, local_dir, baked_dir, hub_caches, storage, hub)
    found = FoundModel(
        found.directory, found.source, found.n_bytes, round(time.monotonic() - started, 3), found.reasons
    )
    log.info(
        "model.found", model=spec.name, source=found.source, n_bytes=found.n_bytes, seconds=found.seconds,
        passed=list(found.reasons),
    )  # fmt: skip
    if noted is not None:
        noted(found)
    if upload_to_s3 and storage is not None and found.source == "hub":
        upload_model(spec, found.directory, storage, worker=worker)
    return found.directory


def _find(
    spec: ModelSpec,
    local_dir: Path,
    baked_dir: Path | None,
    hub_caches: Sequence[Path],
    storage: Storage | None,
    hub: HubSource | None,
) -> FoundModel:
    reasons: list[str] = []
    if baked_dir is None:
        reasons.append("image: no directory is named for it")
    elif (lack := missing(baked_dir, spec)) is None:
        return FoundModel(baked_dir, "baked")
    else:
        reasons.append(f"image: {lack}")
    place = local_dir / spec.name / spec.revision
    cached = {file.path: path for file in spec.files if (path := _cached(hub_caches, file)) is not None}
    try:
        with disk_errors("made"):
            place.parent.mkdir(parents=True, exist_ok=True)
        if len(cached) == len(spec.files):
            with disk_errors("linked"), _lock(place):
                return FoundModel(_linked(place, cached), "runpod", reasons=tuple(reasons))
        lacking = [file.path for file in spec.files if file.path not in cached]
        reasons.append(f"RunPod's cached model: it has no {', '.join(lacking)}")
        if complete(place, spec) is not None:
            return FoundModel(place, "volume", reasons=tuple(reasons))
        with disk_errors("written"), _lock(place) as is_locked:
            if complete(place, spec) is not None:  # another process brought it while we waited
                return FoundModel(place, "volume", reasons=tuple(reasons))
            reasons.append("volume: there is no complete copy")
            brought = download(spec, place, cached, storage, hub, reasons, is_locked=is_locked)
            if brought is not None:
                return FoundModel(place, brought.source, sum(brought.n_bytes.values()), reasons=tuple(reasons))
    except StorageError as error:
        reasons.append(f"disk: {error.message}")
    raise ConfigError(f"the model {spec.name} cannot be had. " + "; ".join(reasons))


def _cached(caches: Sequence[Path], file: ModelFile) -> Path | None:
    for cache in caches:
        with suppress(OSError):  # of another user, who lets nobody in
            if (path := in_hub_cache(cache, file)) is not None:
                return path
    return None


def _linked(place: Path, cached: dict[str, Path]) -> Path:
    """A directory of links to files that lie elsewhere, made anew because those move with every snapshot."""
    links = place.with_name(place.name + ".cached")
    new = place.with_name(f".links-{place.name}")
    shutil.rmtree(new, ignore_errors=True)
    for name, path in cached.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).symlink_to(path.absolute())
    if links.is_dir() and _targets(links, cached) == {name: path.absolute() for name, path in cached.items()}:
        shutil.rmtree(new)
        return links
    shutil.rmtree(links, ignore_errors=True)
    new.rename(links)
    return links


def _targets(links: Path, cached: dict[str, Path]) -> dict[str, Path]:
    return {name: (links / name).readlink() for name in cached if (links / name).is_symlink()}


@contextmanager
def _lock(place: Path) -> Iterator[bool]:
    """Only one process of all that share the volume goes on; the kernel frees the lock of one that dies.

    Gives False on a volume that knows no locks: then each process downloads for itself.
    """
    with place.with_name(place.name + ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            log.warning("model.no_locks")
            yield False
        else:
            yield True
