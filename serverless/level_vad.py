"""Speech by its level alone: what is loud in one recording, for judging a recording without a model.

Enough to measure pauses, levels and noise of a file in which somebody is said to speak. It cannot tell speech from
other sound; `pipeline.sample_quality` finds steady sound noisy, because there are no quieter moments in it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.base import EngineInfo

_FRAME_S: Final = 0.02
_LOUD_PERCENTILE: Final = 95
_RANGE_DB: Final = 25.0  # from the loud vowels down to soft consonants


class LevelVad:
    """A VAD for exactly one recording, whose loudest moments set the threshold."""

    def __init__(self, audio: AudioChunk) -> None:
        self.info = EngineInfo(kind="vad", name="level", model="", sample_rate=audio.sample_rate)
        self.frame_samples = round(_FRAME_S * audio.sample_rate)
        n_frames = audio.n_samples // self.frame_samples
        frames = audio.samples[: n_frames * self.frame_samples].reshape(n_frames, self.frame_samples)
        loud = float(np.percentile(_power(frames), _LOUD_PERCENTILE)) if n_frames else 0.0
        self._threshold = max(loud * 10 ** (-_RANGE_DB / 10), 1e-10)

    @property
    def n_waiting(self) -> int:
        """Nothing waits."""
        return 0

    def stream(self) -> LevelVad:
        """There is no state."""
        return self

    def probability(self, frame: Samples) -> float:
        """1 for a loud frame, else 0."""
        return float(_power(frame[None])[0] >= self._threshold)

    def reset(self) -> None:
        """Nothing to forget."""

    async def load(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to close."""


def _power(frames: Samples) -> Samples:
    power: Samples = np.square(frames - frames.mean(axis=1, keepdims=True)).mean(axis=1)
    return power
