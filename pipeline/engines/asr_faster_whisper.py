"""Whisper through faster-whisper (CTranslate2): one utterance at a time, int8 on a CPU, int8_float16 on a card.

PyAV stays out. faster-whisper imports it to decode files, which this project never asks of it, and PyAV's wheel brings
libx264 and libx265, which are GPL. An empty module stands in for it while faster-whisper is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.audio import Samples
from pipeline.engines.base import Transcript, Word
from pipeline.engines.ctranslate2_device import load_cublas, resolved_device, runnable_type, supported_types
from pipeline.engines.lanes import Stop
from pipeline.engines.out_of_memory import is_out_of_memory
from pipeline.engines.stand_in import in_place_of
from pipeline.engines.whisper_engine import WhisperEngine
from pipeline.engines.whisper_guards import (
    MAX_NO_SPEECH,
    MIN_AVG_LOGPROB,
    SAMPLE_RATE,
    WINDOW_S,
    goes_on,
    has_pause,
    is_speech,
    max_new_tokens,
    went_before,
)
from pipeline.engines.whisper_weights import layout_of
from pipeline.errors import ConfigError, EngineError, EngineFailed, OutOfMemory
from pipeline.models import locate

if TYPE_CHECKING:
    from faster_whisper import WhisperModel


class FasterWhisperAsr(WhisperEngine["WhisperModel"]):
    """`path` is in CTranslate2's layout. A `compute_type` that the device has not is replaced by the nearest."""

    name = "faster_whisper"

    def _read(self, stop: Stop) -> tuple[WhisperModel, tuple[str, ...]]:
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
        return whisper, tuple(whisper.supported_languages)

    def _device_of(self, loaded: WhisperModel) -> str:
        kind: str = loaded.model.device
        return f"cuda:{loaded.model.device_index[0]}" if kind == "cuda" else kind

    def _decode(
        self, loaded: WhisperModel, samples: Samples, language: str | None, words: bool, stop: Stop
    ) -> Transcript:
        parts: list[str] = []
        timed: list[Word] = []
        is_only = samples.size <= WINDOW_S * SAMPLE_RATE
        is_paused = is_only and has_pause(samples, SAMPLE_RATE)
        try:
            segments, language = _segments(loaded, samples, language, words or is_paused, self._beam_size)
            if is_only:
                segments = _of_one_window(segments, loaded, samples)
            for number, segment in enumerate(segments):  # decoded as they are asked for
                if stop:
                    break
                start_s = segment.words[0].start if number == 0 and segment.words else 0.0
                if is_paused and went_before(samples, SAMPLE_RATE, start_s):
                    # the text began after a pause, not with the speech
                    missed = self._decode(loaded, samples[: int(start_s * SAMPLE_RATE)], language, words, stop)
                    parts.append(missed.text)
                    timed += missed.words
                if is_speech(
                    segment.text,
                    no_speech_prob=segment.no_speech_prob,
                    avg_logprob=segment.avg_logprob,
                    compression_ratio=segment.compression_ratio,
                ):
                    parts.append(segment.text.strip())
                    if words:
                        timed += [Word(w.word.strip(), float(w.start), float(w.end)) for w in segment.words or ()]
        except EngineError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory("speech recognition ran out of memory", stage="asr") from error
            raise EngineFailed("speech recognition failed", stage="asr") from error
        return Transcript(" ".join(filter(None, parts)), language, tuple(timed))


def _segments(
    whisper: WhisperModel, samples: Samples, language: str | None, words: bool, beam_size: int
) -> tuple[Iterator[Any], str]:
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


def _of_one_window(segments: Iterator[Any], whisper: WhisperModel, samples: Samples) -> Iterator[Any]:
    """The segments of one window, and of what follows them where there is sound that they do not account for.

    With word times faster-whisper hears what follows the last word once more, as a window of its own: twice or three
    times the work for the silence after a sentence. All that was heard at once is in one segment, unless time stamps,
    which were not asked for, divide it. But a pause may have ended it too early.
    """
    begin = whisper.hf_tokenizer.token_to_id("<|notimestamps|>")
    for segment in segments:
        yield segment
        is_divided = any(token > begin for token in segment.tokens)
        end_s = segment.words[-1].end if segment.words else segment.end
        if not is_divided and not goes_on(samples, SAMPLE_RATE, end_s):
            return


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
    with in_place_of(ModuleType("av", "Stands in for PyAV, which is not to be loaded.")):
        import faster_whisper
    module: ModuleType = faster_whisper
    return module
