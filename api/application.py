"""The ASGI application: engines, sessions, doors and health, wired for one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import structlog
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

from api import errors
from api.access.access import Access, AsksItself, require
from api.access.guard import Guard
from api.access.headers import SecurityHeaders
from api.access.lasting import EndsWithCredential
from api.access.login import login_router
from api.card_shares import CardShares
from api.gpus import memory_of_own, read_card
from api.health import health_router, startup_router
from api.history import History
from api.host import HostMonitor
from api.ledger import Ledger
from api.metrics import Metrics, metrics_router
from api.personal_data import PersonalData
from api.readiness import Readiness
from api.realtime import Door, serve
from api.registry import Registry
from api.rest import Backend, rest_router
from api.rest.backend import Slots
from api.rest.converse import SESSION_HEADER, TRANSCRIPT_HEADER
from api.rest.jobs import Jobs
from api.rest.me import me_router
from api.rest.notices import notices_router
from api.rest.selftest import InServer, selftest_router
from api.sockets import DRAIN, Sockets
from api.store import Store
from api.talk_log import log_event
from api.voices.book import VoiceBook
from api.voices.workshop import Workshop, open_speakers
from api.wire_out import Writer
from pipeline.engines.base import EngineKind, Engines, Voice
from pipeline.errors import ConfigError, VoicepodError
from pipeline.options import LANGUAGES, SessionOptions, TurnDetection
from pipeline.pressure import STEPS
from pipeline.sample_quality import Speakers
from pipeline.session import Session, new_id
from pipeline.turn import Waits
from process_tuning import give_back_memory
from settings import Settings, TtsSettings

log = structlog.get_logger()

WARM_UP = ("turn", "warm-up")  # as the loading screen knows it

VERSION = "0.1.0"


class WarmUp(Protocol):
    """A turn that nobody hears; `pipeline.warm_up.warm_turn`."""

    async def __call__(self, engines: Engines, *, voice: Voice, instructions: str, waits: Waits) -> None:
        """Raises what the turn fails with."""
        ...


class Server:
    """What lives as long as the process. `app` is the ASGI application; the page is mounted on it by the caller."""

    def __init__(
        self,
        settings: Settings,
        engines: Engines | None = None,
        *,
        on_fatal: Callable[[BaseException], None] = lambda error: None,
        speakers: Callable[[], Speakers | None] | None = None,
        warm_up: WarmUp | None = None,
    ) -> None:
        """`engines` and `speakers` (what tells voices apart) None: those that the settings name.

        `warm_up` is a turn before the first one, made when all engines are loaded; talks begin after it.
        """
        self.settings = settings
        self.engines = engines or Engines.from_settings(settings)
        self.readiness = Readiness()
        for process in self.engines.processes:
            process.watch(self._engine_changed)
        self.registry = Registry(
            settings.network,
            max_sessions=settings.system.max_concurrent_users,
            create=self._create_session,
            clock=time.monotonic,
            on_ended=lambda session_id: self.history.ended(session_id),
            why_not=self._why_no_room,
        )
        self.host = HostMonitor()
        self.ledger = Ledger(
            partial(read_card, device=settings.system.gpu_device),
            fraction=settings.performance.gpu_memory_fraction,
            max_talks=settings.system.max_concurrent_users,
        )
        self._warm_up = warm_up
        self.metrics = Metrics(self.readiness, self.host, version=VERSION)
        self.metrics.watch_sessions(lambda: self.registry.n_active)
        if (pressure := self.engines.pressure) is not None:
            self.metrics.watch_load(lambda: STEPS.index(pressure.step), lambda: pressure.wait_s)
        for kind, engine in self.engines.by_kind().items():
            self.metrics.watch_queue(kind, partial(getattr, engine, "n_waiting"))
        self.store = Store(settings.storage.dir, on_write=self._storage_works)
        self.access = Access(
            settings, self.store, on_rejected=self.metrics.rejected, on_auth_failed=self.metrics.auth_failed
        )
        self.history = History(self.store, settings.storage)
        self.sockets = Sockets()
        self.voices = VoiceBook(self.store, self.engines.tts, settings.voices)
        self.workshop = Workshop(
            settings, self.engines, self.voices, speakers or partial(open_speakers, settings.models.dir)
        )
        self.jobs = Jobs()
        self.selftests = Jobs()  # apart: minutes that no transcription should wait for
        self._on_fatal = on_fatal
        self._voice = settings.tts.voice
        self._loading: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()  # somebody needs the models
        if settings.performance.preload_models:
            self._wanted.set()
        self.app = FastAPI(
            title="Voicepod", version=VERSION, lifespan=self._lifespan, docs_url=None, redoc_url=None, openapi_url=None
        )
        self.app.state.access = self.access
        self._add_middleware()
        self._add_routes()

    def _add_middleware(self) -> None:
        """The last one added is the outermost."""
        network = self.settings.network
        self.app.add_middleware(EndsWithCredential, live=self.access.live)
        errors.install(self.app, observe=self.metrics.observe_request)
        if network.cors_enabled and network.allowed_origins:
            # Without credentials: a foreign page brings an API key of its own, never the browser's login.
            self.app.add_middleware(
                CORSMiddleware,
                allow_origins=list(network.allowed_origins),
                allow_methods=["GET", "POST", "PATCH", "DELETE"],
                allow_headers=["Authorization", "Content-Type", errors.REQUEST_ID_HEADER],
                expose_headers=["Location", "Retry-After", SESSION_HEADER, TRANSCRIPT_HEADER, errors.REQUEST_ID_HEADER],
                allow_credentials=False,
                max_age=600,
            )
        self.app.add_middleware(SecurityHeaders)

    def _add_routes(self) -> None:
        """Every route names its rule: `open_to_all`, or `require(scope)`."""
        settings = self.settings
        self._serve(health_router(self.readiness))
        self._serve(startup_router(self.readiness))
        if settings.system.enable_monitoring:
            self._serve(metrics_router(self.metrics, Depends(require("metrics"))))
        self._serve(login_router(self.access, on_ticket=self.want_models))
        backend = self._backend()
        self._serve(rest_router(backend))
        self._serve(selftest_router(InServer(backend, self.host), self.access, self.selftests))
        personal = PersonalData(self.store, self.registry, self.jobs, self.workshop, self.history)
        self._serve(me_router(personal, self.access))
        self._serve(notices_router(self.sockets, self.access))
        if settings.network.websocket_enabled:
            self.app.add_api_websocket_route("/v1/realtime", self._realtime, dependencies=[Depends(AsksItself("talk"))])

    def _serve(self, router: APIRouter) -> None:
        """Its routes as they are: FastAPI would build each route of a router that is included a second time."""
        self.app.router.routes += router.routes

    def _backend(self) -> Backend:
        """What the HTTP routes work with."""
        return Backend(
            settings=self.settings,
            engines=self.engines,
            registry=self.registry,
            limiter=self.access.limiter,
            slots=Slots(self.settings.system.max_concurrent_users),
            jobs=self.jobs,
            why_not_ready=self._why_not_ready,
            default_voice=lambda: self._voice,
            voices=self.voices,
            workshop=self.workshop,
        )

    def guard(self, app: ASGIApp) -> ASGIApp:
        """The page's application behind the same door: whoever may talk may open it."""
        return Guard(app, self.access, "talk")

    async def drain(self) -> None:
        """No talk begins any more, and the pages are told why their sockets will close."""
        self.readiness.drain()
        await self.sockets.broadcast("drain", DRAIN)

    def want_models(self) -> None:
        """Load the engines now if they were not loaded at start."""
        self._wanted.set()

    def page_metrics(self) -> dict[str, Any]:
        """The machine's figures and the taken seats, for the page's sidebar."""
        registry = self.registry
        return {
            **self.host.snapshot().as_dict(),
            "sessions_active": registry.n_active,
            "max_sessions": registry.max_sessions,
        }

    def page_session_figures(self, session_id: str, connection: HTTPConnection) -> dict[str, Any] | None:
        """The figures of a talk, for its owner's page; to everybody else there is no such talk. From any thread."""
        asks = self.access.found(connection)
        is_own = asks is not None and self.registry.owner_of(session_id) == asks.owner
        return self.metrics.session_figures(session_id) if is_own else None

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Own everything that runs in the background."""
        loop = asyncio.get_running_loop()
        started = asyncio.Event()
        async with (
            aclosing(self.store),
            self.access.running(),
            self.history.running(),
            self.host.running(),
            asyncio.TaskGroup() as tasks,
        ):
            running = tasks.create_task(self.registry.run(started), name="registry")
            working = tasks.create_task(self.jobs.run(), name="jobs")
            testing = tasks.create_task(self.selftests.run(), name="self-tests")
            keeping = tasks.create_task(self.voices.run(), name="voices")
            self._loading = tasks.create_task(self._load(), name="load engines")
            await started.wait()
            log.info("server.started", loop=type(loop).__name__)
            try:
                yield
            finally:
                self.readiness.drain()
                self._loading.cancel()
                working.cancel()
                testing.cancel()
                keeping.cancel()
                self.registry.stop()
                await asyncio.wait({running, working, testing, keeping, self._loading})
                for engine in self.engines.by_kind().values():
                    await engine.close()
                log.info("server.stopped")

    async def _load(self) -> None:
        """Load the engines one after the other: in parallel they would only fight for the same cores and memory."""
        named = self.engines.by_kind()
        shares = CardShares(self.engines.processes, fraction=self.settings.performance.gpu_memory_fraction)
        for kind, engine in named.items():
            self.readiness.expect(kind, engine.info.name)
        if self._warm_up is not None:
            self.readiness.expect(*WARM_UP)
        await self._wanted.wait()
        try:
            for kind, engine in named.items():
                async with self.readiness.loading(kind, engine.info.name):
                    if kind != "vad" and (card := await self.ledger.look()) is not None:
                        shares.before_load(kind, engine.info.name, card)
                    await engine.load()
                    if kind == "tts":
                        self._check_voice()
                        await self.voices.attach()
            await asyncio.to_thread(give_back_memory)  # what only loading needed
            if self._warm_up is not None:
                async with self.readiness.loading(*WARM_UP):
                    turn = partial(self._warm_turn, self._warm_up)
                    if any(engine.info.device.startswith("cuda") for engine in named.values()):
                        await self.ledger.measure(turn)
                        self.registry.max_sessions = self.ledger.seats
                    else:  # a card that others fill is nothing to us
                        await turn()
                if (card := await self.ledger.look()) is not None:
                    shares.share_rest(("llm", "asr", "tts"), card)
        except Exception as error:  # boundary: a server without its engines must stop, and say why
            if not isinstance(error, VoicepodError):
                log.exception("server.load_failed")
            self._on_fatal(error)

    async def _warm_turn(self, warm_up: WarmUp) -> None:
        settings = self.settings
        voice = next(voice for voice in self.engines.tts.info.voices if voice.id == self._voice)
        waits = Waits.from_settings(settings.turn)
        await warm_up(self.engines, voice=voice, instructions=settings.llm.system_prompt, waits=waits)

    def _why_no_room(self, n_active: int) -> str:
        """In words, why a talk more cannot be served well; nothing when it can."""
        pressure = self.engines.pressure
        if pressure is not None and pressure.at_least("refuse"):
            return "the talks that run keep the engines busy"
        card = memory_of_own(self.host.snapshot().gpus, self.settings.system.gpu_device)
        if not self.ledger.has_room(n_active, card):
            return "the card's memory is full"
        return ""

    def _engine_changed(self, kind: EngineKind, trouble: str) -> None:
        """A process with a loaded engine died, or is back (`trouble` is empty)."""
        name = self.engines.by_kind()[kind].info.name
        if trouble:
            self.readiness.engine_down(kind, name, trouble)
        else:
            self.readiness.engine_up(kind, name)

    def _storage_works(self, works: bool) -> None:
        """Talks go on without it."""
        if works:
            self.readiness.restore("storage")
        else:
            self.readiness.degrade("storage", "nothing can be saved")

    def _check_voice(self) -> None:
        """`tts.voice` must be one that the engine has; the default of another engine gives way to its first voice."""
        voices = [voice.id for voice in self.engines.tts.info.voices]
        wanted = self.settings.tts.voice
        if wanted in voices:
            return
        if wanted != TtsSettings().voice:
            raise ConfigError(f"tts.voice: there is no voice '{wanted}'; choose one of: {', '.join(voices)}")
        self._voice = voices[0]
        log.warning("settings.voice_replaced", voice=self._voice)

    async def _realtime(self, websocket: WebSocket) -> None:
        network = self.settings.network
        await serve(
            websocket,
            Door(
                registry=self.registry,
                access=self.access,
                network=network,
                metrics=self.metrics,
                sockets=self.sockets,
                voices=self.voices.by_id,
                own_voice=self._voice,
                turn_detection=TurnDetection.from_settings(self.settings),
                why_not_ready=self._why_not_ready,
                new_id=new_id,
            ),
        )

    def _why_not_ready(self) -> str:
        """Empty when talks may begin. Whoever was let in and asks makes the engines load."""
        self.want_models()
        return "" if self.readiness.is_ready else self.readiness.reason

    def _create_session(self, session_id: str, owner: str) -> tuple[Session, Writer]:
        settings, engines = self.settings, self.engines
        observers = () if engines.pressure is None else (engines.pressure.listen,)
        session = Session(
            session_id,
            engines,
            replace(SessionOptions.from_settings(settings), voice=self._voice),
            turn=settings.turn,
            vad=settings.vad,
            history_tokens=settings.llm.history_tokens,
            max_reply_tokens=settings.llm.max_tokens,
            max_lead_s=settings.network.max_lead_s,
            clock=time.monotonic,
            observers=(*observers, self.metrics.listen, log_event, self.history.observe),
            voices=partial(self.voices.by_id, owner),
        )
        self.history.began(session_id, owner)
        return session, Writer(session, partial(self._facts, owner))

    def _facts(self, owner: str) -> dict[str, Any]:
        """What the owner's clients are told of this server."""
        engines = self.engines
        heard = engines.asr.info.languages or tuple(LANGUAGES)
        return {
            "asr_model": engines.asr.info.model,
            "voicepod": {
                "resume_s": self.settings.network.session_resume_s,
                "languages": ["auto", *(code for code in LANGUAGES if code in heard)],
                "voices": [
                    {"id": voice.id, "name": voice.name, "language": voice.language}
                    for voice in self.voices.voices_of(owner)
                ],
                "engines": {kind: engine.info.model for kind, engine in self.engines.by_kind().items()},
            },
        }
