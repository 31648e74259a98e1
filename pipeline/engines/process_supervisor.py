"""A process with engines in it, kept alive: jobs go in, what they give comes out, a process that dies is started anew.

    new ──► starting ──► up ──► down ──► starting        any of them ──► closed

After three deaths, each within a minute of being up, it is broken: jobs are refused, and one try is made in 30 s.

A job that has given nothing yet when its process dies is done again, once, by the next process; one that has is told
`EngineFailed`. A process is killed when it answers no ping, or when a step runs on long after it was told to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from pipeline.engines import lanes
from pipeline.engines.base import EngineInfo, EngineKind, SpeechPiece
from pipeline.engines.lanes import Work
from pipeline.engines.process_wire import (
    INFO,
    PIECE,
    BrokenStream,
    Packet,
    error_of,
    packed,
    read_packet,
    settings_head,
    work_of,
)
from pipeline.errors import EngineFailed, EngineNotReady, VoicepodError
from pipeline.memory import Memory
from settings import ScalingSettings, Settings

log = structlog.get_logger()

PING_S: Final = 0.5
PRIORITY_S: Final = 0.1  # how old the priority may be that a process knows of a job
BREAKER_DEATHS, BREAKER_PAUSE_S = 3, 30.0
HEALTHY_S: Final = 60.0  # who was up for so long does not count for having died before
SETTLED_JOBS: Final = 20  # the first jobs allocate what stays: kernels, caches, pinned memory
GROWN: Final = 1.5  # a process that holds so many times what it held after them, and
GROWN_BYTES: Final = 1 << 30  # so much more, leaks
CLOSE_S: Final = 12.0  # the process itself waits ten seconds for its last steps
ROOT: Final = Path(__file__).resolve().parents[2]

STAGES: Final[dict[str, str]] = {"asr": "speech recognition", "llm": "the language model", "tts": "the voice"}


@dataclass(slots=True, eq=False)
class _Job:
    """What was asked, and what has come. A fresh one has given nothing yet: another process may do it again."""

    number: int
    head: dict[str, Any]
    body: bytes
    tell: Callable[[Work], None]
    priority: Callable[[], tuple[int, float]] | None
    inbox: asyncio.Queue[Packet | VoicepodError] = field(default_factory=asyncio.Queue)
    pieces: list[dict[str, Any]] = field(default_factory=list)
    n_wanted: int = 0  # pieces that the process has asked for,
    n_given: int = 0  # and that it got
    is_asked: bool = False  # its reader waits for an item
    wanted: asyncio.Event = field(default_factory=asyncio.Event)  # one more than that
    told_priority: tuple[int, float] | None = None
    is_fresh: bool = True
    repeats_left: int = 1
    ended: bool = False

    @property
    def kind(self) -> str:
        """The engine it is for."""
        return str(self.head["kind"])

    @property
    def is_load(self) -> bool:
        """Whether it loads the engine."""
        return str(self.head["type"]) == "load"


class EngineProcess:
    """The engines `factories` (kind -> "module:class") in one child process. All methods belong to one event loop."""

    def __init__(self, factories: Mapping[EngineKind, str], settings: Settings) -> None:
        self.name = "+".join(factories)
        self.memory: Memory | None = None  # as of the last ping
        self.rss_bytes = 0
        self.infos: dict[str, EngineInfo] = {}
        self._factories, self._settings = dict(factories), settings
        self._card_share: float | None = None
        self._scaling: ScalingSettings = settings.scaling_config
        self._restore: dict[EngineKind, Callable[[], Awaitable[None]]] = {}
        self._jobs: dict[int, _Job] = {}
        self._ending: dict[int, float] = {}  # cancelled jobs -> when each was
        self._numbers = itertools.count(1)
        self._waiting: dict[str, int] = {}
        self._told: Callable[[EngineKind, str], None] = lambda kind, trouble: None
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._started, self._up, self._closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._n_deaths = 0  # one after the other, none of them after a healthy life
        self._up_since_s = math.inf
        self._pong_s = self._overdue_s = 0.0
        self._n_done = self._settled_rss_bytes = 0  # since it was loaded
        self._gave_back = False  # what it only kept, before it told its memory
        self._is_recycling = False

    # --- for the server

    def watch(self, told: Callable[[EngineKind, str], None]) -> None:
        """`told(kind, trouble)` when a loaded engine goes down (`trouble` for people), and with "" when it is back."""
        self._told = told

    @property
    def kinds(self) -> frozenset[EngineKind]:
        """The engines that live in it."""
        return frozenset(self._factories)

    def cap(self, card_share: float) -> None:
        """Torch takes at most this share of the card, in (0, 1], in this process and in those that replace it."""
        self._card_share = card_share
        self._send({"type": "cap", "card_share": card_share})

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._process is None else self._process.pid

    def n_waiting(self, kind: str) -> int:
        """Jobs that wait for a slot of that engine, as of the last ping; those that wait for a new process included."""
        held = 0 if self._up.is_set() else sum(job.kind == kind for job in self._jobs.values())
        return self._waiting.get(kind, 0) + held

    async def load(self, kind: EngineKind, restore: Callable[[], Awaitable[None]]) -> None:
        """Start the process if it does not run, and load that engine in it; `restore` follows each later load."""
        if self._closed.is_set():
            raise self._closed_error(kind)
        if self._life is None:
            self._life = asyncio.create_task(self._live(), name=f"engine-process-{self.name}")
        await self._load(kind)
        self._restore[kind] = restore
        self._n_done = self._settled_rss_bytes = 0

    async def close(self) -> None:
        """End the process and every job."""
        self._closed.set()
        self._up.set()  # wakes who waits for a new process, to be refused
        for job in list(self._jobs.values()):
            self._fail(job, self._closed_error(job.kind))
        self._send({"type": "close"})
        if self._life is not None:
            await asyncio.wait([self._life], timeout=CLOSE_S)
            self._kill("closing")
            await asyncio.wait([self._life], timeout=CLOSE_S)
        self.memory = None

    # --- for the engines' stand-ins

    async def call(self, kind: str, method: str, body: bytes = b"", **values: Any) -> Packet:
        """One call to its result. Cancelling it cancels the job."""
        job = await self._open({"type": "call", "kind": kind, "method": method, **values}, body)
        return await self._result(job)

    async def stream(
        self, kind: str, method: str, *, on_open: Callable[[int], None] = lambda number: None, **values: Any
    ) -> AsyncGenerator[Packet, None]:
        """Items of a stream as they come. Closing it cancels the job. `on_open` gets the number for `give`."""
        job = await self._open({"type": "stream", "kind": kind, "method": method, **values}, b"")
        on_open(job.number)
        try:
            while (packet := await self._asked(job)).type == "item":
                yield packet
        finally:
            self._release(job)

    def give(self, number: int, piece: SpeechPiece | None) -> None:
        """The next piece of a speech stream, None for their end."""
        if (job := self._jobs.get(number)) is None:
            return
        job.n_given += 1
        job.wanted.clear()
        head: dict[str, Any] = {"type": "end"}
        if piece is not None:
            head = {"type": "piece", "piece": PIECE.dump_python(piece, mode="json")}
        if job.is_fresh:
            job.pieces.append(head)
        if self._up.is_set():
            self._send({**head, "job": number})

    async def wants(self, number: int) -> bool:
        """Return once the engine asks for the next piece; False when the stream is over."""
        if (job := self._jobs.get(number)) is None:
            return False
        await job.wanted.wait()
        return True

    def fail(self, number: int, error: VoicepodError) -> None:
        """End a stream with an error of its reader's own making."""
        if (job := self._jobs.get(number)) is not None:
            job.inbox.put_nowait(error)

    # --- jobs

    async def _open(self, head: dict[str, Any], body: bytes) -> _Job:
        await self._until_up(head["kind"])
        job = self._new_job(head, body)
        self._submit(job)
        return job

    def _new_job(self, head: dict[str, Any], body: bytes, *, repeats_left: int = 1) -> _Job:
        tell, priority = lanes.work_told.get(lanes.tell_nobody), lanes.job_priority.get(None)
        job = _Job(next(self._numbers), head, body, tell, priority, repeats_left=repeats_left)
        self._jobs[job.number] = job
        return job

    async def _until_up(self, kind: str) -> None:
        if self._closed.is_set() or self._life is None:
            raise self._closed_error(kind)
        if self._up.is_set():
            return
        if self._is_broken:
            raise self._down_error(kind)
        try:
            async with asyncio.timeout(self._scaling.restart_wait_s):
                await self._up.wait()
        except TimeoutError as error:
            raise self._down_error(kind) from error
        if self._closed.is_set():
            raise self._closed_error(kind)

    def _submit(self, job: _Job) -> None:
        job.told_priority = None if job.priority is None else job.priority()
        job.n_wanted = 0
        self._send({**job.head, "job": job.number, "priority": job.told_priority}, job.body)
        for head in (*job.pieces, *([{"type": "more"}] if job.is_asked else ())):
            self._send({**head, "job": job.number})

    async def _next(self, job: _Job) -> Packet:
        got = await job.inbox.get()
        if isinstance(got, VoicepodError):
            raise got
        return got

    async def _asked(self, job: _Job) -> Packet:
        """The next item of a stream, which is made now."""
        job.is_asked = True
        if self._up.is_set():
            self._send({"type": "more", "job": job.number})
        packet = await self._next(job)
        job.is_asked = False
        return packet

    async def _result(self, job: _Job) -> Packet:
        try:
            return await self._next(job)
        finally:
            self._release(job)

    def _release(self, job: _Job) -> None:
        """Forget the job; one that still runs is told to stop, and watched until it has."""
        if self._jobs.pop(job.number, None) is not None and not job.ended and self._up.is_set():
            self._ending[job.number] = time.monotonic()
            self._send({"type": "cancel", "job": job.number})

    def _fail(self, job: _Job, error: VoicepodError) -> None:
        job.ended = True
        job.inbox.put_nowait(error)

    def _give_up(self, job: _Job) -> None:
        """A job that waited for a new process long enough."""
        if job.number in self._jobs and not self._up.is_set():
            self._fail(job, self._down_error(job.kind))

    # --- one process

    async def _live(self) -> None:
        """One process after the other, until `close`."""
        while not self._closed.is_set():
            try:
                await self._one_life()
            except Exception:  # boundary: whatever went wrong with one process, the next one is tried
                log.exception("engine.process_lost", process=self.name)
            if self._closed.is_set():
                return
            self._mourn()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), self._pause_s)

    @property
    def _is_broken(self) -> bool:
        """Whether it died so often that trying at once is of no use."""
        return self._n_deaths >= BREAKER_DEATHS

    @property
    def _pause_s(self) -> float:
        if self._is_recycling:
            return 0.0
        if self._is_broken:
            return BREAKER_PAUSE_S
        return max(self._n_deaths - 1, 0) * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)

    async def _one_life(self) -> None:
        ours, theirs = socket.socketpair()
        self._is_recycling = False
        with theirs:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "pipeline.engines.process_host",
                str(theirs.fileno()),
                self.name,  # for people who look at the list of processes
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # what libraries print belongs to the log
                process_group=0,  # Ctrl-C is for the server, which ends its processes in order
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._pong_s, self._overdue_s = time.monotonic(), 0.0
        engines = {"engines": self._factories, "card_share": self._card_share}
        self._send({"type": "start", "settings": settings_head(self._settings), **engines})
        if self._closed.is_set():  # while the process was being made
            self._send({"type": "close"})
        try:
            async with asyncio.TaskGroup() as tasks:
                around = [tasks.create_task(self._watch()), tasks.create_task(self._bring_up())]
                with contextlib.suppress(BrokenStream):
                    while (packet := await read_packet(reader)) is not None:
                        self._take(packet)
                for task in around:
                    task.cancel()
        finally:
            self._up.clear()
            self._started.clear()
            self._writer.close()
            await self._reap(process)

    async def _reap(self, process: asyncio.subprocess.Process) -> None:
        """The process is gone when this returns, whatever it takes."""
        try:
            async with asyncio.timeout(CLOSE_S if self._closed.is_set() else 1.0):
                await process.wait()
        except TimeoutError:
            self._kill("it closed its socket and runs on")
            await process.wait()
        finally:
            self._process = self._writer = None
        if not self._closed.is_set() and not self._is_recycling:
            log.error("engine.process_died", process=self.name, exit_code=process.returncode)

    def _mourn(self) -> None:
        """After a death: what may be done again waits for the next process, the rest is told."""
        if not self._is_recycling:
            is_healthy = time.monotonic() - self._up_since_s >= HEALTHY_S
            self._n_deaths = 1 if is_healthy else self._n_deaths + 1
        self._up_since_s = math.inf
        loop = asyncio.get_running_loop()
        self._ending.clear()
        for job in list(self._jobs.values()):
            if job.ended:
                continue
            if job.is_fresh and job.repeats_left and not self._is_broken:
                job.repeats_left -= not self._is_recycling
                loop.call_later(self._scaling.restart_wait_s, self._give_up, job)
            else:
                self._fail(job, self._died_error(job))
        if not self._is_recycling:
            self._tell_down()

    async def _bring_up(self) -> None:
        """Load again what was loaded, and go on with the jobs that wait."""
        await self._started.wait()
        for kind, restore in list(self._restore.items()):
            try:
                await self._load(kind)
                await restore()
            except VoicepodError as error:
                log.error("engine.restart_failed", process=self.name, kind=kind, code=error.code)
                self._kill("it could not be loaded again")
                return
        self._up_since_s = time.monotonic()
        self._up.set()
        self._n_done = self._settled_rss_bytes = 0
        for job in list(self._jobs.values()):
            if not job.ended and not job.is_load:
                self._submit(job)
        for kind in self._restore:
            self._told(kind, "")
        if self._restore:
            log.info("engine.process_restarted", process=self.name, pid=self.pid)

    async def _load(self, kind: str) -> None:
        """A load as a job of its own: not repeated, and not gated by `up`, which it is part of."""
        try:
            async with asyncio.timeout(self._scaling.load_timeout_s):
                job = self._new_job({"type": "load", "kind": kind}, b"", repeats_left=0)
                if self._started.is_set():  # else `started` does it
                    self._submit(job)
                await self._result(job)
        except TimeoutError as error:
            self._kill("loading took too long")
            raise EngineFailed(f"{STAGES[kind]} took too long to load", stage=kind) from error

    async def direct(self, kind: str, method: str, body: bytes = b"", **values: Any) -> None:
        """A call from within `restore`, before other jobs may run."""
        head = {"type": "call", "kind": kind, "method": method, **values}
        job = self._new_job(head, body, repeats_left=0)
        self._submit(job)
        await self._result(job)

    def _take(self, packet: Packet) -> None:
        head = packet.head
        job = self._jobs.get(int(head.get("job", 0)))
        match packet.type:
            case "item" if job is not None:
                job.is_fresh = False
                job.pieces.clear()
                job.inbox.put_nowait(packet)
            case "next" if job is not None:
                job.n_wanted += 1
                if job.n_wanted > job.n_given:
                    job.wanted.set()
            case "done" | "error":
                self._ending.pop(int(head["job"]), None)
                if job is not None and not job.ended:
                    job.ended = True
                    self._n_done += 1
                    job.inbox.put_nowait(packet if packet.type == "done" else error_of(head["error"]))
            case "work" if job is not None:
                job.tell(work_of(head["work"]))
            case "pong":
                self._note_pong(head)
            case "info":
                self.infos[head["kind"]] = INFO.validate_python(head["info"])
            case "started":
                self._started.set()
                for job in [job for job in self._jobs.values() if job.is_load]:
                    self._submit(job)
            case "log":
                self._log(dict(head["values"]))

    def _note_pong(self, head: Mapping[str, Any]) -> None:
        memory = head["memory"]
        self._pong_s, self._overdue_s = time.monotonic(), float(head["overdue_s"])
        self._gave_back = bool(head["gave_back"])
        self.memory = Memory(**memory)
        self.rss_bytes = int(memory["rss_bytes"])
        if self._restore and self._up.is_set() and self._n_done >= SETTLED_JOBS:
            self._settled_rss_bytes = self._settled_rss_bytes or self.rss_bytes
        self._waiting = dict(head["waiting"])

    def _log(self, values: dict[str, Any]) -> None:
        level, event = str(values.pop("level", "info")), str(values.pop("event", "engine.said"))
        write = getattr(log, level if level in ("debug", "info", "warning", "error", "critical") else "error")
        write(event, process=self.name, **values)

    # --- watching it

    async def _watch(self) -> None:
        """Pings, priorities, and the end of a process that hangs or leaks."""
        for tick in itertools.count():
            if tick % round(PING_S / PRIORITY_S) == 0:
                if (fault := self._fault()) is not None:
                    self._kill(fault)
                elif self._has_grown() and self._gave_back:
                    self._recycle()
                self._send({"type": "ping", "n": tick, "give_back": self._has_grown()})
            self._tell_priorities()
            await asyncio.sleep(PRIORITY_S)

    def _fault(self) -> str | None:
        now_s, step_s = time.monotonic(), self._scaling.step_timeout_s
        is_loading = not self._is_recycling and (not self._up.is_set() or any(j.is_load for j in self._jobs.values()))
        if now_s - self._pong_s > (self._scaling.load_timeout_s if is_loading else self._scaling.worker_timeout):
            return "it gave no sign of life"
        if self._overdue_s > step_s or any(now_s - since_s > step_s for since_s in self._ending.values()):
            return "a step of it hangs"
        return None

    def _has_grown(self) -> bool:
        """Whether it leaks, and may be replaced now: nobody waits for it."""
        before = self._settled_rss_bytes
        return (
            self._scaling.enable_worker_recycling
            and self._up.is_set()
            and not self._jobs
            and before > 0
            and self.rss_bytes > max(before * GROWN, before + GROWN_BYTES)
        )

    def _recycle(self) -> None:
        log.info("engine.process_recycled", process=self.name, rss_bytes=self.rss_bytes)
        self._is_recycling = True
        self._up.clear()
        self._send({"type": "close"})
        self._tell_down()

    def _tell_down(self) -> None:
        for kind in self._restore:
            self._told(kind, self._down_error(kind).message)

    def _tell_priorities(self) -> None:
        for job in self._jobs.values():
            if job.priority is None or job.ended or not self._waiting.get(job.kind):
                continue
            group, ahead_s = job.priority()
            if (told := (group, round(ahead_s, 1))) != job.told_priority:
                job.told_priority = told
                self._send({"type": "priority", "job": job.number, "priority": told})

    def _kill(self, why: str) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        log.error("engine.process_killed", process=self.name, why=why)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def _send(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(packed(Packet(head, body)))

    # --- words for people

    def _closed_error(self, kind: str) -> VoicepodError:
        return EngineNotReady(f"{STAGES[kind]} is still loading, or was closed", stage=kind)

    def _down_error(self, kind: str) -> VoicepodError:
        if self._is_broken:
            return EngineNotReady(f"{STAGES[kind]} stopped several times; please try again later", stage=kind)
        return EngineNotReady(f"{STAGES[kind]} is being restarted; please try again in a moment", stage=kind)

    def _died_error(self, job: _Job) -> VoicepodError:
        if job.is_load:
            return EngineFailed(f"{STAGES[job.kind]} stopped while it was being loaded", stage=job.kind)
        return EngineFailed(f"{STAGES[job.kind]} stopped and is being restarted; please say it again", stage=job.kind)
