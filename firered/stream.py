"""A stream of speech, as its caller sees it: text goes in piece by piece, audio comes out frame by frame."""

from __future__ import annotations

import logging
import queue
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from firered.errors import FireRedError, InputError
from firered.guards import EndReason
from firered.voice import VoicePrompt

if TYPE_CHECKING:
    from firered.segments import Segmenter, TextSegment

logger = logging.getLogger(__name__)

_SEED_LIMIT = 2**32
# Enough to ride out any hiccup on the way to the listener; what an interruption throws away is not more than this.
DEFAULT_MAX_LEAD_S = 3.0


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a stream speaks.

    `voices` by speaker tag (`[S1]`..`[S4]`), none for a random voice. Mode "dialogue" keeps what was said as context;
    "continuation" speaks each piece as the continuation of the one voice's recording, without context. `temperature`
    and `top_k` act on codebook 0; upstream's README speaks dialogues with 0.9 and 30. `seed` (None: any) repeats the
    audio. `greedy` takes the most likely codes. `max_lead_s`: seconds of audio made ahead of real time, None for no
    limit.
    """

    voices: Mapping[str, VoicePrompt] = field(default_factory=lambda: MappingProxyType({}))
    mode: Literal["dialogue", "continuation"] = "dialogue"
    temperature: float = 0.9
    top_k: int = 30
    seed: int | None = None
    greedy: bool = False
    max_lead_s: float | None = DEFAULT_MAX_LEAD_S

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= 10:
            raise InputError(f"temperature must be above 0 and at most 10, not {self.temperature} (greedy=True for 0)")
        if self.top_k < 1:
            raise InputError(f"top_k must be at least 1, not {self.top_k}")
        if self.seed is not None and not 0 <= self.seed < _SEED_LIMIT:
            raise InputError(f"a seed is a whole number from 0 to {_SEED_LIMIT - 1}, not {self.seed}")
        if self.max_lead_s is not None and not self.max_lead_s > 0:
            raise InputError(f"max_lead_s must be above 0, not {self.max_lead_s}")
        if self.mode == "continuation" and len(self.voices) != 1:
            raise InputError("continuation needs exactly one voice")


@dataclass(frozen=True, slots=True, eq=False)
class SpeechAudio:
    """Audio of a piece: `samples` (n,) float32 at 24 kHz. A frame's 1920; 1560 for the first, 360 for the tail."""

    piece: int
    samples: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PieceEnd:
    """The piece is spoken: after `n_frames` frames, which may be none, and why it ended there."""

    piece: int
    n_frames: int
    reason: EndReason


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """Nothing comes after this."""

    cancelled: bool


@dataclass(frozen=True, slots=True)
class StreamFailed:
    """The stream broke; nothing comes after this."""

    error: FireRedError


StreamEvent = SpeechAudio | PieceEnd | StreamEnd | StreamFailed


class SpeechStream:
    """One stream. Its methods may be called from any thread; events come to `sink` on the engine's thread.

    Without a sink the events wait in the stream: iterate over it. Iteration ends with the stream, raises when it fails.
    """

    def __init__(
        self,
        options: StreamOptions,
        segmenter: Segmenter,
        wake: Callable[[], None],
        sink: Callable[[StreamEvent], None] | None = None,
    ) -> None:
        self.options = options
        self.seed = secrets.randbits(32) if options.seed is None else options.seed
        self.segments: deque[TextSegment] = deque()  # to be spoken; the engine takes from the left
        self.text_ended = False
        self.cancelled = False
        self._segmenter, self._wake = segmenter, wake
        self._events: queue.SimpleQueue[StreamEvent] = queue.SimpleQueue()
        self._sink = self._events.put if sink is None else sink
        self._n_pieces = 0

    def add_text(self, text: str, speaker: str = "[S1]") -> int:
        """Queues a piece of text, at best a sentence or clause. Returns its number, from 0.

        Raises InputError for text without anything to speak, for an unknown speaker, and after `end`.
        """
        if self.text_ended or self.cancelled:
            raise InputError("the stream takes no more text")
        segments = self._segmenter.split(text, speaker, piece=self._n_pieces, options=self.options)
        self._n_pieces += 1
        self.segments.extend(segments)
        self._wake()
        return self._n_pieces - 1

    def end(self) -> None:
        """No more text follows; the stream ends when all is spoken."""
        self.text_ended = True
        self._wake()

    def cancel(self) -> None:
        """Stops at the next frame. Audio that was not delivered is dropped."""
        self.cancelled = True
        self._wake()

    def emit(self, event: StreamEvent) -> None:
        """For the engine's thread. A sink that raises ends its own stream, not the thread that speaks for all."""
        try:
            self._sink(event)
        except Exception:
            logger.exception("the sink of a stream failed: the stream is cancelled")
            self.cancelled = True

    def __iter__(self) -> Iterator[StreamEvent]:
        """Events up to and including StreamEnd; raises the error of a StreamFailed. Iterating again finds the end."""
        while True:
            event = self._events.get()
            if isinstance(event, StreamEnd | StreamFailed):
                self._events.put(event)
            if isinstance(event, StreamFailed):
                raise event.error
            yield event
            if isinstance(event, StreamEnd):
                return
