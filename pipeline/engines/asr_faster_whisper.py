"""Whisper through faster-whisper (CTranslate2): one utterance at a time, int8 on a CPU, int8_float16 on a card.

PyAV stays out. faster-whisper imports it to decode files, which this project never asks of it, and PyAV's wheel brings
libx264 and libx265, which are GPL. An empty module stands in for it while faster-whisper is imported.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.base import EngineInfo, Transcript, Word
from pipeline.engines.ctranslate2_device import load_cublas, resolved_device, runnable_type, supported_types
from pipeline.engines.lanes import Lane, Stop
from pipeline.engines.whisper_guards import (
    MAX_NO_SPEECH,
    MIN_AVG_LOGPROB,
    SAMPLE_RATE,
    WINDOW_S,
    is_audible,
    is_speech,
    max_new_tokens,
)
from pipeline.engines.whisper_weights import layout_of
from pipeline.errors import ConfigError, EngineError, EngineFailed, EngineNotReady, InvalidInput, OutOfMemory
from pipeline.models import locate
from settings import Settings

if TYPE_CHECKING:
    from faster_whisper import WhisperModel


class FasterWhisperAsr:
    """Speech of one utterance to text. `model` is Whisper's size: `base`, `tiny.en` ...

    `path` is a directory with another Whisper in CTranslate2's layout; it goes before `model`. `device` is auto, cpu,
    cuda or cuda:N. A `compute_type` that the device has not is replaced by the nearest (`ctranslate2_device.py`).
    """

    def __init__(
        self,
        *,
        models_dir: Path,
        model: str = "base",
        path: Path | None = None,
        threads: int = 2,
        beam_size: int = 1,
        compute_type: str = "int8",
        device: str = "auto",
    ) -> None:
        self._models_dir, self._path = models_dir, path
        self._model_id = path.name if path else f"whisper-{model}"
        self._threads, self._beam_size = threads, beam_size
        self._compute_type, self._device = compute_type, device
        self._lane = Lane("faster-whisper", 1, stage="asr")
        self._loading = asyncio.Lock()
        self._whisper: WhisperModel | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> FasterWhisperAsr:
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
            kind="asr",
            name="faster_whisper",
            model=self._model_id,
            device=_device_of(self._whisper) if self._whisper else "cpu",
            sample_rate=SAMPLE_RATE,
            languages=tuple(self._whisper.supported_languages) if self._whisper else (),
        )

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the lane."""
        return self._lane.n_waiting

    async def idle(self) -> None:
        """Return once no step runs."""
        await self._lane.idle()

    async def load(self) -> None:
        """Read the weights and hear one second of silence."""
        async with self._loading:
            if self._whisper is None:
                self._whisper = await self._lane.run(self._read)

    async def close(self) -> None:
        """Stop after the running window and drop the weights."""
        await self._lane.close()
        self._whisper = None

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """What was said. Text is empty for silence and noise; `InvalidInput` for a language the model does not know."""
        return await self._heard(utterance, language, words=False)

    async def transcribe_words(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """As `transcribe`, with word times: the decoder's attention is aligned with the audio once more."""
        return await self._heard(utterance, language, words=True)

    async def _heard(self, utterance: AudioChunk, language: str | None, *, words: bool) -> Transcript:
        whisper = self._whisper
        if whisper is None:
            raise EngineNotReady("speech recognition is still loading, or was closed", stage="asr")
        if whisper.model.is_multilingual:
            if language is not None and language not in whisper.supported_languages:
                raise InvalidInput("the speech recogniser does not know this language", param="language")
        else:
            language = "en"
        return await self._lane.run(lambda stop: self._hear(whisper, utterance, language, words, stop))

    def _read(self, stop: Stop) -> WhisperModel:
        directory = _own(self._path) if self._path else locate(self._models_dir, self._model_id)
        kind, number = resolved_device(self._device, setting="asr.device")
        if kind == "cuda":
            load_cublas()
        try:
            whisper = _import_faster_whisper().WhisperModel(
                str(directory),
                device=kind,
                device_index=number,
                compute_type=runnable_type(self._compute_type, kind, supported_types(kind, number)),
                cpu_threads=self._threads,
                local_files_only=True,
            )
        except Exception as error:
            raise ConfigError(f"the model {self._model_id} in {directory} cannot be loaded: {error}") from error
        try:
            self._decode(whisper, np.zeros(SAMPLE_RATE, np.float32), "en", False, stop)
        except EngineError as error:
            raise ConfigError(f"the model {self._model_id} does not work on {kind}: {error.message}") from error
        loaded: WhisperModel = whisper
        return loaded

    def _hear(
        self, whisper: WhisperModel, utterance: AudioChunk, language: str | None, words: bool, stop: Stop
    ) -> Transcript:
        if not is_audible(utterance):
            return Transcript("", language or "en", audio_seconds=utterance.seconds)
        heard = self._decode(whisper, utterance.resampled(SAMPLE_RATE).samples, language, words, stop)
        return replace(heard, audio_seconds=utterance.seconds)

    def _decode(
        self, whisper: WhisperModel, samples: Samples, language: str | None, words: bool, stop: Stop
    ) -> Transcript:
        """Text, language and words; samples float32 (n_samples,) at 16 kHz."""
        parts: list[str] = []
        timed: list[Word] = []
        try:
            segments, language = _segments(whisper, samples, language, words, self._beam_size)
            for segment in segments:  # decoded as they are asked for
                if stop:
                    break
                if is_speech(
                    segment.text,
                    no_speech_prob=segment.no_speech_prob,
                    avg_logprob=segment.avg_logprob,
                    compression_ratio=segment.compression_ratio,
                ):
                    parts.append(segment.text.strip())
                    timed += [Word(w.word.strip(), float(w.start), float(w.end)) for w in segment.words or ()]
        except MemoryError as error:
            raise OutOfMemory("speech recognition ran out of memory", stage="asr") from error
        except EngineError:
            raise
        except Exception as error:
            if "out of memory" in str(error).lower():  # what CTranslate2 says for a full card
                raise OutOfMemory("speech recognition ran out of memory", stage="asr") from error
            raise EngineFailed("speech recognition failed", stage="asr") from error
        return Transcript(" ".join(parts).strip(), language, tuple(timed))


def _segments(
    whisper: WhisperModel, samples: Samples, language: str | None, words: bool, beam_size: int
) -> tuple[Iterable[Any], str]:
    """Segments, decoded as they are asked for, and the language that was given or detected."""
    segments, info = whisper.transcribe(
        samples,
        language=language or "en",
        beam_size=beam_size,
        temperature=0.0,
        no_speech_threshold=MAX_NO_SPEECH,
        log_prob_threshold=MIN_AVG_LOGPROB,
        condition_on_previous_text=False,
        max_new_tokens=max_new_tokens(samples.size),
        # Past one window Whisper needs its time stamps to know where the next one begins.
        without_timestamps=samples.size <= WINDOW_S * SAMPLE_RATE,
        word_timestamps=words,
    )
    if language is not None:
        return segments, language
    # `transcribe(language=None)` runs the encoder twice, which is most of the time of a short utterance. Here one run
    # serves both the language and the text; what `transcribe` gave above is only its options, nothing has run yet.
    from faster_whisper.audio import pad_or_trim
    from faster_whisper.tokenizer import Tokenizer

    features = whisper.feature_extractor(samples)
    n_frames = min(whisper.feature_extractor.nb_max_frames, features.shape[-1] - 1)
    encoded = whisper.encode(pad_or_trim(features[:, :n_frames]))
    best_token, _ = whisper.model.detect_language(encoded)[0][0]
    detected = str(best_token).strip("<|>")
    tokenizer = Tokenizer(whisper.hf_tokenizer, True, task="transcribe", language=detected)
    return whisper.generate_segments(features, tokenizer, info.transcription_options, False, encoded), detected


def _device_of(whisper: WhisperModel) -> str:
    kind: str = whisper.model.device
    return f"cuda:{whisper.model.device_index[0]}" if kind == "cuda" else kind


def _own(directory: Path) -> Path:
    """`asr.path`, or a ConfigError when it is not a model that faster-whisper reads without the network."""
    if layout_of(directory) != "ctranslate2":
        raise ConfigError(
            "asr.path holds a Whisper of Hugging Face; faster_whisper reads those of CTranslate2. Set asr.engine to "
            "whisper, or convert it with ct2-transformers-converter"
        )
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise ConfigError(f"asr.path holds no {name}, which belongs to a CTranslate2 Whisper")
    return directory


def _import_faster_whisper() -> ModuleType:
    """faster-whisper, with an empty module in PyAV's place while it is imported."""
    absent = object()
    real = sys.modules.get("av", absent)
    sys.modules["av"] = ModuleType("av", "Stands in for PyAV, which is not to be loaded.")
    try:
        import faster_whisper
    finally:
        if isinstance(real, ModuleType):
            sys.modules["av"] = real
        else:
            del sys.modules["av"]
    module: ModuleType = faster_whisper
    return module
