"""A job's record in the storage, `jobs/{id}.json`: what any worker answers status and result from.

The record is the truth and is written in this order: QUEUED when a worker takes the job, RUNNING with its progress and
a heartbeat, and DONE last, after the audio and the files of its word times. So a record that says DONE names only files
that are there. One that says RUNNING and has not been written for `STALE_AFTER_S` belongs to a worker that died.
No record holds a URL: they are signed anew for each answer.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, get_args

import structlog

from pipeline.errors import StorageError
from serverless import keys
from serverless.errors import JobError, invalid
from serverless.storage import AlreadyStored, NotStored, Storage

log = structlog.get_logger()

State = Literal["QUEUED", "RUNNING", "DONE", "FAILED"]
HEARTBEAT_S: Final = 15.0
STALE_AFTER_S: Final = 90.0  # six heartbeats, and clocks of two machines differ
_MAX_BYTES: Final = 2_000_000
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """One job's record. `fingerprint` is of its input; times are seconds since 1970.

    `result` is what the answer is made of (see `serverless.results`), `error` the failed answer.
    """

    job_id: str
    state: State
    fingerprint: str
    created_s: float
    updated_s: float
    worker: str | None = None
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    def seen_at(self, now_s: float) -> Manifest:
        """The record as it is to be told: of a worker that died, FAILED and worth another try."""
        if self.state in ("DONE", "FAILED") or now_s - self.updated_s <= STALE_AFTER_S:
            return self
        lost = JobError("INTERNAL", "the worker that ran this job is gone; send the job again", retryable=True)
        return replace(self, state="FAILED", error=lost.answer())


class Manifests:
    """Reads and writes the records; blocking, for threads."""

    def __init__(
        self,
        storage: Storage,
        *,
        namespace: str = "",
        worker: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage, self._namespace, self._worker, self._clock = storage, namespace, worker, clock

    def find(self, job_id: str) -> Manifest | None:
        """The record of a job as it is to be told, None where there is none."""
        try:
            data = self._storage.get(keys.manifest(job_id), max_bytes=_MAX_BYTES)
        except NotStored:
            return None
        return _read(data).seen_at(self._clock())

    def read(self, job_id: str) -> Manifest:
        """The record of a job; JobError JOB_NOT_FOUND."""
        found = self.find(job_id)
        if found is None:
            raise JobError("JOB_NOT_FOUND", "there is no job with this id, or its record was deleted")
        return found

    def has_audio(self, done: Manifest) -> bool:
        """Whether the audio of a job that is done is still there: a rule of the bucket may delete it."""
        return done.result is not None and self._storage.head(done.result["audio"]["key"]) is not None

    def begin(self, job_id: str, fingerprint: str) -> JobRecord:
        """A new record, which its first write puts over that of an earlier try of the same job."""
        now_s = self._clock()
        manifest = Manifest(job_id, "QUEUED", fingerprint, created_s=now_s, updated_s=now_s, worker=self._worker)
        return JobRecord(self._storage, manifest, self._clock)

    def claim(self, idempotency_key: str, job_id: str, fingerprint: str) -> Manifest | None:
        """Takes the key for this job. None when the job is to be run; the finished job of this key when there is one.

        JobError INVALID_INPUT when the key belongs to another input, JOB_NOT_DONE while its job is at work. The key
        of a job that failed, whose worker died or whose files were deleted goes to this one. Two jobs that take such a
        key in the same second may both run; with a storage that knows no conditional write, of a new key as well.
        """
        place = keys.idempotency(f"{self._namespace}:{idempotency_key}")
        data = json.dumps({"schema": _SCHEMA, "job_id": job_id, "fingerprint": fingerprint}).encode()
        try:
            self._storage.put(place, data, content_type="application/json", if_absent=True)
            return None
        except AlreadyStored:
            pass
        try:
            owner = json.loads(self._storage.get(place, max_bytes=_MAX_BYTES))
            owner_id, owner_fingerprint = str(owner["job_id"]), str(owner["fingerprint"])
        except (NotStored, ValueError, KeyError, TypeError):
            owner_id, owner_fingerprint = job_id, fingerprint  # deleted meanwhile, or never whole: nobody's
        if owner_fingerprint != fingerprint:
            raise invalid("idempotency_key", "this key was used for a job with another input", code="key_reused")
        earlier = self.find(owner_id) if owner_id != job_id else None
        if earlier is not None and earlier.state == "DONE" and self.has_audio(earlier):
            return earlier
        if earlier is not None and earlier.state in ("QUEUED", "RUNNING"):
            raise JobError("JOB_NOT_DONE", f"the job {owner_id} of this key is still at work", retryable=True)
        self._storage.put(place, data, content_type="application/json")
        return None


class JobRecord:
    """The record of a job that runs here. Writes come from several threads and arrive in order; none after the last."""

    def __init__(self, storage: Storage, manifest: Manifest, clock: Callable[[], float]) -> None:
        self._storage, self._clock = storage, clock
        self._manifest, self._is_final = manifest, False
        self._writing = threading.Lock()

    def update(self, state: State, *, progress: Mapping[str, Any] | None = None) -> None:
        """Write state and progress; nothing once the job is done or failed."""
        with self._writing:
            if not self._is_final:
                self._write(state=state, progress=dict(progress) if progress else self._manifest.progress)

    def beat(self) -> None:
        """Write the record again, which says that the worker lives. A storage that fails is logged only."""
        with self._writing:
            if self._is_final:
                return
            try:
                self._write()
            except StorageError as error:
                log.warning("job.heartbeat_failed", code=error.code)

    def done(self, result: Mapping[str, Any]) -> Manifest:
        """The last write: all files are there."""
        self._end(state="DONE", result=dict(result), progress=None)
        return self._manifest

    def failed(self, error: JobError) -> None:
        """The last write: why there is no result. A storage that fails is logged only."""
        try:
            self._end(state="FAILED", error=error.answer(), progress=None)
        except StorageError as refused:
            log.warning("job.record_failed", code=refused.code)

    def _end(self, **changes: Any) -> None:
        with self._writing:
            if self._is_final:
                return
            self._write(**changes)
            self._is_final = True

    def _write(self, **changes: Any) -> None:
        manifest = replace(self._manifest, updated_s=self._clock(), **changes)
        data = json.dumps({"schema": _SCHEMA, **asdict(manifest)}, ensure_ascii=False, allow_nan=False).encode()
        self._storage.put(keys.manifest(manifest.job_id), data, content_type="application/json")
        self._manifest = manifest


def _read(data: bytes) -> Manifest:
    try:
        document = json.loads(data)
        if document.pop("schema") != _SCHEMA or document["state"] not in get_args(State):
            raise ValueError
        manifest = Manifest(**document)
        if not isinstance(manifest.updated_s, float | int):
            raise ValueError
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StorageError("the job's record cannot be read", retryable=False) from None
