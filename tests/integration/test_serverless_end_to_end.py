"""The two commands of the README, and the worker they start hurt in mid-job.

The local RunPod is a process of its own, and so is each worker: the real SDK's loop, the real F5-TTS classes with tiny
random weights, S3 over HTTP. The tests go on with what the one before left, as callers do.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
import pysubs2
import pytest
import soundfile
import webvtt

from serverless import client_commands
from serverless.client import Client, JobFailed
from serverless.client_commands import FORMATS
from tests.support.devserver import ROOT, until, worker_environ
from tests.support.tiny_model import closed_port

TEXT = client_commands.TEXT
JOB = {"text": TEXT, "local_voice": "demo", "seed": 7, "return_word_timings": True, "timing_format": list(FORMATS)}
FASTER = {
    "OMP_NUM_THREADS": "1",  # beside other tests, more would wait for each other
    "WARM_UP": "false",
    "WATERMARK": "false",
}


@dataclass
class Endpoint:
    """All that runs."""

    url: str
    client: Client
    process: subprocess.Popen[bytes]
    log: Path

    def worker(self) -> psutil.Process:
        """The one worker that is there."""
        server = psutil.Process(self.process.pid)
        until(server.children, "a worker is there")
        return server.children()[0]

    def bucket(self) -> Any:
        """The bucket that the worker was given, seen by another client."""
        environ = self.worker().environ()
        resource = boto3.session.Session().resource(
            "s3",
            endpoint_url=environ["AWS_ENDPOINT_URL"],
            region_name=environ["AWS_REGION"],
            aws_access_key_id=environ["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environ["AWS_SECRET_ACCESS_KEY"],
        )
        return resource.Bucket(environ["S3_BUCKET"])


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    log = tmp_path_factory.mktemp("endpoint") / "log"
    port = closed_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "serverless.devserver", "--demo", "--port", str(port)],
            cwd=ROOT,
            env=worker_environ(FASTER),
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: "endpoint: " in log.read_text() or process.poll() is not None, "the server is there")
        url = f"http://127.0.0.1:{port}/v2/local"
        assert url in log.read_text(), log.read_text()
        with Client(url) as client:
            yield Endpoint(url, client, process, log)
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def check_files(folder: Path) -> None:
    """Each file by a reader that is not ours; words and times are the same in all of them."""
    words = TEXT.split()
    info = soundfile.info(folder / "speech.wav")
    assert (info.samplerate, info.channels) == (24_000, 1)
    document = json.loads((folder / "speech.words.json").read_text())
    listed = document["words"] if "words" in document else document["timing_data"]["words"]
    assert [word["word"] for word in listed] == words
    times = [(round(word["start_time"] * 1000), round(word["end_time"] * 1000)) for word in listed]
    assert times == sorted(times)
    assert 0 <= times[0][0] < times[-1][1] <= round(info.duration * 1000)
    srt = pysubs2.load(str(folder / "speech.words.srt"))
    assert [line.plaintext for line in srt] == words
    assert [(line.start, line.end) for line in srt] == times
    assert [caption.text for caption in webvtt.read(str(folder / "speech.words.vtt")).captions] == words
    assert [line.plaintext for line in pysubs2.load(str(folder / "speech.words.ass"))] == words
    rows = list(csv.DictReader(io.StringIO((folder / "speech.words.csv").read_text())))
    assert [row["word"].removeprefix("'") for row in rows] == words


def check_result(endpoint: Endpoint, output: dict[str, Any], folder: Path) -> None:
    """Everything that was asked for can be downloaded, and nothing else of this job is stored."""
    job_id = output["job_id"]
    endpoint.client.download(output["audio_url"], folder / "speech.wav")
    assert soundfile.info(folder / "speech.wav").duration == pytest.approx(output["duration"], abs=0.01)
    assert set(output["timing_files"]) == set(FORMATS)
    for suffix, url in output["timing_files"].items():
        endpoint.client.download(url, folder / f"speech.words.{suffix}")
    assert (output["voice"], output["word_count"], output["timing_method"]) == ("demo", len(TEXT.split()), "whisperx")
    assert output["metrics"]["n_chunks"] > 2  # so that the middle of the job is not its end
    check_files(folder)
    bucket = endpoint.bucket()
    stored = {item.key for item in bucket.objects.all() if job_id in item.key}
    manifest = f"jobs/{job_id}.json"
    assert stored == {f"output/{job_id}.wav", manifest, *(f"timings/{job_id}.{suffix}" for suffix in FORMATS)}
    assert json.loads(bucket.Object(manifest).get()["Body"].read())["state"] == "DONE"
    bucket.meta.client.close()


def start_and_wait_for_the_first_chunk(client: Client) -> str:
    job_id = client.run(JOB)

    def speaks() -> bool:
        answer = client.status(job_id)
        assert answer["status"] in ("IN_QUEUE", "IN_PROGRESS"), answer
        return bool(answer.get("output"))

    until(speaks, "the first chunk is spoken")
    return job_id


def test_the_demonstration_uploads_speaks_times_and_downloads(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert client_commands.main(["demo", "--url", endpoint.url, "--out", str(out)]) == 0, endpoint.log.read_text()
    assert {path.name for path in out.iterdir()} == {"speech.wav", *(f"speech.words.{suffix}" for suffix in FORMATS)}
    check_files(out)
    assert "IN_PROGRESS chunk=1" in capsys.readouterr().out


def test_the_job_of_a_worker_that_is_killed_in_mid_job_is_done_by_the_next(endpoint: Endpoint, tmp_path: Path) -> None:
    job_id = start_and_wait_for_the_first_chunk(endpoint.client)
    worker = endpoint.worker()
    os.kill(worker.pid, signal.SIGKILL)
    output = endpoint.client.wait(job_id)
    assert output["job_id"] == job_id
    assert endpoint.client.status(job_id)["retries"] == 1
    assert endpoint.worker().pid != worker.pid
    check_result(endpoint, output, tmp_path)


def test_another_worker_answers_for_the_jobs_of_the_first_one(endpoint: Endpoint) -> None:
    client, bucket = endpoint.client, endpoint.bucket()
    job_ids = [item.key.removeprefix("jobs/").removesuffix(".json") for item in bucket.objects.filter(Prefix="jobs/")]
    bucket.meta.client.close()
    assert len(job_ids) == 2
    asked = [client.run({"endpoint": "result", "job_id": job_id}) for job_id in job_ids]
    assert {client.wait(job_id)["status"] for job_id in asked} == {"DONE"}
    listed = client.wait(client.run({"endpoint": "list_voices"}))
    assert [one["name"] for one in listed["voices"]] == ["demo"]
    with pytest.raises(JobFailed, match="UNKNOWN_ENDPOINT"):
        client.wait(client.run({"endpoint": "no_such"}))


def test_a_worker_that_gets_sigterm_in_mid_job_finishes_it_first(endpoint: Endpoint, tmp_path: Path) -> None:
    job_id = start_and_wait_for_the_first_chunk(endpoint.client)
    worker = endpoint.worker()
    worker.send_signal(signal.SIGTERM)
    output = endpoint.client.wait(job_id)
    assert "retries" not in endpoint.client.status(job_id)
    until(lambda: not worker.is_running(), "the worker ended")
    check_result(endpoint, output, tmp_path)


def test_the_log_of_all_that_holds_no_text_no_key_and_no_url(endpoint: Endpoint) -> None:
    written = endpoint.log.read_text()
    assert "job.answered" in written
    for secret in ("lighthouse", "X-Amz-Signature", "demo-secret", "Traceback"):
        assert secret not in written


def test_ctrl_c_ends_the_server_and_its_worker(endpoint: Endpoint) -> None:
    worker = endpoint.worker()
    endpoint.process.send_signal(signal.SIGINT)
    assert endpoint.process.wait(60) == 0
    assert not worker.is_running()
    assert "stopping" in endpoint.log.read_text()
