"""The real server with engines of fixed delay and the real Silero VAD, for `benchmarks.conversation --fixed`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import uvicorn

from api.application import Server
from pipeline.audio import AudioChunk
from pipeline.engines.base import (
    EngineInfo,
    Engines,
    Message,
    SpeechChunk,
    SpeechPiece,
    Transcript,
    Voice,
    create_engine,
)
from settings import Settings
from settings_sources import load_settings

# The delays that other engines of conversation were measured with, so that figures compare.
STT_S, FIRST_TOKEN_S, TOKEN_S, FIRST_AUDIO_S, REAL_TIME_FACTOR = 0.15, 0.10, 0.02, 0.12, 0.3
REPLY = (
    "Sure, I can help you with that. The capital of France is Paris. "
    "It lies on the river Seine and it has about two million people."
)
RATE = 24000


class _Fixed:
    n_waiting = 0

    async def load(self) -> None:
        return

    async def close(self) -> None:
        return


class FixedAsr(_Fixed):
    """The same words after a fixed time."""

    info = EngineInfo("asr", "fixed", "fixed", sample_rate=16000, languages=("en",))

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """What was said, after `STT_S`."""
        await asyncio.sleep(STT_S)
        return Transcript("what is the capital of france?", "en", audio_seconds=utterance.seconds)


class FixedLlm(_Fixed):
    """The same reply, a word at a time."""

    info = EngineInfo("llm", "fixed", "fixed", capacity=64, context_tokens=4096)

    async def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncIterator[str]:
        """Words, the first after `FIRST_TOKEN_S`."""
        await asyncio.sleep(FIRST_TOKEN_S)
        for word in REPLY.split(" "):
            yield word + " "
            await asyncio.sleep(TOKEN_S)

    async def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())


class FixedTts(_Fixed):
    """A 440 Hz tone, 60 ms a character."""

    info = EngineInfo("tts", "fixed", "tone", sample_rate=RATE, voices=(Voice("tone", "Tone", "en"),))

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        """Chunks of 200 ms, the first after `FIRST_AUDIO_S`."""
        n = RATE // 5
        tone = (np.sin(np.arange(n) * 2 * np.pi * 440 / RATE) * 0.25).astype(np.float32)
        async for piece in pieces:
            await asyncio.sleep(FIRST_AUDIO_S)
            n_chunks = max(int(len(piece.spoken) * 0.06 / 0.2), 1)
            for i in range(n_chunks):
                yield SpeechChunk(AudioChunk(tone, RATE), piece.index, final=i == n_chunks - 1)
                await asyncio.sleep(0.2 * REAL_TIME_FACTOR)


def main() -> None:
    """Serve on the given port until interrupted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seats", type=int, default=4)
    arguments = parser.parse_args()
    base = load_settings(["--set", "access.mode=open"], os.environ).settings.model_dump()
    base["tts"]["voice"] = "tone"
    base["system"]["max_concurrent_users"] = arguments.seats
    settings = Settings.model_validate(base)
    engines = Engines(create_engine("vad", "silero", settings), FixedAsr(), FixedLlm(), FixedTts())
    with tempfile.TemporaryDirectory() as data:
        storage = settings.storage.model_copy(update={"dir": Path(data)})
        settings = settings.model_copy(update={"storage": storage})
        server = Server(settings, engines, on_fatal=lambda error: sys.exit(str(error)))
        uvicorn.run(
            server.app, host="127.0.0.1", port=arguments.port, log_level="warning", ws_per_message_deflate=False
        )


if __name__ == "__main__":
    main()
