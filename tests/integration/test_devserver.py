"""The local RunPod in front of the real SDK: every route, every state, every limit, and workers that die."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serverless.client import Client, ClientError, JobFailed
from serverless.devserver.limits import Limits
from serverless.devserver.server import DevServer
from serverless.sdk import import_runpod
from tests.support.devserver import devserver, pid_of, until

LIMITS = Limits(
    run_bytes=20_000,
    runsync_bytes=40_000,
    hold_s=0.3,
    execution_timeout_range_s=(0.1, 100.0),
    ttl_range_s=(0.1, 100.0),
    webhook_pause_s=0.05,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    with devserver(tmp_path_factory.mktemp("devserver") / "log", limits=LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def without_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    """Whatever comes stays in the queue; it asks for a key."""
    log = tmp_path_factory.mktemp("devserver") / "log"
    with devserver(log, limits=LIMITS, n_workers=0, api_key="right") as running:
        yield running


@pytest.fixture
def client(server: DevServer) -> Iterator[Client]:
    with Client(server.url) as one:
        yield one


@pytest.fixture
def queue(without_workers: DevServer) -> Iterator[Client]:
    with Client(without_workers.url, api_key="right") as one:
        yield one


def waiting(tmp_path: Path) -> dict[str, Any]:
    """Input of a job that runs until `go` is there."""
    return {"do": "wait", "started": str(tmp_path / "started"), "until": str(tmp_path / "go")}


def test_a_job_is_queued_run_and_answered(client: Client) -> None:
    job_id = client.run({"do": "echo", "text": "ä€😀"}, policy={"executionTimeout": 5000})
    output = client.wait(job_id)
    assert output["echo"]["text"] == "ä€😀"
    assert output["job"] == {"id": job_id, "policy": {"executionTimeout": 5000}}
    answer = client.status(job_id)
    assert set(answer) == {"id", "status", "delayTime", "executionTime", "workerId", "output"}
    assert (answer["id"], answer["status"]) == (job_id, "COMPLETED")
    assert job_id.endswith("-u1")


def test_runsync_answers_with_the_result(server: DevServer) -> None:
    answer = httpx.post(f"{server.url}/runsync", json={"input": {"do": "echo"}}, timeout=60).json()
    assert answer["status"] == "COMPLETED"
    assert answer["id"].startswith("sync-")


def test_runsync_that_waited_long_enough_says_how_far_the_job_is(server: DevServer, tmp_path: Path) -> None:
    answer = httpx.post(f"{server.url}/runsync?wait=1000", json={"input": waiting(tmp_path)}, timeout=60).json()
    assert answer["status"] == "IN_PROGRESS"
    (tmp_path / "go").touch()
    with Client(server.url) as client:
        assert client.wait(answer["id"])["waited"]


def test_a_handler_that_says_error_makes_the_job_failed_and_keeps_what_else_it_said(client: Client) -> None:
    with pytest.raises(JobFailed) as failed:
        client.runsync({"do": "fail"})
    assert (failed.value.state, failed.value.code, str(failed.value)) == ("FAILED", "BAD", "BAD: so it is")
    assert client.status(failed.value.job_id)["output"] == {"error_code": "BAD", "retryable": False}


def test_a_handler_that_raises_makes_the_job_failed(client: Client) -> None:
    with pytest.raises(JobFailed) as failed:
        client.runsync({"do": "raise"})
    assert json.loads(str(failed.value))["error_message"] == "on purpose"


def test_what_a_job_reports_on_the_way_can_be_seen(client: Client, tmp_path: Path) -> None:
    seen: list[Any] = []

    def look(answer: dict[str, Any]) -> None:
        seen.append(answer.get("output"))
        if answer.get("output"):
            (tmp_path / "go").touch()

    job_id = client.run({"do": "report", "until": str(tmp_path / "go")})
    assert client.wait(job_id, progress=look) == {"percent": 100}
    assert {"percent": 50} in seen


def test_a_running_job_is_stopped_by_cancel(client: Client, tmp_path: Path) -> None:
    job_id = client.run({"do": "sleep", "started": str(tmp_path / "started"), "stopped": str(tmp_path / "stopped")})
    until((tmp_path / "started").exists, "the job runs")
    assert client.status(job_id)["status"] == "IN_PROGRESS"
    assert client.cancel(job_id) == "CANCELLED"
    until((tmp_path / "stopped").exists, "the handler was cancelled")
    assert client.status(job_id)["status"] == "CANCELLED"
    assert client.cancel(job_id) == "CANCELLED"


def test_a_job_that_takes_too_long_is_timed_out_and_stopped(client: Client, tmp_path: Path) -> None:
    wish = {"do": "sleep", "started": str(tmp_path / "started"), "stopped": str(tmp_path / "stopped")}
    job_id = client.run(wish, policy={"executionTimeout": 300})
    with pytest.raises(JobFailed) as failed:
        client.wait(job_id)
    assert (failed.value.state, str(failed.value)) == ("TIMED_OUT", "executionTimeout exceeded")
    assert failed.value.retryable
    until((tmp_path / "stopped").exists, "the handler was cancelled")


def test_a_job_that_waits_too_long_is_timed_out(queue: Client) -> None:
    job_id = queue.run({"do": "echo"}, policy={"ttl": 200})
    with pytest.raises(JobFailed, match="ttl exceeded") as failed:
        queue.wait(job_id)
    assert failed.value.state == "TIMED_OUT"


def test_the_time_to_live_can_be_changed_later(without_workers: DevServer, queue: Client) -> None:
    job_id = queue.run({"do": "echo"})
    headers = {"Authorization": "right"}
    assert httpx.get(f"{without_workers.url}/status/{job_id}?ttl=100", headers=headers).status_code == 200
    until(lambda: queue.status(job_id)["status"] == "TIMED_OUT", "its time is over")


def test_only_failed_and_timed_out_jobs_are_tried_again_under_their_name(client: Client, queue: Client) -> None:
    with pytest.raises(JobFailed) as failed:
        client.runsync({"do": "fail"})
    client.retry(failed.value.job_id)
    with pytest.raises(JobFailed, match="BAD: so it is"):
        client.wait(failed.value.job_id)
    done = client.run({"do": "echo"})
    client.wait(done)
    with pytest.raises(ClientError, match=r"this one is COMPLETED \(HTTP 400\)"):
        client.retry(done)
    timed_out = queue.run({"do": "echo"}, policy={"ttl": 100})
    until(lambda: queue.status(timed_out)["status"] == "TIMED_OUT", "its time is over")
    queue.retry(timed_out)
    assert queue.cancel(timed_out) in ("CANCELLED", "TIMED_OUT")


def test_a_request_may_be_so_long_and_no_longer(server: DevServer) -> None:
    long = {"input": {"do": "echo", "text": "x" * 30_000}}
    refused = httpx.post(f"{server.url}/run", json=long)
    assert (refused.status_code, "20000 bytes" in refused.json()["error"]) == (413, True)
    assert httpx.post(f"{server.url}/runsync", json=long, timeout=60).json()["status"] == "COMPLETED"
    longer = {"input": {"do": "echo", "text": "x" * 50_000}}
    assert httpx.post(f"{server.url}/runsync", json=longer).status_code == 413


def test_a_request_that_does_not_say_how_long_it_is_is_not_read_further_either(server: DevServer) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"input": {"do": "'
        for _ in range(1000):
            yield b"x" * 1000

    headers = {"content-type": "application/json"}
    try:
        answer = httpx.post(f"{server.url}/run", content=endless(), headers=headers)
    except httpx.TransportError:
        return  # the connection was cut, which is as good
    assert answer.status_code == 413


def test_a_result_may_be_so_long_and_no_longer(client: Client) -> None:
    with pytest.raises(JobFailed, match="the result is over 20000 bytes; store it and return a URL"):
        client.wait(client.run({"do": "big", "n": 30_000}))
    assert len(client.runsync({"do": "big", "n": 30_000})["text"]) == 30_000
    with pytest.raises(JobFailed, match="the result is over 40000 bytes"):
        client.runsync({"do": "big", "n": 100_000})


def test_health_counts_jobs_and_workers(server: DevServer, client: Client, tmp_path: Path) -> None:
    before = client.health()["jobs"]["completed"]
    job_id = client.run(waiting(tmp_path))
    until((tmp_path / "started").exists, "the job runs")
    health = client.health()
    assert health["jobs"]["inProgress"] == 1
    assert health["workers"] == {
        "idle": 0, "initializing": 0, "ready": 1, "running": 1, "throttled": 0, "unhealthy": 0
    }  # fmt: skip
    (tmp_path / "go").touch()
    client.wait(job_id)
    assert client.health()["jobs"]["completed"] == before + 1


def test_waiting_jobs_are_cancelled_and_purged(queue: Client, without_workers: DevServer) -> None:
    first, second, third = (queue.run({"do": "echo"}) for _ in range(3))
    assert queue.health()["jobs"]["inQueue"] == 3
    assert queue.cancel(second) == "CANCELLED"
    assert queue.purge_queue() == 2
    assert {queue.status(job)["status"] for job in (first, second, third)} == {"CANCELLED"}
    assert queue.health()["jobs"]["inQueue"] == 0
    queue.purge_queue()
    with pytest.raises(ClientError, match="too many requests") as limited:
        queue.purge_queue()
    assert limited.value.status == 429


def test_a_key_that_is_asked_for_must_be_there(without_workers: DevServer) -> None:
    url = f"{without_workers.url}/health"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Bearer right"}).status_code == 200
    assert httpx.get(url, headers={"Authorization": "right"}).status_code == 200  # as in RunPod's own examples
    with Client(without_workers.url, api_key="wrong") as client, pytest.raises(ClientError, match="API key"):
        client.run({"do": "echo"})


@pytest.mark.parametrize("path", ["job-take/W", "job-take-batch/W", "job-stop/W", "ping/W"])
def test_who_is_no_worker_gets_no_jobs(server: DevServer, path: str) -> None:
    worker = server.workers.get(next(w.id for w in server.workers.all()))
    assert worker is not None
    for name, key in ((worker.id, ""), (worker.id, "wrong"), ("other", worker.key), (worker.id, "ä")):
        address = f"{server.url}/{path.replace('W', name)}"
        assert httpx.get(address, params={"key": key}).status_code == 401


def test_results_are_taken_from_the_worker_that_has_the_job_only(
    client: Client, server: DevServer, tmp_path: Path
) -> None:
    job_id = client.run(waiting(tmp_path))
    until((tmp_path / "started").exists, "the job runs")
    for query in ("", "?key=wrong"):
        forged = httpx.post(f"{server.url}/job-done/other/{job_id}{query}", content=b'{"output": {"forged": true}}')
        assert forged.status_code == 401
    (tmp_path / "go").touch()
    assert client.wait(job_id)["waited"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "input must be"),
        (b'{"input": "text"}', "input must be"),
        (b'{"input": {}}', "input must be"),
        (b'{"input": {"a": 1}, "policy": 5}', "policy must be"),
        (b'{"input": {"a": 1}, "policy": {"ttl": 1}}', "policy.ttl"),
        (b'{"input": {"a": 1}, "policy": {"executionTimeout": true}}', "policy.executionTimeout"),
        (b'{"input": {"a": 1}, "policy": {"executionTimeout": "1000"}}', "policy.executionTimeout"),
        (b'{"input": {"a": 1}, "webhook": "file:///etc/passwd"}', "webhook must be"),
        (b'{"input": {"a": 1}, "webhook": "http://[::1"}', "webhook must be"),
        (b'{"input": {"a": 1}, "webhook": "http://"}', "webhook must be"),
        (b'{"input": {"a": 1}, "webhook": "http://127.0.0.1:99999/"}', "webhook must be"),
        (b'{"input": {"a": 1}, "webhook": 5}', "webhook must be"),
        (b'{"input": {"a": 1e999}}', "too large"),
        (b"[" * 15_000, "not JSON"),
        (b'{"input": {"a": NaN}}', "not JSON"),
        (b'{"input": {"a": -Infinity}}', "not JSON"),
        (b'{"input": {"a": 1' + b"0" * 5000 + b"}}", "not JSON"),
    ],
)
def test_a_wrong_request_is_told_why(server: DevServer, body: bytes, words: str) -> None:
    answer = httpx.post(f"{server.url}/run", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_what_json_can_say_reaches_the_worker(server: DevServer) -> None:
    headers = {"content-type": "application/json"}
    for text in (b'"\\ud800"', b'"\\u0000"', b"[" * 500 + b"]" * 500):
        body = b'{"input": {"do": "fail", "text": ' + text + b"}}"
        answer = httpx.post(f"{server.url}/runsync", content=body, headers=headers, timeout=60).json()
        assert answer["error"] == "BAD: so it is"


def test_nesting_has_a_bottom(server: DevServer) -> None:
    for depth in range(800, 1100, 20):
        body = b'{"input": {"do": "fail", "text": ' + b"[" * depth + b"]" * depth + b"}}"
        answer = httpx.post(f"{server.url}/run", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400)
        if answer.status_code == 200:
            httpx.post(f"{server.url}/cancel/{answer.json()['id']}")


def test_a_result_that_is_no_json_fails_the_job(client: Client) -> None:
    with pytest.raises(JobFailed, match="is there a NaN"):
        client.runsync({"do": "nan"})


def test_a_worker_that_somebody_started_by_hand_is_served_until_it_is_silent(tmp_path: Path) -> None:
    limits = Limits(hold_s=0.1, heartbeat_s=0.5)
    with devserver(tmp_path / "log", limits=limits, n_workers=0) as server, Client(server.url) as client:
        worker = server.workers.admit("by-hand", "its-key")

        def ask(path: str) -> httpx.Response:
            return httpx.get(
                f"{server.url}/{path}/by-hand", params={"gpu": "any", "key": worker.key, "batch_size": "5"}
            )

        assert ask("job-take").status_code == 204
        job_ids = [client.run({"n": n}) for n in range(3)]
        assert ask("job-take").json() == {"id": job_ids[0], "input": {"n": 0}}
        assert [job["id"] for job in ask("job-take-batch").json()] == job_ids[1:]
        client.cancel(job_ids[0])
        assert ask("job-stop").json() == {"jobsToStop": [job_ids[0]]}
        assert ask("job-stop").json() == {"jobsToStop": []}
        done = f"{server.url}/job-done/by-hand/{job_ids[1]}"
        assert httpx.post(done, params={"key": worker.key}, content=b'{"output": {"n": 1}}').status_code == 200
        assert client.wait(job_ids[1]) == {"n": 1}
        until(lambda: client.status(job_ids[2])["status"] == "IN_QUEUE", "it was given up")
        assert client.status(job_ids[2])["retries"] == 1


def test_a_page_elsewhere_cannot_send_jobs_from_a_browser(server: DevServer) -> None:
    simple = httpx.post(
        f"{server.url}/run", content=b'{"input": {"do": "echo"}}', headers={"content-type": "text/plain"}
    )
    assert simple.status_code == 400
    rebound = httpx.get(f"{server.url}/health", headers={"host": "example.com"})
    assert rebound.status_code == 400


@pytest.mark.parametrize("wait", ["0", "x", "300001", "-1", "9" * 30])
def test_how_long_to_wait_has_bounds(server: DevServer, wait: str) -> None:
    answer = httpx.post(f"{server.url}/runsync?wait={wait}", json={"input": {"do": "echo"}})
    assert (answer.status_code, "wait" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize("operation", ["status", "stream", "cancel", "retry"])
def test_a_job_that_is_not_there_is_not_found(server: DevServer, operation: str) -> None:
    call = httpx.get if operation in ("status", "stream") else httpx.post
    assert call(f"{server.url}/{operation}/no-such-job").status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "run"), ("GET", "runsync"), ("POST", "status/x"), ("POST", "health"), ("GET", "cancel/x")],
)
def test_each_route_has_its_method(server: DevServer, method: str, path: str) -> None:
    assert httpx.request(method, f"{server.url}/{path}").status_code == 405


def test_another_endpoint_is_not_found(server: DevServer) -> None:
    assert httpx.get(server.url.replace("/local", "/other") + "/health").status_code == 404


def test_a_webhook_is_called_until_it_takes_the_result(client: Client) -> None:
    """What it answers beside its status is not waited for."""
    got: list[dict[str, Any]] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(500 if len(got) == 1 else 200)
            self.send_header("content-length", "1000000000")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    hook = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=hook.serve_forever, args=(0.01,))
    thread.start()
    try:
        address = f"http://127.0.0.1:{hook.server_port}/done"
        job_id = client.run({"do": "echo"}, webhook=address)
        until(lambda: len(got) == 2, "the webhook was called twice")
    finally:
        hook.shutdown()
        hook.server_close()
        thread.join()
    assert got[0] == got[1] == client.status(job_id)


def test_runpods_own_client_gets_along_with_it(server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    runpod = import_runpod()  # here: only this test needs it in this process
    import cpuinfo  # type: ignore[import-untyped]
    import paramiko  # type: ignore[import-untyped]

    assert cpuinfo.__file__, "the stand-in is gone again"
    assert paramiko.__file__, "the stand-in is gone again"
    base, _, endpoint_id = server.url.rpartition("/")
    monkeypatch.setattr(runpod, "endpoint_url_base", base)
    endpoint = runpod.Endpoint(endpoint_id, api_key="any")
    assert endpoint.run_sync({"do": "echo", "n": 1}, timeout=60)["echo"] == {"do": "echo", "n": 1}
    job = endpoint.run({"do": "echo", "n": 2})
    until(lambda: job.status() == "COMPLETED", "the job is done")
    assert job.output()["echo"]["n"] == 2
    assert endpoint.health()["workers"]["ready"] == 1
    endpoint.rp_client.rp_session.close()


def test_a_job_that_answers_in_parts_is_streamed(tmp_path: Path) -> None:
    with devserver(tmp_path / "log", environ={"WORKER_STREAMS": "1"}) as server, Client(server.url) as client:
        job_id = client.run({"n": 5})
        assert list(client.stream(job_id)) == [{"n": n} for n in range(5)]
        assert client.wait(job_id) == {"output": [{"n": n} for n in range(5)]}


def test_a_worker_that_gets_sigterm_ends_its_job_first(server: DevServer, client: Client, tmp_path: Path) -> None:
    job_id = client.run(waiting(tmp_path))
    until((tmp_path / "started").exists, "the job runs")
    pid = pid_of(server)
    os.kill(pid, signal.SIGTERM)
    (tmp_path / "go").touch()
    assert client.wait(job_id) == {"waited": True, "pid": pid}
    assert "retries" not in client.status(job_id)
    until(lambda: not psutil.pid_exists(pid), "the worker ended")
    assert client.runsync({"do": "echo"})["pid"] != pid


def test_the_job_of_a_killed_worker_is_given_to_another_one(server: DevServer, client: Client, tmp_path: Path) -> None:
    wish = waiting(tmp_path)
    job_id = client.run(wish)
    until((tmp_path / "started").exists, "the job runs")
    pid = pid_of(server)
    family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    assert len(family) == 2  # the SDK's heartbeat is a process of its own
    os.kill(pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    output = client.wait(job_id)
    assert output["pid"] != pid
    assert client.status(job_id)["retries"] == 1
    until(lambda: not any(psutil.pid_exists(one) for one in family), "nothing of the worker is left")


def test_a_job_that_kills_every_worker_fails_as_on_the_platform(client: Client) -> None:
    with pytest.raises(JobFailed) as failed:
        client.wait(client.run({"do": "die"}))
    assert str(failed.value) == "job timed out after 1 retries: its worker was ended by SIGKILL"
    assert failed.value.state == "FAILED"


def test_a_worker_that_asks_for_it_is_replaced_after_its_job(client: Client) -> None:
    pid = client.runsync({"do": "refresh"})["pid"]
    assert client.runsync({"do": "echo"})["pid"] != pid


def test_a_worker_that_hangs_when_it_shall_leave_is_ended(tmp_path: Path) -> None:
    with devserver(tmp_path / "log", grace_s=1.0) as server, Client(server.url) as client:
        pid = client.runsync({"do": "hang"})["pid"]
        until(lambda: not psutil.pid_exists(pid), "it was ended")


def test_a_worker_that_hangs_in_a_job_is_ended_when_the_job_is_over(tmp_path: Path) -> None:
    with devserver(tmp_path / "log", grace_s=0.5) as server, Client(server.url) as client:
        stuck = client.run({"do": "block", "started": str(tmp_path / "started")})
        until((tmp_path / "started").exists, "the job runs")
        pid = pid_of(server)
        assert client.cancel(stuck) == "CANCELLED"
        until(lambda: not psutil.pid_exists(pid), "it was ended")
        assert client.runsync({"do": "echo"})["pid"] != pid


def test_a_question_for_work_that_nobody_waits_for_any_more_takes_no_job(tmp_path: Path) -> None:
    with devserver(tmp_path / "log", limits=Limits(hold_s=30.0), n_workers=0) as server, Client(server.url) as client:
        worker = server.workers.admit("by-hand", "its-key")
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{server.url}/job-take/by-hand", params={"key": worker.key}, timeout=0.05)
        until(lambda: worker.state == "ready", "the question came")
        job_id = client.run({"n": 1})
        assert httpx.get(f"{server.url}/job-take/by-hand", params={"key": worker.key}).json()["id"] == job_id


def test_a_worker_that_does_not_start_is_unhealthy_and_its_jobs_wait(tmp_path: Path) -> None:
    with devserver(tmp_path / "log", environ={"WORKER_IS_BROKEN": "1"}) as server, Client(server.url) as client:
        job_id = client.run({"do": "echo"})
        until(lambda: client.health()["workers"]["unhealthy"] == 1, "the worker is known as unhealthy")
        assert client.status(job_id)["status"] == "IN_QUEUE"
    assert "the model is missing" in (tmp_path / "log").read_text()


def test_a_program_that_is_not_there_is_unhealthy(tmp_path: Path) -> None:
    with devserver(tmp_path / "log", command=["/no/such/program"]) as server, Client(server.url) as client:
        until(lambda: client.health()["workers"]["unhealthy"] == 1, "the worker is known as unhealthy")


def test_nothing_is_left_when_the_server_stops(tmp_path: Path) -> None:
    with devserver(tmp_path / "log") as server:
        pid = pid_of(server)
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    assert not any(psutil.pid_exists(one) for one in family)
