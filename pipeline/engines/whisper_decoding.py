"""One utterance through openai-whisper, window by window, with a look at the stop flag before every token.

openai-whisper's `transcribe` has no way to stop it and encodes the audio twice to find the language. Here each window
is encoded once; its own `DecodingTask` writes the tokens, with one more filter among its own, which only looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.audio import Samples
from pipeline.engines.base import Transcript, Word
from pipeline.engines.lanes import Stop
from pipeline.engines.whisper_guards import (
    SAMPLE_RATE,
    WINDOW_S,
    goes_on,
    has_pause,
    has_sound,
    is_speech,
    max_new_tokens,
    went_before,
)
from pipeline.engines.whisper_model import import_whisper, tokenizer_of
from pipeline.engines.whisper_words import word_times
from pipeline.errors import EngineFailed

_WINDOW: Final = int(WINDOW_S * SAMPLE_RATE)
_HOP: Final = 160  # samples in a column of the spectrogram
_N_COLUMNS: Final = _WINDOW // _HOP
_MIN_WORD_S: Final = 0.2
_TIMESTAMP: Final = 320  # samples in one step of Whisper's time stamps
# Of a window whose first sentence ends earlier than this nothing more is believed: it would take for ever.
_MIN_STEP: Final = SAMPLE_RATE


class Stopped(Exception):
    """The job was asked to end."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """A model and how it is run. `alignment_heads` are (layer, head), `dtype` is that of the model's matrices."""

    model: Any
    dtype: torch.dtype
    alignment_heads: tuple[tuple[int, int], ...]
    beam_size: int = 1


class _StopFilter:
    """Stands among the filters of logits, which run before every token; changes none."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def apply(self, logits: Tensor, tokens: Tensor) -> None:
        _check(self._stop)


def hear(hearing: Hearing, samples: Samples, language: str | None, words: bool, stop: Stop) -> Transcript:
    """Text, language and words of samples at 16 kHz, float32 (n_samples,); `language` None detects it.

    `Stopped` when `stop` is set; `EngineFailed` when the model gives values that are no numbers.
    """
    texts: list[str] = []
    timed: list[Word] = []
    with torch.inference_mode():
        spectrogram = _spectrogram(hearing, samples)
        # Past one window time stamps tell where the next one begins.
        is_paused = samples.size <= _WINDOW and has_pause(samples, SAMPLE_RATE)
        begin = 0
        while begin < samples.size:
            rest = samples[begin : begin + _WINDOW]
            step = _WINDOW
            if has_sound(rest, SAMPLE_RATE):
                _check(stop)
                features = _encoded(hearing, spectrogram, begin)
                language = language or _language(hearing, features)
                result, step = _decoded(hearing, features, language, rest.size, samples.size, stop)
                if is_speech(
                    result.text,
                    no_speech_prob=result.no_speech_prob,
                    avg_logprob=result.avg_logprob,
                    compression_ratio=result.compression_ratio,
                ):
                    if words or is_paused:
                        _check(stop)
                        found = list(_words(hearing, features, language, result.tokens, min(rest.size, step), begin))
                        if is_paused and begin == 0 and found and went_before(rest, SAMPLE_RATE, found[0].start_s):
                            # the text began after a pause, not with the speech
                            n_missed = int(found[0].start_s * SAMPLE_RATE)
                            missed = hear(hearing, samples[:n_missed], language, words, stop)
                            texts.append(missed.text)
                            timed += missed.words
                        timed += found if words else []
                        end_s = found[-1].end_s - begin / SAMPLE_RATE if found else 0.0
                        if is_paused and end_s >= _MIN_WORD_S and goes_on(rest, SAMPLE_RATE, end_s):
                            step = round(end_s * SAMPLE_RATE)  # a pause ended the text too early
                    texts.append(result.text)
            begin += step
    return Transcript(" ".join(filter(None, texts)), language or "en", tuple(timed))


def _check(stop: Stop) -> None:
    if stop:
        raise Stopped


def _spectrogram(hearing: Hearing, samples: Samples) -> Tensor:
    """Log-mel columns of the samples and a window of silence, (n_mels, n_columns), on the model's device."""
    audio = import_whisper().audio
    spectrogram: Tensor = audio.log_mel_spectrogram(
        torch.tensor(samples), hearing.model.dims.n_mels, padding=_WINDOW, device=hearing.model.device
    )
    return spectrogram


def _encoded(hearing: Hearing, spectrogram: Tensor, begin: int) -> Tensor:
    """What the encoder makes of the window that begins at that sample, (1, 1500, width)."""
    column = begin // _HOP
    window = spectrogram[:, column : column + _N_COLUMNS].to(hearing.dtype)
    features: Tensor = hearing.model.encoder(window[None])
    return features


def _language(hearing: Hearing, features: Tensor) -> str:
    """The most probable language of an encoded window."""
    if not hearing.model.is_multilingual:
        return "en"
    tokenizer = tokenizer_of(hearing.model, "en")
    _, probabilities = import_whisper().decoding.detect_language(hearing.model, features, tokenizer)
    return str(max(probabilities[0], key=probabilities[0].get))


def _decoded(
    hearing: Hearing, features: Tensor, language: str, n_samples: int, n_all: int, stop: Stop
) -> tuple[Any, int]:
    """What Whisper writes for a window with `n_samples` of audio, and the samples after which the next one begins.

    Where all the audio is one window, its end is known. Else time stamps tell how far the last whole sentence goes.
    """
    decoding = import_whisper().decoding
    is_only = n_all <= _WINDOW
    options = decoding.DecodingOptions(
        language=language,
        sample_len=max_new_tokens(n_samples),
        beam_size=hearing.beam_size if hearing.beam_size > 1 else None,
        without_timestamps=is_only,
        fp16=hearing.dtype == torch.float16,
    )
    tokenizer_of(hearing.model, language)  # read without its warning; kept for the task
    task = decoding.DecodingTask(hearing.model, options)
    task.logit_filters.append(_StopFilter(stop))
    result = task.run(features)[0]
    if not math.isfinite(result.avg_logprob) or not math.isfinite(result.no_speech_prob):
        raise EngineFailed("speech recognition gave values that are no numbers", stage="asr", retryable=False)
    if is_only:
        return result, _WINDOW
    return _whole_sentences(result, task.tokenizer)


def _whole_sentences(result: Any, tokenizer: Any) -> tuple[Any, int]:
    """The result without a sentence that the window cuts off, and the samples that the others take.

    Whisper writes <begin> text <end> <begin> text <end> ...; a window that ends in a single stamp, or has no stamp
    between two sentences, is believed whole.
    """
    stamps = [token >= tokenizer.timestamp_begin for token in result.tokens]
    pairs = [i for i in range(1, len(stamps)) if stamps[i - 1] and stamps[i]]
    if not pairs or stamps[-2:] == [False, True]:
        return result, _WINDOW
    kept = result.tokens[: pairs[-1]]
    step = (kept[-1] - tokenizer.timestamp_begin) * _TIMESTAMP
    if step < _MIN_STEP:
        return result, _WINDOW
    return replace(result, tokens=kept, text=tokenizer.decode(kept).strip()), step


def _words(
    hearing: Hearing, features: Tensor, language: str, tokens: list[int], n_samples: int, begin: int
) -> Iterator[Word]:
    """Words with times from the start of the utterance; `n_samples` of the window are theirs."""
    tokenizer = tokenizer_of(hearing.model, language)
    offset = begin / SAMPLE_RATE
    found = word_times(hearing.model, tokenizer, hearing.alignment_heads, features, tokens, n_samples / SAMPLE_RATE)
    for word in found:
        yield replace(word, start_s=round(offset + word.start_s, 2), end_s=round(offset + word.end_s, 2))
