"""Reading a text aloud: it becomes a stream of audio, piece by piece, by the code that speaks a turn's reply."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator

from pipeline.audio import AudioChunk
from pipeline.engines.base import Tts, Voice, Word
from pipeline.errors import InvalidInput, VoicepodError
from pipeline.sentences import PieceSplitter
from pipeline.turn import ReplySink, Waits, engine_failure, first_error, speak

# Chunks that are made ahead of the reader; a chunk is between one frame (80 ms) and one piece (some seconds).
MAX_CHUNKS_AHEAD = 4
# The splitter looks at all text that it was given and not cut yet. At once, 1600 times "?! " held up the event loop for
# 5.7 s; in steps of this length it is 7 ms.
TEXT_STEP_CHARS = 200
_STEP = re.compile(rf"(?s).{{1,{TEXT_STEP_CHARS}}}(?:(?<=\s)|$)|.{{1,{TEXT_STEP_CHARS}}}")


async def read_aloud(
    text: str, *, tts: Tts, voice: Voice, splitter: PieceSplitter, sample_rate: int, waits: Waits, param: str = "text"
) -> AsyncGenerator[AudioChunk, None]:
    """The text as audio at `sample_rate`; the first chunk comes after the first clause. Close it to stop the engine.

    `InvalidInput` (code nothing_to_say) when there is nothing in the text that can be spoken; `param` is what the
    caller calls the text.
    """
    chunks: asyncio.Queue[AudioChunk | None] = asyncio.Queue()
    room = asyncio.Semaphore(MAX_CHUNKS_AHEAD)

    async def take(audio: AudioChunk, words: tuple[Word, ...]) -> bool:
        await room.acquire()
        chunks.put_nowait(audio)
        return True

    async def make() -> None:
        sink = ReplySink(_ignore, _ignore, _ignore, take, _ignore)
        try:
            deltas = _steps(text)
            await speak(deltas, sink, tts=tts, voice=voice, splitter=splitter, output_rate=sample_rate, waits=waits)
        finally:
            chunks.put_nowait(None)

    making = asyncio.create_task(make(), name="read-aloud")
    n_samples = 0
    try:
        while (chunk := await chunks.get()) is not None:
            room.release()
            n_samples += chunk.n_samples
            if chunk.n_samples:
                yield chunk
        await making
    except Exception as error:
        cause = first_error(error)
        raise cause if isinstance(cause, VoicepodError) else engine_failure(cause, "tts") from error
    finally:
        making.cancel()
        await asyncio.wait([making])
        if not making.cancelled():
            making.exception()  # looked at, so that asyncio does not log an error that was raised above
    if not n_samples:
        raise InvalidInput("there is nothing in this text that can be spoken", code="nothing_to_say", param=param)


async def _steps(text: str) -> AsyncIterator[str]:
    """The text in stretches that end behind a space where there is one, with a turn of the event loop between them."""
    for step in _STEP.findall(text):
        yield step
        await asyncio.sleep(0)


def _ignore(_: object) -> None:
    """A text that is read has no captions and no latency record."""
