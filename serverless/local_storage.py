"""A directory as a `Storage`, for a laptop: same keys, conditional writes, signed URLs that the dev server answers.

Files are written beside their place and renamed, so nobody sees half of one. No path is followed through a link: every
directory on the way is opened by itself with O_NOFOLLOW.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import itertools
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal
from urllib.parse import quote, urlencode

from pipeline.errors import InvalidInput, StorageError
from serverless import keys
from serverless.storage import AlreadyStored, NotStored, StoredObject, clamp_seconds, disk_errors, disposition

URL_PREFIX: Final = "/storage/"
_TEMPORARY: Final = ".new-"  # no segment of a key begins with a dot


@dataclass(frozen=True, slots=True)
class Grant:
    """What a signed URL allows: one method on one key until `expires`, with what the store should hold it to."""

    method: Literal["GET", "PUT"]
    key: str
    expires: int
    filename: str = ""
    content_type: str = ""
    max_bytes: int = 0

    def query(self) -> dict[str, str]:
        """The part of the URL that says it."""
        fields = {"expires": str(self.expires), "filename": self.filename, "content_type": self.content_type}
        return {name: value for name, value in fields.items() if value} | (
            {"max_bytes": str(self.max_bytes)} if self.method == "PUT" else {}
        )


class LocalStorage:
    """Objects as files under `root`. `secret` signs URLs; `base_url` is where `serve_local` answers.

    Without `base_url` the signed URLs are paths that begin at the server which the caller talks to. The Content-Type of
    an object follows from its suffix.
    """

    def __init__(
        self, root: Path, base_url: str | None, secret: bytes, *, clock: Callable[[], float] = time.time
    ) -> None:
        if len(secret) < 16:
            raise InvalidInput("the secret that signs URLs needs 16 bytes or more")
        self.root, self._base_url, self._secret, self._clock = root, (base_url or "").rstrip("/"), secret, clock
        with disk_errors("written"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return "LocalStorage()"

    def put(
        self, key: str, data: bytes | Path, *, content_type: str, filename: str | None = None, if_absent: bool = False
    ) -> None:
        """See `Storage.put`."""
        with self.writing(key, if_absent=if_absent) as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """See `Storage.get`."""
        with disk_errors("read"), os.fdopen(self.open(key), "rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise StorageError("the object is too large", code="object_too_large", retryable=False)
        return data

    def download(self, key: str, target: Path, *, size: int) -> None:
        """See `Storage.download`."""
        with disk_errors("copied"), os.fdopen(self.open(key), "rb") as source:
            if os.fstat(source.fileno()).st_size != size:
                raise StorageError("the object has another size than expected", code="wrong_size", retryable=False)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())

    def head(self, key: str) -> StoredObject | None:
        """See `Storage.head`."""
        try:
            file = self.open(key)
        except NotStored:
            return None
        try:
            return _stored(key, os.fstat(file))
        finally:
            os.close(file)

    def list(
        self, prefix: str, *, cursor: str | None = None, limit: int = 1000
    ) -> tuple[list[StoredObject], str | None]:
        """See `Storage.list`."""
        limit = max(1, min(limit, 1000))
        with disk_errors("listed"):
            names = sorted(n for n in self._keys() if n.startswith(prefix) and (cursor is None or n > cursor))
        there = (item for name in names if (item := self.head(name)) is not None)
        found = list(itertools.islice(there, limit + 1))
        return found[:limit], found[limit - 1].key if len(found) > limit else None

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        absent = contextlib.suppress(NotStored, FileNotFoundError, IsADirectoryError)
        with disk_errors("deleted"), absent, self._folder(key, make=False) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def presign_get(self, key: str, *, seconds: int, filename: str | None = None) -> str:
        """See `Storage.presign_get`."""
        expires = int(self._clock()) + clamp_seconds(seconds)
        return self._url(Grant("GET", keys.checked(key), expires, filename=filename or ""))

    def presign_put(self, key: str, *, seconds: int, content_type: str, max_bytes: int) -> str:
        """See `Storage.presign_put`; here `max_bytes` is kept."""
        expires = int(self._clock()) + clamp_seconds(seconds)
        return self._url(Grant("PUT", keys.checked(key), expires, content_type=content_type, max_bytes=max_bytes))

    def check(self) -> None:
        """See `Storage.check`."""
        key = keys.health(secrets.token_hex(4))
        self.put(key, b"voicepod", content_type="text/plain")
        if self.get(key, max_bytes=64) != b"voicepod":
            raise StorageError("the disk gave back other bytes than were stored", code="disk_error")
        self.delete(key)

    def open(self, key: str) -> int:
        """The object as a file descriptor to read from, the caller's to close; `NotStored`."""
        with disk_errors("read"), self._folder(key, make=False) as (folder, name):
            try:
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
                raise NotStored("there is no such object") from None
            if not stat.S_ISREG(os.fstat(file).st_mode):
                os.close(file)
                raise NotStored("there is no such object")
            return file

    @contextlib.contextmanager
    def writing(self, key: str, *, if_absent: bool = False) -> Iterator[BinaryIO]:
        """A new file that becomes the object when the block ends, and vanishes when it raises."""
        with disk_errors("written"), self._folder(key, make=True) as (folder, name):
            beside = f"{_TEMPORARY}{secrets.token_hex(8)}"
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                with os.fdopen(os.open(beside, flags, 0o600, dir_fd=folder), "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                if if_absent:
                    try:
                        os.link(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
                    except FileExistsError:
                        raise AlreadyStored("there is such an object already") from None
                else:
                    os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(beside, dir_fd=folder)

    def is_granted(self, grant: Grant, signature: str) -> bool:
        """Whether this store signed that and its time is not over."""
        return hmac.compare_digest(self._signature(grant), signature.encode()) and self._clock() < grant.expires

    def _signature(self, grant: Grant) -> bytes:
        fields = (grant.method, grant.key, grant.expires, grant.filename, grant.content_type, grant.max_bytes)
        message = "\n".join(quote(str(field), safe="") for field in fields)
        return hmac.new(self._secret, message.encode(), hashlib.sha256).hexdigest().encode()

    def _url(self, grant: Grant) -> str:
        query = grant.query() | {"signature": self._signature(grant).decode()}
        return f"{self._base_url}{URL_PREFIX}{quote(grant.key)}?{urlencode(query)}"

    def _keys(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.root):
            inside = Path(folder).relative_to(self.root).as_posix()
            for name in files:
                with contextlib.suppress(
                    InvalidInput
                ):  # what is no key, others put there; or it is still being written
                    yield keys.checked(name if inside == "." else f"{inside}/{name}")

    @contextlib.contextmanager
    def _folder(self, key: str, *, make: bool) -> Iterator[tuple[int, str]]:
        """The directory of a key as a descriptor, and the last segment; no link is followed on the way."""
        *folders, name = keys.checked(key).split("/")
        here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for segment in folders:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(segment, 0o700, dir_fd=here)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                try:
                    deeper = os.open(segment, flags, dir_fd=here)
                except (FileNotFoundError, NotADirectoryError):
                    if make:
                        raise
                    raise NotStored("there is no such object") from None
                os.close(here)
                here = deeper
            yield here, name
        finally:
            os.close(here)


def headers_of(grant: Grant) -> dict[str, str]:
    """The headers of an answer that gives the object."""
    shared = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
    return shared | ({"Content-Disposition": disposition(grant.filename)} if grant.filename else {})


def _stored(key: str, found: os.stat_result) -> StoredObject:
    etag = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
    return StoredObject(key, found.st_size, found.st_mtime, etag)
