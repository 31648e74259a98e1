"""What the word timings are made of: times of one word, what was tried, and what may be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pipeline.audio import AudioChunk
from serverless.timings.credentials import GoogleCredentials

METHODS: Final = ("auto", "whisperx", "ctc", "phonetic", "dtw", "google", "estimate")
LANGUAGES: Final = ("en", "fr", "de", "es", "it", "ja", "zh", "nl")

Cancelled = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word as it was written, with its punctuation, and where it sounds, in seconds from the start of the audio.

    `confidence` is between 0 and 1, None where the method gives none.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One method on one chunk (None: on this one and all after it).

    `error` is a short reason without the user's text, None after success.
    """

    method: str
    chunk: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class WordTimings:
    """All words in order: they do not overlap, each ends after it starts, and none lies outside the audio.

    `method` gave most of the words. `coverage` is the share of words whose times were measured in the audio;
    `approximate` is true when some were not.
    """

    words: tuple[TimedWord, ...]
    method: str
    attempts: tuple[Attempt, ...]
    coverage: float
    approximate: bool
    language: str


@dataclass(frozen=True, slots=True)
class Tools:
    """What the chain may use: a directory of CTC models, an account at Google, and the device of the CTC model."""

    ctc_dir: Path | None = None
    google: GoogleCredentials | None = None
    device: str = "cpu"
    google_timeout_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Span:
    """Where one word sounds, in seconds from the start of its chunk."""

    start_s: float
    end_s: float
    confidence: float | None = None


class NotAligned(Exception):
    """A method gave no times; the message is short and holds nothing that the user wrote."""


class Unusable(NotAligned):
    """The same would be said of every other chunk: the method is not tried again for this job."""


class Aligner(Protocol):
    """One method: known words in a chunk of audio."""

    def __call__(self, audio: AudioChunk, tokens: Sequence[str], language: str) -> list[Span | None]:
        """A span for each token, None for one that was not found. `NotAligned` when there is nothing at all."""
