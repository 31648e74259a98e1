"""Scripted engines on the event loop's clock: exact, instant under virtual time, and honest about early ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.base import EngineInfo, Message, SpeechChunk, SpeechPiece, Transcript, Voice

SECONDS_PER_CHAR = 0.06
TTS_RATE = 24000
VOICES = (Voice("anna", "Anna", "en"), Voice("bruno", "Bruno", "de"))


def babble(seconds: float, *, seed: int, rate: int = TTS_RATE) -> Samples:
    """Syllables of 40 to 160 ms, each two tones or a gap: as unlike itself from moment to moment as speech is."""
    rng, parts, left = np.random.default_rng(seed), [], round(seconds * rate)
    while left > 0:
        n = min(left, int(rng.uniform(0.04, 0.16) * rate))
        left -= n
        low, high = np.exp(rng.uniform(np.log([300, 1000]), np.log([1000, 4000])))
        t = np.arange(n) / rate
        tones = np.sin(2 * np.pi * low * t) + np.sin(2 * np.pi * high * t)
        parts.append(tones * np.hanning(n) * rng.choice([0.0, 0.2, 0.4, 0.4]))
    return np.concatenate(parts).astype(np.float32)


class ScriptedVadStream:
    """Any sample above 0.05 is speech."""

    def probability(self, frame: Samples) -> float:
        return 1.0 if float(np.abs(frame).max()) > 0.05 else 0.0


class ScriptedVad:
    info = EngineInfo("vad", "scripted", "loudness", sample_rate=16000)
    frame_samples = 320

    n_waiting = 0

    async def load(self) -> None:
        return

    async def close(self) -> None:
        return

    def stream(self) -> ScriptedVadStream:
        return ScriptedVadStream()


@dataclass
class ScriptedAsr:
    """Gives the next text after `delay_s`; an exception in the list is raised."""

    texts: list[str | Exception] = field(default_factory=list)
    delay_s: float = 0.15
    utterances: list[AudioChunk] = field(default_factory=list)
    languages: list[str | None] = field(default_factory=list)  # that were asked for
    detected: str = "en"
    info = EngineInfo("asr", "scripted", "script", sample_rate=16000, languages=("en",))

    n_waiting = 0

    async def load(self) -> None:
        return

    async def close(self) -> None:
        return

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        self.utterances.append(utterance)
        self.languages.append(language)
        text = self.texts.pop(0) if self.texts else f"utterance {len(self.utterances)}"
        await asyncio.sleep(self.delay_s)
        if isinstance(text, Exception):
            raise text
        return Transcript(text, language or self.detected, audio_seconds=utterance.seconds)


@dataclass
class ScriptedLlm:
    """Gives the next reply word by word; an exception in the place of a reply is raised after `fail_after` words."""

    replies: list[str | Exception] = field(default_factory=list)
    first_token_s: float = 0.1
    token_s: float = 0.02
    asked: list[tuple[Message, ...]] = field(default_factory=list)
    open_streams: int = 0
    counts: bool = True  # False: a count of tokens never comes
    info = EngineInfo("llm", "scripted", "script", context_tokens=4096, capacity=4)

    n_waiting = 0

    async def load(self) -> None:
        return

    async def close(self) -> None:
        return

    async def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncIterator[str]:
        self.asked.append(tuple(messages))
        reply = self.replies.pop(0) if self.replies else f"This is reply number {'abcdefghij'[len(self.asked) % 10]}."
        self.open_streams += 1
        try:
            await asyncio.sleep(self.first_token_s)
            if isinstance(reply, Exception):
                raise reply
            words = reply.split(" ")
            for i, word in enumerate(words[:max_tokens]):
                yield word if i == len(words) - 1 else word + " "
                await asyncio.sleep(self.token_s)
        finally:
            self.open_streams -= 1

    async def count_tokens(self, text: str) -> int:
        if not self.counts:
            await asyncio.Event().wait()
        return len(text.split())


@dataclass
class ScriptedTts:
    """A ramp per piece, `SECONDS_PER_CHAR` long, made `speed` times faster than real time in chunks of 200 ms."""

    first_audio_s: float = 0.12
    real_time_factor: float = 0.3
    fail_on: Callable[[SpeechPiece], Exception | None] = lambda piece: None
    sound: Callable[[int], Samples] = lambda n_samples: np.full(n_samples, 0.25, np.float32)
    open_streams: int = 0
    info = EngineInfo("tts", "scripted", "ramp", sample_rate=TTS_RATE, voices=VOICES, languages=("en", "de"))

    n_waiting = 0

    async def load(self) -> None:
        return

    async def close(self) -> None:
        return

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        self.open_streams += 1
        try:
            async for piece in pieces:
                if (failure := self.fail_on(piece)) is not None:
                    raise failure
                left = round(len(piece.spoken) * SECONDS_PER_CHAR * TTS_RATE)
                await asyncio.sleep(self.first_audio_s if left else 0)
                while left > 0:
                    n = min(left, TTS_RATE // 5)
                    left -= n
                    yield SpeechChunk(AudioChunk(self.sound(n), TTS_RATE), piece.index, final=left == 0)
                    await asyncio.sleep(0.2 * self.real_time_factor)
                if not piece.spoken:
                    yield SpeechChunk(AudioChunk.silence(0, TTS_RATE), piece.index, final=True)
        finally:
            self.open_streams -= 1
