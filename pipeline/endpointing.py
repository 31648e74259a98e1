"""When an utterance begins and ends: a pure state machine in audio time. No clock, no I/O.

It is fed one speech probability per frame and counts the seconds of audio itself, so files can be fed faster than
real time and tests are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.foreground import Foreground

# Speech goes on while the probability is above threshold minus this (hysteresis, as in Silero's own iterator).
HYSTERESIS = 0.15
# A VAD lets go slowly: below the threshold itself the voice has been fading for about this long (two Silero frames).
FADE_S = 0.064
# A dip of at most this long does not restart the count of speech before an utterance is confirmed.
DIP_S = 0.1


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """`threshold` is a probability; `min_speech_s` of it confirms speech; `end_wait_s` of silence ends it.

    A turn detector's score at or above `turn_score` ends a pause after `sure_wait_s` already.
    """

    threshold: float = 0.5
    min_speech_s: float = 0.12
    end_wait_s: float = 0.6
    turn_score: float = 0.5
    sure_wait_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A change: `at_s` is the audio time it is about (onset, or end of speech), not the time it was noticed."""

    kind: Literal["started", "paused", "resumed", "ended"]
    at_s: float


class Endpointer:
    """Silence, then perhaps speech, then speech, then a pause, then the end."""

    def __init__(self, rules: EndpointRules) -> None:
        self.rules = rules
        self.audio_s = 0.0
        self._speaking = False
        self._onset_s: float | None = None
        self._speech_s = 0.0  # confirmed so far, before "started"
        self._last_speech_s = 0.0  # end of the last frame that was speech
        self._foreground = Foreground()
        self._last_talker_s = 0.0  # the same, without speech far below the talker's level
        self._paused = False
        self._score: float | None = None

    @property
    def is_speaking(self) -> bool:
        """Whether an utterance is open."""
        return self._speaking

    @property
    def began_s(self) -> float:
        """Audio time from which sound may belong to an utterance that is not confirmed yet; now, if there is none."""
        return self.audio_s if self._onset_s is None else self._onset_s

    @property
    def last_speech_s(self) -> float:
        """Audio time at the end of the last frame of speech."""
        return self._last_speech_s

    def turn_score(self, score: float) -> None:
        """A turn detector's verdict on the running pause; forgotten when speech goes on."""
        self._score = score

    def reset(self) -> None:
        """Forget an open utterance; audio time goes on."""
        self._speaking = self._paused = False
        self._onset_s, self._speech_s, self._score = None, 0.0, None

    def feed(self, probability: float, frame_s: float, level_db: float = 0.0) -> Endpoint | None:
        """Account for one frame; gives the change that it caused, if any.

        `level_db` tells the talker's speech from the background's, which is taken for silence once it is known.
        """
        start_s, self.audio_s = self.audio_s, self.audio_s + frame_s
        is_clear = probability >= self.rules.threshold
        is_speech = is_clear or (self._speaking and probability >= self.rules.threshold - HYSTERESIS)
        if is_speech:
            self._last_speech_s = self.audio_s if is_clear else max(self._last_speech_s, self.audio_s - FADE_S)
        if self._foreground.is_talker(level_db, frame_s, is_speech=is_speech, is_utterance=self._speaking):
            self._last_talker_s = self._last_speech_s
        elif self._foreground.has_background:
            is_speech, self._last_speech_s = False, min(self._last_speech_s, self._last_talker_s)
        if self._speaking:
            return self._during_speech(is_speech, frame_s)
        return self._before_speech(is_speech, start_s, frame_s)

    def _before_speech(self, is_speech: bool, start_s: float, frame_s: float) -> Endpoint | None:
        if not is_speech:
            if self._onset_s is not None and self.audio_s - self._last_speech_s > DIP_S:
                self._onset_s, self._speech_s = None, 0.0
            return None
        if self._onset_s is None:
            self._onset_s = start_s
        self._speech_s += frame_s
        if self._speech_s + 1e-9 < self.rules.min_speech_s:
            return None
        onset_s = self._onset_s
        self._last_talker_s = max(self._last_talker_s, onset_s)
        self._speaking, self._onset_s, self._speech_s = True, None, 0.0
        return Endpoint("started", onset_s)

    def _during_speech(self, is_speech: bool, frame_s: float) -> Endpoint | None:
        if is_speech:
            self._score = None
            if self._paused:
                self._paused = False
                return Endpoint("resumed", self.audio_s)
            return None
        if not self._paused:
            self._paused = True
            return Endpoint("paused", self._last_speech_s)
        silence_s = self.audio_s - self._last_speech_s
        sure = self._score is not None and self._score >= self.rules.turn_score
        wait_s = min(self.rules.sure_wait_s, self.rules.end_wait_s) if sure else self.rules.end_wait_s
        if silence_s + frame_s / 2 + 1e-9 < wait_s:  # the nearest whole number of frames
            return None
        end_s = self._last_speech_s
        self.reset()
        return Endpoint("ended", end_s)
