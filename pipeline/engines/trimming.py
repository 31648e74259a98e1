"""The silence around a synthesised piece, replaced by the pause that its last mark asks for."""

from __future__ import annotations

import numpy as np

from pipeline.audio import Samples

SILENCE_DB = -45.0  # below the loudest window; Kokoro's own breath and room lie under it, soft consonants above
WINDOW_S = 0.01
MARGIN_S = 0.03  # kept around the speech, so that no soft onset is cut
FADE_S = 0.005  # long enough not to click

PAUSE_AFTER_SENTENCE_S, PAUSE_AFTER_CLAUSE_S, PAUSE_AFTER_WORD_S = 0.2, 0.1, 0.03


def pause_after(text: str) -> float:
    """Seconds of silence that the end of `text` (words or phonemes) asks for."""
    last = text.rstrip(" \"'”’)")[-1:]
    if last in (".", "!", "?", "…"):
        return PAUSE_AFTER_SENTENCE_S
    return PAUSE_AFTER_CLAUSE_S if last in (",", ";", ":", "—") else PAUSE_AFTER_WORD_S


def trimmed(samples: Samples, sample_rate: int, *, pause_s: float) -> Samples:
    """`samples` from just before the first sound to just after the last, then `pause_s` of silence in all.

    Float32 (n_samples,) in and out; nothing but silence gives an empty array.
    """
    window = round(WINDOW_S * sample_rate)
    n_windows = -(-samples.size // window)
    padded = np.zeros(n_windows * window, np.float32)
    padded[: samples.size] = samples
    power = np.square(padded.reshape(n_windows, window)).mean(axis=1)
    loud = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (SILENCE_DB / 10))
    if not loud.size:
        return np.zeros(0, np.float32)
    margin = round(MARGIN_S * sample_rate)
    start = max(int(loud[0]) * window - margin, 0)
    end = min((int(loud[-1]) + 1) * window + margin, samples.size)
    fade = np.linspace(0.0, 1.0, min(round(FADE_S * sample_rate), (end - start) // 2), dtype=np.float32)
    out = np.zeros(end - start + max(round(pause_s * sample_rate) - margin, 0), np.float32)
    out[: end - start] = samples[start:end]
    out[: fade.size] *= fade
    out[end - start - fade.size : end - start] *= fade[::-1]
    return out
