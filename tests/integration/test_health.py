"""Health: a table of what each route answers in each state."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.health import health_router
from api.readiness import Readiness
from pipeline.errors import ConfigError, EngineFailed, StorageError
from tests.support.live_server import live_server

KINDS = ("vad", "asr", "llm", "tts")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def readiness(clock: Clock) -> Readiness:
    readiness = Readiness(clock)
    for kind in KINDS:
        readiness.expect(kind, f"{kind}-engine")
    return readiness


@pytest.fixture
def client(readiness: Readiness) -> TestClient:
    app = FastAPI()
    app.include_router(health_router(readiness))
    return TestClient(app)


async def load(readiness: Readiness, *kinds: str) -> None:
    for kind in kinds or KINDS:
        async with readiness.loading(kind, f"{kind}-engine"):
            pass


async def fail(readiness: Readiness, kind: str, error: Exception) -> None:
    with pytest.raises(type(error)), structlog.testing.capture_logs():
        async with readiness.loading(kind, f"{kind}-engine"):
            raise error


async def nothing(readiness: Readiness) -> None:
    return


async def half_loaded(readiness: Readiness) -> None:
    await load(readiness, "vad", "llm")


async def one_failed(readiness: Readiness) -> None:
    await load(readiness, "vad")
    await fail(readiness, "asr", EngineFailed("it broke", stage="asr"))


async def degraded(readiness: Readiness) -> None:
    await load(readiness)
    readiness.degrade("storage", "voices cannot be saved")


async def restored(readiness: Readiness) -> None:
    await degraded(readiness)
    readiness.restore("storage")


async def engine_died(readiness: Readiness) -> None:
    await load(readiness)
    readiness.engine_down("tts", "tts-engine", "the voice engine stopped")


async def engine_came_back(readiness: Readiness) -> None:
    await engine_died(readiness)
    await load(readiness, "tts")


async def died_while_degraded(readiness: Readiness) -> None:
    await degraded(readiness)
    readiness.engine_down("tts", "tts-engine", "the voice engine stopped")


async def draining(readiness: Readiness) -> None:
    await load(readiness)
    readiness.drain()


async def draining_while_loading(readiness: Readiness) -> None:
    await half_loaded(readiness)
    readiness.drain()


async def draining_after_failure(readiness: Readiness) -> None:
    await one_failed(readiness)
    readiness.drain()


@pytest.mark.parametrize(
    ("arrange", "state", "ready", "ping", "startup"),
    [
        (nothing, "loading", 503, 204, "loading"),
        (half_loaded, "loading", 503, 204, "loading"),
        (load, "ready", 200, 200, "ready"),
        (one_failed, "failed", 503, 503, "failed"),
        (degraded, "degraded", 200, 200, "ready"),
        (restored, "ready", 200, 200, "ready"),
        (engine_died, "failed", 503, 503, "failed"),
        (engine_came_back, "ready", 200, 200, "ready"),
        (died_while_degraded, "failed", 503, 503, "failed"),
        (draining, "draining", 503, 503, "ready"),
        (draining_while_loading, "draining", 503, 503, "loading"),
        (draining_after_failure, "draining", 503, 503, "failed"),
    ],
)
async def test_each_state_has_its_answers(
    readiness: Readiness,
    client: TestClient,
    arrange: Callable[[Readiness], Any],
    state: str,
    ready: int,
    ping: int,
    startup: str,
) -> None:
    await arrange(readiness)
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == ready
    assert client.get("/health/ready").json()["state"] == state
    assert client.get("/api/health").status_code == ready
    assert client.get("/api/health").json() == {"state": state}
    assert client.get("/ping").status_code == ping
    assert client.get("/ping").content == b""
    assert client.get("/health/startup").status_code == 200
    assert client.get("/health/startup").json()["state"] == startup


async def test_a_server_that_knows_no_engine_yet_is_loading(clock: Clock) -> None:
    assert Readiness(clock).state == "loading"
    assert Readiness(clock).reason == "starting"


async def test_the_loading_screen_sees_how_long_each_engine_takes(readiness: Readiness, clock: Clock) -> None:
    async with readiness.loading("vad", "vad-engine"):
        clock.now = 1.5
    async with readiness.loading("llm", "llm-engine"):
        clock.now = 4.0
        engines = {engine["kind"]: engine for engine in readiness.startup()["engines"]}
    assert engines["vad"] == {"kind": "vad", "name": "vad-engine", "state": "ready", "seconds": 1.5, "detail": ""}
    assert (engines["llm"]["state"], engines["llm"]["seconds"]) == ("loading", 2.5)
    assert (engines["tts"]["state"], engines["tts"]["seconds"]) == ("waiting", 0.0)


async def test_a_load_that_is_stopped_is_no_failure(readiness: Readiness) -> None:
    with structlog.testing.capture_logs() as logged, pytest.raises(asyncio.CancelledError):
        async with readiness.loading("asr", "asr-engine"):
            raise asyncio.CancelledError
    assert readiness.state == "loading"
    assert logged == []


async def test_a_missing_model_file_is_not_named_to_strangers(readiness: Readiness, client: TestClient) -> None:
    await fail(readiness, "asr", ConfigError("/srv/models/whisper/model.bin is missing"))
    for path in ("/health/startup", "/health/ready", "/api/health"):
        assert client.get(path).json() == {"state": "failed"}
    assert "whisper" not in str(readiness.startup())
    assert readiness.reason == "asr failed"


@pytest.mark.parametrize("arrange", [nothing, half_loaded, load, one_failed, degraded, engine_died, draining])
async def test_strangers_see_a_state_and_nothing_else(
    readiness: Readiness, client: TestClient, arrange: Callable[[Readiness], Any]
) -> None:
    await arrange(readiness)
    for path in ("/health/live", "/health/startup", "/health/ready", "/api/health"):
        assert set(client.get(path).json()) == {"state"}


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/health/startup", "/api/health", "/ping"])
async def test_answers_are_never_cached_and_head_is_enough(readiness: Readiness, client: TestClient, path: str) -> None:
    await load(readiness)
    assert client.get(path).headers["cache-control"] == "no-store"
    assert client.head(path).status_code == 200
    assert client.head(path).content == b""


async def test_a_server_that_cannot_save_is_degraded_until_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk showed in the log alone; `ready` was all that whoever watches the health was told."""

    def full(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    def nothing(connection: sqlite3.Connection) -> None:
        """As a tidying that finds nothing old: it needs no room."""
        connection.execute("DELETE FROM owners WHERE name = 'nobody'")

    monkeypatch.setattr("api.access.access.POLL_S", 3600.0)  # it looks when the test says so
    async with live_server() as live, httpx.AsyncClient(base_url=live.http) as http:
        with pytest.raises(StorageError):
            await live.server.store.write(full)
        await live.server.store.write(nothing)
        answer = await http.get("/health/ready")
        assert (answer.status_code, answer.json()) == (200, {"state": "degraded"})
        await live.server.access.look()  # on a server where nobody has anything to save
        assert (await http.get("/health/ready")).json() == {"state": "ready"}
