"""Where there is sound: energy of 10 ms frames against the loudest and the quietest of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import AudioChunk

FRAME_S = 0.01
QUIETER_DB = 38.0  # below the loud frames; soft consonants are about 30 dB down
ABOVE_NOISE_DB = 6.0
CLEAR_OF_NOISE_DB = 9.0
CERTAIN_DB = 25.0  # what is less far below the loud frames is speech, whatever the noise
FLOOR_DB = -70.0
MIN_PAUSE_S = 0.12  # a stop consonant closes for up to 0.1 s
MIN_SOUND_S = 0.03
PAUSE_FRAMES = round(MIN_PAUSE_S / FRAME_S)


def frame_levels(audio: AudioChunk) -> NDArray[np.float32]:
    """Level of each whole 10 ms frame in dB of full scale, float32 (n_frames,)."""
    n = round(FRAME_S * audio.sample_rate)
    n_frames = audio.n_samples // n
    frames = audio.samples[: n_frames * n].reshape(n_frames, n).astype(np.float64)
    power = np.mean(frames**2, axis=1) if n_frames else np.zeros(0)
    return (10 * np.log10(power + 1e-12)).astype(np.float32)


def loud_frames(levels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which frames may hold sound of a word, bool (n_frames,): for cutting silence off, so in doubt it is sound."""
    if not levels.size:
        return np.zeros(0, np.bool_)
    loud, quiet = float(np.percentile(levels, 95)), float(np.percentile(levels, 5))
    threshold = max(loud - QUIETER_DB, FLOOR_DB)
    if quiet + ABOVE_NOISE_DB < loud - 15:  # else there is no pause to measure the noise in
        threshold = max(threshold, quiet + ABOVE_NOISE_DB)
    return np.asarray(levels > threshold)


def speech_frames(levels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which frames stand out of the noise, bool (n_frames,): for finding pauses in a noisy recording."""
    if not levels.size:
        return np.zeros(0, np.bool_)
    loud, quiet = float(np.percentile(levels, 95)), float(np.percentile(levels, 10))
    threshold = min(max(quiet + CLEAR_OF_NOISE_DB, loud - QUIETER_DB), loud - CERTAIN_DB)
    return np.asarray(levels > max(threshold, FLOOR_DB))


def voiced_spans(audio: AudioChunk) -> list[tuple[float, float]]:
    """Stretches of sound in seconds, in order, at least `MIN_PAUSE_S` apart; the whole chunk when all is silent."""
    spans = [[a * FRAME_S, b * FRAME_S] for a, b in runs(speech_frames(frame_levels(audio)))]
    merged: list[list[float]] = []
    for start, end in spans:
        if merged and start - merged[-1][1] < MIN_PAUSE_S:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    kept = [(start, end) for start, end in merged if end - start >= MIN_SOUND_S]
    return kept or [(0.0, audio.seconds)]


def runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open index ranges in which the flags are true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def without_pauses(frames: Sequence[tuple[int, int]], loud: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Each word's frames without the silence at its ends.

    A word has no pause inside: what sounds on the shorter side of one is the end of the word before it, or noise.
    """
    sounding: list[tuple[int, int]] = []
    for start, end in frames:
        parts: list[tuple[int, int]] = []
        for a, b in runs(loud[start:end]):
            if parts and a - parts[-1][1] < PAUSE_FRAMES:
                parts[-1] = (parts[-1][0], b)
            else:
                parts.append((a, b))
        longest = max(parts, key=lambda part: part[1] - part[0], default=(0, end - start))
        if parts and longest != parts[0] and parts[0][0] == 0 and sounding and sounding[-1][1] == start:
            sounding[-1] = (sounding[-1][0], start + parts[0][1])
        sounding.append((start + longest[0], start + longest[1]))
    return sounding
