"""The HTTP API of a real server with scripted engines, and a client for it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np

from pipeline.audio import AudioChunk, file_bytes
from pipeline.engines.base import SpeechChunk, SpeechPiece, Transcript, Voice, Word
from tests.support.live_server import Live, live_server, scripted_settings
from tests.support.scripted import TTS_RATE, ScriptedAsr, ScriptedTts


@dataclass
class Rest:
    """A server that lets everybody in, and a client of it."""

    live: Live
    client: httpx.AsyncClient


@contextlib.asynccontextmanager
async def rest_server(*, until_ready: bool = True, **how: Any) -> AsyncIterator[Rest]:
    """Serve until the block ends. Engines by name, every other argument is a section of the settings."""
    engines = {kind: how.pop(kind) for kind in ("asr", "llm", "tts", "speakers") if kind in how}
    settings = scripted_settings(**{"security": {"rate_limiting": False}, **how})
    async with live_server(settings, until_ready=until_ready, **engines) as live:
        async with httpx.AsyncClient(base_url=live.http, timeout=20) as client:
            yield Rest(live, client)


@dataclass
class TimedAsr(ScriptedAsr):
    """Gives times as well: every word takes half a second."""

    async def transcribe_words(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        heard = await self.transcribe(utterance, language=language)
        words = tuple(Word(word, i * 0.5, i * 0.5 + 0.4) for i, word in enumerate(heard.text.split()))
        return Transcript(heard.text, heard.language, words, heard.audio_seconds)


@dataclass
class BusyAsr(ScriptedAsr):
    """Counts who is listening, to see that a cancelled call ends."""

    n_open: int = 0
    languages_asked: list[str | None] = field(default_factory=list)

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        self.n_open += 1
        self.languages_asked.append(language)
        try:
            return await super().transcribe(utterance, language=language)
        finally:
            self.n_open -= 1


class BriefTts(ScriptedTts):
    """A click for each piece, however long."""

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        async for piece in pieces:
            yield SpeechChunk(tone(0.01, TTS_RATE), piece.index, final=True)


class ToneTts(ScriptedTts):
    """Speaks in tones, at once: decoders take a constant for silence."""

    def __init__(self) -> None:
        super().__init__(first_audio_s=0.0, real_time_factor=0.0)

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        async for chunk in super().synthesize(pieces, voice=voice):
            yield replace(chunk, audio=tone(chunk.audio.seconds, chunk.audio.sample_rate))


def tone(seconds: float, sample_rate: int = 16_000) -> AudioChunk:
    """A sound that every check lets pass."""
    n = np.arange(round(seconds * sample_rate))
    return AudioChunk((0.3 * np.sin(n * 2 * np.pi * 220 / sample_rate)).astype(np.float32), sample_rate)


def a_file(seconds: float = 1.0) -> bytes:
    """A WAV file of a tone."""
    return file_bytes(tone(seconds), "wav")
