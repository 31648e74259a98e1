"""What a finished job keeps in its record, and the answers that are made of it: URLs are signed for each answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from serverless.errors import JobError
from serverless.manifests import Manifest
from serverless.requests import DownloadRequest
from serverless.storage import Storage
from serverless.timings import TimedWord, WordTimings

MAX_INLINE_BYTES: Final = 256_000


def stored_file(key: str, content_type: str, data: bytes) -> dict[str, Any]:
    """A file of a result as the record names it."""
    return {"key": key, "content_type": content_type, "bytes": len(data)}


def timing_fields(timings: WordTimings) -> dict[str, Any]:
    """What the answer tells of the word times; the words themselves only where they are below `MAX_INLINE_BYTES`."""
    fields: dict[str, Any] = {
        "timing_method_used": timings.method,
        "language": timings.language,
        "coverage": round(timings.coverage, 4),
        "approximate": timings.approximate,
        "word_count": len(timings.words),
        "timing_confidence": _mean_confidence(timings.words),
        "attempts": [{"method": a.method, "chunk": a.chunk, "error": a.error} for a in timings.attempts],
    }
    words = [_word(word) for word in timings.words]
    if len(json.dumps(words, ensure_ascii=False).encode()) < MAX_INLINE_BYTES:
        fields["words"] = words
    return fields


def _word(word: TimedWord) -> dict[str, Any]:
    return {
        "word": word.text,
        "start_time": round(word.start_s, 3),
        "end_time": round(word.end_s, 3),
        "confidence": _confidence(word),
    }


def _confidence(word: TimedWord) -> float | None:
    is_known = word.confidence is not None and math.isfinite(word.confidence)
    return round(word.confidence, 4) if word.confidence is not None and is_known else None


def _mean_confidence(words: Sequence[TimedWord]) -> float | None:
    known = [confidence for word in words if (confidence := _confidence(word)) is not None]
    return round(sum(known) / len(known), 4) if known else None


def finished_answer(storage: Storage, manifest: Manifest, *, seconds: int) -> dict[str, Any]:
    """The answer of a job that is DONE, with URLs that are valid for `seconds`."""
    result = manifest.result
    if manifest.state != "DONE" or result is None:
        raise JobError("JOB_NOT_DONE", f"the job is {manifest.state}", retryable=True)
    audio = result["audio"]
    answer = {
        "job_id": manifest.job_id,
        "status": "DONE",
        "audio_url": _url(storage, audio, seconds),
        "content_type": audio["content_type"],
        "audio_bytes": audio["bytes"],
        "url_expires_s": seconds,
        **result["answer"],
    }
    if result["timings"]:
        answer["timing_files"] = {name: _url(storage, file, seconds) for name, file in result["timings"].items()}
    return answer


def _url(storage: Storage, file: Mapping[str, Any], seconds: int) -> str:
    return storage.presign_get(file["key"], seconds=seconds, filename=file["key"].rpartition("/")[2])


def status_answer(manifest: Manifest) -> dict[str, Any]:
    """How far the job is. A failed job is told under `failure`: `error` would make the asking job fail."""
    answer: dict[str, Any] = {
        "job_id": manifest.job_id,
        "status": manifest.state,
        "created_s": manifest.created_s,
        "updated_s": manifest.updated_s,
    }
    if manifest.progress is not None:
        answer["progress"] = manifest.progress
    if manifest.error is not None:
        answer["failure"] = manifest.error
    return answer


def failure_of(manifest: Manifest) -> JobError:
    """Why there is no result: the error of a job that failed, or that it is not done."""
    error = manifest.error
    if manifest.state != "FAILED" or error is None:
        return JobError("JOB_NOT_DONE", f"the job is {manifest.state}", retryable=True)
    code, message = error.get("error_code", "INTERNAL"), str(error.get("error", "")).partition(": ")[2]
    return JobError(code, message or "the job failed", retryable=bool(error.get("retryable")))


def one_file(answer: dict[str, Any], manifest: Manifest, request: DownloadRequest) -> dict[str, Any]:
    """The part of an answer that `type` and `format` name, with `download_url`; all of it when neither is given."""
    if request.type is None and request.format is None:
        return answer
    assert manifest.result is not None
    audio, timings = manifest.result["audio"], manifest.result["timings"]
    audio_format = audio["key"].rpartition(".")[2]
    wanted = request.format or (audio_format if request.type == "audio" else answer.get("timing_format", ["srt"])[0])
    if request.type != "timing" and wanted == audio_format:
        url, file = answer["audio_url"], audio
    elif request.type != "audio" and wanted in timings:
        url, file = answer["timing_files"][wanted], timings[wanted]
    else:
        raise JobError("JOB_NOT_FOUND", f"the job has no {request.type or 'file'} as {wanted}")
    return {
        "job_id": manifest.job_id,
        "status": "DONE",
        "download_url": url,
        "filename": file["key"].rpartition("/")[2],
        "content_type": file["content_type"],
        "bytes": file["bytes"],
        "url_expires_s": answer["url_expires_s"],
    }
