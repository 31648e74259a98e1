"""Brings a model to this disk from the bucket and from the hub, so that it is there whole or not at all.

It grows in `.tmp-<revision>-<pid>` beside its place: every file is checked by its sha256, synced and renamed,
`COMPLETE` is written, and the directory is renamed last. The next process goes on from what a killed one left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from pipeline.errors import StorageError
from pipeline.models import sha256_of
from serverless import keys
from serverless.model_files import KnownFile, Manifest, ModelFile, ModelSpec, complete, mark_complete
from serverless.model_hub import HubSource
from serverless.storage import NotStored, Storage

_MARGIN_BYTES: Final = 64 << 20
_MAX_MANIFEST: Final = 1 << 20
_HUB: Final = ".hub"  # where huggingface_hub keeps what it has of a file


@dataclass(slots=True)
class Brought:
    """A download under way: the hashes of what is checked, and the bytes from each source that gave a file.

    A file that a killed process had brought already counts for its source with no bytes.
    """

    directory: Path
    hashes: dict[str, str] = field(default_factory=dict)
    n_bytes: dict[Literal["s3", "hub"], int] = field(default_factory=dict)

    @property
    def source(self) -> Literal["s3", "hub"]:
        """The farthest place that gave a file."""
        return "hub" if "hub" in self.n_bytes else "s3"

    def lacks(self, spec: ModelSpec) -> list[ModelFile]:
        """The files that are not checked yet."""
        return [file for file in spec.files if file.path not in self.hashes]

    def has(self, path: str, sha256: str, source: Literal["s3", "hub"], n_bytes: int) -> None:
        """A file is there and right."""
        self.hashes[path] = sha256
        self.n_bytes[source] = self.n_bytes.get(source, 0) + n_bytes


def download(
    spec: ModelSpec,
    place: Path,
    cached: Mapping[str, Path],
    storage: Storage | None,
    hub: HubSource | None,
    reasons: list[str],
    *,
    is_locked: bool,
) -> Brought | None:
    """Bring the model to `place`: what is `cached` is linked, the rest comes from the bucket, then from the hub.

    None when something is lacking; `reasons` is told why. `OSError` of the disk comes out.
    """
    brought = Brought(_growing(place, is_locked))
    for file in spec.files:
        path = brought.directory / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.path in cached:
            _link(file, path, cached[file.path], brought)
    if storage is None:
        reasons.append("S3: it is switched off")
    else:
        try:
            _from_s3(spec, storage, brought)
        except StorageError as error:
            reasons.append(f"S3: {error.message}")
    if brought.lacks(spec):
        if hub is None:
            reasons.append("hub: it is switched off")
        else:
            try:
                for file in brought.lacks(spec):
                    _from_hub(file, hub, brought)
            except StorageError as error:
                reasons.append(f"hub: {error.message}")
    if brought.lacks(spec):
        return None
    shutil.rmtree(brought.directory / _HUB, ignore_errors=True)
    mark_complete(brought.directory, spec, brought.hashes)
    _sync_directory(brought.directory)
    if complete(place, spec) is not None:  # on a volume without locks another may have been faster, and uses it now
        shutil.rmtree(brought.directory, ignore_errors=True)
    else:
        shutil.rmtree(place, ignore_errors=True)
        brought.directory.rename(place)
    _sync_directory(place.parent)
    return brought


def _link(file: ModelFile, path: Path, target: Path, brought: Brought) -> None:
    path.unlink(missing_ok=True)  # of a run before
    try:
        sha256 = sha256_of(target)
    except OSError:  # a cache that cannot be read is as good as none
        return
    if file.sha256 in (None, sha256):
        path.symlink_to(target.absolute())
        brought.hashes[file.path] = sha256


def _growing(place: Path, is_locked: bool) -> Path:
    """The directory that the model grows in: what a killed process left, if the lock is ours, or a new one."""
    if not is_locked:  # what lies there may be another's, who may have the same number in another container
        return Path(tempfile.mkdtemp(prefix=f".tmp-{place.name}-", dir=place.parent))
    mine = place.with_name(f".tmp-{place.name}-{os.getpid()}")
    for left in sorted(place.parent.glob(f".tmp-{place.name}-*")):
        if left == mine:
            continue
        if mine.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.rename(mine)
    mine.mkdir(exist_ok=True)
    return mine


def _from_s3(spec: ModelSpec, storage: Storage, brought: Brought) -> None:
    try:
        manifest = Manifest.model_validate_json(
            storage.get(keys.model_manifest(spec.name, spec.revision), max_bytes=_MAX_MANIFEST)
        )
    except NotStored:
        raise StorageError("the bucket does not have it") from None
    except ValidationError:
        raise StorageError("its manifest cannot be read") from None
    if (fault := manifest.fault(spec)) is not None:
        raise StorageError(fault)
    wanted = [manifest.of(file.path) for file in brought.lacks(spec)]
    _require_space(brought.directory, sum(_still_missing(brought.directory / file.path, file.size) for file in wanted))
    for known in wanted:
        _one_from_s3(spec, storage, brought, known)


def _one_from_s3(spec: ModelSpec, storage: Storage, brought: Brought, known: KnownFile) -> None:
    path = brought.directory / known.path
    key = keys.model(spec.name, spec.revision, known.path)
    if path.exists() and sha256_of(path) == known.sha256:  # of the run before
        brought.has(known.path, known.sha256, "s3", 0)
        return
    part = path.with_name(path.name + ".part")
    for _attempt in range(2):  # the second time from nothing: the first may have gone on from damaged bytes
        storage.download(key, part, size=known.size)
        if sha256_of(part) == known.sha256:
            part.rename(path)
            brought.has(known.path, known.sha256, "s3", known.size)
            return
        part.unlink()
    raise StorageError(f"its {known.path} is damaged")


def _from_hub(file: ModelFile, hub: HubSource, brought: Brought) -> None:
    path = brought.directory / file.path
    facts = hub.describe(file)
    if path.exists():
        sha256 = sha256_of(path)
        if facts.is_right(path, sha256):
            brought.has(file.path, sha256, "hub", 0)
            return
        path.unlink()
    path.with_name(path.name + ".part").unlink(missing_ok=True)  # of the bucket; another source is another file
    path.with_name(path.name + ".part.ranges").unlink(missing_ok=True)
    _require_space(brought.directory, facts.size)
    got = hub.download(file, facts, brought.directory / _HUB)
    sha256 = sha256_of(got)
    if not facts.is_right(got, sha256):
        got.unlink()
        raise StorageError(f"its {file.path} arrived damaged")
    with got.open("rb") as stream:
        os.fsync(stream.fileno())
    got.rename(path)
    brought.has(file.path, sha256, "hub", facts.size)


def _still_missing(path: Path, size: int) -> int:
    """The bytes of the disk that a file still needs; what is there of it is gone on with, or makes room."""
    if path.exists():
        return 0
    part = path.with_name(path.name + ".part")
    return max(size - part.stat().st_blocks * 512, 0) if part.exists() else size


def _require_space(directory: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if n_bytes and free < n_bytes + _MARGIN_BYTES:
        need, have = (n_bytes + _MARGIN_BYTES) / 1e9, free / 1e9
        raise StorageError(f"{need:.1f} GB are needed on the disk and {have:.1f} GB are free", code="no_space")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
