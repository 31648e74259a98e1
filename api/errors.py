"""What an error is on the wire: one table from the error tree to HTTP status, OpenAI error object and close code.

What a caller sees never says anything of the inside: an exception that nobody foresaw, and a `ConfigError` (whose
message may name a file), are told as an internal error and stand in the log under the request's id.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Literal

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketState

from pipeline.errors import (
    Busy,
    ConfigError,
    EngineError,
    EngineFailed,
    EngineNotReady,
    EngineTimeout,
    Forbidden,
    InvalidInput,
    NotFound,
    OutOfMemory,
    RateLimited,
    RequestError,
    StorageError,
    TooLarge,
    Unauthorized,
    VoicepodError,
)

log = structlog.get_logger()

ErrorType = Literal[
    "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
]

INTERNAL_MESSAGE: Final = "an internal error; the log has it"
REQUEST_ID_HEADER: Final = "x-request-id"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")  # a caller's own id is kept when it cannot disturb a log line


@dataclass(frozen=True, slots=True)
class WireError:
    """How one class of error is told. `close_code` is for a socket that cannot go on; most errors leave it open."""

    status: int
    type: ErrorType
    close_code: int


# An error is looked up by its class, then by its base classes. Close codes: docs/protocol.md.
WIRE_ERRORS: Final[Mapping[type[VoicepodError], WireError]] = {
    VoicepodError: WireError(500, "server_error", 1011),
    ConfigError: WireError(500, "server_error", 1011),
    RequestError: WireError(400, "invalid_request_error", 1008),
    InvalidInput: WireError(400, "invalid_request_error", 1007),
    Unauthorized: WireError(401, "authentication_error", 1008),
    Forbidden: WireError(403, "permission_error", 1008),
    NotFound: WireError(404, "invalid_request_error", 1008),
    TooLarge: WireError(413, "invalid_request_error", 1009),
    RateLimited: WireError(429, "rate_limit_error", 1013),
    Busy: WireError(503, "server_error", 1013),
    EngineError: WireError(500, "server_error", 1011),
    EngineNotReady: WireError(503, "server_error", 1013),
    EngineTimeout: WireError(504, "server_error", 1011),
    OutOfMemory: WireError(503, "server_error", 1013),
    EngineFailed: WireError(500, "server_error", 1011),
    StorageError: WireError(502, "server_error", 1011),
}


def wire_error(error: BaseException) -> WireError:
    """The table's row for an error; what is not ours is an internal error."""
    for kind in type(error).__mro__:
        if kind in WIRE_ERRORS:
            return WIRE_ERRORS[kind]
    return WIRE_ERRORS[VoicepodError]


def close_code(error: BaseException) -> int:
    """The WebSocket close code for an error that ends a connection."""
    return wire_error(error).close_code


def public_message(error: BaseException) -> str:
    """What a person may read of an error."""
    is_ours = isinstance(error, VoicepodError) and not isinstance(error, ConfigError)
    return error.message if is_ours and isinstance(error, VoicepodError) else INTERNAL_MESSAGE


def error_object(error: BaseException) -> dict[str, Any]:
    """OpenAI's error object, the value of `error` in an HTTP body and in a realtime `error` event.

    `retry_after_s` is there when the error knows it.
    """
    shown: dict[str, Any] = {
        "message": public_message(error),
        "type": wire_error(error).type,
        "code": error.code if isinstance(error, VoicepodError) else VoicepodError.code,
        "param": error.param if isinstance(error, RequestError) else None,
    }
    if isinstance(error, RateLimited | Busy):
        shown["retry_after_s"] = error.retry_after_s
    return shown


def error_response(error: BaseException, *, status: int | None = None) -> JSONResponse:
    """The HTTP answer for an error; `status` replaces the table's."""
    headers = {"Cache-Control": "no-store"}
    if isinstance(error, RateLimited | Busy):
        headers["Retry-After"] = str(max(math.ceil(error.retry_after_s), 1))  # whole seconds, RFC 9110 10.2.3
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error_object(error)}, status_code=status or wire_error(error).status, headers=headers)


def install(app: FastAPI, *, observe: Callable[[str, int], None] | None = None) -> None:
    """Make `app` tell every error in this form. `observe(route, status)` sees each HTTP request that ended."""
    app.add_exception_handler(VoicepodError, _tell)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_middleware(RequestEdge, observe=observe)


async def _tell(connection: HTTPConnection, error: Exception) -> JSONResponse:
    wire = wire_error(error)
    if isinstance(connection, WebSocket):
        if connection.application_state != WebSocketState.DISCONNECTED:
            await connection.close(wire.close_code)
    elif wire.status >= 500:
        known = error.code if isinstance(error, VoicepodError) else VoicepodError.code
        log.warning("request.failed", route=route_of(connection.scope), status=wire.status, code=known)
    return error_response(error)


async def _tell_invalid(connection: HTTPConnection, error: Exception) -> JSONResponse:
    """The first fault of a body or a query, by the name of the field; the value itself is not repeated."""
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    fault = faults[0] if faults else {"loc": (), "type": "", "msg": "the request is not valid"}
    if fault["type"] == "json_invalid":
        return error_response(InvalidInput("the body is not valid JSON"))
    param = ".".join(str(part) for part in fault["loc"][1:]) or None
    return error_response(InvalidInput(f"{param or 'the request'}: {fault['msg']}", param=param), status=422)


async def _tell_http(connection: HTTPConnection, error: Exception) -> JSONResponse:
    """What the framework refuses: no such route, no such method, a body it cannot read."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    phrase = HTTPStatus(status).phrase
    known: dict[int, VoicepodError] = {
        401: Unauthorized(phrase),
        403: Forbidden(phrase),
        404: NotFound(phrase),
        405: InvalidInput(phrase, code="method_not_allowed"),
        413: TooLarge(phrase),
    }
    told = known.get(status, VoicepodError(phrase) if status >= 500 else InvalidInput(phrase))
    response = error_response(told, status=status)
    response.headers.update((error.headers or {}) if isinstance(error, HTTPException) else {})
    return response


def route_of(scope: Scope) -> str:
    """The pattern that a request matched, never its path: bounded, and free of ids and names."""
    route = scope.get("route")
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else "other"


class RequestEdge:
    """The HTTP edge: gives each request an id, and answers an exception that nobody foresaw, logging it once.

    Stands inside the framework's own last resort, which would log the same traceback a second time. WebSockets pass:
    their message loop is a boundary of its own.
    """

    def __init__(self, app: ASGIApp, *, observe: Callable[[str, int], None] | None = None) -> None:
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = HTTPConnection(scope).headers.get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except ClientDisconnect:  # a client that goes away is no error
                return
            except Exception as error:  # boundary: the HTTP edge
                log.exception("request.crashed", route=route_of(scope), error=type(error).__name__)
                if status:  # the answer has begun: all that is left is to cut it off, which the server does
                    return
                await error_response(error)(scope, receive, send_with_id)
            finally:
                if self._observe is not None:
                    self._observe(route_of(scope), status or 499)  # 499: the client left before an answer
