"""The host's side of a slot: what a stream is saying, what it said, and how far ahead of its listener it is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from firered.guards import EndReason, GuardLimits, RunawayGuard
from firered.prompt import CONTINUATION_CUT_FRAMES, Rows, finished_segment
from firered.stream import PieceEnd, SpeechAudio, SpeechStream

if TYPE_CHECKING:
    from firered.segments import TextSegment

SAMPLE_RATE = 24000
FRAME_SAMPLES = 1920  # 80 ms
# The overlap-add of the inverse Fourier transform holds back 15 ms: the first frame lacks them, the tail brings them.
TAIL_SAMPLES = 360


class StreamSlot:
    """A stream that has a slot. `rows` counts the rows of its cache that are settled; frames under way come on top."""

    def __init__(self, stream: SpeechStream, voice_rows: list[Rows], limits: GuardLimits) -> None:
        self.stream = stream
        self.voice_rows = voice_rows
        self.history: list[Rows] = []
        self.rows = 0
        self.n_drawn = 0  # frames drawn in all segments that ended
        self.owes_end_row = False  # the last segment was cut short: its end-of-speech row is not in the cache yet
        self.segment: TextSegment | None = None
        self.n_launched = 0  # frames of the segment
        self._limits = limits
        self._guard = RunawayGuard(1, limits)
        self._codes: list[NDArray[np.int64]] = []
        self._n_piece_frames = 0
        self._tail: NDArray[np.float32] | None = None
        self._played_until_s = -math.inf

    @property
    def n_dropped(self) -> int:
        """Frames at the start of a segment that only repeat the recording's cut end."""
        return CONTINUATION_CUT_FRAMES if self.stream.options.mode == "continuation" else 0

    @property
    def rows_in_flight(self) -> int:
        """Rows of the cache once every launched frame is computed."""
        return self.rows + self.n_launched

    @property
    def n_tokens(self) -> int:
        """Tokens that the codec's slot holds; it starts afresh after the dropped frames."""
        return self.n_launched - (self.n_dropped if self.n_launched >= self.n_dropped else 0)

    @property
    def speaking(self) -> bool:
        """Whether another frame of the segment is to be launched."""
        return self.segment is not None and self.n_launched < self.segment.frame_limit + self.n_dropped

    def lead_s(self, now_s: float) -> float:
        """Seconds of audio that a listener who began with the first sample still has; -inf before it."""
        return self._played_until_s - now_s

    def begin(self, segment: TextSegment, rows: int) -> None:
        """The segment's rows are in the cache, `rows` in all."""
        self.segment, self.rows, self.n_launched, self.owes_end_row = segment, rows, 0, False
        self._guard = RunawayGuard(segment.frame_limit + self.n_dropped, self._limits)
        self._codes, self._tail = [], None

    def take(self, codes: NDArray[np.int64], samples: NDArray[np.float32], now_s: float) -> EndReason | None:
        """Takes the next frame, codes (16,) and samples (2280,), and passes its audio on.

        Gives the reason when the segment ended with this frame; `finish` is next then.
        """
        if not codes.any():
            self._settle(len(self._codes) + 1)  # the model was fed the frame of zeros: that is the end-of-speech row
            return "end_of_speech"
        self._codes.append(codes)
        n_kept = len(self._codes) - self.n_dropped
        if n_kept > 0:
            self._say(samples[TAIL_SAMPLES if n_kept == 1 else 0 : FRAME_SAMPLES], now_s)
            self._tail = samples[FRAME_SAMPLES:]
        reason = self._guard.check(int(codes[0]), samples[:FRAME_SAMPLES])
        if reason is not None:
            self._settle(len(self._codes))
            self.owes_end_row = True
        return reason

    def finish(self, reason: EndReason, now_s: float) -> None:
        """Ends the segment: its tail goes out and it becomes history."""
        assert self.segment is not None
        if self._tail is not None:
            self._say(self._tail, now_s)
        codes = np.array(self._codes, dtype=np.int64).reshape(-1, 16)
        self.history.append(finished_segment(self.segment.rows, codes))
        self._n_piece_frames += max(0, len(codes) - self.n_dropped)
        if self.segment.ends_piece:
            self.stream.emit(PieceEnd(self.segment.piece, self._n_piece_frames, reason))
            self._n_piece_frames = 0
        self.segment = None

    def _settle(self, n_frames: int) -> None:
        """The segment ended after n_frames; frames launched beyond do not count."""
        self.rows, self.n_drawn, self.n_launched = self.rows + n_frames, self.n_drawn + n_frames, 0

    def _say(self, samples: NDArray[np.float32], now_s: float) -> None:
        assert self.segment is not None
        self._played_until_s = max(self._played_until_s, now_s) + len(samples) / SAMPLE_RATE
        self.stream.emit(SpeechAudio(self.segment.piece, samples))
