"""Every error this project raises on purpose.

VoicepodError(code, message, retryable)
├─ ConfigError                 stops the start, never the first request
├─ RequestError                the caller must change something
│  ├─ InvalidInput             400 / 422
│  ├─ Unauthorized             401
│  ├─ Forbidden                403
│  ├─ NotFound                 404
│  ├─ TooLarge                 413
│  └─ RateLimited              429
├─ Busy                        503, no free session or engine slot; says when to come back
├─ EngineError(stage)          a model failed, not the caller
│  ├─ EngineNotReady           503
│  ├─ EngineTimeout            504
│  ├─ OutOfMemory              503
│  └─ EngineFailed             500
└─ StorageError                502

`message` is shown to people: it never holds a path, a key or a transcript. `api.errors` maps the tree to HTTP status,
OpenAI error object and WebSocket close code.
"""

from __future__ import annotations


class VoicepodError(Exception):
    """A named failure: `code` for programs, `message` for people, `retryable` when the same call may succeed later."""

    code = "internal_error"
    retryable = False

    def __init__(self, message: str, *, code: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable


class ConfigError(VoicepodError):
    """A setting, a model or a program is missing or wrong; the server does not start."""

    code = "config_error"


class RequestError(VoicepodError):
    """The request cannot be served as it is; `param` names the field at fault where there is one."""

    code = "invalid_request"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.param = param


class InvalidInput(RequestError):
    """A value has the wrong form."""

    code = "invalid_input"


class Unauthorized(RequestError):
    """No key, or one that is not known."""

    code = "unauthorized"


class Forbidden(RequestError):
    """The caller is known and may not do this."""

    code = "forbidden"


class NotFound(RequestError):
    """No such thing, or not the caller's."""

    code = "not_found"


class TooLarge(RequestError):
    """More bytes, seconds or characters than the limit."""

    code = "too_large"


class RateLimited(RequestError):
    """Too many requests; `retry_after_s` says when the next one may come."""

    code = "rate_limited"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Busy(VoicepodError):
    """Every seat or engine slot is taken; `retry_after_s` is an estimate."""

    code = "server_busy"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineError(VoicepodError):
    """A model stage failed; `stage` is one of vad, asr, llm, tts."""

    code = "engine_error"
    retryable = True

    def __init__(self, message: str, *, stage: str, code: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.stage = stage


class EngineNotReady(EngineError):
    """The engine is still loading, or was closed."""

    code = "engine_not_ready"


class EngineTimeout(EngineError):
    """The engine gave nothing within the time that the settings allow."""

    code = "engine_timeout"


class OutOfMemory(EngineError):
    """The engine ran out of memory; a shorter request may pass."""

    code = "out_of_memory"


class EngineFailed(EngineError):
    """The engine raised, died or gave something that is not audio or text."""

    code = "engine_failed"


class StorageError(VoicepodError):
    """A file or object store could not be read or written."""

    code = "storage_error"
    retryable = True
