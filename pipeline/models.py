"""Which model files Voicepod runs on, and whether they are on this disk as they should be.

`configs/models.json` is the manifest: every file of every model with its size, its sha256 and where it can be had.
`scripts/download_models.py` fills the models directory from it; this module only reads, and never uses the network:

    <models dir>/<model id>/<files>          the files themselves
    <models dir>/<model id>/.verified.json   written last, after every hash was right ("the mark")

A model without its mark does not count as present. A file whose sha256 nobody has published is `"sha256": null`: the
hub's own is checked when it is first fetched at its fixed revision, and the mark keeps it from then on.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError

MANIFEST_PATH = Path(__file__).resolve().parent.parent / "configs" / "models.json"
MARK_NAME = ".verified.json"
CUSTOM_LLM_ID = "llm-custom"
_BLOCK_BYTES = 1 << 20


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if not path or "\\" in path or pure.is_absolute() or ".." in pure.parts or str(pure) != path:
        raise ValueError(f"{path!r} is not a plain relative path")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Size = Annotated[int, Field(gt=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Package(_Record):
    """One published archive that holds model files; `sha256` and `bytes` are those of the archive itself."""

    registry: Literal["pypi", "npm"]
    name: str
    version: str
    archive: RelativePath
    bytes: Size
    sha256: Sha256


class Part(_Record):
    """A stretch of a model file: `member` of the archive that `package` names, `bytes` long when unpacked."""

    package: str
    member: RelativePath
    bytes: Size


class HubFile(_Record):
    """A file in a model hub's repository at one revision (a commit hash in the manifest: a branch would move)."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[\w.-]+$")
    path: RelativePath


class SourceFile(_Record):
    """A file to be had: its size (about, where no sha256 is known), and the sources beyond a local directory."""

    name: RelativePath
    bytes: Size
    hub: HubFile | None = None
    parts: tuple[Part, ...] = ()


class ModelFile(SourceFile):
    """One file of a model in the manifest, with what it must hash to; None: see `pinned`."""

    sha256: Sha256 | None


class Model(_Record):
    """One model: `profiles` that need it ("optional": only on request), `tier` among the models of its role.

    `gated`: the hub gives it to nobody without an account; `terms` then says what to do. `notice` is what its users
    must read. `hashes_from` says where the sizes and hashes were found.
    """

    id: ModelId
    title: str
    role: Literal["vad", "asr", "llm", "tts", "speaker", "watermark"]
    tier: Literal["default", "fast", "quality", "gpu"]
    licence: str
    profiles: tuple[Literal["cpu", "gpu", "optional"], ...]
    gated: bool = False
    terms: str = ""
    notice: str = ""
    hashes_from: str = ""
    files: tuple[ModelFile, ...] = Field(min_length=1)

    @property
    def total_bytes(self) -> int:
        """Size of all files together, as they lie on the disk; about, where a file has no sha256."""
        return sum(file.bytes for file in self.files)


class Manifest(_Record):
    """Everything in `configs/models.json`; cross-references are checked when it is read."""

    format: Literal[1]
    packages: dict[str, Package]
    models: tuple[Model, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        ids = [model.id for model in self.models]
        if len(set(ids)) != len(ids) or CUSTOM_LLM_ID in ids:
            raise ValueError("model ids must be unique and leave the custom one free")
        for model in self.models:
            names = [file.name for file in model.files]
            if len(set(names)) != len(names) or MARK_NAME in names:
                raise ValueError(f"{model.id}: file names must be unique")
            if model.gated and not model.terms:
                raise ValueError(f"{model.id}: a gated model says what to do in terms")
            for file in model.files:
                if file.sha256 is None and (file.parts or not file.hub):
                    raise ValueError(f"{model.id}/{file.name}: only a hub's file may have no sha256")
                if file.hub and not _is_commit(file.hub.revision):
                    raise ValueError(f"{model.id}/{file.name}: a hub revision must be a full commit hash")
                if file.parts and sum(part.bytes for part in file.parts) != file.bytes:
                    raise ValueError(f"{model.id}/{file.name}: the parts do not add up to the file")
                for part in file.parts:
                    if part.package not in self.packages:
                        raise ValueError(f"{model.id}/{file.name}: no package {part.package!r}")
        return self

    def model(self, model_id: str) -> Model | None:
        """The model of that id, None when the manifest has none."""
        return next((model for model in self.models if model.id == model_id), None)


class VerifiedFile(_Record):
    """A file whose sha256 was right when its time was `mtime_ns`; `origin` where the mark alone knows that sha256."""

    name: RelativePath
    bytes: Size
    sha256: Sha256
    mtime_ns: int
    origin: str | None = None


class Mark(_Record):
    """What the downloader leaves in a finished model's directory; `source` says in words where it came from."""

    format: Literal[1] = 1
    model: ModelId
    source: str
    files: tuple[VerifiedFile, ...]


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)


def load_manifest(path: Path = MANIFEST_PATH) -> Manifest:
    """The manifest in `path`; ConfigError when it is missing or wrong."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"The model manifest {path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ConfigError(f"The model manifest {path} is wrong at {where or 'the top'}: {first['msg']}") from error


@cache
def _own_manifest() -> Manifest:
    return load_manifest()


def sha256_of(path: Path) -> str:
    """The file's sha256 in lower-case hex; about 1-2 GB a second, so not for an event loop."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_mark(directory: Path) -> Mark | None:
    """The mark of a finished model, None when there is none or it cannot be understood."""
    try:
        return Mark.model_validate_json((directory / MARK_NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def write_mark(directory: Path, mark: Mark) -> None:
    """Put `mark` in place in one step, so that a crash leaves either the old one or the new one."""
    temporary = directory / (MARK_NAME + ".tmp")
    temporary.write_text(json.dumps(mark.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    temporary.replace(directory / MARK_NAME)


def origin_of(file: SourceFile) -> str | None:
    """Repository, revision and path of a hub's file in one line."""
    return f"{file.hub.repository}@{file.hub.revision}/{file.hub.path}" if file.hub else None


def pinned(file: ModelFile, mark: Mark | None) -> ModelFile | None:
    """`file` with the size and sha256 it must have: the manifest's, else those of its first download; None: unknown.

    What the mark keeps counts for the same revision of the same repository alone.
    """
    if file.sha256 is not None:
        return file
    for known in mark.files if mark else ():
        if known.name == file.name and known.origin == origin_of(file):
            return file.model_copy(update={"bytes": known.bytes, "sha256": known.sha256})
    return None


def fault(path: Path, n_bytes: int, sha256: str, *, trusted_mtime_ns: int | None) -> str | None:
    """What is wrong with one file, None when it is right; hashes it unless its time is the trusted one."""
    try:
        status = path.stat()
    except OSError:
        return "is missing"
    if status.st_size != n_bytes:
        return f"has {status.st_size} bytes instead of {n_bytes}"
    if status.st_mtime_ns != trusted_mtime_ns and sha256_of(path) != sha256:
        return "is damaged (its sha256 is wrong)"
    return None


def faults(directory: Path, model: Model | None, *, rehash: bool = False) -> list[str]:
    """What is wrong with the model in `directory`: no entry means it is whole and verified.

    Compares sizes and modification times with the mark, and hashes a file only where its time differs (a copied
    volume loses times) or `rehash` asks for it. Without `model` (the custom LLM) the mark alone is believed.
    """
    mark = read_mark(directory)
    if mark is None:
        return ["it is not completely downloaded" if directory.is_dir() else "it is not downloaded"]
    marked = {file.name: file for file in mark.files}
    wanted = {file.name: kept.sha256 for file in (model.files if model else ()) if (kept := pinned(file, mark))}
    found = []
    for name in [file.name for file in (model.files if model else mark.files)]:
        known = marked.get(name)
        if known is None or (model and known.sha256 != wanted.get(name)):
            found.append(f"{name} is of another version")
            continue
        trusted = None if rehash else known.mtime_ns
        wrong = fault(directory / name, known.bytes, known.sha256, trusted_mtime_ns=trusted)
        if wrong:
            found.append(f"{name} {wrong}")
    return found


def _arguments_for(model: Model | None) -> str:
    """What to give to scripts.download_models for `model`: for one of the GPU profile, what gets all of them."""
    if model is None:
        return "--llm hub:REPO@REVISION/FILE"
    return "--profile gpu" if model.profiles == ("gpu",) else f"--model {model.id}"


def locate(models_dir: Path, model_id: str, *, manifest: Manifest | None = None) -> Path:
    """The directory with the verified files of `model_id`.

    ConfigError names the command that downloads the model when it is absent, incomplete or damaged.
    """
    model = (manifest or _own_manifest()).model(model_id)
    if model is None and model_id != CUSTOM_LLM_ID:
        known = ", ".join(m.id for m in (manifest or _own_manifest()).models)
        raise ConfigError(f"There is no model {model_id!r}. Known are: {known}, {CUSTOM_LLM_ID}.")
    directory = models_dir / model_id
    wrong = faults(directory, model)
    if wrong:
        ask = _arguments_for(model)
        raise ConfigError(
            f"The model {model_id} is not usable in {models_dir}: {wrong[0]}. "
            f"Run: python -m scripts.download_models {ask} --models-dir {models_dir}"
        )
    return directory
