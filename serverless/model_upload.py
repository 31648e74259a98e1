"""Puts a downloaded model into the bucket, once for all workers: whoever gets the lease uploads, the manifest last.

The lease is an object that is written only if it is absent. One that has expired, because its worker died, may be taken
over; where two take it over in the same moment the model is uploaded twice, with the same bytes.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from pipeline.errors import StorageError
from serverless import keys
from serverless.model_files import ModelSpec, complete
from serverless.storage import AlreadyStored, NotStored, Storage

log = structlog.get_logger()

LEASE_S: Final = 1800.0  # 1.4 GB take a minute or two; a slow line ten


def upload_model(
    spec: ModelSpec,
    directory: Path,
    storage: Storage,
    *,
    worker: str,
    lease_s: float = LEASE_S,
    clock: Callable[[], float] = time.time,
) -> bool:
    """Upload the complete model in `directory`, unless it is there or another worker is at it; whether it was done.

    Nothing is raised: a worker without the upload works as well.
    """
    started, holder = time.monotonic(), f"{worker}-{uuid.uuid4().hex[:8]}"
    manifest_key, lease_key = keys.model_manifest(spec.name, spec.revision), keys.model_lease(spec.name, spec.revision)
    try:
        manifest = complete(directory, spec)
        if manifest is None or storage.head(manifest_key) is not None:
            return False
        if not _take(storage, lease_key, holder, lease_s, clock):
            log.info("model.upload_elsewhere", model=spec.name)
            return False
        try:
            if storage.head(manifest_key) is not None:  # whoever had the lease before us was done
                return False
            for file in manifest.files:
                key = keys.model(spec.name, spec.revision, file.path)
                storage.put(key, directory / file.path, content_type="application/octet-stream")
            data = manifest.model_dump_json(indent=1, exclude={"files": {"__all__": {"mtime_ns"}}}).encode()
            storage.put(manifest_key, data, content_type="application/json")
        finally:
            if _holder(storage, lease_key) == holder:
                storage.delete(lease_key)
    except StorageError as error:
        log.warning("model.upload_failed", model=spec.name, code=error.code)
        return False
    n_bytes = sum(file.size for file in manifest.files)
    log.info("model.uploaded", model=spec.name, n_bytes=n_bytes, seconds=round(time.monotonic() - started, 1))
    return True


def _take(storage: Storage, key: str, holder: str, lease_s: float, clock: Callable[[], float]) -> bool:
    for _attempt in range(2):
        lease = json.dumps({"holder": holder, "expires": clock() + lease_s}).encode()
        try:
            storage.put(key, lease, content_type="application/json", if_absent=True)
            return True
        except AlreadyStored:
            pass
        if _expires(storage, key) > clock():
            return False
        storage.delete(key)
    return False


def _read(storage: Storage, key: str) -> dict[str, object]:
    try:
        lease = json.loads(storage.get(key, max_bytes=4096))
    except (NotStored, ValueError):
        return {}
    return lease if isinstance(lease, dict) else {}


def _expires(storage: Storage, key: str) -> float:
    """When the lease ends; 0 for one that is gone or that nobody can read."""
    expires = _read(storage, key).get("expires")
    return float(expires) if isinstance(expires, int | float) else 0.0


def _holder(storage: Storage, key: str) -> object:
    return _read(storage, key).get("holder")
