"""Tells the talker from speech in the background, such as a television, by its level. Pure, in audio time."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import numpy as np

# Speech so far below the talker's level may be the background's; what is so far above the background's level is not.
# A talker's weak syllables are as weak, but not for half a second, and who speaks low for longer had seldom spoken as
# low just before (docs/measurements.md).
FAR_DB: Final = 10.0
# It is the background's when there was so much of it just before what the talker said, and shortly after it again.
# A television hardly pauses; a talker who speaks low, loudly and low again does (docs/measurements.md).
BELIEVED_S: Final = 0.6
JUST_BEFORE_S: Final = 1.3
SHORTLY_S: Final = 2.5
BRIEF_S: Final = 0.3  # a talker's weak syllables are seldom longer
# What the talker says goes on over shorter gaps, and has syllables as loud as the talker's level less so much.
GAP_S: Final = 1.0
LOUD_DB: Final = 4.0
SAID_S: Final = 1.0  # so much of it, at the least: a cough or a shout among the talker's own lower words is shorter
REMEMBERED_S: Final = 20.0  # the background, since it was heard last
HISTORY_S: Final = 60.0
# A level follows the loud syllables, and falls with time, for people who move away or speak lower.
RISE_S: Final = 0.3
FALL_DB_PER_S: Final = 0.5


class Foreground:
    """The talker's level, and whether somebody else speaks far below it."""

    def __init__(self) -> None:
        self.has_background = False
        self._talker_db = -math.inf
        self._background_db = -math.inf
        self._near_ago_s = math.inf
        self._far_s = 0.0  # of speech since the talker was heard
        self._background_ago_s = 0.0
        self._levels: deque[float] = deque()  # of each frame; -inf of what is no speech

    def is_talker(self, level_db: float, frame_s: float, *, is_speech: bool, is_utterance: bool) -> bool:
        """Account for one frame: whether it is speech near the talker's level, which is learned within utterances.

        Speech that is not is the background's only if there `has_background`.
        """
        self._levels.append(level_db if is_speech else -math.inf)
        if len(self._levels) * frame_s > HISTORY_S:
            self._levels.popleft()
        self._talker_db -= FALL_DB_PER_S * frame_s
        self._background_db -= FALL_DB_PER_S * frame_s
        self._near_ago_s += frame_s
        self._background_ago_s += frame_s
        self.has_background = self.has_background and self._background_ago_s < REMEMBERED_S
        if not is_speech:
            return False
        bar_db = self._talker_db - FAR_DB
        if self.has_background:
            bar_db = min(bar_db, self._background_db + FAR_DB)
        if level_db >= bar_db:
            self._near_ago_s = self._far_s = 0.0
            if is_utterance:
                self._talker_db = _followed(self._talker_db, level_db, frame_s)
            return True
        self._far_s += frame_s
        if self._far_s >= BRIEF_S:
            self._background_db = _followed(self._background_db, level_db, frame_s)
        if self._far_s >= BELIEVED_S and (self.has_background or self._was_there_before(frame_s)):
            self.has_background, self._background_ago_s = True, 0.0
        return False

    def _was_there_before(self, frame_s: float) -> bool:
        """Whether speech that is far now was heard before the talker's last words too, which were not long ago."""
        if self._near_ago_s > SHORTLY_S:
            return False
        levels = np.array(self._levels)
        near = np.flatnonzero(levels >= self._talker_db - FAR_DB)
        gaps = np.diff(near, prepend=-1)
        after_gaps = np.flatnonzero(gaps * frame_s > GAP_S)
        if not after_gaps.size:
            return False
        begin = near[after_gaps[-1]]  # of the talker's last words
        if levels[begin:].max() < self._talker_db - LOUD_DB or (near >= begin).sum() * frame_s < SAID_S:
            return False
        before = levels[begin - gaps[after_gaps[-1]] + 1 : begin][-round(JUST_BEFORE_S / frame_s) :]
        return bool(np.isfinite(before).sum() * frame_s >= BELIEVED_S)


def _followed(loud_db: float, level_db: float, frame_s: float) -> float:
    """The level of loud syllables after one more frame."""
    if math.isinf(loud_db):
        return level_db
    return loud_db + max(0.0, level_db - loud_db) * min(1.0, frame_s / RISE_S)
