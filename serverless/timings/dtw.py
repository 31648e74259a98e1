"""Words of any language that espeak-ng speaks: its speech is laid over ours, and its word edges with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.audio import AudioChunk
from serverless.timings.espeak_words import readings, speak
from serverless.timings.mfcc import SAMPLE_RATE, mfcc, path
from serverless.timings.voiced import FRAME_S, frame_levels, speech_frames, voiced_spans, without_pauses
from serverless.timings.words import NotAligned, Span

MAX_SECONDS = 60.0  # memory grows with the square
MAX_TEMPO = 3.5  # how much longer or shorter than espeak's the speech may be


def align(audio: AudioChunk, tokens: Sequence[str], language: str) -> list[Span | None]:
    """Spans of the tokens. `NotAligned` when espeak-ng cannot say them, or takes far longer or shorter over it."""
    if audio.seconds > MAX_SECONDS:
        raise NotAligned(f"the chunk is longer than {MAX_SECONDS:g} s")
    said = readings(tokens, language)
    words = [word for some in said for word in some]
    if not words:
        raise NotAligned("there is nothing to say in the text")
    # Our frames are those that sound; its frames are as many, however fast it speaks.
    times = np.concatenate([np.arange(start + FRAME_S / 2, end, FRAME_S) for start, end in voiced_spans(audio)])
    reference, edges = speak(words, language)
    tempo = reference.seconds / (len(times) * FRAME_S)
    if not 1 / MAX_TEMPO < tempo < MAX_TEMPO:
        raise NotAligned("the speech is far longer or shorter than the text")
    n_frames = len(times)
    there_s = (np.arange(n_frames) + 0.5) * reference.seconds / n_frames
    here = mfcc(audio, times * SAMPLE_RATE)
    there = mfcc(reference, there_s * SAMPLE_RATE)
    matched_s = there_s[path(here, there)]
    # The first frame of ours that matches the word, and the last.
    edges_s = np.array(edges) / reference.sample_rate
    firsts = np.searchsorted(matched_s, edges_s[:-1], side="left")
    lasts = np.searchsorted(matched_s, edges_s[1:], side="left") - 1
    ranges: list[tuple[int, int]] = []
    position = 0
    for some in said:
        if some:
            first = min(int(firsts[position]), n_frames - 1)
            position += len(some)
            last = max(int(lasts[position - 1]), first)
            ranges.append((round(times[first] / FRAME_S - 0.5), round(times[last] / FRAME_S + 0.5)))
    sounding = iter(without_pauses(ranges, speech_frames(frame_levels(audio))))
    spans: list[Span | None] = []
    for some in said:
        start, end = next(sounding) if some else (0, 0)
        spans.append(Span(start * FRAME_S, end * FRAME_S) if some else None)
    return spans
