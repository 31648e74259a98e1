"""Which files a model consists of, and whether a directory holds them whole.

`COMPLETE` in a model's directory is written last: it lists every file with its size, sha256 and time of change. A model
without it is not there. Where nobody has published the sha256 of a file, the hub's own is checked at the first download
and kept from then on, in `COMPLETE` and in the bucket's manifest.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.models import sha256_of

MARK: Final = "COMPLETE"
_SMALL_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file: where it lies in the model's directory and in a hub repository. None = not known beforehand."""

    path: str
    repository: str
    hub_path: str
    hub_revision: str = "main"
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model; `name` and `revision` name its directory and its place in the bucket."""

    name: str
    revision: str
    files: tuple[ModelFile, ...]


F5TTS_V1_BASE: Final = ModelSpec(
    "F5TTS_v1_Base",
    "1250000",
    (
        ModelFile("model_1250000.safetensors", "SWivid/F5-TTS", "F5TTS_v1_Base/model_1250000.safetensors"),
        ModelFile("vocab.txt", "SWivid/F5-TTS", "F5TTS_v1_Base/vocab.txt"),
        ModelFile("vocos/config.yaml", "charactr/vocos-mel-24khz", "config.yaml"),
        ModelFile("vocos/pytorch_model.bin", "charactr/vocos-mel-24khz", "pytorch_model.bin"),
    ),
)
"""The published F5-TTS v1 with its vocoder, laid out as `F5Files.in_directories` reads it."""


class KnownFile(BaseModel):
    """A file as it was when its hash was right."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    mtime_ns: int | None = None


class Manifest(BaseModel):
    """All files of a model, as `COMPLETE` and the bucket's MANIFEST.json say."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 1
    name: str
    revision: str
    files: tuple[KnownFile, ...]

    def fault(self, spec: ModelSpec) -> str | None:
        """Why this is no manifest of `spec`, None when it is."""
        if (self.name, self.revision, self.schema_version) != (spec.name, spec.revision, 1):
            return "its manifest is of another model"
        known = {file.path: file for file in self.files}
        for file in spec.files:
            there = known.get(file.path)
            if there is None:
                return f"its manifest has no {file.path}"
            if file.size not in (None, there.size) or file.sha256 not in (None, there.sha256):
                return f"its {file.path} is another file than the one wanted"
        return None

    def of(self, path: str) -> KnownFile:
        """The file of that path."""
        return next(file for file in self.files if file.path == path)


def complete(directory: Path, spec: ModelSpec) -> Manifest | None:
    """The manifest of a directory that holds the model whole, else None.

    A file whose size and time of change are those of its check is believed; another time has it hashed again.
    """
    try:
        manifest = Manifest.model_validate_json((directory / MARK).read_bytes())
        if manifest.fault(spec) is not None:
            return None
        for file in manifest.files:
            status = (directory / file.path).stat()
            if status.st_size != file.size:
                return None
            if status.st_mtime_ns != file.mtime_ns and sha256_of(directory / file.path) != file.sha256:
                return None
    except (OSError, ValidationError):
        return None
    return manifest


def missing(directory: Path, spec: ModelSpec) -> str | None:
    """The first file that a directory without `COMPLETE`, such as a baked one, lacks; None when it has all."""
    for file in spec.files:
        path = directory / file.path
        try:
            if not path.is_file():
                return f"there is no {file.path}"
            if file.size not in (None, path.stat().st_size):
                return f"its {file.path} has the wrong size"
        except OSError as error:
            return f"its {file.path} cannot be read: {error.strerror}"
    return None


def mark_complete(directory: Path, spec: ModelSpec, hashes: dict[str, str]) -> Manifest:
    """Write `COMPLETE` with the sha256 of each path, and sync it."""
    files = []
    for file in spec.files:
        status = (directory / file.path).stat()
        files.append(
            KnownFile(path=file.path, size=status.st_size, sha256=hashes[file.path], mtime_ns=status.st_mtime_ns)
        )
    manifest = Manifest(name=spec.name, revision=spec.revision, files=tuple(files))
    with (directory / MARK).open("wb") as stream:
        stream.write(manifest.model_dump_json(indent=1).encode())
        stream.flush()
        os.fsync(stream.fileno())
    return manifest


def in_hub_cache(cache: Path, file: ModelFile) -> Path | None:
    """The file in a cache of huggingface_hub (RunPod's cached models are one).

    With a known sha256 any snapshot that has it will do. Without one it is the snapshot of the revision; a branch is
    what the cache says it is, or the only snapshot that there is. `OSError` where the cache lets nobody in.
    """
    repository = cache / f"models--{file.repository.replace('/', '--')}"
    snapshots = sorted(path.name for path in (repository / "snapshots").glob("*"))
    if file.sha256 is None:
        try:
            snapshots = [(repository / "refs" / file.hub_revision).read_text(encoding="ascii").strip()]
        except (OSError, ValueError):
            if file.hub_revision != "main" or len(snapshots) != 1:
                snapshots = [file.hub_revision]
    for name in snapshots:
        path = repository / "snapshots" / name / file.hub_path
        if path.is_file() and file.size in (None, path.stat().st_size) and _has_hash(path, file.sha256):
            return path
    return None


def _has_hash(path: Path, sha256: str | None) -> bool:
    """Whether it is that file. The cache calls large files by their sha256, which saves reading them at each start."""
    return (
        sha256 is None
        or path.resolve().name == sha256
        or (path.stat().st_size <= _SMALL_BYTES and sha256_of(path) == sha256)
    )
