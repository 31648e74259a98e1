"""What of one turn's audio was made, sent and heard.

A turn is more than what its engines do: they make audio many times faster than real time, so when the user interrupts,
they have usually ended while seconds of audio wait. The playout goes on until its audio was played out or cut.

All positions count samples of the turn's audio at the session's output rate; all times are on the session clock.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from pipeline.audio import AudioChunk
from pipeline.engines.base import SpeechPiece, Word
from pipeline.events import ReplyCaption

# A client that reports its playback does so every 100 ms. When it falls silent for this long (a frozen tab, a client
# that reported once), the server's own clock goes on, or the talk would hang.
REPORT_PATIENCE_S = 5.0
# Between two reports the position is assumed to move on for at most this long.
REPORT_GAP_S = 0.25
# How long a piece is expected to be while it is still being made: about 15 characters a second.
SECONDS_PER_CHAR = 1 / 15
# Audio is kept for so long after it was heard: a microphone picks it up late.
KEPT_HEARD_S = 2.0
# The player goes on for so long after a cut, until it is told.
STILL_HEARD_S = 0.2


@dataclass(slots=True)
class Span:
    """Where a piece lies in the turn's audio; `end_sample` is None while it is being made."""

    piece: SpeechPiece
    first_sample: int
    end_sample: int | None = None
    words: list[Word] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class SentFrame:
    """A frame that left, kept until it was heard, so that it can be sent again on a new socket."""

    first_sample: int
    audio: AudioChunk
    caption: ReplyCaption | None = None  # told just before it


class Playout:
    """The audio side of one turn."""

    def __init__(self, turn_id: int, sample_rate: int, *, replay_s: float = 30.0) -> None:
        self.turn_id, self.sample_rate = turn_id, sample_rate
        self.made_samples = 0
        self.sent_samples = 0
        self.finished = False  # no more audio will be made
        self.cut_at: int | None = None  # samples heard when the turn was cut
        self.first_sent_at_s: float | None = None
        self.changed = asyncio.Event()  # set whenever a waiting party should look again
        self.spans: list[Span] = []
        self._reported_samples: int | None = None
        self._anchor_samples, self._anchor_at_s = 0, 0.0  # the server's own playback clock
        self._held = False  # no socket is attached
        self._sent_frames: deque[SentFrame] = deque()
        self._heard_frames: deque[SentFrame] = deque()  # the last ones before them
        self._replay_samples = int(replay_s * sample_rate)

    # --- making

    def begin_piece(self, piece: SpeechPiece) -> None:
        """The next samples belong to `piece`; what came before it is complete."""
        self.end_piece()
        self.spans.append(Span(piece, self.made_samples))

    def add(self, n_samples: int) -> int:
        """Samples were made; gives the position of the first one."""
        first_sample = self.made_samples
        self.made_samples += n_samples
        return first_sample

    def add_words(self, words: tuple[Word, ...]) -> None:
        """Words of the running piece, timed from its start."""
        if self.spans:
            self.spans[-1].words.extend(words)

    def end_piece(self) -> None:
        """The newest piece is complete."""
        if self.spans and self.spans[-1].end_sample is None:
            self.spans[-1].end_sample = self.made_samples

    def finish(self) -> None:
        """No more audio will be made."""
        self.finished = True
        self.changed.set()

    # --- sending

    def lead_s(self, now_s: float) -> float:
        """Seconds of audio that were sent and not yet heard."""
        return (self.sent_samples - self.position(now_s)) / self.sample_rate

    def sent(self, first_sample: int, audio: AudioChunk, now_s: float, caption: ReplyCaption | None = None) -> None:
        """A frame was handed to the socket."""
        if self.first_sent_at_s is None:
            self.first_sent_at_s = now_s
        if self.position(now_s) >= self.sent_samples:  # the player had run dry, or just starts
            self._anchor_samples, self._anchor_at_s = self.sent_samples, now_s
        self.sent_samples = first_sample + audio.n_samples
        self._sent_frames.append(SentFrame(first_sample, audio, caption))
        self._forget_frames(self.sent_samples - self._replay_samples)
        self.changed.set()

    def rewind(self, sample: int, now_s: float) -> list[SentFrame]:
        """Take back the frames from `sample` on, oldest first, to be sent again."""
        frames: list[SentFrame] = []
        while self._sent_frames and self._sent_frames[-1].first_sample + self._sent_frames[-1].audio.n_samples > sample:
            frames.insert(0, self._sent_frames.pop())
        if frames:
            if skip := max(sample - frames[0].first_sample, 0):
                frames[0] = SentFrame(frames[0].first_sample + skip, frames[0].audio.slice(skip))
            self.sent_samples = frames[0].first_sample
            self._anchor_samples, self._anchor_at_s = self.sent_samples, now_s
            if self._reported_samples is not None:
                self._reported_samples = min(self._reported_samples, max(sample, 0))
        return frames

    # --- hearing

    def report(self, played_samples: int, now_s: float) -> None:
        """The client says how many samples it has played."""
        played = min(max(played_samples, self._reported_samples or 0), self.sent_samples)
        self._reported_samples = played
        self._anchor_samples, self._anchor_at_s = played, now_s
        self._forget_frames(played)
        self.changed.set()

    def position(self, now_s: float) -> int:
        """Samples heard by now: the client's report, else the server's clock; never more than were sent."""
        elapsed_s = 0.0 if self._held else max(now_s - self._anchor_at_s, 0.0)
        if self._reported_samples is not None and elapsed_s < REPORT_PATIENCE_S:
            elapsed_s = min(elapsed_s, REPORT_GAP_S)
        return min(self._anchor_samples + int(elapsed_s * self.sample_rate), self.sent_samples)

    def hold(self, now_s: float) -> None:
        """No socket is attached: nobody hears anything until `go_on`."""
        self._anchor_samples, self._held = self.position(now_s), True

    def go_on(self, now_s: float) -> None:
        """A socket is attached again."""
        self._anchor_at_s, self._held = now_s, False
        self.changed.set()

    def cut(self, now_s: float) -> int:
        """End the playout here; gives the samples that were heard."""
        if self.cut_at is None:
            self.cut_at = self.position(now_s)
            self.finished = True
            self._forget_frames(self.cut_at + int(STILL_HEARD_S * self.sample_rate))
            self._sent_frames.clear()
            self.changed.set()
        return self.cut_at

    def forget_sent(self) -> None:
        """Nothing will be sent again."""
        self._forget_frames(self.sent_samples)

    def forget_heard(self) -> None:
        """Its echo has died away."""
        self._heard_frames.clear()

    def around(self, now_s: float, before_s: float, after_s: float) -> AudioChunk:
        """What sounds from so long before now to so long after it, as far as it was sent; silence around it."""
        now, rate = self.position(now_s), self.sample_rate
        start, end = now - int(before_s * rate), now + int(after_s * rate)
        samples = np.zeros(end - start, np.float32)
        for frame in itertools.chain(self._heard_frames, self._sent_frames):
            first = max(frame.first_sample, start)
            last = min(frame.first_sample + frame.audio.n_samples, end)
            if first < last:
                samples[first - start : last - start] = frame.audio.samples[
                    first - frame.first_sample : last - frame.first_sample
                ]
        return AudioChunk(samples, rate)

    def is_done(self, now_s: float) -> bool:
        """Cut, or made, sent and heard to the end."""
        if self.cut_at is not None:
            return True
        return self.finished and self.sent_samples == self.made_samples and self.position(now_s) >= self.made_samples

    def seconds_left(self, now_s: float) -> float:
        """Seconds until all that was sent will have been heard."""
        return max(self.sent_samples - self.position(now_s), 0) / self.sample_rate

    def ahead_s(self, now_s: float) -> float:
        """Seconds of audio that were made and not yet heard."""
        return max(self.made_samples - self.position(now_s), 0) / self.sample_rate

    def heard_chars(self, position: int, reply: str) -> int:
        """How many characters of `reply` were heard when `position` samples were: only wholly played words count."""
        heard = 0
        for span in self.spans:
            if position <= span.first_sample:
                break
            if span.end_sample is not None and position >= span.end_sample:
                heard = span.piece.reply_end
                continue
            heard = max(heard, self._heard_in(span, position, reply))
            break
        return min(heard, len(reply))

    def _heard_in(self, span: Span, position: int, reply: str) -> int:
        start, end = span.piece.reply_start, span.piece.reply_end
        word_ends = _word_ends(reply[start:end])
        played_s = (position - span.first_sample) / self.sample_rate
        if span.words:
            n_words = sum(word.end_s <= played_s for word in span.words)
            share = n_words / len(span.words)
            n_whole = int(share * len(word_ends))
        else:
            made_s = (self.made_samples - span.first_sample) / self.sample_rate
            if span.end_sample is not None:
                total_s = (span.end_sample - span.first_sample) / self.sample_rate
            else:
                total_s = max(made_s, len(span.piece.spoken) * SECONDS_PER_CHAR)
            share = played_s / total_s if total_s else 0.0
            n_whole = sum(word_end <= share * (end - start) for word_end in word_ends)
        return start + word_ends[n_whole - 1] if n_whole else start

    def _forget_frames(self, before_sample: int) -> None:
        sent, heard = self._sent_frames, self._heard_frames
        while sent and sent[0].first_sample + sent[0].audio.n_samples <= before_sample:
            heard.append(sent.popleft())
        while heard and heard[0].first_sample < heard[-1].first_sample - KEPT_HEARD_S * self.sample_rate:
            heard.popleft()


def _word_ends(text: str) -> list[int]:
    """Offsets just behind each word of `text`."""
    return [i for i in range(1, len(text) + 1) if not text[i - 1].isspace() and (i == len(text) or text[i].isspace())]
