"""One talk as a person has it: speech goes in as fast as it is spoken, what comes back is heard as it is played."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import websockets
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection

from pipeline.errors import Busy, EngineFailed, EngineNotReady

Json = dict[str, Any]
Pcm = NDArray[np.int16]

RATE: Final = 16_000
FRAME_S: Final = 0.02
FRAME: Final = int(RATE * FRAME_S)
AUDIBLE: Final = 500  # of 32768
REPORT_FRAMES: Final = 5  # the page reports its playback ten times a second
GREETING_S: Final = 10.0
# From the question to the last word of the answer. On a slow machine a turn takes half a minute.
ANSWER_S: Final = 90.0
HEARD_S: Final = 8.0  # of an answer; gaps show up in the first seconds
RETRY_S: Final = 10.0
NOT_BEFORE: Final = float("inf")


@dataclass(slots=True)
class Heard:
    """What one question gave. Times in ms; `parts_ms` are the server's, `v2v_ms` is this side's."""

    v2v_ms: float | None = None
    parts_ms: dict[str, float] = field(default_factory=dict)
    utterance_s: float = 0.0
    gap_ms: float = 0.0  # the longest silence inside the answer because its audio came too late
    stop_ms: float | None = None  # from the start of the words that interrupted it until it was silent
    failure: str = ""  # a code; empty when it was answered


class _Player:
    """Plays what comes, as far as its time goes. Times are `time.perf_counter`."""

    def __init__(self) -> None:
        self.rate = 24_000
        self.turn = self.flushed = 0
        self.begun_at = self.ends_at = 0.0
        self.received = 0
        self.audible_at: float | None = None  # of this turn
        self.gap_s = 0.0

    def frame(self, message: bytes, now: float) -> None:
        """A binary frame of the server's."""
        turn, first_sample = struct.unpack_from("<II", message)
        if turn <= self.flushed:
            return
        pcm = np.frombuffer(message[8:], "<i2")
        if turn != self.turn:
            self.turn, self.begun_at, self.ends_at, self.audible_at, self.gap_s = turn, now, now, None, 0.0
        elif now > self.ends_at:
            self.gap_s = max(self.gap_s, now - self.ends_at)
        starts_at = max(now, self.ends_at)
        self.ends_at, self.received = starts_at + pcm.size / self.rate, first_sample + pcm.size
        loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > AUDIBLE)
        if self.audible_at is None and loud.size:
            self.audible_at = starts_at + float(loud[0]) / self.rate

    def played(self, now: float) -> int:
        """Samples of this turn that were heard."""
        return max(0, min(self.received, self.received - int((self.ends_at - now) * self.rate)))


class Talker:
    """An open talk. `ask` may be called again and again, never twice at once."""

    def __init__(self, socket: ClientConnection) -> None:
        self.session: Json = {}
        self._socket = socket
        self._player = _Player()
        self._mic: deque[Pcm] = deque()
        self._spoke_from = self._spoke_until = NOT_BEFORE  # the question that is being asked
        self._flushed_at: list[float] = []
        self._records: deque[Json] = deque()
        self._errors: deque[str] = deque()
        self._came = asyncio.Event()
        self._is_over = False

    async def greeted(self, instructions: str, max_tokens: int) -> None:
        """Wait for the session and say how it should answer. `Busy` when there is no seat, `EngineNotReady`."""
        await self._until(lambda: bool(self.session or self._errors or self._is_over), GREETING_S)
        if not self.session:
            code = self._errors[0] if self._errors else "closed"
            raise (
                EngineNotReady("no talk can begin now", stage="server", code=code)
                if code != "server_busy"
                else Busy("all talks are taken", retry_after_s=10.0)
            )
        self._player.rate = self.session["audio"]["output"]["format"]["rate"]
        heard = {"format": {"type": "audio/pcm", "rate": RATE}}
        wish = {"instructions": instructions, "max_output_tokens": max_tokens, "audio": {"input": heard}}
        await self._socket.send(json.dumps({"type": "session.update", "session": {"type": "realtime", **wish}}))

    async def ask(self, question: Pcm, *, interrupt_with: Pcm | None = None, after_s: float = 1.0) -> list[Heard]:
        """What the question gave and, if its answer was interrupted, what the interruption gave. Never raises."""
        self._records.clear()
        self._errors.clear()
        self._flushed_at.clear()
        await self._say(question)
        spoke_until, first = self._spoke_until, Heard()
        heard = [first]
        is_heard = await self._until(lambda: self._is_answered(spoke_until) or self._is_settled(), ANSWER_S)
        if interrupt_with is not None and is_heard and self._is_answered(spoke_until):
            first.v2v_ms = self._v2v_ms(spoke_until)
            await self._until(self._is_settled, after_s)
            if not self._is_settled():
                await self._say(interrupt_with)
                spoke_until = self._spoke_until
                heard.append(Heard())
        n = len(heard)
        if await self._until(lambda: self._is_answered(spoke_until) or self._is_settled(n), ANSWER_S):
            await self._hear_out(n)
        await self._until(lambda: self._is_settled(n), ANSWER_S)
        for i, one in enumerate(heard):
            self._note(one, i, spoke_until if i == n - 1 else None)
        stops = [at - self._spoke_from for at in self._flushed_at if at > self._spoke_from]
        if n > 1 and stops and self._records and self._records[0]["outcome"] == "interrupted":
            first.stop_ms = stops[0] * 1000
        return heard

    async def _hear_out(self, n: int) -> None:
        """An answer that goes on and on is cut: its start was measured."""
        await self._until(lambda: self._is_settled(n), HEARD_S)
        if not self._is_settled(n):
            await self._socket.send(json.dumps({"type": "response.cancel"}))

    def _note(self, heard: Heard, index: int, spoke_until: float | None) -> None:
        """Fill in what is known at the end of a turn."""
        if index >= len(self._records):
            heard.failure = self._errors[0] if self._errors else "closed" if self._is_over else "no_answer"
            return
        record = self._records[index]
        heard.parts_ms, heard.utterance_s = record["parts_ms"], record["utterance_s"]
        heard.failure = (record["error_code"] or "failed") if record["outcome"] == "failed" else ""
        if spoke_until is not None:
            heard.v2v_ms = self._v2v_ms(spoke_until) if self._is_answered(spoke_until) else None
            heard.gap_ms = self._player.gap_s * 1000
            if heard.v2v_ms is None and not heard.failure:
                heard.failure = "no_audio"

    def _v2v_ms(self, spoke_until: float) -> float | None:
        at = self._player.audible_at
        return None if at is None else (at - spoke_until) * 1000

    def _is_answered(self, spoke_until: float) -> bool:
        return self._player.audible_at is not None and self._player.audible_at > spoke_until

    def _is_settled(self, n: int = 1) -> bool:
        return len(self._records) >= n or self._is_over or bool(self._errors)

    async def _say(self, words: Pcm) -> None:
        """Return once the last sample was sent; `_spoke_from` and `_spoke_until` are when."""
        self._spoke_from = self._spoke_until = NOT_BEFORE
        self._mic.extend(words[start : start + FRAME] for start in range(0, len(words), FRAME))
        await self._until(lambda: self._spoke_until != NOT_BEFORE or self._is_over, len(words) / RATE + GREETING_S)

    async def _until(self, is_so: Callable[[], bool], limit_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not is_so():
                    self._came.clear()
                    await self._came.wait()
        return is_so()

    async def listen(self) -> None:
        """Take all that comes, until the socket is closed."""
        try:
            async for message in self._socket:
                if isinstance(message, bytes):
                    self._player.frame(message, time.perf_counter())
                else:
                    self._event(json.loads(message))
                self._came.set()
        except websockets.ConnectionClosed:
            pass
        finally:
            self._is_over = True
            self._came.set()

    def _event(self, event: Json) -> None:
        match event["type"]:
            case "session.created":
                self.session = event["session"]
            case "voicepod.flush":
                self._player.flushed = event["turn"]
                self._flushed_at.append(time.perf_counter())
            case "voicepod.turn_metrics":
                self._records.append(event)
            case "voicepod.utterance_dropped":
                self._errors.append(f"not_understood ({event['reason']})")
            case "error":
                self._errors.append(event["error"]["code"] or "error")

    async def speak(self) -> None:
        """Send what `ask` says, else silence, one frame each 20 ms, and tell how far the player is."""
        silence = np.zeros(FRAME, np.int16)
        next_at, n_sent = time.perf_counter(), 0
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                was_speaking = bool(self._mic)
                frame = self._mic.popleft() if was_speaking else silence
                if was_speaking and self._spoke_from == NOT_BEFORE:
                    self._spoke_from = time.perf_counter()
                await self._socket.send(frame.tobytes())
                if was_speaking and not self._mic:
                    self._spoke_until = time.perf_counter()
                    self._came.set()
                n_sent += 1
                if n_sent % REPORT_FRAMES == 0 and self._player.turn > self._player.flushed:
                    await self._report()
                next_at = max(next_at + FRAME_S, time.perf_counter() - 1.0)  # a stall is made up for, up to a second
                await asyncio.sleep(max(0.0, next_at - time.perf_counter()))

    async def _report(self) -> None:
        now, player = time.perf_counter(), self._player
        event = {
            "type": "voicepod.playback",
            "turn": player.turn,
            "played_samples": player.played(now),
            "started_ago_ms": round((now - player.begun_at) * 1000, 1),
        }
        await self._socket.send(json.dumps(event))


@asynccontextmanager
async def talking(socket: ClientConnection, instructions: str, max_tokens: int) -> AsyncIterator[Talker]:
    """A talk over an open socket. `Busy`, `EngineNotReady`."""
    talker = Talker(socket)
    listening = asyncio.create_task(talker.listen(), name="self-test listens")
    speaking: asyncio.Task[None] | None = None
    try:
        await talker.greeted(instructions, max_tokens)
        speaking = asyncio.create_task(talker.speak(), name="self-test speaks")
        yield talker
    except websockets.ConnectionClosed:
        raise EngineFailed("the server closed the talk", stage="server") from None
    finally:
        tasks = [task for task in (listening, speaking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
