"""A whole turn that nobody hears, before the first talk: what is slow only once is over when a user comes.

Libraries build their kernels for the shapes of a real turn, the language model keeps the instructions it will read in
every talk, and an engine that cannot work with the others says so now.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from pipeline.audio import AudioChunk, concat
from pipeline.engines.base import Engines, Message, SpeechPiece, Voice
from pipeline.errors import EngineTimeout
from pipeline.turn import Waits

WORDS = "Hello, can you hear me?"
MAX_TOKENS = 8


async def warm_turn(engines: Engines, *, voice: Voice, instructions: str, waits: Waits) -> None:
    """Speak, hear what was spoken, answer it, and speak the answer. `EngineError` names the stage that cannot."""
    limit_s = waits.asr_s + waits.first_token_s + 2 * waits.first_audio_s
    try:
        async with asyncio.timeout(limit_s):
            asked = await _spoken(engines, WORDS, voice)
            heard = await engines.asr.transcribe(asked, language=voice.language)
            messages = [Message("system", instructions), Message("user", heard.text or WORDS)]
            async with aclosing(engines.llm.reply(messages, max_tokens=MAX_TOKENS)) as deltas:  # type: ignore[type-var]
                answer = "".join([delta async for delta in deltas])
            await _spoken(engines, answer, voice)
    except TimeoutError as error:
        raise EngineTimeout("the first turn took too long", stage="warm-up") from error


async def _spoken(engines: Engines, text: str, voice: Voice) -> AudioChunk:
    async def pieces() -> AsyncIterator[SpeechPiece]:
        yield SpeechPiece(0, text, 0, len(text))

    async with aclosing(engines.tts.synthesize(pieces(), voice=voice)) as chunks:  # type: ignore[type-var]
        return concat([chunk.audio async for chunk in chunks], engines.tts.info.sample_rate)
