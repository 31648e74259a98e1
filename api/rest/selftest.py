"""`/api/selftest`: the administrator's button. The server talks to itself over its own socket, in the background."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Final, Literal, cast

import websockets
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field
from websockets.asyncio.client import ClientConnection
from websockets.typing import Origin, Subprotocol

from api.access.access import Access, require
from api.access.principal import Principal
from api.host import HostMonitor
from api.realtime import PROTOCOL, TOKEN_PREFIX
from api.rest.backend import Backend
from api.rest.bodies import Asked, json_body
from api.rest.jobs import POLL_S, Job, Jobs, JobShown, Progress, shown
from api.rest.openapi import body_of, errors
from api.selftest.measure import Plan, check_nobody_talks, load_clips, run
from api.selftest.report import Memory, Report, Speeds
from pipeline.audio import AudioChunk
from pipeline.errors import EngineError, EngineFailed, InvalidInput
from pipeline.reading import read_aloud

KIND: Final = "selftest"
WAIT_S: Final = 60.0


class SelfTestWish(Asked):
    """How much to try: questions in the one talk, and talks at once. `force` measures while people talk."""

    turns: Annotated[int, Field(ge=1, le=20)] = 8
    talks: Annotated[int, Field(ge=1, le=16)] = 8
    force: bool = False


class SelfTest(BaseModel):
    """The last self-test as a job; its `result` is the report. Null when there was none since the start."""

    object: Literal["selftest"] = "selftest"
    job: JobShown | None


@dataclass(frozen=True, slots=True)
class InServer:
    """This server, seen from inside."""

    backend: Backend
    host: HostMonitor

    async def n_talks(self) -> int | None:
        """Seats that are taken."""
        return self.backend.registry.n_active

    async def memory(self) -> Memory:
        """As the page's sidebar shows it."""
        now = self.host.snapshot()
        return Memory(
            process=now.process_memory_bytes,
            card_used=sum(card.memory_used_bytes or 0 for card in now.gpus) or None,
            card_total=sum(card.memory_total_bytes or 0 for card in now.gpus) or None,
        )

    async def speeds(self, clip: AudioChunk, text: str) -> Speeds:
        """Straight from the engines, in their lanes. The second of two runs."""
        asr = tts = None
        try:
            async with asyncio.timeout(WAIT_S):
                for _ in range(2):
                    began_s = time.perf_counter()
                    await self.backend.engines.asr.transcribe(clip, language=None)
                    asr = round((time.perf_counter() - began_s) / clip.seconds, 3)
                for _ in range(2):
                    began_s = time.perf_counter()
                    spoken_s = await self._speak(text)
                    tts = round((time.perf_counter() - began_s) / spoken_s, 3) if spoken_s else None
        except (EngineError, TimeoutError):  # the talk says what is wrong with the engine
            pass
        return Speeds(asr, tts)

    async def _speak(self, text: str) -> float:
        voice = self.backend.voice("", None)
        tts = self.backend.engines.tts
        speech = read_aloud(
            text,
            tts=tts,
            voice=voice,
            splitter=self.backend.splitter(voice),
            sample_rate=tts.info.sample_rate,
            waits=self.backend.waits,
        )
        async with aclosing(speech) as chunks:
            return sum([chunk.seconds async for chunk in chunks])


@dataclass(frozen=True, slots=True)
class _OwnDoor:
    """The socket of this server, at the address that a request came to."""

    access: Access
    principal: Principal
    address: tuple[str, int]
    is_tls: bool

    def __call__(self) -> AbstractAsyncContextManager[ClientConnection]:
        """A new connection."""
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[ClientConnection]:
        name = f"[{self.address[0]}]" if ":" in self.address[0] else self.address[0]
        host = f"{name}:{self.address[1]}"
        ticket = self.access.tickets.mint(self.principal)
        protocols = [PROTOCOL, f"{TOKEN_PREFIX}{ticket}"]
        try:
            socket = await websockets.connect(
                f"ws{'s' * self.is_tls}://{host}/v1/realtime",
                subprotocols=[cast(Subprotocol, protocol) for protocol in protocols],
                origin=cast(Origin, f"http{'s' * self.is_tls}://{host}"),
                ssl=_any_certificate() if self.is_tls else None,
                max_size=None,
                proxy=None,
            )
        except (OSError, websockets.InvalidHandshake, TimeoutError) as error:
            raise EngineFailed("the server cannot reach its own socket", stage="server") from error
        try:
            yield socket
        finally:
            await socket.close()


def _any_certificate() -> ssl.SSLContext:
    """For a connection of this process to itself: the certificate has the name that browsers use."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def selftest_router(machine: InServer, access: Access, jobs: Jobs) -> APIRouter:
    """Start a self-test, and ask how far it is."""
    router = APIRouter(tags=["metrics"])
    last: Job | None = None

    def state(response: Response) -> SelfTest:
        response.headers["Cache-Control"] = "no-store"
        if last is not None and last.is_open:
            response.headers["Retry-After"] = str(POLL_S)
        return SelfTest(job=None if last is None else shown(last))

    @router.post(
        "/api/selftest",
        status_code=202,
        responses=errors(400, 413, 415, 503),
        openapi_extra=body_of(SelfTestWish, {"turns": 8, "talks": 8, "force": False}),
    )
    async def start(
        request: Request, response: Response, principal: Annotated[Principal, Depends(require("admin"))]
    ) -> SelfTest:
        """Talk to this server as a person would, and measure. It takes a minute or two; `GET` tells the result.

        One at a time: while one runs, that one is the answer.
        """
        nonlocal last
        wish = await json_body(request, SelfTestWish)
        settings, address = machine.backend.settings, request.scope.get("server")
        if not settings.network.websocket_enabled or not address or address[1] is None:
            raise InvalidInput("the self-test talks over the socket, which network.websocket_enabled switched off")
        if last is not None and last.is_open:
            return state(response)
        machine.backend.check_ready()
        # Some seat stays free for whoever comes meanwhile.
        plan = Plan(wish.turns, min(wish.talks, max(settings.system.max_concurrent_users - 1, 1)), wish.force)
        await check_nobody_talks(machine, plan)
        door = _OwnDoor(access, principal, (address[0], address[1]), request.url.scheme == "https")
        last = jobs.add(KIND, principal.owner, _steps(door, machine, plan))
        await access.record(principal.owner, principal.credential, "selftest.started", last.id, "ok")
        return state(response)

    @router.get("/api/selftest")
    async def result(response: Response, principal: Annotated[Principal, Depends(require("admin"))]) -> SelfTest:
        """The last self-test: how far it is, or its report."""
        return state(response)

    return router


async def _steps(door: _OwnDoor, machine: InServer, plan: Plan) -> AsyncGenerator[Progress, None]:
    clips = await asyncio.to_thread(load_clips)
    async with aclosing(run(door, machine, plan, clips)) as steps:
        async for step in steps:
            yield step.as_json() if isinstance(step, Report) else step
