"""What can happen to a job of the local RunPod, on a clock of our own."""

from __future__ import annotations

from typing import Any

import pytest

from serverless.devserver.client_routes import Rate
from serverless.devserver.job import Job
from serverless.devserver.jobs import Jobs, JobUnknown, NotRetryable, QueueFull
from serverless.devserver.limits import Limits


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def finished() -> list[Job]:
    return []


@pytest.fixture
def jobs(clock: Clock, finished: list[Job]) -> Jobs:
    return Jobs(Limits(kept_bytes=1000, stream_items=3, stream_bytes=50), clock=clock, finished=finished.append)


def submit(jobs: Jobs, n_bytes: int = 10, **more: Any) -> Job:
    return jobs.submit({"input": {"a": 1}}, n_bytes=n_bytes, n_workers=1, **more)


def test_jobs_are_taken_in_the_order_they_came(jobs: Jobs) -> None:
    first, second, third = submit(jobs), submit(jobs), submit(jobs)
    assert jobs.take("w", 2) == [first, second]
    assert jobs.take("w", 2) == [third]
    assert jobs.take("w", 2) == []


def test_times_are_those_of_the_last_attempt(jobs: Jobs, clock: Clock) -> None:
    job = submit(jobs)
    assert "delayTime" not in jobs.view(job)
    clock.now_s += 2
    jobs.take("one")
    clock.now_s += 3
    jobs.worker_gone("one", "it died")
    clock.now_s += 4
    jobs.take("two")
    clock.now_s += 5
    jobs.done("two", job.id, {"output": 1}, 10)
    view = jobs.view(job)
    assert (view["delayTime"], view["executionTime"], view["workerId"], view["retries"]) == (4000, 5000, "two", 1)


def test_the_job_of_a_dead_worker_goes_before_those_that_wait(jobs: Jobs) -> None:
    first, second = submit(jobs), submit(jobs)
    jobs.take("w")
    jobs.worker_gone("w", "it died")
    assert jobs.take("x", 2) == [first, second]


def test_the_second_death_is_the_end_and_a_retry_begins_anew(jobs: Jobs, finished: list[Job]) -> None:
    job = submit(jobs)
    for worker in ("one", "two"):
        jobs.take(worker)
        jobs.worker_gone(worker, "it died")
    assert (job.state, job.error) == ("FAILED", "job timed out after 1 retries: it died")
    assert finished == [job]
    jobs.retry(job.id)
    assert jobs.view(job) == {"id": job.id, "status": "IN_QUEUE"}
    jobs.take("three")
    jobs.worker_gone("three", "it died")
    assert job.state == "IN_QUEUE"


def test_a_result_of_who_no_longer_has_the_job_is_dropped(jobs: Jobs) -> None:
    job = submit(jobs)
    jobs.take("one")
    jobs.worker_gone("one", "it was silent")
    jobs.take("two")
    jobs.done("one", job.id, {"output": "late"}, 10)
    jobs.progress("one", job.id, "late", 4)
    jobs.stream("one", job.id, "late", 4)
    assert (job.state, job.output, len(job.items)) == ("IN_PROGRESS", None, 0)
    jobs.done("two", job.id, {"output": "right"}, 10)
    jobs.done("two", job.id, {"output": "again"}, 10)
    assert job.output == "right"


def test_a_cancelled_job_is_stopped_once_and_its_result_is_dropped(jobs: Jobs) -> None:
    job = submit(jobs)
    jobs.take("w")
    jobs.progress("w", job.id, {"percent": 50}, 10)
    jobs.cancel(job.id)
    assert (jobs.stops("w"), jobs.stops("w")) == ([job.id], [])
    jobs.done("w", job.id, {"output": 1}, 10)
    assert jobs.view(job)["status"] == "CANCELLED"
    assert "output" not in jobs.view(job)
    with pytest.raises(NotRetryable):
        jobs.retry(job.id)


def test_results_are_kept_for_their_time(jobs: Jobs, clock: Clock) -> None:
    kept = {submit(jobs): 1800, submit(jobs, sync=True): 60, submit(jobs, sync=True, kept_s=300.0): 300}
    for job in jobs.take("w", 3):
        jobs.done("w", job.id, {"output": 1}, 10)
    passed = 0.0
    for job, kept_s in sorted(kept.items(), key=lambda item: item[1]):
        clock.now_s += kept_s - passed
        jobs.sweep()
        assert jobs.get(job.id) is job
        clock.now_s += 1
        passed = kept_s + 1
        jobs.sweep()
        with pytest.raises(JobUnknown):
            jobs.get(job.id)


def test_time_runs_out_waiting_and_running(jobs: Jobs, clock: Clock) -> None:
    running, waiting = submit(jobs, execution_timeout_s=5.0), submit(jobs, ttl_s=20.0)
    jobs.take("w")
    clock.now_s += 6
    jobs.sweep()
    assert (running.state, running.error, waiting.state) == ("TIMED_OUT", "executionTimeout exceeded", "IN_QUEUE")
    clock.now_s += 15
    jobs.sweep()
    assert (waiting.state, waiting.error) == ("TIMED_OUT", "ttl exceeded")
    assert not jobs.has_queued()
    assert jobs.stops("w") == [running.id]


def test_the_time_to_live_ends_running_jobs_too_and_a_retry_starts_it_anew(jobs: Jobs, clock: Clock) -> None:
    job = submit(jobs, ttl_s=20.0)
    jobs.take("w")
    clock.now_s += 21
    jobs.sweep()
    assert jobs.view(job)["status"] == "TIMED_OUT"
    jobs.retry(job.id)
    jobs.sweep()
    assert jobs.view(job)["status"] == "IN_QUEUE"


def test_old_results_make_room_and_then_new_jobs_are_refused(jobs: Jobs) -> None:
    old = submit(jobs, 100)
    jobs.take("w")
    jobs.done("w", old.id, {"output": "x"}, 500)
    submit(jobs, 400)
    submit(jobs, 400)  # the old result goes
    with pytest.raises(JobUnknown):
        jobs.get(old.id)
    with pytest.raises(QueueFull):
        submit(jobs, 400)
    assert jobs.counts()["inQueue"] == 2


def test_a_queue_has_an_end(clock: Clock) -> None:
    jobs = Jobs(Limits(), clock=clock)
    for _ in range(500):
        submit(jobs)
    with pytest.raises(QueueFull):
        submit(jobs)
    assert jobs.purge() == 500
    submit(jobs)


def test_items_that_nobody_fetches_do_not_pile_up(jobs: Jobs) -> None:
    job = submit(jobs)
    jobs.take("w")
    for n in range(5):
        jobs.stream("w", job.id, {"output": n}, 1)
    assert [item["output"] for item, _ in job.items] == [2, 3, 4]
    jobs.stream("w", job.id, {"output": 5}, 49)
    assert [item["output"] for item, _ in job.items] == [4, 5]


def test_new_results_push_old_ones_out(jobs: Jobs) -> None:
    first, second, third = (submit(jobs, 100) for _ in range(3))
    jobs.take("w", 3)
    jobs.done("w", first.id, {"output": "x"}, 300)
    jobs.done("w", second.id, {"output": "x"}, 300)
    jobs.progress("w", third.id, {"percent": 1}, 200)
    with pytest.raises(JobUnknown):
        jobs.get(first.id)
    assert jobs.get(second.id).output == "x"


def test_an_error_that_is_no_string_becomes_one(jobs: Jobs) -> None:
    job = submit(jobs)
    jobs.take("w")
    jobs.done("w", job.id, {"error": {"code": "X"}}, 10)
    assert (job.state, job.error) == ("FAILED", '{"code": "X"}')


def test_counts_are_those_of_the_platform(jobs: Jobs) -> None:
    for _ in range(4):
        submit(jobs)
    done, failed = jobs.take("w", 2)
    jobs.done("w", done.id, {"output": 1}, 1)
    jobs.done("w", failed.id, {"error": "no"}, 1)
    jobs.take("w")
    jobs.worker_gone("w", "it died")
    jobs.take("x")
    assert jobs.counts() == {"completed": 1, "failed": 1, "inProgress": 1, "inQueue": 1, "retried": 1}


async def test_who_waits_is_woken_by_a_change(clock: Clock) -> None:
    jobs = Jobs(Limits(), clock=clock)
    assert not await jobs.until(jobs.has_queued, 0.0)
    submit(jobs)
    assert await jobs.until(jobs.has_queued, 0.0)


def test_a_rate_lets_so_many_through_in_its_time() -> None:
    rate = Rate(2, 10.0)
    assert [rate.allows(now_s) for now_s in (0.0, 1.0, 2.0, 9.9, 10.0, 10.5, 11.0)] == [
        True, True, False, False, True, False, True,
    ]  # fmt: skip


def test_a_stop_that_was_not_fetched_does_not_stop_the_next_attempt(jobs: Jobs, clock: Clock) -> None:
    job = submit(jobs, execution_timeout_s=5.0)
    jobs.take("w")
    clock.now_s += 6
    jobs.sweep()
    jobs.retry(job.id)
    assert jobs.take("w") == [job]
    assert jobs.stops("w") == []


def test_a_report_on_the_way_is_no_result_of_a_job_whose_workers_died(jobs: Jobs) -> None:
    job = submit(jobs)
    for worker in ("one", "two"):
        jobs.take(worker)
        jobs.progress(worker, job.id, {"percent": 50}, 10)
        jobs.worker_gone(worker, "it died")
    assert "output" not in jobs.view(job)
