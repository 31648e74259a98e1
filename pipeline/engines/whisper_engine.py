"""What the two Whisper engines share: everything but the library that hears."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final, Generic, Self, TypeVar

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.base import EngineInfo, Transcript
from pipeline.engines.lanes import Lane, Stop
from pipeline.engines.whisper_guards import SAMPLE_RATE, is_audible
from pipeline.errors import EngineNotReady, InvalidInput
from settings import Settings

STAGE: Final = "asr"

Loaded = TypeVar("Loaded")


class WhisperEngine(Generic[Loaded]):
    """Speech of one utterance to text. `model` is Whisper's size: `base`, `tiny.en`, `large-v3` ...

    `path` is a directory with another Whisper; it goes before `model`. `device` is auto, cpu, cuda or cuda:N. An
    engine reads its model in `_read`, tells where it runs in `_device_of`, and hears in `_decode`, all in the lane.
    """

    name: ClassVar[str]

    def __init__(
        self,
        *,
        models_dir: Path,
        model: str,
        path: Path | None,
        threads: int,
        beam_size: int,
        compute_type: str,
        device: str,
    ) -> None:
        self._models_dir, self._path = models_dir, path
        self._model_id = path.name if path else f"whisper-{model}"
        self._threads, self._beam_size = threads, beam_size
        self._compute_type, self._device = compute_type, device
        self._lane = Lane(self.name.replace("_", "-"), 1, stage=STAGE)
        self._loading = asyncio.Lock()
        self._loaded: Loaded | None = None
        self._languages: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Unloaded; reads `models`, `asr` and `system.gpu_device`."""
        asr = settings.asr
        return cls(
            models_dir=settings.models.dir,
            model=settings.models.whisper_model,
            path=asr.path,
            threads=asr.threads,
            beam_size=asr.beam_size,
            compute_type=asr.compute_type,
            device=settings.system.gpu_device if asr.device == "auto" else asr.device,
        )

    @property
    def info(self) -> EngineInfo:
        """`languages` and `device` are complete once loaded."""
        return EngineInfo(
            kind=STAGE,
            name=self.name,
            model=self._model_id,
            device="cpu" if self._loaded is None else self._device_of(self._loaded),
            sample_rate=SAMPLE_RATE,
            languages=self._languages,
        )

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the lane."""
        return self._lane.n_waiting

    async def idle(self) -> None:
        """Return once no step runs."""
        await self._lane.idle()

    async def load(self) -> None:
        """Read the weights and hear one second."""
        async with self._loading:
            if self._loaded is None:
                self._loaded, self._languages = await self._lane.run(self._read)

    async def close(self) -> None:
        """Stop at the next step and drop the weights."""
        await self._lane.close()
        self._loaded, self._languages = None, ()

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """What was said. Text is empty for silence and noise; `InvalidInput` for a language the model does not know."""
        return await self._heard(utterance, language, words=False)

    async def transcribe_words(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """As `transcribe`, with word times: the decoder's attention is aligned with the audio once more."""
        return await self._heard(utterance, language, words=True)

    async def _heard(self, utterance: AudioChunk, language: str | None, *, words: bool) -> Transcript:
        loaded = self._loaded
        if loaded is None:
            raise EngineNotReady("speech recognition is still loading, or was closed", stage=STAGE)
        if len(self._languages) == 1:
            language = self._languages[0]
        elif language is not None and language not in self._languages:
            raise InvalidInput("the speech recogniser does not know this language", param="language")
        return await self._lane.run(lambda stop: self._hear(loaded, utterance, language, words, stop))

    def _hear(self, loaded: Loaded, utterance: AudioChunk, language: str | None, words: bool, stop: Stop) -> Transcript:
        if not is_audible(utterance):
            return Transcript("", language or "en", audio_seconds=utterance.seconds)
        heard = self._decode(loaded, utterance.resampled(SAMPLE_RATE).samples, language, words, stop)
        return replace(heard, audio_seconds=utterance.seconds)

    def _read(self, stop: Stop) -> tuple[Loaded, tuple[str, ...]]:
        """The model, which has heard something, and the codes of the languages it knows. `ConfigError`."""
        raise NotImplementedError

    def _device_of(self, loaded: Loaded) -> str:
        """Where it runs: cpu, cuda or cuda:N."""
        raise NotImplementedError

    def _decode(self, loaded: Loaded, samples: Samples, language: str | None, words: bool, stop: Stop) -> Transcript:
        """Text, language and words of float32 (n_samples,) at 16 kHz, with failures as `EngineError`."""
        raise NotImplementedError
