"""Read single members out of a wheel (zip) or an npm package (tar.gz) without unpacking, installing or importing it.

Nothing is ever written under a name that the archive chose. An archive with a name that leaves its own directory is
refused whole all the same: nobody packs such a thing by accident.
"""

from __future__ import annotations

import contextlib
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO

from pipeline.errors import StorageError

_BLOCK_BYTES = 1 << 20


class Archive:
    """An open package archive; StorageError where it is broken or not to be trusted. Close it, or use `with`."""

    def __init__(self, path: Path) -> None:
        self._file: zipfile.ZipFile | tarfile.TarFile
        self._tar_members: dict[str, tarfile.TarInfo] = {}
        with _as_storage_error(path.name):
            if path.suffix == ".whl":
                self._file = zipfile.ZipFile(path)
                names = self._file.namelist()
            else:
                # "r:gz" and not "r:*": one format, known beforehand.
                self._file = tarfile.open(path, "r:gz")  # noqa: SIM115 - closed by close()
                with _closed_on_error(self._file):
                    self._tar_members = {info.name: info for info in self._file.getmembers()}
                names = list(self._tar_members)
        self._name = path.name
        for name in names:
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or "\\" in name:
                self.close()
                raise StorageError(f"{path.name} holds a name that leaves its directory; it was refused")

    def blocks(self, member: str, n_bytes: int) -> Iterator[bytes]:
        """The content of `member`, which must be a plain file of exactly `n_bytes`, in blocks of 1 MiB."""
        with _as_storage_error(self._name), self._open(member, n_bytes) as stream:
            left = n_bytes
            while block := stream.read(_BLOCK_BYTES):
                left -= len(block)
                if left < 0:
                    raise StorageError(f"{member} in {self._name} is longer than it claims; it was refused")
                yield block
            if left:
                raise StorageError(f"{member} in {self._name} ends {left} bytes early")

    def _open(self, member: str, n_bytes: int) -> IO[bytes]:
        stream: IO[bytes] | None = None
        if isinstance(self._file, zipfile.ZipFile):
            entry = self._file.NameToInfo.get(member)
            size = entry.file_size if entry else None
            # A wheel made on another system has no mode bits at all: 0 is a plain file.
            plain = entry is not None and stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)
            if entry and plain and size == n_bytes:
                stream = self._file.open(entry)
        else:
            info = self._tar_members.get(member)
            size = info.size if info else None
            plain = info is not None and info.isreg()
            if info and plain and size == n_bytes:
                stream = self._file.extractfile(info)
        if size is None:
            raise StorageError(f"{self._name} has no {member}")
        if not plain:
            raise StorageError(f"{member} in {self._name} is a link or no plain file; it was refused")
        if stream is None:
            raise StorageError(f"{member} in {self._name} has {size} bytes instead of {n_bytes}")
        return stream

    def close(self) -> None:
        """Release the file; twice does no harm."""
        self._file.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _as_storage_error(name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise StorageError(f"{name} cannot be read as an archive: {error}") from error


@contextlib.contextmanager
def _closed_on_error(file: tarfile.TarFile) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.close()
        raise
