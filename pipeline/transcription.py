"""Speech of any length to text, stretch by stretch, so that talks get their turn at the recogniser in between."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.audio import AudioChunk
from pipeline.engines.base import Asr, Transcript, Word, WordTimes
from pipeline.errors import EngineTimeout
from pipeline.turn import Waits

# Whisper hears 30 s at once, so this costs one run of its encoder; a second is left for the resampler's rounding.
STRETCH_S = 29.0
# The last part of a stretch, in which the quietest moment is looked for: people pause more often than that.
SEARCH_S = 9.0
_WINDOW_S = 0.2  # a pause between words at least; a shorter window would find the gap within a "t"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the audio, from `start_s` on, and what was said in it. Words are timed from the start of the whole."""

    start_s: float
    end_s: float
    transcript: Transcript


async def transcribe_all(
    asr: Asr, audio: AudioChunk, *, language: str | None, words: bool, waits: Waits
) -> AsyncGenerator[Stretch, None]:
    """What was said, in order. The language is detected at the first words and kept.

    `words` asks for word times, which only a `WordTimes` engine gives. `EngineTimeout` when a stretch takes too long.
    """
    for start_s, stretch in stretches(audio):
        hear = asr.transcribe_words if words and isinstance(asr, WordTimes) else asr.transcribe
        try:
            async with asyncio.timeout(waits.asr_s):
                transcript = await hear(stretch, language=language)
        except TimeoutError as error:
            raise EngineTimeout("speech recognition took too long", stage="asr") from error
        if transcript.text.strip():
            language = language or transcript.language
        moved = tuple(Word(w.text, w.start_s + start_s, w.end_s + start_s) for w in transcript.words)
        yield Stretch(start_s, start_s + stretch.seconds, replace(transcript, words=moved))


def stretches(audio: AudioChunk, max_s: float = STRETCH_S) -> Iterator[tuple[float, AudioChunk]]:
    """The audio cut at quiet moments into parts of at most `max_s`, each with the second at which it starts."""
    rate, start = audio.sample_rate, 0
    while audio.n_samples - start > max_s * rate:
        end = start + round(max_s * rate)
        end = _quietest(audio, end - round(min(SEARCH_S, max_s / 2) * rate), end)
        yield start / rate, audio.slice(start, end)
        start = end
    yield start / rate, audio.slice(start)


def _quietest(audio: AudioChunk, start: int, end: int) -> int:
    """The middle of the quietest window between two samples; of equals the last."""
    window = round(_WINDOW_S * audio.sample_rate)
    n_windows = (end - start) // window
    parts = audio.samples[end - n_windows * window : end].reshape(n_windows, window)
    power = np.square(parts).mean(axis=1)
    last_quietest = n_windows - 1 - int(np.argmin(power[::-1]))
    return end - (n_windows - last_quietest) * window + window // 2


# --- cues: what subtitles and segments are made of

CUE_CHARS, CUE_S = 84, 6.0  # two lines of 42 characters, and the longest that a subtitle stands
CUE_PAUSE_S = 0.8  # a silence after which the next words are another cue
_SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")
_UNSPACED = {"ja", "lo", "my", "th", "yue", "zh"}  # languages that are written without spaces between words


def cues(stretch: Stretch) -> list[Word]:
    """What was said in a stretch, in lines with their times: by words where they are known, else as one."""
    words = stretch.transcript.words
    if not words:
        text = stretch.transcript.text.strip()
        return [Word(text, stretch.start_s, stretch.end_s)] if text else []
    lines: list[list[Word]] = [[]]
    for before, word in itertools.pairwise((words[0], *words)):
        line = lines[-1]
        if line and (
            before.text.endswith(_SENTENCE_ENDS)
            or word.start_s - before.end_s > CUE_PAUSE_S
            or word.end_s - line[0].start_s > CUE_S
            or sum(len(w.text) + 1 for w in line) + len(word.text) > CUE_CHARS
        ):
            lines.append([])
        lines[-1].append(word)
    space = "" if stretch.transcript.language in _UNSPACED else " "
    return [Word(space.join(word.text for word in line), line[0].start_s, line[-1].end_s) for line in lines]
