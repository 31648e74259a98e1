"""Ends a segment that runs away: too long for its text, silent, or going round in circles."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

EndReason = Literal["end_of_speech", "frame_limit", "silence", "repetition"]


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """When a segment is ended. One frame is 80 ms.

    Pauses of a second are natural speech (a full stop, a breath); silence of `silent_frames`, 3.2 s, is not. A loop is
    the same sequence of codebook-0 codes `loop_rounds` times in a row, `loop_frames` or more in all; sampling with
    temperature makes that practically impossible by chance.
    """

    silent_frames: int = 40
    silence_rms: float = 1e-3  # -60 dBFS: below the noise floor of the quietest prompt that is accepted
    loop_frames: int = 40
    loop_rounds: int = 4
    longest_loop: int = 25


class RunawayGuard:
    """Watches the frames of one segment."""

    def __init__(self, frame_limit: int, limits: GuardLimits) -> None:
        self._frame_limit, self._limits = frame_limit, limits
        self._n_frames = self._n_silent = 0
        longest = max(limits.longest_loop * limits.loop_rounds, limits.loop_frames)
        self._codes: deque[int] = deque(maxlen=longest)

    def check(self, code: int, samples: NDArray[np.float32]) -> EndReason | None:
        """Takes a frame's codebook-0 code and its samples (n,); a reason when the segment has to end with it."""
        self._n_frames += 1
        self._codes.append(code)
        silent = float(np.sqrt(np.mean(np.square(samples)))) < self._limits.silence_rms
        self._n_silent = self._n_silent + 1 if silent else 0
        if self._n_frames >= self._frame_limit:
            return "frame_limit"
        if self._n_silent >= self._limits.silent_frames:
            return "silence"
        # A look at every tenth frame finds a loop 0.8 s late at most, for a tenth of the work.
        if self._n_frames % 10 == 0 and self._loops():
            return "repetition"
        return None

    def _loops(self) -> bool:
        codes = np.array(self._codes)
        return any(self._repeats(codes, period) for period in range(1, self._limits.longest_loop + 1))

    def _repeats(self, codes: NDArray[np.int64], period: int) -> bool:
        n = max(period * self._limits.loop_rounds, self._limits.loop_frames)
        tail = codes[-n:]
        return len(tail) == n and bool((tail[period:] == tail[:-period]).all())
