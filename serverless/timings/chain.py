"""Which method times which chunk: the methods are tried in order, and the last of them cannot fail."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from pipeline.audio import AudioChunk
from pipeline.errors import VoicepodError
from serverless.errors import JobError
from serverless.timings import ctc, dtw, estimate, google, phonetic
from serverless.timings.order import filled, in_order
from serverless.timings.tokens import language_of, words_of
from serverless.timings.voiced import FLOOR_DB, frame_levels
from serverless.timings.words import (
    Aligner,
    Attempt,
    Cancelled,
    NotAligned,
    Span,
    TimedWord,
    Tools,
    Unusable,
    WordTimings,
)

if TYPE_CHECKING:
    from serverless.speech import SpokenChunk

MAX_SHARE_GUESSED = 0.5  # of a chunk's words; a method that leaves more to guessing has not understood it
T = TypeVar("T")
MAX_WEIGHT_PER_S = 120.0  # of `estimate.weight`; fast speech is 40
_logger = structlog.get_logger(__name__)


def time_words(
    audio: AudioChunk,
    chunks: Sequence[SpokenChunk],
    *,
    method: str,
    language: str | None,
    tools: Tools,
    cancelled: Cancelled,
) -> WordTimings:
    """When each word of the chunks' texts sounds in the audio. Blocking; `cancelled` is asked between chunks.

    A chunk that a method cannot do goes down the chain alone. `JobError` (CANCELLED) is all that is raised.
    """
    text = " ".join(chunk.text for chunk in chunks)
    spoken_language = language.lower().replace("_", "-").split("-")[0] if language else _detected(text)
    order = methods_for(method, spoken_language, tools)
    began = time.perf_counter()
    attempts: list[Attempt] = []
    texts: list[str] = []
    spans: list[Span] = []
    n_by_method: Counter[str] = Counter()
    n_measured = 0
    for index, chunk in enumerate(chunks):
        if cancelled():
            raise JobError("CANCELLED", "the job was cancelled")
        tokens = _words(chunk.text, spoken_language)
        start_s = min(max(chunk.start_s, 0.0), audio.seconds)
        end_s = min(max(chunk.end_s, start_s), audio.seconds)
        if not tokens:
            continue
        used, found = _chunk(_cut(audio, start_s, end_s), tokens, spoken_language, order, index, attempts, tools)
        measured = [span for span in found if span is not None] if used != "estimate" else []
        n_measured += len(measured)
        n_by_method[used] += len(tokens)
        guesses = [s for s in estimate.align(_cut(audio, start_s, end_s), tokens, spoken_language) if s is not None]
        whole = filled(found, guesses, 0.0, end_s - start_s)
        texts += tokens
        spans += [Span(start_s + s.start_s, min(start_s + s.end_s, end_s), s.confidence) for s in whole]
    words = tuple(
        TimedWord(text, span.start_s, span.end_s, span.confidence)
        for text, span in zip(texts, in_order(spans, audio.seconds), strict=False)
    )
    coverage = n_measured / len(texts) if texts else 1.0
    used = n_by_method.most_common(1)[0][0] if n_by_method else "estimate"
    _logger.info(
        "timings.done",
        method=used,
        language=spoken_language,
        n_words=len(words),
        coverage=round(coverage, 3),
        n_attempts=len(attempts),
        seconds=round(time.perf_counter() - began, 3),
    )
    return WordTimings(words, used, tuple(attempts), coverage, n_measured < len(texts), spoken_language)


def methods_for(method: str, language: str, tools: Tools) -> list[str]:
    """The methods in the order they are tried; the one that was asked for comes first, `estimate` last.

    Google is paid for and leaves the machine: it is used when it was asked for, or configured and nothing else worked.
    For English `dtw` comes after `phonetic`, for voices too far from human ones, as those of espeak-ng itself are.
    """
    if method == "estimate":
        return ["estimate"]
    order = [
        "ctc",
        *(["phonetic"] if language == "en" else []),
        "dtw",
        *(["google"] if tools.google else []),
        "estimate",
    ]
    if method in ("phonetic", "dtw", "google"):
        order = [method, *(other for other in order if other != method)]
    return order


def _chunk(
    audio: AudioChunk,
    tokens: Sequence[str],
    language: str,
    order: list[str],
    index: int,
    attempts: list[Attempt],
    tools: Tools,
) -> tuple[str, list[Span | None]]:
    aligners = _aligners(tools)
    is_silent = not (frame_levels(audio) > FLOOR_DB).any()
    for name in tuple(order):
        try:
            if is_silent and name != "estimate":
                raise NotAligned("the chunk is silent")
            if name != "estimate" and sum(map(estimate.weight, tokens)) > MAX_WEIGHT_PER_S * audio.seconds:
                raise NotAligned("the text is too long for the audio")
            found = aligners[name](audio, tokens, language)
            if sum(span is None for span in found) > MAX_SHARE_GUESSED * len(tokens):
                raise NotAligned("too few words were found")
        except Unusable as error:
            attempts.append(Attempt(name, None, str(error)))
            order.remove(name)
        except NotAligned as error:
            attempts.append(Attempt(name, index, str(error)))
        except VoicepodError as error:
            attempts.append(Attempt(name, index, error.message))
        except Exception as error:
            # The audio is made and paid for: no fault of a library may lose it.
            _logger.warning("timings.method_failed", method=name, error=type(error).__name__)
            attempts.append(Attempt(name, index, f"failed inside ({type(error).__name__})"))
        else:
            attempts.append(Attempt(name, index, None))
            return name, found
    raise AssertionError("the estimate cannot fail")


def _aligners(tools: Tools) -> dict[str, Aligner]:
    return {
        "ctc": partial(ctc.align, directory=tools.ctc_dir, device=tools.device),
        "phonetic": phonetic.align,
        "dtw": dtw.align,
        "google": partial(google.align, credentials=tools.google, timeout_s=tools.google_timeout_s),
        "estimate": estimate.align,
    }


def _cut(audio: AudioChunk, start_s: float, end_s: float) -> AudioChunk:
    return audio.slice(round(start_s * audio.sample_rate), round(end_s * audio.sample_rate))


def _detected(text: str) -> str:
    return _or(lambda: language_of(text), "en", "timings.no_detector")


def _words(text: str, language: str) -> list[str]:
    return _or(lambda: words_of(text, language), text.split(), "timings.no_segmenter")


def _or(call: Callable[[], T], otherwise: T, event: str) -> T:
    """What the call gives, or the other thing when a library it needs is missing or fails."""
    try:
        return call()
    except Exception as error:
        _logger.warning(event, error=type(error).__name__)
        return otherwise
