"""One turn: what was said becomes text, the text becomes a reply, the reply becomes audio.

`transcribe`, `write` and `speak` read top to bottom and touch nothing but what they are given: the history is the
session's, the way out a `ReplySink`. Cancelling the task that runs them stops the engines, because every stream is
closed on the way out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from pipeline.audio import AudioChunk, Resampler
from pipeline.engines.base import Asr, SpeechChunk, SpeechPiece, Transcript, Tts, Voice, Word
from pipeline.errors import EngineFailed, EngineTimeout
from pipeline.sentences import PieceSplitter

if TYPE_CHECKING:
    from settings import TurnSettings

T = TypeVar("T")

# Pieces between the LLM and the TTS. A reply is bounded in tokens, so this is never reached; it bounds a faulty model.
MAX_WAITING_PIECES = 256


@dataclass(frozen=True, slots=True)
class Waits:
    """How long a turn waits for each stage, in seconds."""

    asr_s: float
    first_token_s: float
    token_s: float
    first_audio_s: float
    audio_s: float

    @classmethod
    def from_settings(cls, turn: TurnSettings) -> Waits:
        """The times of the settings."""
        return cls(
            asr_s=turn.asr_timeout_s,
            first_token_s=turn.first_token_timeout_s,
            token_s=turn.token_timeout_s,
            first_audio_s=turn.first_audio_timeout_s,
            audio_s=turn.audio_timeout_s,
        )


@dataclass(slots=True)
class ReplySink:
    """Where a reply goes. `text` takes each delta, `piece` the start and end of a spoken piece, `audio` its samples.

    `audio` answers False when the reply was cut; `mark` notes a moment of the latency record.
    """

    text: Callable[[str], None]
    piece_started: Callable[[SpeechPiece], None]
    piece_ended: Callable[[SpeechPiece], None]
    audio: Callable[[AudioChunk, tuple[Word, ...]], Awaitable[bool]]
    mark: Callable[[str], None]


async def transcribe(asr: Asr, utterance: AudioChunk, *, language: str | None, waits: Waits) -> Transcript:
    """What was said. `EngineTimeout` after `waits.asr_s`, `EngineError` from the engine."""
    try:
        async with asyncio.timeout(waits.asr_s):
            with work_of("asr"):
                transcript = await asr.transcribe(utterance, language=language)
    except TimeoutError as error:
        raise EngineTimeout("speech recognition took too long", stage="asr") from error
    if not _is_transcript(transcript):
        raise EngineFailed("speech recognition gave something that is not a transcript", stage="asr")
    return transcript


def _is_transcript(given: object) -> bool:
    return isinstance(given, Transcript) and type(given.text) is str


async def write(deltas: AsyncIterator[str], sink: ReplySink, *, waits: Waits) -> None:
    """A reply in text only."""
    async with aclosing(_timed(deltas, waits.first_token_s, waits.token_s, "llm")) as timed:
        async for delta in timed:
            if delta:
                sink.mark("first_token")
            sink.text(delta)


async def speak(
    deltas: AsyncIterator[str],
    sink: ReplySink,
    *,
    tts: Tts,
    voice: Voice,
    splitter: PieceSplitter,
    output_rate: int,
    waits: Waits,
) -> None:
    """A spoken reply: pieces go to the TTS while the LLM still writes. Ends when all audio was handed to the sink."""
    queue: asyncio.Queue[SpeechPiece | None] = asyncio.Queue(MAX_WAITING_PIECES)
    pieces: dict[int, SpeechPiece] = {}  # those that the TTS has not ended yet

    async def split() -> None:
        async with aclosing(_timed(deltas, waits.first_token_s, waits.token_s, "llm")) as timed:
            async for delta in timed:
                if delta:
                    sink.mark("first_token")
                sink.text(delta)
                for piece in splitter.feed(delta):
                    await put(piece)
        for piece in splitter.finish():
            await put(piece)
        await queue.put(None)

    async def put(piece: SpeechPiece) -> None:
        if piece.spoken:
            sink.mark("first_piece")
        pieces[piece.index] = piece
        await queue.put(piece)

    async def taken() -> AsyncIterator[SpeechPiece]:
        while (piece := await queue.get()) is not None:
            yield piece

    resampler = Resampler(tts.info.sample_rate, output_rate, quality="HQ")
    async with asyncio.TaskGroup() as group:
        splitting = group.create_task(split(), name="split")
        current: SpeechPiece | None = None
        stream = cast(AsyncGenerator[SpeechChunk, None], tts.synthesize(taken(), voice=voice))
        async with aclosing(stream) as speech:
            while True:
                limit_s = waits.first_audio_s if current is None else waits.audio_s
                chunk = await _next_audio(speech, splitting, limit_s)
                if chunk is None:
                    break
                piece = pieces.get(chunk.piece_index)
                if piece is None or not _is_audio(chunk.audio, tts.info.sample_rate):
                    raise EngineFailed("speech synthesis gave something that is not the audio asked for", stage="tts")
                if current is not piece:
                    current = piece
                    sink.piece_started(piece)
                audio = resampler.feed(chunk.audio)
                if audio.n_samples:
                    sink.mark("first_audio")
                    if not await sink.audio(audio, chunk.words):
                        splitting.cancel()
                        return
                if chunk.final:
                    del pieces[piece.index]
                    sink.piece_ended(piece)
        tail = resampler.feed(AudioChunk.silence(0, tts.info.sample_rate), last=True)
        if tail.n_samples and current is not None:
            await sink.audio(tail, ())
    if pieces:
        raise EngineFailed("speech synthesis ended before the text did", stage="tts")


def _is_audio(audio: AudioChunk, sample_rate: int) -> bool:
    """Whether it has the rate that was promised, and numbers for samples: one NaN would spoil all that follows."""
    return audio.sample_rate == sample_rate and bool(np.isfinite(audio.samples).all())


async def _next_audio(
    speech: AsyncIterator[SpeechChunk], splitting: asyncio.Task[None], limit_s: float
) -> SpeechChunk | None:
    """The next chunk that holds anything, or None at the end.

    The TTS may wait for words: `limit_s` counts from the LLM's last one on.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limit_s if splitting.done() else None) as scope:
            waiting = True

            def all_words_are_there(_: asyncio.Task[None]) -> None:
                if waiting:
                    scope.reschedule(loop.time() + limit_s)

            if not splitting.done():
                splitting.add_done_callback(all_words_are_there)
            try:
                with work_of("tts"):
                    while (chunk := await anext(speech, None)) is not None:
                        if chunk.final or chunk.audio.n_samples:
                            break
                return chunk
            finally:
                waiting = False
                splitting.remove_done_callback(all_words_are_there)
    except TimeoutError as error:
        raise EngineTimeout("speech synthesis took too long", stage="tts") from error


async def _timed(deltas: AsyncIterator[T], first_s: float, next_s: float, stage: str) -> AsyncGenerator[T, None]:
    """The same items; `EngineTimeout` when one that holds anything takes too long."""
    loop = asyncio.get_running_loop()
    give_up_at_s = loop.time() + first_s
    async with aclosing(cast(AsyncGenerator[T, None], deltas)) as closing:
        while True:
            try:
                async with asyncio.timeout_at(give_up_at_s):
                    with work_of(stage):
                        item = await anext(closing, None)
            except TimeoutError as error:
                raise EngineTimeout("the language model took too long", stage=stage) from error
            if item is None:
                return
            yield item
            if item:
                give_up_at_s = loop.time() + next_s


def first_error(error: BaseException) -> BaseException:
    """The error that a task group was ended by."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def work_of(stage: str) -> Iterator[None]:
    """A `CancelledError` that nobody asked for is of a task that the engine has lost: `EngineFailed`."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise engine_failure(error, stage) from error


def engine_failure(error: BaseException, stage: str) -> EngineFailed:
    """An unforeseen exception as a typed one; the message is for people and says nothing of the inside."""
    failure = EngineFailed(f"the {stage} stage failed unexpectedly ({type(error).__name__})", stage=stage)
    failure.__cause__ = error  # for the log
    return failure
