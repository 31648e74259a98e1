"""The way in: audio of any rate becomes endpoints and utterances. Plain calls, no queue and no task switch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.audio import AudioChunk, Framer, Resampler, Samples
from pipeline.endpointing import Endpoint, Endpointer, EndpointRules
from pipeline.engines.base import Vad
from pipeline.errors import EngineError, TooLarge
from pipeline.turn import engine_failure


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """An endpoint and, when it ended an utterance, its audio at the VAD's rate."""

    endpoint: Endpoint
    utterance: AudioChunk | None = None


class Listener:
    """One talk's ear. `rules` may be exchanged between frames (the assistant begins to speak, options change)."""

    def __init__(self, vad: Vad, rules: EndpointRules, *, input_rate: int, prefix_s: float, max_utterance_s: float):
        self._engine, self._vad = vad, vad.stream()
        self._is_broken = False  # the VAD failed at the last frame
        self._rate, self._frame_s = vad.info.sample_rate, vad.frame_samples / vad.info.sample_rate
        self._framer = Framer(vad.frame_samples)
        self._endpointer = Endpointer(rules)
        self._resampler = Resampler(input_rate, self._rate)
        self.prefix_s = prefix_s  # kept before the onset
        self._max_s = max_utterance_s
        self._frames: deque[Samples] = deque()  # the open utterance, or what may become its beginning
        self._first_frame_s = 0.0  # audio time of the oldest frame kept
        self.detects = True  # False: hold-to-talk, the client says when an utterance ends

    @property
    def rules(self) -> EndpointRules:
        """What confirms and ends speech."""
        return self._endpointer.rules

    @rules.setter
    def rules(self, rules: EndpointRules) -> None:
        self._endpointer.rules = rules

    @property
    def audio_s(self) -> float:
        """Seconds of audio heard since the talk began."""
        return self._endpointer.audio_s

    @property
    def last_speech_s(self) -> float:
        """Audio time of the end of the last frame of speech."""
        return self._endpointer.last_speech_s

    @property
    def buffered_s(self) -> float:
        """Seconds in the buffer that a commit would take."""
        return len(self._frames) * self._frame_s

    def set_input_rate(self, input_rate: int) -> None:
        """The client changed its rate."""
        if input_rate != self._resampler.from_rate:
            self._resampler = Resampler(input_rate, self._rate)

    def feed(self, chunk: AudioChunk) -> Iterator[Heard]:
        """What the chunk brought about, in order. `TooLarge` when a hold-to-talk buffer is full; the buffer stays.

        `EngineError` when the VAD fails, once until it hears again: it is made anew, the open utterance is lost.
        """
        for frame in self._framer.feed(self._resampler.feed(chunk).samples):
            if not self.detects:
                if self.buffered_s + self._frame_s > self._max_s:
                    raise TooLarge(
                        f"the audio buffer holds {self._max_s:g} s and is full: commit or clear it",
                        code="input_audio_buffer_full",
                    )
                self._frames.append(frame)
                self._endpointer.audio_s += self._frame_s
                continue
            self._keep(frame)  # before the frame that ends the utterance closes it
            endpoint = self._endpointer.feed(self._probability(frame), self._frame_s, _level_db(frame))
            if endpoint is not None:
                yield self._heard(endpoint)
            elif self._endpointer.is_speaking and self.buffered_s >= self._max_s:
                ended = Endpoint("ended", self._endpointer.last_speech_s)
                self._endpointer.reset()
                yield self._heard(ended)

    def _probability(self, frame: Samples) -> float:
        try:
            probability = self._vad.probability(frame)
        except Exception as error:  # boundary: the talk goes on with a fresh ear
            was_broken, self._is_broken = self._is_broken, True
            self._vad = self._engine.stream()
            if was_broken:
                return 0.0
            self.clear()
            if isinstance(error, EngineError):
                raise
            raise engine_failure(error, "vad") from error
        self._is_broken = False
        return probability

    def take(self) -> AudioChunk:
        """The buffered audio as an utterance; the buffer is empty afterwards."""
        utterance = self.so_far
        self.clear()
        return utterance

    @property
    def so_far(self) -> AudioChunk:
        """The audio of the open utterance up to now, with what went before it."""
        samples = np.concatenate(self._frames) if self._frames else np.zeros(0, np.float32)
        return AudioChunk(samples, self._rate)

    def disregard(self) -> None:
        """What was taken for speech is none; its audio may still be what precedes speech."""
        self._endpointer.reset()

    def clear(self) -> None:
        """Forget buffered audio and an open utterance; the left-over of the last chunk goes with it."""
        self._frames.clear()
        self._first_frame_s = self._endpointer.audio_s
        self._endpointer.reset()
        self._framer.clear()

    def _heard(self, endpoint: Endpoint) -> Heard:
        if endpoint.kind == "started":
            self._forget_before(endpoint.at_s - self.prefix_s)
        if endpoint.kind != "ended":
            return Heard(endpoint)
        utterance = self.so_far
        self._frames.clear()
        self._first_frame_s = self._endpointer.audio_s
        self._vad = self._engine.stream()
        return Heard(endpoint, utterance)

    def _keep(self, frame: Samples) -> None:
        if not self._frames:
            self._first_frame_s = self.audio_s
        self._frames.append(frame)
        if not self._endpointer.is_speaking:
            self._forget_before(min(self._endpointer.began_s, self.audio_s) - self.prefix_s)

    def _forget_before(self, audio_s: float) -> None:
        while self._frames and self._first_frame_s + self._frame_s <= audio_s + 1e-9:
            self._frames.popleft()
            self._first_frame_s += self._frame_s


def _level_db(samples: Samples) -> float:
    """RMS in decibels of full scale, -100 at the least."""
    return 10 * math.log10(float(np.dot(samples, samples)) / max(samples.size, 1) + 1e-10)
