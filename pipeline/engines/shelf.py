"""A bounded number of loaded engines: the one that was not used for longest is closed to make room for the next.

For memory that holds one or two models at a time (`system.max_loaded_models`). A turn then waits for weights at every
stage, so this is for trying large models, not for talking.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import structlog

from pipeline.audio import AudioChunk
from pipeline.engines.base import (
    CloningTts,
    EngineInfo,
    EngineKind,
    Message,
    SpeechChunk,
    SpeechPiece,
    Transcript,
    Voice,
    WordTimes,
)
from pipeline.errors import EngineNotReady
from process_tuning import give_back_memory

log = structlog.get_logger()


class Shelf:
    """Room for `limit` loaded engines. All methods belong to one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._loaded: list[_Shelved] = []  # the last one was used last
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def using(self, engine: _Shelved) -> AsyncIterator[Any]:
        """The loaded engine, which stays as long as the block lasts. Others wait for it when there is no room."""
        async with self._changed:
            await self._make_loaded(engine)
            engine.n_users += 1
        try:
            yield engine.loaded
        finally:
            engine.n_users -= 1
            async with self._changed:
                self._changed.notify_all()

    async def take_off(self, engine: _Shelved) -> None:
        """Close it for good."""
        async with self._changed:
            await self._close(engine)
            self._changed.notify_all()

    async def _make_loaded(self, engine: _Shelved) -> None:
        while engine.loaded is None:
            if len(self._loaded) < self._limit:
                await engine.make()
                self._loaded.append(engine)
            elif (idle := next((other for other in self._loaded if not other.n_users), None)) is not None:
                log.info("model.evicted", kind=idle.kind, for_kind=engine.kind)
                await self._close(idle)
            else:
                await self._changed.wait()
        self._loaded.remove(engine)
        self._loaded.append(engine)

    async def _close(self, engine: _Shelved) -> None:
        if engine.loaded is not None:
            self._loaded.remove(engine)
            closing, engine.loaded = engine.loaded, None
            gc.unfreeze()  # what was loaded at the start as well: a network may hold itself in a circle
            try:
                await closing.close()
            finally:
                del closing
                await asyncio.to_thread(give_back_memory)


class _Shelved:
    """What the stand-ins share. `create` gives an unloaded engine each time."""

    kind: EngineKind

    def __init__(self, shelf: Shelf, create: Callable[[], Any], unloaded: EngineInfo) -> None:
        self.loaded: Any = None
        self.n_users = 0
        self._shelf, self._create, self._info = shelf, create, unloaded
        self._is_ready = self._is_closed = False

    @property
    def info(self) -> EngineInfo:
        """As it was when it was loaded last."""
        return self._info

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for its slot."""
        return 0 if self.loaded is None else int(self.loaded.n_waiting)

    async def load(self) -> None:
        """Once now, so that a missing model is found at the start."""
        if not self._is_ready:
            async with self._shelf.using(self):
                self._is_ready = True

    async def close(self) -> None:
        """For good."""
        self._is_closed = True
        await self._shelf.take_off(self)

    async def make(self) -> None:
        """A new engine, loaded. The shelf's lock is held."""
        if self._is_closed:  # while somebody waited for room
            raise self._not_ready()
        engine = self._create()
        try:
            await engine.load()
            await self.restore(engine)
        except BaseException:
            await engine.close()
            await asyncio.to_thread(give_back_memory)
            raise
        self.loaded, self._info = engine, engine.info

    async def restore(self, engine: Any) -> None:
        """Give a new engine what the one before it was given."""

    def use(self) -> Any:
        """`using` this one, once it may work."""
        if not self._is_ready or self._is_closed:
            raise self._not_ready()
        return self._shelf.using(self)

    def _not_ready(self) -> EngineNotReady:
        return EngineNotReady("this engine is still loading, or was closed", stage=self.kind)


class ShelvedAsr(_Shelved):
    """Speech recognition on a shelf."""

    kind: EngineKind = "asr"

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """As the engine does."""
        async with self.use() as asr:
            heard: Transcript = await asr.transcribe(utterance, language=language)
            return heard


class ShelvedWordTimesAsr(ShelvedAsr):
    """Speech recognition with word times on a shelf."""

    async def transcribe_words(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """As the engine does."""
        async with self.use() as asr:
            heard: Transcript = await asr.transcribe_words(utterance, language=language)
            return heard


class ShelvedLlm(_Shelved):
    """A language model on a shelf."""

    kind: EngineKind = "llm"

    async def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncGenerator[str, None]:
        """As the engine does."""
        async with self.use() as llm, aclosing(llm.reply(messages, max_tokens=max_tokens)) as deltas:
            async for delta in deltas:
                yield delta

    async def count_tokens(self, text: str) -> int:
        """As the engine does."""
        async with self.use() as llm:
            return int(await llm.count_tokens(text))


class ShelvedTts(_Shelved):
    """Speech synthesis on a shelf."""

    kind: EngineKind = "tts"

    async def synthesize(
        self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice
    ) -> AsyncGenerator[SpeechChunk, None]:
        """As the engine does. It takes its place when there is something to say.

        Else it might take the only one from the model that is to write it, and the two would wait for each other.
        """
        place = self.use()
        if (first := await anext(pieces, None)) is None:
            return
        async with place as tts, aclosing(tts.synthesize(_led(first, pieces), voice=voice)) as chunks:
            async for chunk in chunks:
                yield chunk


async def _led(first: SpeechPiece, others: AsyncIterator[SpeechPiece]) -> AsyncIterator[SpeechPiece]:
    yield first
    async for piece in others:
        yield piece


class ShelvedCloningTts(ShelvedTts):
    """Speech synthesis that makes voices from recordings, on a shelf. The voices outlive the loaded engine."""

    def __init__(self, shelf: Shelf, create: Callable[[], Any], unloaded: EngineInfo) -> None:
        super().__init__(shelf, create, unloaded)
        self._added: dict[str, tuple[Voice, bytes]] = {}

    async def clone(self, sample: AudioChunk, transcript: str, *, name: str) -> bytes:
        """As the engine does."""
        async with self.use() as tts:
            return bytes(await tts.clone(sample, transcript, name=name))

    async def add_voice(self, voice: Voice, data: bytes) -> None:
        """As the engine does."""
        async with self.use() as tts:
            await tts.add_voice(voice, data)
            self._added[voice.id] = voice, data

    async def remove_voice(self, voice_id: str) -> None:
        """As the engine does."""
        self._added.pop(voice_id, None)
        async with self.use() as tts:
            await tts.remove_voice(voice_id)

    async def restore(self, engine: Any) -> None:
        """Its voices."""
        for voice, data in self._added.values():
            await engine.add_voice(voice, data)


_STAND_INS: Final[dict[EngineKind, tuple[type, type[_Shelved], type[_Shelved]]]] = {
    # kind -> a Protocol, the stand-in for engines that fulfil it, and the one for those that do not
    "asr": (WordTimes, ShelvedWordTimesAsr, ShelvedAsr),
    "llm": (object, ShelvedLlm, ShelvedLlm),
    "tts": (CloningTts, ShelvedCloningTts, ShelvedTts),
}


def on_shelf(shelf: Shelf, kind: EngineKind, create: Callable[[], Any]) -> Any:
    """A stand-in for the engines that `create` gives, which are loaded when they are needed."""
    unloaded = create()
    protocol, with_it, without = _STAND_INS[kind]
    return (with_it if isinstance(unloaded, protocol) else without)(shelf, create, unloaded.info)
