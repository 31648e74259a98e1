"""From a TTS that speaks one piece at a time to `Tts.synthesize`: pieces in order, one prepared ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

from pipeline.audio import AudioChunk
from pipeline.engines import lanes
from pipeline.engines.base import SpeechChunk, SpeechPiece


async def one_ahead(
    pieces: AsyncIterator[SpeechPiece],
    speak: Callable[[SpeechPiece], Awaitable[Sequence[AudioChunk]]],
    *,
    sample_rate: int,
) -> AsyncGenerator[SpeechChunk, None]:
    """Chunks of each piece, the last one `final`. While a piece is consumed the next is asked for and spoken.

    Never more than one piece ahead: what an interruption throws away is then at most one piece of work. The task that
    speaks ahead lives inside this generator and is cancelled when it is closed; it runs in the caller's context, so
    the lane sees the turn's priority. Errors of `pieces` and `speak` are raised here, after the audio before them.
    """

    async def prepare() -> tuple[SpeechPiece, Sequence[AudioChunk]] | None:
        async for piece in pieces:
            return piece, await timed(piece)
        return None

    async def timed(piece: SpeechPiece) -> Sequence[AudioChunk]:
        computed_s: list[float] = []

        def note(work: lanes.Work) -> None:
            tell(work)
            if isinstance(work, lanes.Ran):
                computed_s.append(work.seconds)

        tell = lanes.work_told.get(lanes.tell_nobody)
        lanes.work_told.set(note)  # in the context of the task that speaks ahead, and nowhere else
        audio = await speak(piece)
        if seconds := sum(chunk.seconds for chunk in audio):
            tell(lanes.Spoke(sum(computed_s), seconds))
        return audio

    ahead = asyncio.create_task(prepare(), name="tts-piece-ahead")
    try:
        while (prepared := await ahead) is not None:
            # Runs only once the event loop turns, which is after the reader got this piece's first chunk.
            ahead = asyncio.create_task(prepare(), name="tts-piece-ahead")
            piece, audio = prepared
            chunks = audio or [AudioChunk.silence(0, sample_rate)]
            for i, chunk in enumerate(chunks):
                yield SpeechChunk(chunk, piece.index, final=i == len(chunks) - 1)
    finally:
        if ahead.cancel():
            await asyncio.wait([ahead])
        if not ahead.cancelled():
            ahead.exception()  # looked at, so that asyncio does not log an error nobody waits for any more
