"""Whisper through faster-whisper (CTranslate2): one utterance at a time, int8 on the CPU.

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
from pipeline.engines.lanes import Lane, Stop
from pipeline.errors import ConfigError, EngineError, EngineFailed, EngineNotReady, InvalidInput, OutOfMemory
from pipeline.models import locate
from settings import Settings

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

SAMPLE_RATE = 16_000
WINDOW_S = 30.0  # what Whisper hears at once

# Whisper invents text for silence and noise ("Thank you.", "No, no, no, ..."). The guards, from cheap to dear:
FLOOR_DB = -55.0  # the loudest 100 ms of the utterance must pass this (full scale = 0) or the model is not asked
TOKENS_PER_S, MIN_TOKENS, MAX_TOKENS = 10.0, 24, 220  # fast speech is 5 tokens/s; a loop of noise would run to 448
MAX_NO_SPEECH = 0.6  # unless the average log-probability is good; both thresholds as in the Whisper paper, section 4.5
MIN_AVG_LOGPROB = -1.0
# Where Whisper half doubts that anyone spoke. Of the test clips, speech has -0.46 and more, a dog's bark -0.94.
MIN_AVG_LOGPROB_DOUBTED = -0.7
# Text that zips this well is one phrase again and again: an invention where Whisper itself half doubts that anyone
# spoke (a dog: 4.1 and 0.47), and always beyond what people repeat (a sentence said three times: 3.2 and 0.02).
MAX_COMPRESSION, MAX_COMPRESSION_EVER, DOUBTED_SPEECH = 2.4, 6.0, 0.2


class FasterWhisperAsr:
    """Speech of one utterance to text. `model` is Whisper's size: `base`, `tiny.en` ..."""

    def __init__(
        self,
        *,
        models_dir: Path,
        model: str = "base",
        threads: int = 2,
        beam_size: int = 1,
        compute_type: str = "int8",
        device: str = "auto",
    ) -> None:
        self._models_dir, self._model_id = models_dir, f"whisper-{model}"
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
            device=self._whisper.model.device if self._whisper else "cpu",
            sample_rate=SAMPLE_RATE,
            languages=tuple(self._whisper.supported_languages) if self._whisper else (),
        )

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the lane."""
        return self._lane.n_waiting

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
        directory = locate(self._models_dir, self._model_id)
        device, _, index = _resolve(self._device).partition(":")
        try:
            whisper = _import_faster_whisper().WhisperModel(
                str(directory),
                device=device,
                device_index=int(index or 0),
                compute_type=self._compute_type,
                cpu_threads=self._threads,
                local_files_only=True,
            )
        except Exception as error:
            raise ConfigError(f"the model {self._model_id} in {directory} cannot be loaded: {error}") from error
        self._decode(whisper, np.zeros(SAMPLE_RATE, np.float32), "en", False, stop)
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
                if _is_speech(segment):
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


def is_audible(utterance: AudioChunk) -> bool:
    """Whether any 100 ms of the utterance are louder than `FLOOR_DB`."""
    window = max(utterance.sample_rate // 10, 1)
    n_windows = utterance.n_samples // window
    if not n_windows:
        return False
    power = np.square(utterance.samples[: n_windows * window].reshape(n_windows, window)).mean(axis=1)
    return bool(power.max() > 10 ** (FLOOR_DB / 10))


def _segments(
    whisper: WhisperModel, samples: Samples, language: str | None, words: bool, beam_size: int
) -> tuple[Iterable[Any], str]:
    """Segments, decoded as they are asked for, and the language that was given or detected."""
    max_new_tokens = min(MIN_TOKENS + int(TOKENS_PER_S * samples.size / SAMPLE_RATE), MAX_TOKENS)
    segments, info = whisper.transcribe(
        samples,
        language=language or "en",
        beam_size=beam_size,
        temperature=0.0,
        no_speech_threshold=MAX_NO_SPEECH,
        log_prob_threshold=MIN_AVG_LOGPROB,
        condition_on_previous_text=False,
        max_new_tokens=max_new_tokens,
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


def _is_speech(segment: Any) -> bool:
    """Whether a segment that Whisper itself let pass is worth a turn."""
    is_doubted = segment.no_speech_prob > DOUBTED_SPEECH
    if segment.avg_logprob < (MIN_AVG_LOGPROB_DOUBTED if is_doubted else MIN_AVG_LOGPROB):
        return False
    if segment.compression_ratio > (MAX_COMPRESSION if is_doubted else MAX_COMPRESSION_EVER):
        return False
    return any(char.isalnum() for char in segment.text)


def _resolve(device: str) -> str:
    if device != "auto":
        return device
    import ctranslate2

    return "cuda" if ctranslate2.get_cuda_device_count() else "cpu"


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
