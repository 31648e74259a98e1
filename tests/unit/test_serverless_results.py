"""What an answer tells of word times and of jobs that failed."""

from __future__ import annotations

import json
import math

import pytest

from serverless.errors import JobError
from serverless.manifests import Manifest
from serverless.results import MAX_INLINE_BYTES, failure_of, status_answer, timing_fields
from serverless.timings import Attempt, TimedWord, WordTimings


def timings(*words: TimedWord) -> WordTimings:
    return WordTimings(words, "phonetic", (Attempt("ctc", None, "no model"),), 0.98765, True, "en")


def test_words_are_told_in_milliseconds_with_their_confidence() -> None:
    fields = timing_fields(timings(TimedWord("Hi,", 0.12345, 0.5, 0.98765), TimedWord("you.", 0.5, 1.0)))
    assert fields == {
        "timing_method_used": "phonetic",
        "language": "en",
        "coverage": 0.9877,
        "approximate": True,
        "word_count": 2,
        "timing_confidence": 0.9877,
        "attempts": [{"method": "ctc", "chunk": None, "error": "no model"}],
        "words": [
            {"word": "Hi,", "start_time": 0.123, "end_time": 0.5, "confidence": 0.9877},
            {"word": "you.", "start_time": 0.5, "end_time": 1.0, "confidence": None},
        ],
    }


def test_words_of_a_long_text_are_in_the_files_only() -> None:
    word = TimedWord("é" * 100, 0.0, 1.0, 0.5)
    one = len(json.dumps(timing_fields(timings(word))["words"][0], ensure_ascii=False).encode())
    fitting = MAX_INLINE_BYTES // (one + 2) - 1
    assert len(timing_fields(timings(*[word] * fitting))["words"]) == fitting
    long = timing_fields(timings(*[word] * (fitting + 3)))
    assert "words" not in long
    assert long["word_count"] == fitting + 3


@pytest.mark.parametrize("confidence", [math.nan, math.inf, -math.inf])
def test_a_confidence_that_is_no_number_is_none_and_costs_no_record(confidence: float) -> None:
    fields = timing_fields(timings(TimedWord("a", 0.0, 1.0, confidence), TimedWord("b", 1.0, 2.0, 0.5)))
    assert fields["words"][0]["confidence"] is None
    assert fields["timing_confidence"] == 0.5
    json.dumps(fields, allow_nan=False)


def manifest(state: str, **fields: object) -> Manifest:
    return Manifest("job-1", state, "f", created_s=1.0, updated_s=2.0, **fields)  # type: ignore[arg-type]


def test_status_tells_what_is_known_and_nothing_of_the_worker() -> None:
    assert status_answer(manifest("QUEUED", worker="w")) == {
        "job_id": "job-1",
        "status": "QUEUED",
        "created_s": 1.0,
        "updated_s": 2.0,
    }
    assert status_answer(manifest("RUNNING", progress={"chunk": 1}))["progress"] == {"chunk": 1}


def test_the_error_of_a_failed_job_is_told_again_as_it_was() -> None:
    error = JobError("OUT_OF_MEMORY", "the card: it is full")
    again = failure_of(manifest("FAILED", error=error.answer()))
    assert (again.code, again.message, again.retryable) == ("OUT_OF_MEMORY", "the card: it is full", True)
    for state in ("QUEUED", "RUNNING"):
        assert (failure_of(manifest(state)).code, failure_of(manifest(state)).retryable) == ("JOB_NOT_DONE", True)
    assert failure_of(manifest("FAILED", error={})).message == "the job failed"
