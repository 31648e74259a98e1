"""What the server counts and times: Prometheus on `/metrics`, the main figures as JSON on `/api/metrics`.

Turns are counted from the events that sessions tell (`Metrics.listen`); what lies outside a talk is told by plain
calls. What is a state (sessions, queues, engines, the machine) is asked for at the moment of the scrape. Nothing here
waits. Labels come from closed or bounded sets: no user, session or text.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from api.gpus import GpuMetrics
from api.host import HostMetrics, HostMonitor
from api.live_figures import BoundedLabels, LiveFigures, Reader
from api.readiness import Readiness
from api.recent_turns import RecentTurns
from pipeline import events
from pipeline.records import MARKS, TurnRecord
from pipeline.session import Session

# A conversation feels right up to about 0.8 s and broken from 3 s on, so that range is the finest.
FIRST_AUDIO_BUCKETS_S: Final = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0)
STAGE_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
STOP_BUCKETS_S: Final = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.45, 0.5, 0.75, 1.0, 2.0)  # the goal is 0.45 s
WAIT_BUCKETS_S: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
RTF_BUCKETS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)  # above 1 it stutters

STAGES: Final = tuple(part for _, part in MARKS if part)
OUTCOMES: Final = ("completed", "interrupted", "failed")


class Metrics:
    """All figures of one server. Plain calls on the event loop; `session_figures` may come from any thread."""

    def __init__(self, readiness: Readiness, host: HostMonitor, *, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        self._live = LiveFigures()
        registry.register(self._live)
        ProcessCollector(namespace="voicepod", registry=registry)
        Info("voicepod_build", "Which Voicepod this is.", registry=registry).info(
            {"version": version, "python": platform.python_version()}
        )
        self._first_audio = Histogram(
            "voicepod_turn_first_audio_seconds",
            "From the last sample of the user's speech (or the commit or typed request where there is none) until the "
            "first frame of the answer's audio was handed to the socket.",
            buckets=FIRST_AUDIO_BUCKETS_S,
            registry=registry,
        )
        self._stage = Histogram(
            "voicepod_stage_seconds",
            "Parts of a turn, each from the end of the part before it. endpointing: last speech sample to end of turn; "
            "asr: to the transcript; prompt: to the request to the language model; llm_first_token: to its first "
            "token; first_clause: to the first speakable piece; tts_first_audio: to its first audio; send: to the "
            "socket; playout: to the first sample heard, where the client reports it.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        self._stop = Histogram(
            "voicepod_barge_in_stop_seconds",
            "From the onset of the user's speech until the reply that it interrupts was stopped at the server.",
            buckets=STOP_BUCKETS_S,
            registry=registry,
        )
        self._lane_wait = Histogram(
            "voicepod_queue_wait_seconds",
            "From submitting a job to an engine's lane until it began there, of the jobs that began for a turn.",
            ["lane"],
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self._rtf = Histogram(
            "voicepod_tts_rtf",
            "Seconds of computing for a second of speech, piece by piece, without the wait for the engine.",
            buckets=RTF_BUCKETS,
            registry=registry,
        )
        self._turns = Counter("voicepod_turns", "Turns that ended, by outcome.", ["outcome"], registry=registry)
        self._turn_errors = Counter("voicepod_turn_errors", "Failures in turns, by code.", ["code"], registry=registry)
        self._rejected = Counter(
            "voicepod_rejected", "Connections and requests that were refused.", ["reason"], registry=registry
        )
        self._auth_failures = Counter(
            "voicepod_auth_failures", "Credentials that were shown and are not good.", ["reason"], registry=registry
        )
        self._connections = Gauge("voicepod_ws_connections", "Open realtime WebSockets.", registry=registry)
        self._underruns = Counter(
            "voicepod_audio_underruns", "Times that a player ran dry in the middle of an answer.", registry=registry
        )
        self._slow_clients = Counter(
            "voicepod_slow_client_drops", "Connections closed because the client stopped reading.", registry=registry
        )
        self._resumes = Counter(
            "voicepod_session_resume",
            "Attempts to go on with a session on a new socket.",
            ["result"],
            registry=registry,
        )
        self._requests = Counter(
            "voicepod_requests", "HTTP requests by route pattern and status.", ["route", "code"], registry=registry
        )
        for stage in STAGES:  # so that they are 0 before the first turn, and a rate can be taken of the first one
            self._stage.labels(stage)
        for outcome in OUTCOMES:
            self._turns.labels(outcome)
        self._code, self._route, self._reason, self._result, self._lane = (BoundedLabels() for _ in range(5))
        self._auth_reason = BoundedLabels()
        self._recent = RecentTurns()
        self._n_sessions: Callable[[], float] | None = None
        self._queues: dict[str, Callable[[], float]] = {}
        self._live.add("queue_depth", "Jobs that wait for an engine.", ["stage"], self._queue_depths)
        _watch_engines(self._live, readiness)
        _watch_host(self._live, host.snapshot)

    # --- what happens in talks

    def listen(self, session: Session, event: events.Event) -> None:
        """A session's listener."""
        if isinstance(event, events.TurnDone):
            self._turn_done(session.id, event.record)
        elif isinstance(event, events.TurnFailed):
            self._turn_errors.labels(self._code(event.error.code)).inc()

    def _turn_done(self, session_id: str, record: TurnRecord) -> None:
        self._turns.labels(record.outcome).inc()
        for stage, ms in record.parts_ms.items():
            self._stage.labels(stage).observe(ms / 1000)
        first_audio_s = None
        if "first_sent" in record.marks and "speech_ended" in record.marks:
            first_audio_s = max(record.marks["first_sent"] - record.marks["speech_ended"], 0.0)
            self._first_audio.observe(first_audio_s)
        if record.barge_in_stop_s is not None:
            self._stop.observe(max(record.barge_in_stop_s, 0.0))
        for wait in record.lane_waits:
            self._lane_wait.labels(self._lane(wait.lane)).observe(wait.seconds)
        for piece in record.pieces_spoken:
            self._rtf.observe(piece.computed_s / piece.audio_s)
        self._recent.add(session_id, record, first_audio_s)

    def session_figures(self, session_id: str) -> dict[str, Any] | None:
        """turns, interruptions, v2v_p50_ms and v2v_last_ms of one session; None when it had no turn yet."""
        return self._recent.of_session(session_id)

    # --- what happens around them

    def connected(self, delta: int) -> None:
        """A socket was accepted (+1) or is gone (-1)."""
        self._connections.inc(delta)

    def rejected(self, reason: str) -> None:
        """A connection or a request was refused; `reason` is a fixed word, such as an error's code."""
        self._rejected.labels(self._reason(reason)).inc()

    def auth_failed(self, reason: str) -> None:
        """Somebody showed a credential that is not good; `reason` is an error's code."""
        self._auth_failures.labels(self._auth_reason(reason)).inc()

    def resumed(self, result: str) -> None:
        """A client asked to go on with an earlier session; `result` is a fixed word."""
        self._resumes.labels(self._result(result)).inc()

    def slow_client(self) -> None:
        """A client that did not read was dropped."""
        self._slow_clients.inc()

    def underruns(self, n: int) -> None:
        """A client reported so many more gaps in its playback."""
        self._underruns.inc(max(n, 0))

    def observe_request(self, route: str, status: int) -> None:
        """An HTTP request ended; `route` is its pattern."""
        self._requests.labels(self._route(route), str(status)).inc()

    # --- what is asked for at each scrape

    def watch_load(self, step: Callable[[], float], wait_s: Callable[[], float]) -> None:
        """How hard the engines are pressed."""
        self._live.add(
            "load_step", "0 normal, 1 shorter first clause, 2 light ASR, 3 refusing.", (), lambda: {(): step()}
        )
        self._live.add(
            "engine_wait_seconds",
            "Mean time that the jobs of recent turns waited for engines.",
            (),
            lambda: {(): wait_s()},
        )

    def watch_sessions(self, n_active: Callable[[], float]) -> None:
        """Where to ask how many seats are taken; once."""
        self._n_sessions = n_active
        self._live.add("sessions_active", "Talks that hold a seat.", [], lambda: {(): n_active()})

    def watch_queue(self, stage: str, n_waiting: Callable[[], float]) -> None:
        """Where to ask how many jobs wait for an engine."""
        self._queues[stage] = n_waiting

    def _queue_depths(self) -> Mapping[tuple[str, ...], float]:
        return {(stage,): n_waiting() for stage, n_waiting in self._queues.items()}

    # --- for scrapers, people and scripts

    def text(self) -> bytes:
        """All figures in the Prometheus text format. On the event loop, like what it asks."""
        return generate_latest(self.registry)

    def figures(self) -> dict[str, Any]:
        """The main figures; None where nothing is known, never 0."""
        count = self._n_sessions
        sessions = {} if count is None else self._live.ask("sessions_active", lambda: {(): count()})
        waiting = self._live.ask("queue_depth", self._queue_depths)
        return {
            "active_sessions": round(sessions[()]) if sessions else None,
            "queue_length": round(sum(waiting.values())) if waiting else None,
            **self._recent.summary(),
        }


def metrics_router(metrics: Metrics, *rules: Any) -> APIRouter:
    """`GET /metrics` and `GET /api/metrics`; leave it out where `system.enable_monitoring` is off.

    `rules` are dependencies of both routes.
    """
    router = APIRouter(tags=["metrics"], dependencies=rules)

    @router.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """The Prometheus text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4, headers={"Cache-Control": "no-store"})

    @router.get("/api/metrics")
    async def figures(response: Response) -> dict[str, Any]:
        """The main figures as JSON; null where nothing is known yet."""
        response.headers["Cache-Control"] = "no-store"
        return metrics.figures()

    return router


def _watch_engines(live: LiveFigures, readiness: Readiness) -> None:
    live.add(
        "engine_up",
        "1 when the engine can work.",
        ["engine"],
        lambda: {(kind,): up for kind, up in readiness.engines_up.items()},
    )
    live.add(
        "engine_load_seconds",
        "From the start of loading until the warm-up job was done.",
        ["engine"],
        lambda: {(kind,): seconds for kind, seconds in readiness.load_seconds.items()},
    )


def _watch_host(live: LiveFigures, snapshot: Callable[[], HostMetrics]) -> None:
    def host(read: Callable[[HostMetrics], float | None]) -> Reader:
        return lambda: {(): read(snapshot())}

    def gpus(read: Callable[[GpuMetrics], float | None]) -> Reader:
        return lambda: {(str(gpu.index),): read(gpu) for gpu in snapshot().gpus}

    cpu_help, tree_help = "Share of the usable cores that is busy.", "Share that the server and its children take."
    live.add("host_cpus", "Cores that this container may use.", [], host(lambda now: now.n_cpus))
    live.add("host_cpu_ratio", cpu_help, [], host(lambda now: _ratio(now.cpu_percent)))
    live.add("process_tree_cpu_ratio", tree_help, [], host(lambda now: _ratio(now.process_cpu_percent)))
    live.add(
        "process_tree_memory_bytes",
        "Resident memory of the server and its children.",
        [],
        host(lambda now: now.process_memory_bytes),
    )
    live.add("host_memory_bytes", "Memory of the container or machine.", ["state"], lambda: _memory(snapshot()))
    live.add("host_sample_errors", "Failed looks at the machine so far.", [], host(lambda now: now.n_errors))
    live.add(
        "gpu_utilisation_ratio",
        "Share of time that the card was busy.",
        ["gpu"],
        gpus(lambda gpu: _ratio(gpu.utilisation_percent)),
    )
    live.add("gpu_temperature_celsius", "Temperature of the card.", ["gpu"], gpus(lambda gpu: gpu.temperature_c))
    live.add("vram_bytes", "Memory of the card.", ["gpu", "state"], lambda: _vram(snapshot()))


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _memory(host: HostMetrics) -> Mapping[tuple[str, ...], float | None]:
    return {("used",): host.memory_used_bytes, ("total",): host.memory_total_bytes}


def _vram(host: HostMetrics) -> Mapping[tuple[str, ...], float | None]:
    return {
        (str(gpu.index), state): value
        for gpu in host.gpus
        for state, value in (("used", gpu.memory_used_bytes), ("total", gpu.memory_total_bytes))
    }
