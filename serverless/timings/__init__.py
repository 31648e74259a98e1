"""When each word of a known text sounds in the speech that was made from it."""

from __future__ import annotations

from serverless.timings.chain import time_words
from serverless.timings.credentials import GoogleCredentials, read_credentials
from serverless.timings.words import LANGUAGES, METHODS, Attempt, TimedWord, Tools, WordTimings

__all__ = [
    "LANGUAGES",
    "METHODS",
    "Attempt",
    "GoogleCredentials",
    "TimedWord",
    "Tools",
    "WordTimings",
    "read_credentials",
    "time_words",
]
