"""Errors on the wire: one table, and nothing of the inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.websockets import WebSocketDisconnect

from api.errors import INTERNAL_MESSAGE, WIRE_ERRORS, close_code, error_object, install, wire_error
from pipeline.errors import (
    Busy,
    ConfigError,
    EngineFailed,
    EngineNotReady,
    EngineTimeout,
    Forbidden,
    InvalidInput,
    NotFound,
    OutOfMemory,
    RateLimited,
    StorageError,
    TooLarge,
    Unauthorized,
    VoicepodError,
)

SECRET = "/srv/models/private.bin"

TRUTH: list[tuple[VoicepodError, int, str, int]] = [
    (InvalidInput("bad"), 400, "invalid_request_error", 1007),
    (Unauthorized("no key"), 401, "authentication_error", 1008),
    (Forbidden("not yours"), 403, "permission_error", 1008),
    (NotFound("no such item"), 404, "invalid_request_error", 1008),
    (TooLarge("too long"), 413, "invalid_request_error", 1009),
    (RateLimited("slow down", retry_after_s=1.2), 429, "rate_limit_error", 1013),
    (Busy("full", retry_after_s=10), 503, "server_error", 1013),
    (EngineNotReady("loading", stage="asr"), 503, "server_error", 1013),
    (EngineTimeout("too slow", stage="llm"), 504, "server_error", 1011),
    (OutOfMemory("no memory", stage="tts"), 503, "server_error", 1013),
    (EngineFailed("broken", stage="tts"), 500, "server_error", 1011),
    (StorageError("disk"), 502, "server_error", 1011),
    (ConfigError(f"{SECRET} is missing"), 500, "server_error", 1011),
    (VoicepodError("something"), 500, "server_error", 1011),
]


class Order(BaseModel):
    speed: float


def server(raised: Exception | None = None, requests: list[tuple[str, int]] | None = None) -> FastAPI:
    app = FastAPI()
    install(app, observe=None if requests is None else lambda route, status: requests.append((route, status)))

    @app.get("/raise/{thing}")
    async def fail(thing: str) -> None:
        assert raised is not None
        raise raised

    @app.post("/orders")
    async def order(body: Order) -> None:
        return

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            raise RuntimeError(SECRET)

        return StreamingResponse(body())

    @app.websocket("/talk")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        assert raised is not None
        raise raised

    return app


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as records:
        yield records


def ask(app: FastAPI, path: str, **request: Any) -> Any:
    with TestClient(app) as client:
        return client.request(request.pop("method", "GET"), path, **request)


@pytest.mark.parametrize(("error", "status", "kind", "code"), TRUTH, ids=lambda value: type(value).__name__)
def test_each_error_has_its_status_type_and_close_code(
    error: VoicepodError, status: int, kind: str, code: int, logged: list[Any]
) -> None:
    answer = ask(server(error), "/raise/x")
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == kind
    assert answer.json()["error"]["code"] == error.code
    assert answer.headers["cache-control"] == "no-store"
    assert close_code(error) == code


def test_every_class_of_the_tree_stands_in_the_table() -> None:
    def below(kind: type[VoicepodError]) -> Iterator[type[VoicepodError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    ours = {kind for kind in below(VoicepodError) if kind.__module__ == "pipeline.errors"}
    assert ours == set(WIRE_ERRORS)


def test_a_class_that_is_not_in_the_table_is_told_like_its_base() -> None:
    class Unreadable(InvalidInput):
        pass

    assert wire_error(Unreadable("x")) == WIRE_ERRORS[InvalidInput]
    assert wire_error(KeyError("x")).status == 500


def test_busy_says_when_to_come_back(logged: list[Any]) -> None:
    answer = ask(server(Busy("full", retry_after_s=2.1)), "/raise/x")
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["retry_after_s"] == 2.1
    assert ask(server(RateLimited("slow down", retry_after_s=0.0)), "/raise/x").headers["retry-after"] == "1"


def test_the_field_at_fault_is_named() -> None:
    assert error_object(InvalidInput("no such voice", code="voice_not_found", param="voice")) == {
        "message": "no such voice",
        "type": "invalid_request_error",
        "code": "voice_not_found",
        "param": "voice",
    }


def test_an_unforeseen_exception_is_logged_once_and_says_nothing_of_the_inside(logged: list[Any]) -> None:
    answer = ask(server(RuntimeError(SECRET)), "/raise/x", headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": INTERNAL_MESSAGE,
        "type": "server_error",
        "code": "internal_error",
        "param": None,
    }
    assert SECRET not in answer.text
    assert answer.headers["x-request-id"] == "abc-1"
    (record,) = logged
    assert (record["event"], record["log_level"]) == ("request.crashed", "error")
    assert record["exc_info"]
    assert record["route"] == "/raise/{thing}"


def test_a_wrong_configuration_never_shows_its_path(logged: list[Any]) -> None:
    assert SECRET not in ask(server(ConfigError(f"{SECRET} is missing")), "/raise/x").text


async def test_an_answer_that_breaks_off_is_logged_and_not_answered_twice(logged: list[Any]) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()  # the client stays and says nothing

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/stream",
        "headers": [],
        "query_string": b"",
        "app": None,
    }
    await server()(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert [record["event"] for record in logged] == ["request.crashed"]


def test_a_client_that_leaves_is_no_error(logged: list[Any]) -> None:
    with TestClient(server(ClientDisconnect()), raise_server_exceptions=False) as client:
        client.get("/raise/x")
    assert logged == []


def test_a_request_id_that_could_forge_a_log_line_is_replaced() -> None:
    for forged in ("a b", "x" * 65, 'a"b'):
        given = ask(server(), "/nowhere", headers={"x-request-id": forged}).headers["x-request-id"]
        assert given != forged
        assert given.isalnum()


def test_a_body_of_the_wrong_form_names_the_field_and_does_not_repeat_the_value() -> None:
    answer = ask(server(), "/orders", method="POST", json={"speed": "s3cr3t"})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "speed"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "s3cr3t" not in answer.text


def test_a_body_that_is_not_json_is_a_bad_request() -> None:
    answer = ask(server(), "/orders", method="POST", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "the body is not valid JSON"


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [("/nowhere", "GET", 404, "not_found"), ("/orders", "GET", 405, "method_not_allowed")],
)
def test_what_the_framework_refuses_has_the_same_form(path: str, method: str, status: int, code: str) -> None:
    answer = ask(server(), path, method=method)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


def test_requests_are_counted_by_pattern_and_not_by_path(logged: list[Any]) -> None:
    seen: list[tuple[str, int]] = []
    app = server(NotFound("no such thing"), seen)
    for path in ("/raise/anna", "/raise/bruno", "/nowhere/anna"):
        ask(app, path)
    assert seen == [("/raise/{thing}", 404), ("/raise/{thing}", 404), ("other", 404)]


def test_an_error_that_escapes_a_socket_closes_it_with_its_code() -> None:
    with TestClient(server(TooLarge("too long"))) as client, client.websocket_connect("/talk") as socket:
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        assert closed.value.code == 1009
