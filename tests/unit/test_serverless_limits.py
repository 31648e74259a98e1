"""How long a job may run: deadlines on a clock of the test, the flag, and who the model works for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.errors import EngineFailed
from serverless.errors import JobError
from serverless.limits import Limits, Occupant, seconds_allowed


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        (None, 300),
        ({}, 300),
        ({"executionTimeout": 5000}, 5),
        ({"executionTimeout": 2500.0}, 2.5),
        ({"executionTimeout": 600_000}, 300),
        ({"executionTimeout": 0}, 300),
        ({"executionTimeout": -1}, 300),
        ({"executionTimeout": math.nan}, 300),
        ({"executionTimeout": math.inf}, 300),
        ({"executionTimeout": 10**400}, 300),
        ({"executionTimeout": -(10**400)}, 300),
        ({"executionTimeout": True}, 300),
        ({"executionTimeout": "5000"}, 300),
        ("policy", 300),
    ],
)
def test_the_shorter_of_policy_and_setting_counts(policy: Any, seconds: float) -> None:
    assert seconds_allowed({"policy": policy}, 300) == seconds
    assert seconds_allowed({}, 300) == 300


def test_a_job_is_over_at_its_deadline_or_when_it_is_stopped() -> None:
    clock = Clock()
    limits, stopped = Limits(60, clock), Limits(60, clock)
    assert (limits.is_over(), limits.left_s) == (False, 60)
    stopped.stop()
    assert stopped.is_over()
    clock.now += 59.9
    assert not limits.is_over()
    clock.now += 0.1
    assert limits.is_over()


@pytest.mark.parametrize(("seconds", "margin"), [(10, 1.0), (300, 5.0)])
def test_what_can_be_left_out_stops_a_little_before_the_deadline(seconds: float, margin: float) -> None:
    clock = Clock()
    limits = Limits(seconds, clock)
    clock.now += seconds - margin - 0.1
    assert not limits.is_nearly_over()
    clock.now += 0.2
    assert limits.is_nearly_over()
    assert not limits.is_over()
    clock.now += limits.left_for_extras_s
    assert limits.left_s == pytest.approx(margin / 2)  # for the rest


def test_what_stopped_because_the_time_was_up_is_a_timeout() -> None:
    clock = Clock()
    limits, cancelled = Limits(60, clock), JobError("CANCELLED", "the job was cancelled")
    assert limits.failure(cancelled) is cancelled
    assert limits.failure(TimeoutError()).code == "INTERNAL"  # another clock's than the job's
    clock.now += 61
    assert limits.failure(cancelled).code == "TIMEOUT"
    assert limits.failure(TimeoutError()).code == "TIMEOUT"
    assert limits.failure(EngineFailed("no", stage="tts")).code == "INTERNAL"


def test_a_model_that_works_on_for_a_job_that_is_over_is_seen() -> None:
    limits, occupant = Limits(60, Clock()), Occupant()
    assert occupant.overdue() is None
    with occupant.of(limits):
        assert occupant.overdue() is None
        limits.stop()
        assert occupant.overdue() is limits
    assert occupant.overdue() is None
