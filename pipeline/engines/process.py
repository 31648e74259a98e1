"""Engines in processes of their own, behind the same Protocols; `system.engine_processes` says which.

A stand-in for each engine passes jobs on to its `EngineProcess`. What the engine is and which Protocols it fulfils is
read from the adapter itself, which is made here too, but never loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final, cast

import structlog

from pipeline.audio import AudioChunk
from pipeline.engines.base import (
    ENGINES,
    CloningTts,
    EngineInfo,
    EngineKind,
    Message,
    SpeechChunk,
    SpeechPiece,
    Transcript,
    Voice,
    WordTimes,
    create_engine,
)
from pipeline.engines.process_supervisor import STAGES, EngineProcess
from pipeline.engines.process_wire import (
    MESSAGES,
    TRANSCRIPT,
    VOICE,
    audio_body,
    audio_head,
    speech_of,
)
from pipeline.errors import EngineError, EngineFailed, EngineNotReady, InvalidInput, VoicepodError
from settings import Settings

log = structlog.get_logger()


class _ProcessEngine:
    """What the stand-ins share."""

    kind: EngineKind

    def __init__(self, process: EngineProcess, unloaded: EngineInfo) -> None:
        self._process, self._unloaded = process, unloaded
        self._loading = asyncio.Lock()
        self._is_loaded = self._is_closed = False

    @property
    def process(self) -> EngineProcess:
        """Where it runs."""
        return self._process

    @property
    def info(self) -> EngineInfo:
        """As the engine tells it; what is known without its weights before it is loaded."""
        return self._process.infos.get(self.kind, self._unloaded)

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for a slot, half a second old."""
        return self._process.n_waiting(self.kind)

    async def load(self) -> None:
        """Start the process if it is not there, and load the engine in it."""
        async with self._loading:
            if not self._is_loaded:
                await self._process.load(self.kind, self._restore)
                self._is_loaded = True

    async def close(self) -> None:
        """End the process, with whatever other engine lives in it."""
        self._is_closed = True
        await self._process.close()

    async def _restore(self) -> None:
        """After the engine was loaded anew by a process that replaces another."""

    def _check(self) -> None:
        if not self._is_loaded or self._is_closed:
            raise EngineNotReady(f"{STAGES[self.kind]} is still loading, or was closed", stage=self.kind)


class ProcessAsr(_ProcessEngine):
    """Speech recognition in a process."""

    kind: EngineKind = "asr"

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """As the engine does."""
        return await self._heard("transcribe", utterance, language)

    async def _heard(self, method: str, utterance: AudioChunk, language: str | None) -> Transcript:
        self._check()
        packet = await self._process.call(
            self.kind, method, audio_body(utterance), **audio_head(utterance), language=language
        )
        return TRANSCRIPT.validate_python(packet.head["result"])


class ProcessWordTimesAsr(ProcessAsr):
    """Speech recognition with word times in a process."""

    async def transcribe_words(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """As the engine does."""
        return await self._heard("transcribe_words", utterance, language)


class ProcessLlm(_ProcessEngine):
    """A language model in a process."""

    kind: EngineKind = "llm"

    async def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncGenerator[str, None]:
        """As the engine does."""
        self._check()
        asked = MESSAGES.dump_python(list(messages), mode="json")
        async with aclosing(self._process.stream(self.kind, "reply", messages=asked, max_tokens=max_tokens)) as items:
            async for packet in items:
                yield str(packet.head["text"])

    async def count_tokens(self, text: str) -> int:
        """As the engine does."""
        self._check()
        packet = await self._process.call(self.kind, "count_tokens", text=text)
        return int(packet.head["result"])


class ProcessTts(_ProcessEngine):
    """Speech synthesis in a process."""

    kind: EngineKind = "tts"

    async def synthesize(
        self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice
    ) -> AsyncGenerator[SpeechChunk, None]:
        """As the engine does; a piece is asked for when the engine asks for it."""
        self._check()
        feeding: list[asyncio.Task[None]] = []

        def feed(number: int) -> None:
            feeding.append(asyncio.create_task(self._feed(number, pieces), name="tts-pieces"))

        spoken = VOICE.dump_python(voice, mode="json")
        stream = self._process.stream(self.kind, "synthesize", on_open=feed, voice=spoken)
        try:
            async with aclosing(stream) as items:
                async for packet in items:
                    yield speech_of(packet)
        finally:
            for task in feeding:
                task.cancel()
                await asyncio.wait([task])

    async def _feed(self, number: int, pieces: AsyncIterator[SpeechPiece]) -> None:
        try:
            while await self._process.wants(number):
                piece = await anext(pieces, None)
                self._process.give(number, piece)
                if piece is None:
                    return
        except VoicepodError as error:
            self._process.fail(number, error)
        except Exception as error:  # boundary: the reader of the speech is told, as if the engine had met it
            failure = EngineFailed(f"the text could not be read ({type(error).__name__})", stage=self.kind)
            failure.__cause__ = error
            self._process.fail(number, failure)


class ProcessCloningTts(ProcessTts):
    """Speech synthesis that makes voices from recordings, in a process. The voices survive it."""

    def __init__(self, process: EngineProcess, unloaded: EngineInfo) -> None:
        super().__init__(process, unloaded)
        self._added: dict[str, tuple[Voice, bytes]] = {}

    async def clone(self, sample: AudioChunk, transcript: str, *, name: str) -> bytes:
        """As the engine does."""
        self._check()
        values = {**audio_head(sample), "transcript": transcript, "name": name}
        return (await self._process.call(self.kind, "clone", audio_body(sample), **values)).body

    async def add_voice(self, voice: Voice, data: bytes) -> None:
        """As the engine does."""
        self._check()
        await self._process.call(self.kind, "add_voice", data, voice=VOICE.dump_python(voice, mode="json"))
        self._added[voice.id] = voice, data

    async def remove_voice(self, voice_id: str) -> None:
        """As the engine does. A process that is gone has forgotten it, and the next one is not given it."""
        self._added.pop(voice_id, None)
        with contextlib.suppress(EngineError):
            await self._process.call(self.kind, "remove_voice", voice_id=voice_id)

    async def _restore(self) -> None:
        for voice, data in list(self._added.values()):  # one may be removed meanwhile
            if voice.id in self._added:
                try:
                    spoken = VOICE.dump_python(voice, mode="json")
                    await self._process.direct(self.kind, "add_voice", data, voice=spoken)
                except InvalidInput as error:  # one voice must not keep the others away
                    log.warning("voice.not_restored", code=error.code)
            if voice.id not in self._added:
                await self._process.direct(self.kind, "remove_voice", voice_id=voice.id)


_STAND_INS: Final[dict[EngineKind, tuple[type, type[_ProcessEngine], type[_ProcessEngine]]]] = {
    # kind -> a Protocol, the stand-in for engines that fulfil it, and the one for those that do not
    "asr": (WordTimes, ProcessWordTimesAsr, ProcessAsr),
    "llm": (object, ProcessLlm, ProcessLlm),
    "tts": (CloningTts, ProcessCloningTts, ProcessTts),
}


def in_processes(settings: Settings) -> tuple[dict[EngineKind, Any], tuple[EngineProcess, ...]]:
    """Stand-ins for the engines that `system.engine_processes` names, and the processes they will live in.

    Nothing is started before the first `load`.
    """
    names = {"asr": settings.asr.engine, "llm": settings.llm.engine, "tts": settings.tts.engine}
    stand_ins: dict[EngineKind, Any] = {}
    processes = []
    for group in settings.system.engine_processes:
        kinds = cast(list[EngineKind], group.split("+"))
        adapters = {kind: create_engine(kind, names[kind], settings) for kind in kinds}
        process = EngineProcess({kind: ENGINES[kind][names[kind]] for kind in kinds}, settings)
        for kind, adapter in adapters.items():
            protocol, with_it, without = _STAND_INS[kind]
            stand_ins[kind] = (with_it if isinstance(adapter, protocol) else without)(process, adapter.info)
        processes.append(process)
    return stand_ins, tuple(processes)
