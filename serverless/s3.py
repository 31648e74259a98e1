"""S3 and what speaks its language (Backblaze B2, R2, MinIO ...) as a `Storage`, through one boto3 client.

Conditional writes (`if_absent`) ask S3 itself, by If-None-Match. Stores that ignore that header are met by a look
before and a look after: two writers within the same few milliseconds may then both believe to have won, so nothing
here depends on it for more than not doing work twice.
"""

from __future__ import annotations

import hashlib
import io
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline.errors import ConfigError, StorageError
from serverless import keys
from serverless.ranges import RangeRecord, ranges_of
from serverless.s3_client import make_client
from serverless.s3_errors import s3_errors
from serverless.storage import AlreadyStored, NotStored, StoredObject, clamp_seconds, disk_errors, disposition

MULTIPART_BYTES: Final = 8 << 20
RANGE_BYTES: Final = 16 << 20
N_CONNECTIONS: Final = 8
BODY_ATTEMPTS: Final = 4
"""How often a body that breaks off is asked for: boto3 tries a call again, but never the reading of its answer."""

T = TypeVar("T")


class S3Storage:
    """A bucket. The client is made at the first call, so that building this object costs nothing and cannot fail late.

    `access_key_id` and `secret_access_key` are given both or neither; with neither boto3's own chain (role, profile)
    is asked. `endpoint_url` is for every store but AWS. `max_attempts` counts the first call, too.
    """

    def __init__(
        self,
        *,
        bucket: str,
        region: str = "us-east-1",
        endpoint_url: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        request_timeout_s: float = 30,
        worker: str = "worker",
        max_attempts: int = 5,
        range_bytes: int = RANGE_BYTES,
    ) -> None:
        if bool(access_key_id) != bool(secret_access_key):
            raise ConfigError("give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY both, or neither")
        if endpoint_url and not endpoint_url.startswith(("https://", "http://")):
            raise ConfigError("AWS_ENDPOINT_URL must begin with https:// or http://")
        self.bucket, self.region = bucket, region
        self._endpoint_url = endpoint_url or None
        self._credentials = (access_key_id or None, secret_access_key or None, session_token or None)
        self._timeout_s, self._worker = request_timeout_s, worker
        self._max_attempts, self._range_bytes = max_attempts, range_bytes
        self._clients: dict[bool, Any] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"S3Storage({self.bucket!r})"

    def put(
        self, key: str, data: bytes | Path, *, content_type: str, filename: str | None = None, if_absent: bool = False
    ) -> None:
        """See `Storage.put`. The sha256 is kept in the metadata.

        8 MB and more go as a multipart upload, for which `if_absent` is no more than a look before.
        """
        keys.checked(key)
        if if_absent and self.head(key) is not None:
            raise AlreadyStored("there is such an object already")
        with disk_errors("read"):
            metadata = {"sha256": _sha256(data), "writer": uuid.uuid4().hex}
            size = len(data) if isinstance(data, bytes) else data.stat().st_size
        extra: dict[str, Any] = {"ContentType": content_type, "Metadata": metadata}
        if filename:
            extra["ContentDisposition"] = disposition(filename)
        if size >= MULTIPART_BYTES:
            self._put_large(key, data, extra)
        else:
            with disk_errors("read"):
                body = data if isinstance(data, bytes) else data.read_bytes()
            if if_absent:
                self._put_if_absent(key, body, extra)
            else:
                with s3_errors("put"):
                    self.client().put_object(Bucket=self.bucket, Key=key, Body=body, **extra)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """See `Storage.get`."""
        keys.checked(key)

        def read() -> bytes:
            answer = self.client().get_object(Bucket=self.bucket, Key=key)
            with closing(answer["Body"]) as body:
                if answer["ContentLength"] > max_bytes:
                    raise StorageError("the object is too large", code="object_too_large", retryable=False)
                return _read(body)

        return self._whole(read)

    def download(self, key: str, target: Path, *, size: int) -> None:
        """See `Storage.download`."""
        keys.checked(key)
        found = self.head(key)
        if found is None:
            raise NotStored("there is no such object")
        if found.size != size:
            raise StorageError("the object has another size than expected", code="wrong_size", retryable=False)
        with disk_errors("written"), RangeRecord.open(target, found.etag, size, self._range_bytes) as record:
            missing = [r for r in ranges_of(size, self._range_bytes) if r not in record.done]
            with ThreadPoolExecutor(N_CONNECTIONS, thread_name_prefix="s3-range") as pool:
                jobs = [pool.submit(self._range, key, found.etag, begin, end, record) for begin, end in missing]
                try:
                    for job in jobs:
                        job.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            record.finish()

    def head(self, key: str) -> StoredObject | None:
        """See `Storage.head`."""
        found = self._head(key)
        return None if found is None else _stored(key, found["ContentLength"], found)

    def list(
        self, prefix: str, *, cursor: str | None = None, limit: int = 1000
    ) -> tuple[list[StoredObject], str | None]:
        """See `Storage.list`."""
        after = {"StartAfter": cursor} if cursor else {}
        with s3_errors("list"):
            page = self.client().list_objects_v2(
                Bucket=self.bucket, Prefix=prefix, MaxKeys=max(1, min(limit, 1000)), **after
            )
        found = [_stored(item["Key"], item["Size"], item) for item in page.get("Contents", ())]
        return found, found[-1].key if page.get("IsTruncated") and found else None

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        keys.checked(key)
        with s3_errors("delete"):
            self.client().delete_object(Bucket=self.bucket, Key=key)

    def presign_get(self, key: str, *, seconds: int, filename: str | None = None) -> str:
        """See `Storage.presign_get`. With temporary credentials the URL dies when they do."""
        parameters = {"Bucket": self.bucket, "Key": keys.checked(key)}
        if filename:
            parameters["ResponseContentDisposition"] = disposition(filename)
        return self._presign("get_object", parameters, seconds)

    def presign_put(self, key: str, *, seconds: int, content_type: str, max_bytes: int) -> str:
        """See `Storage.presign_put`; `max_bytes` cannot be signed into a PUT."""
        parameters = {"Bucket": self.bucket, "Key": keys.checked(key), "ContentType": content_type}
        return self._presign("put_object", parameters, seconds)

    def check(self) -> None:
        """See `Storage.check`."""
        try:
            with s3_errors("check"):
                self.client().head_bucket(Bucket=self.bucket)
        except NotStored:
            text = "there is no bucket of this name: check S3_BUCKET and AWS_ENDPOINT_URL"
            raise StorageError(text, code="s3_no_bucket", retryable=False) from None
        except StorageError as error:
            if error.code not in ("s3_forbidden", "s3_error"):  # HEAD gives no reason for those; the write below does
                raise
        key = keys.health(f"{self._worker}-{uuid.uuid4().hex[:8]}")
        self.put(key, b"voicepod", content_type="text/plain")
        if self.get(key, max_bytes=64) != b"voicepod":
            raise StorageError("S3 gave back other bytes than were stored", code="s3_error")
        self.delete(key)

    def client(self, *, signing: bool = False) -> Any:
        """The boto3 client, or the one that signs URLs; each is made once."""
        with self._lock:
            if signing not in self._clients:
                self._clients[signing] = make_client(
                    region=self.region,
                    endpoint_url=self._endpoint_url,
                    credentials=self._credentials,
                    request_timeout_s=self._timeout_s,
                    max_attempts=self._max_attempts,
                    signing=signing,
                )
            return self._clients[signing]

    def _head(self, key: str) -> dict[str, Any] | None:
        keys.checked(key)
        try:
            with s3_errors("head"):
                found: dict[str, Any] = self.client().head_object(Bucket=self.bucket, Key=key)
        except NotStored:
            return None
        return found

    def _put_large(self, key: str, data: bytes | Path, extra: dict[str, Any]) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES, max_concurrency=N_CONNECTIONS
        )
        with (
            disk_errors("read"),
            io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as stream,
            s3_errors("put"),
        ):
            self.client().upload_fileobj(stream, self.bucket, key, ExtraArgs=extra, Config=config)

    def _put_if_absent(self, key: str, body: bytes, extra: dict[str, Any]) -> None:
        """By If-None-Match; then who wrote what lies there now tells the rest.

        A store may refuse our own second try after it lost the answer to the first (412 although we won), and may
        ignore the header (200 although another's object was replaced or replaced ours).
        """
        arguments = {"Bucket": self.bucket, "Key": key, "Body": body, **extra}
        try:
            with s3_errors("put"):
                self.client().put_object(**arguments, IfNoneMatch="*")
        except AlreadyStored:
            pass
        except StorageError as error:
            if error.code == "s3_conflict":
                raise AlreadyStored("another worker writes the same object now") from None
            if error.code != "s3_unsupported":
                raise
            with s3_errors("put"):
                self.client().put_object(**arguments)
        there = self._head(key)
        if there is None or there.get("Metadata", {}).get("writer") != extra["Metadata"]["writer"]:
            raise AlreadyStored("there is such an object already")

    def _range(self, key: str, etag: str, begin: int, end: int, record: RangeRecord) -> None:
        def read() -> bytes:
            answer = self.client().get_object(
                Bucket=self.bucket, Key=key, Range=f"bytes={begin}-{end - 1}", IfMatch=f'"{etag}"'
            )
            with closing(answer["Body"]) as body:
                return _read(body)

        try:
            data = self._whole(read)
        except AlreadyStored:  # 412 of IfMatch
            raise StorageError("the object changed while it was read", code="object_changed") from None
        if len(data) != end - begin:
            raise StorageError("S3 sent another range than asked for", code="s3_error")
        record.write(begin, end, data)

    def _whole(self, read: Callable[[], T]) -> T:
        """What `read` gives; a body that broke off is asked for again."""
        for attempt in range(1, BODY_ATTEMPTS + 1):
            try:
                with s3_errors("get"):
                    return read()
            except StorageError as error:
                if attempt == BODY_ATTEMPTS or error.code != "s3_cut_off":
                    raise
        raise AssertionError

    def _presign(self, operation: str, parameters: dict[str, str], seconds: int) -> str:
        client = self.client(signing=True)
        with s3_errors("presign"):
            url: str = client.generate_presigned_url(operation, Params=parameters, ExpiresIn=clamp_seconds(seconds))
        return url


def _read(body: Any) -> bytes:
    """All of an answer's body. One that stands still has broken off; calls that nobody answers boto3 tries again."""
    from botocore.exceptions import ReadTimeoutError

    try:
        return bytes(body.read())
    except ReadTimeoutError:
        raise StorageError("what S3 sent stood still", code="s3_cut_off", retryable=True) from None


def _stored(key: str, size: int, found: dict[str, Any]) -> StoredObject:
    return StoredObject(key, size, found["LastModified"].timestamp(), str(found["ETag"]).strip('"'))


def _sha256(data: bytes | Path) -> str:
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
