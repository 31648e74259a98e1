"""The best path of a known sequence of labels through the emissions of a CTC model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

STAR = -1  # matches whatever sounds: the best label but the blank


def best_path(emissions: NDArray[np.float32], labels: Sequence[int], blank: int) -> list[tuple[int, int, float]] | None:
    """For each label its first frame, the frame after its last, and the mean probability in between.

    `emissions` are log probabilities (n_frames, n_labels). A label may last for several frames, blanks may stand
    between labels and must stand between two equal ones. None when there are too few frames.
    """
    n_frames, n = len(emissions), len(labels)
    n_needed = n + sum(a == b for a, b in pairwise(labels))
    if not n or n_frames < n_needed:
        return None
    sounding = np.array(emissions, np.float64)
    sounding[:, blank] = -np.inf
    scores = np.empty((n_frames, 2 * n + 1))
    scores[:, 0::2] = emissions[:, [blank]]
    for i, label in enumerate(labels):
        scores[:, 2 * i + 1] = sounding.max(axis=1) if label == STAR else emissions[:, label]
    may_skip = np.zeros(2 * n + 1, bool)  # from one label to the next without a blank
    may_skip[3::2] = [a != b for a, b in pairwise(labels)]
    came_by = np.zeros((n_frames, 2 * n + 1), np.int8)  # 0 stayed, 1 from the state before, 2 skipped a blank
    best = np.full(2 * n + 1, -np.inf)
    best[:2] = scores[0, :2]
    for t in range(1, n_frames):
        ways = np.stack((best, np.append(-np.inf, best[:-1]), np.append([-np.inf] * 2, best[:-2])))
        ways[2, ~may_skip] = -np.inf
        came_by[t] = ways.argmax(axis=0)
        best = ways.max(axis=0) + scores[t]
    state = int(2 * n - 1 if best[2 * n - 1] >= best[2 * n] else 2 * n)
    if not np.isfinite(best[state]):
        return None
    states = np.zeros(n_frames, np.int64)
    for t in range(n_frames - 1, -1, -1):
        states[t] = state
        state -= int(came_by[t, state])
    out = []
    for i in range(n):
        frames = np.flatnonzero(states == 2 * i + 1)
        probability = float(np.exp(scores[frames, 2 * i + 1]).mean())
        out.append((int(frames[0]), int(frames[-1]) + 1, probability))
    return out
