"""What a job can fail with: a code for programs, a sentence for people, and whether trying again may help.

RunPod shows `error` as a string and keeps what else the answer holds, so a failed job answers
`{"error": "CODE: message", "error_code": ..., "retryable": ..., "errors": [{"field", "code", "message"}]}`.
No message holds a path, a key, a URL with a signature, or what the caller wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pipeline.errors import (
    Busy,
    ConfigError,
    EngineError,
    EngineNotReady,
    EngineTimeout,
    NotFound,
    OutOfMemory,
    RequestError,
    StorageError,
    TooLarge,
    VoicepodError,
)

Code = Literal[
    "INVALID_INPUT",
    "UNKNOWN_ENDPOINT",
    "VOICE_NOT_FOUND",
    "VOICE_INVALID",
    "VOICE_EXISTS",
    "JOB_NOT_FOUND",
    "JOB_NOT_DONE",
    "URL_BLOCKED",
    "DOWNLOAD_FAILED",
    "STORAGE_ERROR",
    "MODEL_UNAVAILABLE",
    "OUT_OF_MEMORY",
    "TIMEOUT",
    "CANCELLED",
    "INTERNAL",
]
RETRYABLE: Final = frozenset({"DOWNLOAD_FAILED", "STORAGE_ERROR", "OUT_OF_MEMORY", "TIMEOUT", "INTERNAL"})


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of the input; `field` is dotted, as in `s3.bucket`, empty for the whole."""

    field: str
    code: str
    message: str


class JobError(VoicepodError):
    """The job failed for a reason that the caller is told."""

    def __init__(
        self, code: Code, message: str, *, errors: Sequence[FieldError] = (), retryable: bool | None = None
    ) -> None:
        super().__init__(message, code=code, retryable=code in RETRYABLE if retryable is None else retryable)
        self.errors = tuple(errors)

    def answer(self) -> dict[str, Any]:
        """The job's output for RunPod."""
        answer: dict[str, Any] = {
            "error": f"{self.code}: {self.message}",
            "error_code": self.code,
            "retryable": self.retryable,
        }
        if self.errors:
            answer["errors"] = [{"field": e.field, "code": e.code, "message": e.message} for e in self.errors]
        return answer


def invalid(field: str, message: str, *, code: str = "invalid") -> JobError:
    """One field of the input is wrong."""
    return JobError("INVALID_INPUT", f"{field}: {message}", errors=(FieldError(field, code, message),))


def told(error: Exception) -> JobError:
    """Any failure as one that the caller may see; what was not raised on purpose says nothing of itself."""
    if isinstance(error, JobError):
        return error
    if not isinstance(error, VoicepodError):
        return JobError("INTERNAL", "the job failed inside the worker; its log says more")
    codes: tuple[tuple[type[VoicepodError], Code], ...] = (
        (OutOfMemory, "OUT_OF_MEMORY"),
        (EngineTimeout, "TIMEOUT"),
        (EngineNotReady, "MODEL_UNAVAILABLE"),
        (EngineError, "INTERNAL"),
        (ConfigError, "MODEL_UNAVAILABLE"),
        (StorageError, "STORAGE_ERROR"),
        (Busy, "INTERNAL"),
        (NotFound, "INVALID_INPUT"),
        (TooLarge, "INVALID_INPUT"),
        (RequestError, "INVALID_INPUT"),
    )
    code: Code = next((code for kind, code in codes if isinstance(error, kind)), "INTERNAL")
    if isinstance(error, RequestError):
        field = error.param or ""
        return JobError(code, error.message, errors=(FieldError(field, error.code, error.message),))
    return JobError(code, error.message, retryable=error.retryable)
