"""Long silence before speech, taken away while the speech streams."""

from __future__ import annotations

import numpy as np

from pipeline.audio import Samples

# -40 dB of full scale: breath and room of a clean recording stay below it, every vowel passes it.
AUDIBLE = 0.01
# Kept before the first audible sample: a soft consonant, and a pause that nobody notices between two sentences.
KEPT_S = 0.15


class OnsetTrim:
    """Passes on speech from 0.15 s before its first audible sample; what is silent throughout gives nothing.

    Silence is held back until sound follows, so nothing audible ever waits.
    """

    def __init__(self, sample_rate: int) -> None:
        self._n_kept = round(KEPT_S * sample_rate)
        self._held: Samples | None = np.zeros(0, np.float32)  # None once there was sound

    def feed(self, samples: Samples) -> Samples:
        """What may leave, float32 (n_samples,): often none at first, everything once there was sound."""
        if self._held is None:
            return samples
        held = np.concatenate((self._held, samples))
        loud = np.abs(held) >= AUDIBLE
        if loud.any():
            self._held = None
            return held[max(int(loud.argmax()) - self._n_kept, 0) :]
        self._held = held[-self._n_kept :]
        return held[:0]
