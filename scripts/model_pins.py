"""The sha256 of files that the manifest gives none for: the hub's own at the fixed revision, checked and then kept.

Asked in this order: the mark of an earlier download, the hub, and where nobody can be asked the operator's own copy,
which is believed once. From then on the mark holds the sha256, and a file that changes is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StorageError
from pipeline.models import Mark, Model, ModelFile, pinned, sha256_of
from scripts.model_sources import Hub, LocalFiles, Source

# Files that a hub keeps in git itself have no sha256 there, but the id of a git object. They are small.
_MAX_GIT_BYTES = 64 << 20
# Of the manifest's size, which is rounded where no sha256 is known: a shorter copy was cut off.
_MIN_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Pins:
    """What a model's files must be: `files` with a sha256, `by_git` without one but with the hub's git object id."""

    files: tuple[ModelFile, ...]
    by_git: dict[str, str]
    notes: tuple[str, ...]


def pin(model: Model, directory: Path, mark: Mark | None, sources: Sequence[Source]) -> Pins:
    """Every file of `model` with what it is compared with; StorageError where that cannot be learned."""
    files: list[ModelFile] = []
    by_git: dict[str, str] = {}
    notes = []
    for file in model.files:
        known = pinned(file, mark)
        if known is None:
            known, git_blob, note = _learned(model.id, file, directory, sources)
            notes.append(f"{file.name}: {note}")
            if git_blob:
                by_git[file.name] = git_blob
        files.append(known)
    return Pins(tuple(files), by_git, tuple(notes))


def _learned(
    model_id: str, file: ModelFile, directory: Path, sources: Sequence[Source]
) -> tuple[ModelFile, str | None, str]:
    reason = "the hub may not be asked"
    for hub in (source for source in sources if isinstance(source, Hub)):
        assert file.hub is not None
        try:
            facts = hub.describe(file.hub)
        except StorageError as error:
            reason = error.message
            continue
        known = file.model_copy(update={"bytes": facts.n_bytes, "sha256": facts.sha256})
        if facts.sha256:
            return known, None, f"sha256 {facts.sha256} (as the hub names it)"
        if facts.git_blob and facts.n_bytes <= _MAX_GIT_BYTES:
            return known, facts.git_blob, f"git object {facts.git_blob} (as the hub names it)"
        raise StorageError(f"{file.name}: the hub names no sha256 to compare it with")
    for path in [directory / file.name, *_local(model_id, file, sources)]:
        if path.is_file():
            n_bytes = path.stat().st_size
            if n_bytes < _MIN_SHARE * file.bytes:
                reason = f"a copy has {n_bytes} bytes instead of about {file.bytes}"
                continue
            sha256 = sha256_of(path)
            own = file.model_copy(update={"bytes": n_bytes, "sha256": sha256})
            return own, None, f"sha256 {sha256} (of your own copy: nothing to compare it with)"
    raise StorageError(f"{file.name}: {reason}, and no local directory has it whole")


def _local(model_id: str, file: ModelFile, sources: Sequence[Source]) -> list[Path]:
    return [
        path for source in sources if isinstance(source, LocalFiles) for path in source.candidates(model_id, file.name)
    ]


def git_blob_of(path: Path) -> str:
    """The id that git gives to the file's content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
