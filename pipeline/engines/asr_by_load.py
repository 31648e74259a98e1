"""Two speech recognisers: the one that was chosen, and a light one on the CPU that hears while the card is pressed."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.audio import AudioChunk
from pipeline.engines.base import Asr, EngineInfo, Transcript, WordTimes, create_engine
from settings import Settings


class AsrByLoad:
    """`chosen`, and `light` instead while `is_pressed()`. It is known by the name of the chosen one."""

    def __init__(self, chosen: Asr, light: Asr, is_pressed: Callable[[], bool]) -> None:
        self._chosen, self._light, self._is_pressed = chosen, light, is_pressed

    @property
    def info(self) -> EngineInfo:
        """Of the chosen one."""
        return self._chosen.info

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for either."""
        return self._chosen.n_waiting + self._light.n_waiting

    async def load(self) -> None:
        """Both, the light one first."""
        await self._light.load()
        await self._chosen.load()

    async def close(self) -> None:
        """Both."""
        await self._chosen.close()
        await self._light.close()

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """By the one whose turn it is. A language that only the chosen one knows is always heard by that."""
        asr = self._light if self._light_knows(language) and self._is_pressed() else self._chosen
        return await asr.transcribe(utterance, language=language)

    def _light_knows(self, language: str | None) -> bool:
        """A model of one language takes everything for that one, so it finds none out."""
        known = self._light.info.languages
        if language is None:
            return len(known) != 1 or known == self._chosen.info.languages
        return language in known


class WordTimesAsrByLoad(AsrByLoad):
    """The same, where the chosen one can tell when words were said; that it always does itself."""

    async def transcribe_words(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """By the chosen one: who asks for times reads a file, and nobody waits for it in a talk."""
        assert isinstance(self._chosen, WordTimes)
        return await self._chosen.transcribe_words(utterance, language=language)


def with_light_model(chosen: Asr, settings: Settings, is_pressed: Callable[[], bool]) -> Asr:
    """`chosen` itself where `asr.light_model` names nothing."""
    if settings.asr.light_model is None:
        return chosen
    models = settings.models.model_copy(update={"whisper_model": settings.asr.light_model})
    asr = settings.asr.model_copy(update={"device": "cpu", "compute_type": "int8", "path": None})
    light: Asr = create_engine("asr", "faster_whisper", settings.model_copy(update={"models": models, "asr": asr}))
    kind = WordTimesAsrByLoad if isinstance(chosen, WordTimes) else AsrByLoad
    return kind(chosen, light, is_pressed)
