"""Whether the server can talk: the states of its engines, and what follows from them.

    loading ──► ready ◄──► degraded
       └──► failed ◄──┘        any of them ──► draining

Nothing outside the process is asked: a store that is down must not take every server of a fleet down with it.
Taken seats do not count either. A full server refuses new talks by itself, and a load balancer that sees it as
not ready may cut the talks it has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from api.errors import public_message
from pipeline.errors import VoicepodError

log = structlog.get_logger()

State = Literal["loading", "ready", "degraded", "failed", "draining"]
EngineState = Literal["waiting", "loading", "ready", "failed"]


@dataclass(slots=True)
class EngineProgress:
    """One engine: `seconds` is how long it has been loading, or took to load."""

    kind: str
    name: str
    state: EngineState = "waiting"
    seconds: float = 0.0
    detail: str = ""
    began_at_s: float = 0.0


class Readiness:
    """All methods belong to the event loop; the properties may be read from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._engines: dict[tuple[str, str], EngineProgress] = {}
        self._troubles: dict[str, str] = {}
        self._draining = False

    def expect(self, kind: str, name: str) -> None:
        """This engine is needed: not ready before it is loaded. Name all of them before the first one loads."""
        self._engines.setdefault((kind, name), EngineProgress(kind, name))

    @asynccontextmanager
    async def loading(self, kind: str, name: str) -> AsyncIterator[None]:
        """The body loads the engine and runs its warm-up; an exception means that it failed, and goes on."""
        self.expect(kind, name)
        engine = self._engines[kind, name]
        engine.state, engine.detail, engine.began_at_s = "loading", "", self._clock()
        try:
            yield
        except asyncio.CancelledError:  # the server stops before it has begun
            engine.state = "waiting"
            raise
        except Exception as error:  # told to those who ask, and goes on
            code = error.code if isinstance(error, VoicepodError) else type(error).__name__
            engine.state, engine.detail = "failed", public_message(error)
            log.error("engine.failed", kind=kind, engine=name, code=code)
            raise
        else:
            if engine.state == "loading":  # not where it went down meanwhile
                engine.state = "ready"
            log.info("engine.ready", kind=kind, engine=name, seconds=round(self._clock() - engine.began_at_s, 3))
        finally:
            engine.seconds = self._clock() - engine.began_at_s

    def engine_down(self, kind: str, name: str, detail: str) -> None:
        """A loaded engine died; `loading` or `engine_up` brings it back. `detail` is shown to people."""
        self.expect(kind, name)
        engine = self._engines[kind, name]
        engine.state, engine.detail = "failed", detail

    def engine_up(self, kind: str, name: str) -> None:
        """An engine that was down works again."""
        engine = self._engines[kind, name]
        engine.state, engine.detail = "ready", ""

    def degrade(self, part: str, reason: str) -> None:
        """Something that talks can do without is missing: still ready, and said so."""
        self._troubles[part] = reason

    def restore(self, part: str) -> None:
        """The part works again."""
        self._troubles.pop(part, None)

    def drain(self) -> None:
        """The server will stop: no new talks. There is no way back."""
        self._draining = True

    @property
    def state(self) -> State:
        """What follows from the engines; draining hides everything else."""
        return "draining" if self._draining else self._engines_state

    @property
    def is_ready(self) -> bool:
        """Whether a new talk may begin here."""
        return self.state in ("ready", "degraded")

    @property
    def reason(self) -> str:
        """Why it is not ready, or what is missing; empty when all is well."""
        state = self.state
        if state == "draining":
            return "the server is shutting down"
        if state == "degraded":
            return "; ".join(list(self._troubles.values()))
        engines = [engine for engine in list(self._engines.values()) if engine.state != "ready"]
        if state == "failed":
            return "; ".join(f"{engine.kind} failed" for engine in engines if engine.state == "failed")
        if state == "loading":
            return "loading " + ", ".join(engine.kind for engine in engines) if engines else "starting"
        return ""

    @property
    def engines_up(self) -> Mapping[str, bool]:
        """Kind of engine -> whether all engines of that kind can work."""
        up: dict[str, bool] = {}
        for engine in list(self._engines.values()):
            up[engine.kind] = up.get(engine.kind, True) and engine.state == "ready"
        return up

    @property
    def load_seconds(self) -> Mapping[str, float]:
        """Kind of engine -> seconds that the last load took, of those that are loaded."""
        return {engine.kind: engine.seconds for engine in list(self._engines.values()) if engine.state == "ready"}

    def startup(self) -> dict[str, Any]:
        """For a loading screen: loading, ready or failed, and each engine. A server that drains has started."""
        state = self._engines_state
        return {
            "state": "ready" if state == "degraded" else state,
            "engines": [self._shown(engine) for engine in list(self._engines.values())],
        }

    @property
    def _engines_state(self) -> State:
        states = {engine.state for engine in list(self._engines.values())}
        if "failed" in states:
            return "failed"
        if states != {"ready"}:
            return "loading"
        return "degraded" if self._troubles else "ready"

    def _shown(self, engine: EngineProgress) -> dict[str, Any]:
        seconds = self._clock() - engine.began_at_s if engine.state == "loading" else engine.seconds
        return {
            "kind": engine.kind,
            "name": engine.name,
            "state": engine.state,
            "seconds": round(seconds, 2),
            "detail": engine.detail,
        }
