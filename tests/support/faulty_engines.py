"""Scripted engines for an engine process, and the faults they have on request.

The last word that is said to them names the fault: "die", "exit", "crash", "freeze", "hang", "poison", "oom", "raise",
"leak", "once" (dies the first time only). Anything else works.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audio import AudioChunk
from pipeline.engines import lanes
from pipeline.engines.base import EngineInfo, Message, SpeechChunk, SpeechPiece, Transcript, Voice
from pipeline.engines.lanes import Lane, Spoke
from pipeline.errors import ConfigError, InvalidInput, OutOfMemory
from settings import Settings

RATE = 24_000
_LEAKED: list[bytes] = []


def fault(word: str, directory: Path, stage: str) -> None:
    """What happens to the whole process, or to the one who asks."""
    match word:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(3)
        case "freeze":
            time.sleep(3600)
        case "once" if not (mark := directory / "died-once").exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        case "poison":
            raise RuntimeError("CUDA error: device-side assert triggered")
        case "oom":
            raise OutOfMemory(f"{stage} ran out of memory", stage=stage)
        case "raise":
            raise RuntimeError("a secret of the inside")
        case "leak":
            _LEAKED.append(os.urandom(1 << 20) * 150)
        case "peak":
            large = os.urandom(1 << 20) * 300
            del large


class _Faulty:
    kind = "asr"

    def __init__(self, settings: Settings) -> None:
        self.directory = settings.cache.dir
        self.settings = settings
        self._lane = Lane(f"faulty-{self.kind}", 4, stage=self.kind)

    @classmethod
    def from_settings(cls, settings: Settings) -> Any:
        return cls(settings)

    @property
    def n_waiting(self) -> int:
        return self._lane.n_waiting

    async def load(self) -> None:
        if (self.directory / "no-model").exists():
            raise ConfigError("there is no model. Run: download it")
        if (self.directory / "dies-at-load").exists():
            os._exit(4)

    async def close(self) -> None:
        if self.kind == "llm" and (self.directory / "never-closes").exists():
            fault("freeze", self.directory, self.kind)
        await self._lane.close()

    async def meet(self, word: str) -> None:
        """The fault of that name; "hang" is a step that looks at nothing."""
        if word == "hang":
            await self._lane.run(lambda stop: threading.Event().wait())
        fault(word, self.directory, self.kind)


class FaultyAsr(_Faulty):
    """Hears what is written at the path `heard` in its directory."""

    kind = "asr"
    info = EngineInfo("asr", "faulty", "script", sample_rate=16_000, languages=("en", "de"))

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        words = (self.directory / "heard").read_text()
        await self.meet(words.split()[-1])
        return Transcript(words, language or "en", audio_seconds=utterance.seconds)


class FaultyLlm(_Faulty):
    """Says what it was asked, word by word, and then that it was said."""

    kind = "llm"
    info = EngineInfo("llm", "faulty", "script", context_tokens=4096, capacity=4)

    async def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncIterator[str]:
        words = messages[-1].content.split()
        if words[0] != "first":
            await self.meet(words[-1])
        for word in words[:max_tokens]:
            yield word + " "
        if words[0] == "first":
            await self.meet(words[-1])
        if words[0] == "forever":
            while True:
                yield "on "
        yield f"[{os.getpid()}]"

    async def count_tokens(self, text: str) -> int:
        return len(text.split())


class FaultyTts(_Faulty):
    """A level of 0.25 for each letter, in two chunks; a voice that was added speaks at 0.5. Tells its own work."""

    kind = "tts"
    info = EngineInfo("tts", "faulty", "ramp", sample_rate=RATE, voices=(Voice("anna", "Anna", "en"),))

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._added: dict[str, bytes] = {}

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        if voice.id not in (*self._added, "anna"):
            raise InvalidInput("there is no such voice", code="voice_not_found", param="voice")
        level = 0.5 if voice.id in self._added else 0.25
        async for piece in pieces:
            word = piece.spoken.split()[-1]
            if word == "priority":
                level = lanes.job_priority.get()()[1]
            elif not piece.spoken.startswith("first"):
                await self.meet(word)
            samples = np.full(len(piece.spoken), level, np.float32)
            yield SpeechChunk(AudioChunk(samples[:2], RATE), piece.index)
            if piece.spoken.startswith("first"):
                await self.meet(word)
            lanes.work_told.get(lanes.tell_nobody)(Spoke(0.5, 1.5))
            yield SpeechChunk(AudioChunk(samples[2:], RATE), piece.index, final=True)

    async def clone(self, sample: AudioChunk, transcript: str, *, name: str) -> bytes:
        return f"{name}|{transcript}|{sample.n_samples}".encode()

    async def add_voice(self, voice: Voice, data: bytes) -> None:
        if (refused := self.directory / "refuses").exists() and refused.read_text() == voice.id:
            raise InvalidInput("this voice is damaged", code="voice_not_usable", param="voice")
        self._added[voice.id] = data

    async def remove_voice(self, voice_id: str) -> None:
        self._added.pop(voice_id, None)


async def beside(coroutine: Any) -> asyncio.Task[Any]:
    """A task that has begun."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task
