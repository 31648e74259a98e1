"""A TTS around a TTS: speech in cloned voices, or all speech, gets the watermark before anyone hears it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

import numpy as np
import structlog

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.base import CloningTts, EngineInfo, SpeechChunk, SpeechPiece, Tts, Voice, Word
from pipeline.engines.lanes import Lane
from pipeline.errors import EngineFailed, EngineNotReady
from pipeline.watermark import Watermarker, WatermarkStream
from settings import Settings

log = structlog.get_logger()

# A piece may come as one chunk of ten seconds: its first half second is heard before the rest is marked.
_SLICE_S: Final = 0.5


def with_watermark(tts: Tts, settings: Settings) -> Tts:
    """`tts`, marking what `voices.watermark` says; the same object where nothing it says could be marked."""
    which = settings.voices.watermark
    if which == "off":
        if isinstance(tts, CloningTts):
            log.warning("watermark.off", engine=tts.info.name)
        return tts
    if isinstance(tts, CloningTts):
        return MarkingCloningTts(tts, settings.models.dir, all_voices=which == "all")
    return MarkingTts(tts, settings.models.dir, all_voices=True) if which == "all" else tts


class MarkingTts:
    """Marks in a lane of one thread. The speech of voices that need no mark passes untouched, at no cost.

    Each piece is marked for itself, so that its end is not held back; within a piece at most 0.1 s is.
    """

    def __init__(self, tts: Tts, models_dir: Path, *, all_voices: bool) -> None:
        self._tts, self._models_dir, self._all_voices = tts, models_dir, all_voices
        self._lane = Lane("watermark", 1, stage="tts")
        self._loading = asyncio.Lock()
        self._watermarker: Watermarker | None = None

    @property
    def info(self) -> EngineInfo:
        """The engine's own."""
        return self._tts.info

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the engine."""
        return self._tts.n_waiting

    async def load(self) -> None:
        """Read the watermark's weights, then the engine's."""
        async with self._loading:
            if self._watermarker is None:
                self._watermarker = await self._lane.run(lambda stop: Watermarker.installed(self._models_dir))
        await self._tts.load()

    async def close(self) -> None:
        """Close the engine and drop the weights."""
        await self._lane.close()
        self._watermarker = None
        await self._tts.close()

    def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        """The engine's audio, marked if the voice asks for it: as many samples, words and ends of pieces as before."""
        speech = self._tts.synthesize(pieces, voice=voice)
        return self._marked(speech) if self._all_voices or voice.cloned else speech

    async def _marked(self, speech: AsyncIterator[SpeechChunk]) -> AsyncGenerator[SpeechChunk, None]:
        async with aclosing(cast(AsyncGenerator[SpeechChunk, None], speech)) as chunks:
            if self._watermarker is None:
                raise EngineNotReady("the voice is still loading, or was closed", stage="tts")
            stream = self._watermarker.stream(self._tts.info.sample_rate)
            words: tuple[Word, ...] = ()  # of audio that is held back
            async for chunk in chunks:
                if chunk.audio.sample_rate != self._tts.info.sample_rate:
                    raise EngineFailed("speech synthesis gave audio of another rate", stage="tts")
                words += chunk.words
                for part, is_last in _slices(chunk):
                    ends = chunk.final and is_last
                    samples = await self._add(stream, part, ends=ends)
                    if samples.size or ends:
                        audio = AudioChunk(samples, chunk.audio.sample_rate)
                        yield replace(chunk, audio=audio, words=words, final=ends)
                        words = ()

    async def _add(self, stream: WatermarkStream, part: AudioChunk, *, ends: bool) -> Samples:
        def mark() -> Samples:
            ready = stream.add(part.samples)
            return np.concatenate((ready, stream.flush())) if ends else ready

        return await self._lane.run(lambda stop: mark())


class MarkingCloningTts(MarkingTts):
    """The same around an engine that clones."""

    def __init__(self, tts: CloningTts, models_dir: Path, *, all_voices: bool) -> None:
        super().__init__(tts, models_dir, all_voices=all_voices)
        self._cloning = tts

    async def clone(self, sample: AudioChunk, transcript: str, *, name: str) -> bytes:
        """As the engine does."""
        return await self._cloning.clone(sample, transcript, name=name)

    async def add_voice(self, voice: Voice, data: bytes) -> None:
        """As the engine does."""
        await self._cloning.add_voice(voice, data)

    async def remove_voice(self, voice_id: str) -> None:
        """As the engine does."""
        await self._cloning.remove_voice(voice_id)


def _slices(chunk: SpeechChunk) -> list[tuple[AudioChunk, bool]]:
    """The chunk's audio in parts of half a second, and which is the last; one empty part for an empty chunk."""
    audio = chunk.audio
    step = round(audio.sample_rate * _SLICE_S)
    starts = range(0, max(audio.n_samples, 1), step)
    return [(audio.slice(start, start + step), start == starts[-1]) for start in starts]
