"""An engine process: the engines of one group, and the loop that does what the server asks of them.

Run by `pipeline.engines.process_supervisor` as `python -m pipeline.engines.process_host FD`; FD is its end of a socket
pair. It ends when the server closes the socket or dies, and after an error that leaves the card's driver unusable.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeVar

import structlog

import process_tuning  # before numpy
from pipeline.engines import lanes
from pipeline.engines.base import SpeechPiece
from pipeline.engines.process_wire import (
    INFO,
    MESSAGES,
    PIECE,
    TRANSCRIPT,
    VOICE,
    BrokenStream,
    Packet,
    audio_body,
    audio_of,
    error_head,
    packed,
    read_packet,
    settings_of,
    speech_head,
    work_head,
)
from pipeline.errors import VoicepodError
from pipeline.memory import cap_card_memory, read_memory

T = TypeVar("T")

CLOSE_S: Final = 10.0
EXIT_POISONED: Final = 70
_PR_SET_PDEATHSIG: Final = 1


@dataclass(slots=True, eq=False)
class _Job:
    """One call or stream. `asked` counts the items that its reader waits for, `pieces` is what it is to speak."""

    task: asyncio.Task[None] | None = None
    asked: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    pieces: asyncio.Queue[SpeechPiece | None] = field(default_factory=asyncio.Queue)
    priority: tuple[int, float] | None = None


class Host:
    """All methods belong to the process's event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._engines: dict[str, Any] = {}
        self._jobs: dict[int, _Job] = {}
        self._poisoned = self._is_ending = False

    async def serve(self) -> None:
        """Work until the server says goodbye or is gone."""
        async with asyncio.TaskGroup() as tasks:
            try:
                while not self._poisoned:
                    packet = await read_packet(self._reader)
                    if packet is None or packet.type == "close":
                        break
                    self._take(packet, tasks)
            finally:
                self._is_ending = True
            for job in list(self._jobs.values()):
                if job.task is not None:
                    job.task.cancel()
        if self._poisoned:  # what is on the card may not even end
            return
        for engine in self._engines.values():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await engine.close()

    def send(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        """Hand a packet to the socket. Of a stream the reader has asked for each item, so none piles up here."""
        if not self._writer.is_closing():
            self._writer.write(packed(Packet(head, body)))

    def _take(self, packet: Packet, tasks: asyncio.TaskGroup) -> None:
        number = int(packet.head.get("job", 0))
        job = self._jobs.get(number)
        match packet.type:
            case "start":
                self._start(packet)
            case "cap":
                cap_card_memory(packet.head["card_share"])
            case "ping":
                self._pong(packet)
            case "load" | "call" | "stream":
                job = self._jobs[number] = _Job(priority=_priority_of(packet.head))
                job.task = tasks.create_task(self._run(number, job, packet), name=f"job-{number}")
                job.task.add_done_callback(lambda task: self._end_unbegun(number))
            case "piece" if job is not None:
                job.pieces.put_nowait(PIECE.validate_python(packet.head["piece"]))
            case "end" if job is not None:
                job.pieces.put_nowait(None)
            case "more" if job is not None:
                job.asked.release()
            case "priority" if job is not None:
                job.priority = _priority_of(packet.head)
            case "cancel" if job is not None and job.task is not None:
                job.task.cancel()

    def _start(self, packet: Packet) -> None:
        """Make the engines; nothing is read or allocated yet."""
        settings = settings_of(packet.head["settings"])
        if (share := packet.head["card_share"]) is not None:
            cap_card_memory(share)
        for kind, factory in packet.head["engines"].items():
            module, _, name = factory.partition(":")
            self._engines[kind] = getattr(importlib.import_module(module), name).from_settings(settings)
        self.send({"type": "started"})

    def _pong(self, packet: Packet) -> None:
        if packet.head["give_back"]:  # nobody waits for it
            process_tuning.give_back_memory()
        self.send(
            {
                "type": "pong",
                "n": packet.head["n"],
                "gave_back": packet.head["give_back"],
                "memory": asdict(read_memory()),
                "waiting": {kind: engine.n_waiting for kind, engine in self._engines.items()},
                "overdue_s": lanes.overdue_s(),
            }
        )

    async def _run(self, number: int, job: _Job, packet: Packet) -> None:
        """One job from its request to `done` or `error`; one that the server cancelled ends with `done` as well.

        What this process cuts short by its own end is not told: half of it must not look like the whole.
        """
        kind = str(packet.head["kind"])
        lanes.work_told.set(lambda work: self.send({"type": "work", "job": number, "work": work_head(work)}))
        if job.priority is not None:
            lanes.job_priority.set(lambda: job.priority or (lanes.LATER_AUDIO, 0.0))
        head: dict[str, Any] = {"type": "done", "job": number}
        body = b""
        try:
            result, body = await self._work(number, job, packet, self._engines[kind])
            head["result"] = result
        except asyncio.CancelledError:
            if self._is_ending:
                raise
        except Exception as error:  # boundary: an engine's failure belongs to its job
            self._poisoned |= is_poisoned(error)
            if not isinstance(error, VoicepodError):
                _log.exception("engine.job_failed", kind=kind)
            head |= {"type": "error", "error": error_head(error, kind)}
        finally:
            self._jobs.pop(number, None)
        self.send(head, body)
        if self._poisoned:
            with contextlib.suppress(OSError):
                await self._writer.drain()
            self._reader.feed_eof()  # ends `serve`; the supervisor starts a process with a fresh driver

    def _end_unbegun(self, number: int) -> None:
        """A task that is cancelled before its first step runs nothing, so `_run` told nobody."""
        if self._jobs.pop(number, None) is not None and not self._is_ending:
            self.send({"type": "done", "job": number})

    async def _work(self, number: int, job: _Job, packet: Packet, engine: Any) -> tuple[Any, bytes]:
        head = packet.head
        match head.get("method", packet.type):
            case "load":
                await engine.load()
                gc.freeze()  # a loaded model stays; to look through all of it would stop whoever speaks
                await asyncio.to_thread(process_tuning.give_back_memory)  # what only loading needed
                self.send({"type": "info", "kind": head["kind"], "info": INFO.dump_python(engine.info, mode="json")})
            case "transcribe" | "transcribe_words" as method:
                heard = await getattr(engine, method)(audio_of(packet), language=head["language"])
                return TRANSCRIPT.dump_python(heard, mode="json"), b""
            case "count_tokens":
                return await engine.count_tokens(head["text"]), b""
            case "reply":
                messages = MESSAGES.validate_python(head["messages"])
                async with aclosing(engine.reply(messages, max_tokens=head["max_tokens"])) as deltas:
                    while (delta := await _asked(job, deltas)) is not None:
                        self.send({"type": "item", "job": number, "text": delta})
            case "synthesize":
                voice = VOICE.validate_python(head["voice"])
                async with aclosing(engine.synthesize(self._pieces(number, job), voice=voice)) as chunks:
                    while (chunk := await _asked(job, chunks)) is not None:
                        self.send({"type": "item", "job": number, **speech_head(chunk)}, audio_body(chunk.audio))
            case "clone":
                return None, await engine.clone(audio_of(packet), head["transcript"], name=head["name"])
            case "add_voice":
                await engine.add_voice(VOICE.validate_python(head["voice"]), packet.body)
            case "remove_voice":
                await engine.remove_voice(head["voice_id"])
        return None, b""

    async def _pieces(self, number: int, job: _Job) -> AsyncIterator[SpeechPiece]:
        """Asks for a piece when the engine does, not before: what is handed over counts as being spoken."""
        while True:
            self.send({"type": "next", "job": number})
            if (piece := await job.pieces.get()) is None:
                return
            yield piece


async def _asked(job: _Job, items: AsyncGenerator[T, None]) -> T | None:
    """The next item, made when the reader asks for it as if the generator were there; None at the end."""
    await job.asked.acquire()
    return await anext(items, None)


def _priority_of(head: Mapping[str, Any]) -> tuple[int, float] | None:
    value = head.get("priority")
    return None if value is None else (int(value[0]), float(value[1]))


def is_poisoned(error: BaseException | None) -> bool:
    """Whether a CUDA error left the process's context unusable: all but running out of memory do."""
    while error is not None:
        text = str(error)
        if type(error).__name__ == "AcceleratorError" or "CUDA error" in text or "device-side assert" in text:
            return "out of memory" not in text
        error = error.__cause__ or error.__context__
    return False


class _ToServer(logging.Handler):
    """Log records of libraries, told to the server, whose handlers write them."""

    def __init__(self, tell: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell({"level": record.levelname.lower(), "event": "engine.library", "text": record.getMessage()})


_log = structlog.get_logger()


def _log_to(host: Host, loop: asyncio.AbstractEventLoop) -> None:
    """Every record of this process goes to the server: two processes must not write to one rotated file."""

    def tell(values: Mapping[str, Any]) -> None:
        plain = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in values.items()}
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            loop.call_soon_threadsafe(host.send, {"type": "log", "values": plain})

    def told(logger: Any, method: str, values: Any) -> Any:
        tell(values)
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, told])
    logging.getLogger().addHandler(_ToServer(tell))


def _die_with_the_server() -> None:
    """The kernel kills this process when the server is killed, even while a step holds the interpreter."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the end of the socket must do
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _main(descriptor: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=descriptor))
    host = Host(reader, writer)
    _log_to(host, asyncio.get_running_loop())
    try:
        await host.serve()
    except* BrokenStream:  # from within a task group
        pass
    writer.close()
    if host._poisoned:
        os._exit(EXIT_POISONED)


if __name__ == "__main__":
    _die_with_the_server()
    asyncio.run(_main(int(sys.argv[1])))
    os._exit(0)  # a lane's last step must not keep the process
