"""One reply of the FireRedTTS-2 engine: pieces go in as they come, audio comes out frame by frame.

The engine speaks on a thread of its own. Its events hop onto the event loop one by one; all else here runs there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

import numpy as np

from firered import (
    EngineClosedError,
    FireRedEngine,
    FireRedError,
    InputError,
    PieceEnd,
    SpeechAudio,
    StreamEnd,
    StreamEvent,
    StreamFailed,
    StreamOptions,
)
from pipeline.audio import AudioChunk, Samples
from pipeline.engines import lanes
from pipeline.engines.base import SpeechChunk, SpeechPiece
from pipeline.engines.onset import OnsetTrim
from pipeline.engines.out_of_memory import is_out_of_memory
from pipeline.engines.stretching import TimeStretch
from pipeline.errors import EngineFailed, EngineNotReady, InvalidInput, OutOfMemory, VoicepodError


@dataclass(slots=True)
class _Piece:
    """A piece that was handed over: whether the engine speaks it, and whether its first audio has come."""

    index: int
    is_spoken: bool
    is_heard: bool = False


class FireRedReply:
    """A stream of the engine, opened here. Iterate over `chunks` once and close that: it ends the stream.

    `on_over` is called on the event loop once the engine has let go of the stream.
    """

    def __init__(
        self,
        engine: FireRedEngine,
        options: StreamOptions,
        *,
        speed: float,
        on_over: Callable[[FireRedReply], None],
    ) -> None:
        self.settled = asyncio.Event()  # no piece is with the engine
        self.settled.set()
        self._rate, self._speed, self._on_over = engine.sample_rate, speed, on_over
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[StreamEvent | None] = asyncio.Queue()
        self._pieces: deque[_Piece] = deque()  # handed over and not ended, in order
        self._n_unspoken = 0  # pieces that the engine has not finished
        self._has_all_text = self._is_over = False
        self._trim, self._stretch = OnsetTrim(self._rate), self._new_stretch()
        try:
            self._stream = engine.open(options, self._hear)
        except FireRedError as error:
            raise pipeline_error(error) from error

    async def chunks(self, pieces: AsyncIterator[SpeechPiece]) -> AsyncGenerator[SpeechChunk, None]:
        """Audio as it leaves the engine, and the mark of every piece in order.

        The next piece is asked for when the first audio of the newest one is handed to the reader: what an interruption
        wastes is the rest of that one, and the next. An error of `pieces` is raised after the audio before it.
        """
        asking = self._ask(pieces)
        try:
            while not isinstance(event := await self._events.get(), StreamEnd):
                if isinstance(event, StreamFailed):
                    raise pipeline_error(event.error) from event.error
                if event is not None:
                    if not self._pieces[0].is_heard:
                        self._pieces[0].is_heard = True
                        if not self._has_all_text:
                            asking = self._ask(pieces)
                    if (chunk := self._chunk(event)) is not None:
                        yield chunk
                while self._pieces and not self._pieces[0].is_spoken:
                    yield self._mark(np.zeros(0, np.float32))
            await asking
        finally:
            if not self._is_over:
                lanes.stopping[self] = time.monotonic()
            self._stream.cancel()
            if asking.cancel():
                await asyncio.wait([asking])
            if not asking.cancelled():
                asking.exception()  # looked at, so that asyncio does not log an error nobody waits for any more

    # --- text

    def _ask(self, pieces: AsyncIterator[SpeechPiece]) -> asyncio.Task[None]:
        return asyncio.create_task(self._hand_over_next(pieces), name="tts-piece-ahead")

    async def _hand_over_next(self, pieces: AsyncIterator[SpeechPiece]) -> None:
        """Gives the engine the next piece that can be spoken, or the end of the text."""
        was_given = False
        try:
            async for piece in pieces:
                if was_given := self._hand_over(piece):
                    break
        finally:
            if not was_given:
                self._has_all_text = True
                self._stream.end()

    def _hand_over(self, piece: SpeechPiece) -> bool:
        try:
            self._stream.add_text(piece.spoken)
        except InputError:  # nothing in it can be spoken
            self._pieces.append(_Piece(piece.index, is_spoken=False))
            self._events.put_nowait(None)  # its mark may be due
            return False
        self._pieces.append(_Piece(piece.index, is_spoken=True))
        self._n_unspoken += 1
        self.settled.clear()
        return True

    # --- audio

    def _hear(self, event: StreamEvent) -> None:
        """On the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: StreamEvent) -> None:
        if isinstance(event, PieceEnd):
            self._n_unspoken -= 1
        elif isinstance(event, StreamEnd | StreamFailed):
            self._n_unspoken, self._is_over = 0, True
            lanes.stopping.pop(self, None)
            self._on_over(self)
        if not self._n_unspoken:
            self.settled.set()
        self._events.put_nowait(event)

    def _chunk(self, event: StreamEvent) -> SpeechChunk | None:
        """What is handed on of the oldest piece's audio or end."""
        if isinstance(event, SpeechAudio):
            samples = self._stretched(self._trim.feed(event.samples))
            return SpeechChunk(self._audio(samples), self._pieces[0].index) if samples.size else None
        return self._mark(self._new_piece())

    def _mark(self, samples: Samples) -> SpeechChunk:
        return SpeechChunk(self._audio(samples), self._pieces.popleft().index, final=True)

    def _new_piece(self) -> Samples:
        """Ends the audio of a piece: gives what was held back, and starts afresh."""
        rest = self._stretch.flush() if self._stretch else np.zeros(0, np.float32)
        self._trim, self._stretch = OnsetTrim(self._rate), self._new_stretch()
        return rest

    def _stretched(self, samples: Samples) -> Samples:
        return samples if self._stretch is None else self._stretch.feed(samples)

    def _new_stretch(self) -> TimeStretch | None:
        return None if self._speed == 1 else TimeStretch(self._speed, self._rate)

    def _audio(self, samples: Samples) -> AudioChunk:
        return AudioChunk(np.clip(samples, -1.0, 1.0), self._rate)


def pipeline_error(error: FireRedError) -> VoicepodError:
    """The engine's error in the pipeline's words."""
    if isinstance(error, InputError):
        return InvalidInput(str(error))
    if isinstance(error, EngineClosedError):
        return EngineNotReady("the voice was closed", stage="tts")
    if is_out_of_memory(error):
        return OutOfMemory("the voice ran out of memory", stage="tts")
    return EngineFailed("the voice failed", stage="tts")
