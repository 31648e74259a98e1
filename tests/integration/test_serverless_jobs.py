"""Jobs from their input to the files in the storage, with a voice that is no model: answers, errors and limits."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from structlog.testing import capture_logs

from pipeline.audio import file_bytes
from pipeline.errors import ConfigError, EngineFailed, OutOfMemory, StorageError
from serverless import keys, tts_job, worker
from serverless.errors import JobError
from serverless.manifests import STALE_AFTER_S, JobRecord, Manifests
from serverless.speech import default_reference
from serverless.subtitles import render as render_subtitles
from serverless.worker import Worker
from tests.support.file_server import serving
from tests.support.serverless_jobs import WAIT_S, Talker, Watched, Workplace, workplace

TEXT = "Puppets dance at night, and the audience laughs."
LONG = " ".join(f"This is sentence number {number} of a text that is cut in chunks." for number in range(12))
ALL_FORMATS = ["srt", "vtt", "csv", "json", "ass"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    made = workplace(tmp_path)
    yield made
    made.worker.close()


@pytest.fixture(scope="module")
def recording() -> bytes:
    """Speech that may be a voice."""
    return file_bytes(default_reference().audio, "wav")


@asynccontextmanager
async def at_work(place: Workplace, **fields: Any) -> AsyncGenerator[asyncio.Task[dict[str, Any]], None]:
    """A job whose voice is held in its first chunk."""
    assert place.engine.held is not None
    task = asyncio.create_task(place.run("job-1", **fields))
    assert await asyncio.to_thread(place.engine.began.wait, WAIT_S)
    try:
        yield task
    finally:
        place.engine.held.set()
        await asyncio.wait([task])


def stored(place: Workplace, url: str) -> bytes:
    """What a signed URL names, read past the signature."""
    return place.storage.get(urlsplit(url).path.removeprefix("/storage/"), max_bytes=10**9)


def record_of(place: Workplace, job_id: str = "job-1") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(place.storage.get(keys.manifest(job_id), max_bytes=10**7))
    return found


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# --- what a job gives


async def test_a_job_gives_audio_and_files_that_were_stored_before_its_record_said_so(place: Workplace) -> None:
    answer = await place.run(text=TEXT, seed=7, return_word_timings=True, timing_format=ALL_FORMATS)
    assert (answer["status"], answer["job_id"], answer["seed"], answer["voice"]) == ("DONE", "job-1", 7, "default")
    samples, rate = soundfile.read(io.BytesIO(stored(place, answer["audio_url"])))
    assert rate == answer["sample_rate"] == 24_000
    assert len(samples) / rate == pytest.approx(answer["duration"], abs=0.001)
    assert set(answer["timing_files"]) == set(ALL_FORMATS)
    assert all(stored(place, url) for url in answer["timing_files"].values())
    assert [word["word"] for word in answer["words"]] == TEXT.split()
    assert answer["word_count"] == len(TEXT.split())
    order = [key.partition("/")[0] for key in place.storage.written]
    assert order.index("output") < order.index("timings")
    assert (order[0], order[-1]) == ("jobs", "jobs")
    assert record_of(place)["state"] == "DONE"
    assert "http" not in json.dumps(record_of(place))


async def test_times_of_spoken_words_are_measured_and_the_answer_says_how(tmp_path: Path) -> None:
    place = workplace(tmp_path, Talker(speaks=True))
    answer = await place.run(text="The quick brown fox jumps over the lazy dog.", return_word_timings=True)
    place.worker.close()
    assert (answer["timing_method"], answer["timing_method_used"]) == ("whisperx", "phonetic")
    assert answer["coverage"] == 1.0
    assert [(attempt["method"], attempt["error"] is None) for attempt in answer["attempts"]] == [
        ("ctc", False),
        ("phonetic", True),
    ]
    assert answer["words"][-1]["end_time"] <= answer["duration"]
    assert list(answer["timing_files"]) == ["srt"]
    assert "timing_error" not in answer


async def test_without_word_timings_nothing_is_aligned_and_no_file_is_made(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tts_job, "time_words", None)
    answer = await place.run(text=TEXT, timing_format=ALL_FORMATS)
    assert answer["status"] == "DONE"
    assert not {"timing_files", "words", "timing_method", "timing_error"} & set(answer)
    assert not [key for key in place.storage.written if key.startswith("timings/")]


@pytest.mark.parametrize(
    ("fields", "content_type", "rate"),
    [
        ({}, "audio/wav", 24_000),
        ({"output_sample_rate": 22_050}, "audio/wav", 22_050),
        ({"output_format": "flac", "output_sample_rate": 48_000}, "audio/flac", 48_000),
        ({"output_format": "mp3"}, "audio/mpeg", 24_000),
        ({"output_format": "opus"}, "audio/ogg", 48_000),
    ],
)
async def test_the_file_has_the_format_and_rate_that_were_asked_for(
    place: Workplace, fields: dict[str, Any], content_type: str, rate: int
) -> None:
    answer = await place.run(text=TEXT, **fields)
    assert (answer["content_type"], answer["sample_rate"]) == (content_type, rate)
    data = stored(place, answer["audio_url"])
    assert answer["audio_bytes"] == len(data)
    assert soundfile.info(io.BytesIO(data)).samplerate == rate


async def test_the_same_seed_gives_the_same_bytes_over_several_chunks_and_another_seed_others(place: Workplace) -> None:
    answers = [await place.run(f"job-{n}", text=LONG, seed=seed) for n, seed in enumerate((5, 5, 6))]
    files = [stored(place, answer["audio_url"]) for answer in answers]
    assert answers[0]["metrics"]["n_chunks"] > 2
    assert files[0] == files[1] != files[2]


async def test_a_seed_that_was_drawn_is_told_and_gives_the_same_speech(place: Workplace) -> None:
    first = await place.run("job-1", text=TEXT)
    again = await place.run("job-2", text=TEXT, seed=first["seed"])
    assert stored(place, first["audio_url"]) == stored(place, again["audio_url"])


async def test_progress_is_told_of_chunks_but_never_of_the_last(place: Workplace) -> None:
    answer = await place.run(text=LONG)
    assert place.told
    assert place.told[0]["chunk"] == 1
    assert all(told["chunk"] < told["n_chunks"] == answer["metrics"]["n_chunks"] for told in place.told)
    assert all(0 < told["percent"] < 100 and told["audio_s"] > 0 for told in place.told)


async def test_the_first_job_of_a_worker_is_its_cold_start(place: Workplace) -> None:
    answers = [await place.run(f"job-{n}", text=TEXT) for n in range(2)]
    assert [answer["cold_start"] for answer in answers] == [True, False]
    assert {"load", "voice", "queue", "synth", "encode", "upload", "total"} <= set(answers[0]["timings_ms"])
    assert answers[0]["rtf"] >= 0


async def test_all_speech_is_marked_where_there_is_a_mark(tmp_path: Path) -> None:
    class Half:
        def stream(self, sample_rate: int) -> Half:
            return self

        def add(self, samples: np.ndarray) -> np.ndarray:
            return samples * 0.5

        def flush(self) -> np.ndarray:
            return np.zeros(0, np.float32)

    plain, marked = workplace(tmp_path / "plain"), workplace(tmp_path / "marked", watermarker=Half())
    answers = [await each.run(text=TEXT, seed=1) for each in (plain, marked)]
    peaks = [
        np.abs(soundfile.read(io.BytesIO(stored(each, answer["audio_url"])))[0]).max()
        for each, answer in zip((plain, marked), answers, strict=True)
    ]
    plain.worker.close()
    marked.worker.close()
    assert [answer["watermarked"] for answer in answers] == [False, True]
    assert peaks[1] == pytest.approx(peaks[0] / 2, rel=0.01)


# --- voices


async def test_a_voice_is_uploaded_listed_used_and_deleted(place: Workplace, recording: bytes) -> None:
    voice = base64.b64encode(recording).decode()
    upload = {"endpoint": "upload", "voice_name": "anna", "voice_file": voice, "ref_text": "Some call me nature."}
    assert (await place.run(**upload))["error_code"] == "INVALID_INPUT"  # no consent
    assert (await place.run(**upload, consent=True))["voice"]["name"] == "anna"
    assert (await place.run(**upload, consent=True))["error_code"] == "VOICE_EXISTS"
    assert (await place.run(**upload, consent=True, overwrite=True))["status"] == "success"
    listed = await place.run(endpoint="list_voices", prefix="an")
    assert [each["name"].removesuffix(".wav") for each in listed["voices"]] == ["anna"]
    assert (await place.run(endpoint="get_voice", voice_name="anna"))["voice"]["ref_text"] == "Some call me nature."
    assert (await place.run(text=TEXT, local_voice="anna.wav"))["voice"] == "anna"
    near = await place.run("job-2", text=TEXT, local_voice="ana")
    assert near["error_code"] == "VOICE_NOT_FOUND"
    assert "anna" in near["error"]
    await place.run(endpoint="delete_voice", voice_name="anna")
    assert (await place.run(endpoint="get_voice", voice_name="anna"))["error_code"] == "VOICE_NOT_FOUND"


async def test_a_voice_may_be_put_to_a_url_and_confirmed(place: Workplace, recording: bytes) -> None:
    asked = await place.run(endpoint="request_upload", voice_name="ben", presign_seconds=60)
    confirm = {"endpoint": "confirm", "voice_name": "ben", "upload_id": asked["upload_id"], "consent": True}
    assert (await place.run(**confirm, ref_text="Hello."))["error_code"] == "INVALID_INPUT"  # nothing was put
    place.storage.put(keys.upload("ben", asked["upload_id"]), recording, content_type="application/octet-stream")
    assert (await place.run(**confirm, ref_text="Some call me nature."))["status"] == "success"
    assert (await place.run(text=TEXT, local_voice="ben"))["status"] == "DONE"


# --- status, result and download, from any worker


async def test_a_job_made_by_one_worker_is_answered_by_another(tmp_path: Path) -> None:
    first, second = workplace(tmp_path), workplace(tmp_path, Talker(failures=[EngineFailed("no", stage="tts")]))
    answer = await first.run(text=TEXT, return_word_timings=True, timing_format=["srt", "vtt"])
    first.worker.close()
    status = await second.run("job-2", endpoint="status", job_id="job-1")
    assert (status["job_id"], status["status"]) == ("job-1", "DONE")
    result = await second.run("job-3", endpoint="result", job_id="job-1")
    for name in ("duration", "seed", "text", "words", "timing_method_used", "coverage", "format"):
        assert result[name] == answer[name]
    assert stored(second, result["audio_url"]) == stored(first, answer["audio_url"])
    assert second.engine.texts == []
    second.worker.close()


async def test_a_job_that_runs_is_told_with_its_progress_while_its_voice_speaks(tmp_path: Path) -> None:
    place, other = workplace(tmp_path, Talker(held=threading.Event())), workplace(tmp_path)
    async with at_work(place, text=TEXT) as job:
        for each in (place, other):  # the worker that speaks answers as well
            status = await each.run("job-2", endpoint="status", job_id="job-1")
            assert (status["status"], status["progress"]["chunk"]) == ("RUNNING", 0)
            result = await each.run("job-2", endpoint="result", job_id="job-1")
            assert (result["error_code"], result["retryable"]) == ("JOB_NOT_DONE", True)
    assert job.result()["status"] == "DONE"
    place.worker.close()
    other.worker.close()


async def test_urls_are_signed_anew_for_each_answer(place: Workplace) -> None:
    await place.run(text=TEXT)
    short = await place.run("job-2", endpoint="result", job_id="job-1", presign_seconds=60)
    long = await place.run("job-3", endpoint="result", job_id="job-1")
    assert short["audio_url"] != long["audio_url"]
    assert (short["url_expires_s"], long["url_expires_s"]) == (60, 3600)


async def test_download_gives_the_file_that_type_and_format_name(place: Workplace) -> None:
    await place.run(text=TEXT, return_word_timings=True, timing_format=["vtt", "json"])

    async def download(**fields: str) -> dict[str, Any]:
        return await place.run("job-2", endpoint="download", job_id="job-1", **fields)

    assert set((await download())["timing_files"]) == {"vtt", "json"}
    audio = await download(type="audio")
    assert (audio["filename"], audio["content_type"]) == ("job-1.wav", "audio/wav")
    assert (await download(type="timing"))["filename"] == "job-1.vtt"
    timing = await download(type="timing", format="json")
    assert stored(place, timing["download_url"]).startswith(b"{")
    assert (await download(type="timing", format="srt"))["error_code"] == "JOB_NOT_FOUND"
    assert (await download(type="audio", format="mp3"))["error_code"] == "JOB_NOT_FOUND"


async def test_a_failed_job_is_told_by_status_and_its_error_is_that_of_result(tmp_path: Path) -> None:
    place = workplace(tmp_path, Talker(failures=[EngineFailed("the voice gave no audio", stage="tts")]))
    assert (await place.run(text=TEXT))["error_code"] == "INTERNAL"
    status = await place.run("job-2", endpoint="status", job_id="job-1")
    assert "error" not in status  # which would make the asking job fail
    assert status["failure"]["error"] == "INTERNAL: the voice gave no audio"
    result = await place.run("job-3", endpoint="result", job_id="job-1")
    assert result["error"] == "INTERNAL: the voice gave no audio"
    place.worker.close()


async def test_the_job_of_a_worker_that_died_is_told_as_failed_and_runs_again(place: Workplace) -> None:
    long_ago = time.time() - STALE_AFTER_S - 10
    lost = Manifests(place.storage, clock=lambda: long_ago).begin("job-1", "fingerprint")
    lost.update("RUNNING", progress={"chunk": 3, "n_chunks": 9})
    status = await place.run("job-2", endpoint="status", job_id="job-1")
    assert (status["status"], status["failure"]["retryable"]) == ("FAILED", True)
    assert "gone" in (await place.run("job-2", endpoint="result", job_id="job-1"))["error"]
    assert (await place.run(text=TEXT))["status"] == "DONE"  # RunPod gives the job to the next worker


async def test_a_job_whose_answer_was_lost_is_answered_from_its_record(place: Workplace) -> None:
    first = await place.run(text=TEXT)
    again = await place.run(text=TEXT)
    assert len(place.engine.texts) == 1
    assert again["seed"] == first["seed"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"schema": 9}', b'{"schema": 1, "state": "DONE"}', b"\xff\xfe"])
async def test_a_record_that_cannot_be_read_is_a_storage_error(place: Workplace, data: bytes) -> None:
    place.storage.put(keys.manifest("job-1"), data, content_type="application/json")
    answer = await place.run("job-2", endpoint="status", job_id="job-1")
    assert answer["error_code"] == "STORAGE_ERROR"


def test_no_write_of_a_job_follows_its_last_one(tmp_path: Path) -> None:
    storage = Watched(tmp_path)
    record: JobRecord = Manifests(storage).begin("job-1", "f")
    record.done({"audio": {}})
    before = list(storage.written)
    record.update("RUNNING", progress={"chunk": 1})
    record.beat()
    record.failed(JobError("INTERNAL", "late"))
    assert storage.written == before
    assert Manifests(storage).read("job-1").state == "DONE"


def test_a_heartbeat_says_that_the_worker_lives_and_outlives_a_storage_that_fails(tmp_path: Path) -> None:
    now = [1000.0]
    storage = Watched(tmp_path)
    manifests = Manifests(storage, clock=lambda: now[0])
    record = manifests.begin("job-1", "f")
    now[0] += STALE_AFTER_S - 1
    record.beat()
    now[0] += STALE_AFTER_S - 1
    assert manifests.read("job-1").state == "QUEUED"
    storage.broken["jobs/"] = StorageError("slow down")
    record.beat()
    now[0] += 2
    assert manifests.read("job-1").state == "FAILED"


async def test_the_heart_beats_while_a_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tts_job, "HEARTBEAT_S", 0.01)
    place = workplace(tmp_path, Talker(held=threading.Event()))
    async with at_work(place, text=TEXT):
        before = len(place.storage.written)
        async with asyncio.timeout(WAIT_S):
            while len(place.storage.written) < before + 3:
                await asyncio.sleep(0.005)
        assert record_of(place)["state"] == "RUNNING"
    n_written = len(place.storage.written)
    assert place.storage.written[-1] == "jobs/job-1.json"
    assert record_of(place)["state"] == "DONE"
    await asyncio.sleep(0)
    assert len(place.storage.written) == n_written
    assert asyncio.all_tasks() == {asyncio.current_task()}  # and no heart beats on
    place.worker.close()


# --- idempotency


async def test_the_same_idempotency_key_gives_the_stored_result_without_speaking_again(place: Workplace) -> None:
    first = await place.run("job-1", text=TEXT, idempotency_key="k")
    again = await place.run("job-2", text=TEXT, idempotency_key="k", presign_seconds=60)
    assert len(place.engine.texts) == 1
    assert (again["job_id"], again["idempotent_of"], again["seed"]) == ("job-2", "job-1", first["seed"])
    assert stored(place, again["audio_url"]) == stored(place, first["audio_url"])
    result = await place.run("job-3", endpoint="result", job_id="job-2")
    assert result["duration"] == first["duration"]


async def test_a_key_of_another_input_is_refused(place: Workplace) -> None:
    await place.run("job-1", text=TEXT, idempotency_key="k")
    other = await place.run("job-2", text="Something else.", idempotency_key="k")
    assert (other["error_code"], other["errors"][0]["code"]) == ("INVALID_INPUT", "key_reused")
    assert len(place.engine.texts) == 1


async def test_the_key_of_a_job_that_failed_goes_to_the_next(tmp_path: Path) -> None:
    place = workplace(tmp_path, Talker(failures=[EngineFailed("no", stage="tts")]))
    assert (await place.run("job-1", text=TEXT, idempotency_key="k"))["error_code"] == "INTERNAL"
    assert (await place.run("job-2", text=TEXT, idempotency_key="k"))["status"] == "DONE"
    assert (await place.run("job-3", text=TEXT, idempotency_key="k"))["idempotent_of"] == "job-2"
    place.worker.close()


async def test_the_key_of_a_job_whose_files_were_deleted_goes_to_the_next(place: Workplace) -> None:
    """As a lifecycle rule does with them, while the records of later jobs name them still."""
    await place.run("job-1", text=TEXT, idempotency_key="k")
    assert (await place.run("job-2", text=TEXT, idempotency_key="k"))["idempotent_of"] == "job-1"
    place.storage.delete(keys.output("job-1", "wav"))
    for job_id in ("job-1", "job-2"):
        lost = await place.run("job-r", endpoint="result", job_id=job_id)
        assert (lost["error_code"], lost["retryable"]) == ("JOB_NOT_FOUND", False)
    again = await place.run("job-3", text=TEXT, idempotency_key="k")
    assert "idempotent_of" not in again
    assert stored(place, again["audio_url"])
    assert (await place.run("job-4", text=TEXT, idempotency_key="k"))["idempotent_of"] == "job-3"


async def test_a_second_job_of_a_key_whose_job_runs_is_told_to_wait(tmp_path: Path) -> None:
    place = workplace(tmp_path, Talker(held=threading.Event()))
    async with at_work(place, text=TEXT, idempotency_key="k"):
        second = await place.run("job-2", text=TEXT, idempotency_key="k")
        assert (second["error_code"], second["retryable"]) == ("JOB_NOT_DONE", True)
    place.worker.close()


async def test_of_jobs_that_come_at_once_with_one_key_exactly_one_speaks(tmp_path: Path) -> None:
    first, second = workplace(tmp_path), workplace(tmp_path)
    jobs = [each.run(f"job-{n}", text=TEXT, idempotency_key="k") for n, each in enumerate((first, second) * 3)]
    answers = await asyncio.gather(*jobs)
    assert len(first.engine.texts + second.engine.texts) == 1
    done = [answer for answer in answers if answer.get("status") == "DONE"]
    assert len({answer["seed"] for answer in done}) == 1
    assert {answer["error_code"] for answer in answers if answer not in done} <= {"JOB_NOT_DONE"}
    first.worker.close()
    second.worker.close()


async def test_idempotency_keys_of_two_endpoints_are_apart(tmp_path: Path) -> None:
    first, second = (workplace(tmp_path, RUNPOD_ENDPOINT_ID=name) for name in ("one", "two"))
    await first.run("job-1", text=TEXT, idempotency_key="k")
    answer = await second.run("job-2", text="Something else.", idempotency_key="k")
    assert answer["status"] == "DONE"
    first.worker.close()
    second.worker.close()


# --- limits


async def test_a_cancelled_job_stops_at_the_next_step_and_the_next_job_runs(tmp_path: Path) -> None:
    place = workplace(tmp_path, Talker(held=threading.Event()))
    async with at_work(place, text=TEXT) as job:
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        status = await place.run("job-2", endpoint="status", job_id="job-1")
        assert status["failure"]["error_code"] == "CANCELLED"
        async with asyncio.timeout(WAIT_S):
            while not place.engine.n_cancelled:
                await asyncio.sleep(0.005)
    assert (await place.run("job-3", text=TEXT))["status"] == "DONE"
    assert not [key for key in place.storage.written if key.startswith("output/job-1")]
    place.worker.close()


async def test_a_job_that_is_cancelled_at_its_first_write_is_no_job_that_waits(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, writes, goes_on = place.storage.put, threading.Event(), threading.Event()

    def slow(*args: Any, **kwargs: Any) -> None:
        writes.set()
        assert goes_on.wait(WAIT_S)
        put(*args, **kwargs)

    monkeypatch.setattr(place.storage, "put", slow)
    job = asyncio.create_task(place.run(text=TEXT))
    assert await asyncio.to_thread(writes.wait, WAIT_S)
    job.cancel()
    goes_on.set()
    await asyncio.wait([job])
    assert job.cancelled()
    assert record_of(place)["error"]["error_code"] == "CANCELLED"


async def test_a_job_past_its_deadline_is_a_timeout(tmp_path: Path) -> None:
    place = workplace(tmp_path, Talker(held=threading.Event()), PROCESSING_TIMEOUT="0.3")
    answer = await place.run(text=TEXT)
    assert (answer["error_code"], answer["retryable"]) == ("TIMEOUT", True)
    assert "0.3 s" in answer["error"]
    assert "refresh_worker" not in answer  # the voice did stop
    assert record_of(place)["error"]["error_code"] == "TIMEOUT"
    place.worker.close()


async def test_what_times_out_for_itself_is_not_the_jobs_time(tmp_path: Path) -> None:
    place = workplace(tmp_path, Talker(failures=[TimeoutError("canary")]))
    with capture_logs() as records:
        answer = await place.run(text=TEXT)
    assert answer["error_code"] == "INTERNAL"
    assert record_of(place)["error"] == answer
    assert [record["error"] for record in records if record["event"] == "job.broke"] == ["TimeoutError"]
    place.worker.close()


async def test_storage_of_the_callers_own_is_refused_and_its_keys_are_told_nowhere(place: Workplace) -> None:
    own = {"accessId": "canary", "accessSecret": "canary", "bucketName": "b", "endpointUrl": "http://169.254.169.254"}
    with capture_logs() as records:
        answer = await place.worker.handle({"id": "job-1", "input": {"text": TEXT}, "s3Config": own})
    assert answer["errors"][0]["field"] == "s3Config"
    assert (answer["error_code"], answer["retryable"]) == ("INVALID_INPUT", False)
    assert "canary" not in json.dumps([answer, records], default=str)
    assert place.storage.written == []
    for nothing in (None, dict[str, str]()):
        job = {"id": "job-1", "input": {"text": TEXT}, "s3Config": nothing}
        assert (await place.worker.handle(job))["status"] == "DONE"


async def test_the_policy_of_a_job_may_shorten_its_time_and_never_lengthens_it(tmp_path: Path) -> None:
    place = workplace(tmp_path, Talker(held=threading.Event()), PROCESSING_TIMEOUT="0.4")
    for policy, seconds in (({"executionTimeout": 200}, "0.2 s"), ({"executionTimeout": 86_400_000}, "0.4 s")):
        answer = await place.worker.handle({"id": "job-1", "input": {"text": TEXT}, "policy": policy})
        assert answer["error_code"] == "TIMEOUT"
        assert seconds in answer["error"]
    place.worker.close()


async def test_a_model_that_hangs_costs_the_worker_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STOP_GRACE_S", 0.05)
    talker = Talker(held=threading.Event(), ignores_cancel=True)
    place = workplace(tmp_path, talker, PROCESSING_TIMEOUT="0.2")
    answer = await place.run(text=TEXT)
    assert talker.held is not None
    talker.held.set()
    assert (answer["error_code"], answer["refresh_worker"]) == ("TIMEOUT", True)
    place.worker.close()


async def test_a_model_that_hangs_in_a_cancelled_job_is_seen_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STOP_GRACE_S", 0.05)
    talker = Talker(held=threading.Event(), ignores_cancel=True)
    place = workplace(tmp_path, talker, PROCESSING_TIMEOUT="0.3")
    async with at_work(place, text=TEXT) as job:
        job.cancel()
        await asyncio.wait([job])
        answer = await place.run("job-2", text=TEXT)
        assert (answer["error_code"], answer["refresh_worker"]) == ("TIMEOUT", True)
    place.worker.close()


async def test_a_job_that_timed_out_behind_another_leaves_the_worker_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STOP_GRACE_S", 0.05)
    place = workplace(tmp_path, Talker(held=threading.Event()))
    async with at_work(place, text=TEXT):
        waiting = {"id": "job-2", "input": {"text": TEXT}, "policy": {"executionTimeout": 100}}
        answer = await place.worker.handle(waiting)
        assert answer["error_code"] == "TIMEOUT"
        assert "refresh_worker" not in answer
    place.worker.close()


async def test_speech_is_computed_for_one_job_at_a_time(place: Workplace) -> None:
    answers = await asyncio.gather(*(place.run(f"job-{n}", text=LONG) for n in range(4)))
    assert [answer["status"] for answer in answers] == ["DONE"] * 4
    assert place.engine.most_at_work == 1


# --- what fails


async def test_running_out_of_memory_twice_asks_for_a_new_worker(tmp_path: Path) -> None:
    full = OutOfMemory("the card is full", stage="tts")
    place = workplace(tmp_path, Talker(failures=[full, full]))
    answer = await place.run(text=TEXT)
    assert (answer["error_code"], answer["retryable"], answer["refresh_worker"]) == ("OUT_OF_MEMORY", True, True)
    place.worker.close()


async def test_running_out_of_memory_once_is_told_in_the_metrics_only(tmp_path: Path) -> None:
    place = workplace(tmp_path, Talker(failures=[OutOfMemory("the card is full", stage="tts")]))
    assert (await place.run(text=TEXT))["metrics"]["n_oom_retries"] == 1
    place.worker.close()


async def test_a_broken_card_asks_for_a_new_worker_and_a_failing_voice_does_not(tmp_path: Path) -> None:
    broken = EngineFailed("the voice failed", stage="tts")
    broken.__cause__ = RuntimeError("CUDA error: an illegal memory access was encountered")
    place = workplace(tmp_path, Talker(failures=[broken, EngineFailed("the voice failed", stage="tts")]))
    answers = [await place.run(f"job-{n}", text=TEXT) for n in range(2)]
    assert [answer.get("refresh_worker") for answer in answers] == [True, None]
    assert {answer["error_code"] for answer in answers} == {"INTERNAL"}
    place.worker.close()


async def test_what_nobody_foresaw_says_nothing_of_itself(tmp_path: Path) -> None:
    place = workplace(tmp_path, Talker(failures=[ZeroDivisionError("/etc/secret/path canary")]))
    answer = await place.run(text=TEXT)
    assert answer == {
        "error": "INTERNAL: the job failed inside the worker; its log says more",
        "error_code": "INTERNAL",
        "retryable": True,
    }
    place.worker.close()


async def test_a_model_that_is_missing_is_told_to_every_job(tmp_path: Path) -> None:
    place = workplace(tmp_path)

    def missing() -> Any:
        raise ConfigError("there is no model: set F5_MODEL_DIR")

    lacking = Worker(place.settings, missing)
    for endpoint in ({"text": TEXT}, {"endpoint": "info"}):
        answer = await lacking.handle({"id": "job-1", "input": endpoint})
        assert answer["error_code"] == "MODEL_UNAVAILABLE"
    health = await lacking.handle({"id": "job-1", "input": {"endpoint": "health"}})
    assert [check["ok"] for check in health["checks"]] == [True, False]
    lacking.close()
    place.worker.close()


@pytest.mark.parametrize("prefix", ["jobs/job-1", "output/"])
async def test_a_storage_that_fails_is_told_and_may_be_tried_again(place: Workplace, prefix: str) -> None:
    place.storage.broken[prefix] = StorageError("the storage is busy")
    answer = await place.run(text=TEXT)
    assert (answer["error"], answer["retryable"]) == ("STORAGE_ERROR: the storage is busy", True)
    place.storage.broken.clear()
    assert (await place.run(text=TEXT))["status"] == "DONE"


async def test_a_record_that_cannot_be_ended_is_a_failed_job(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def done(*args: Any) -> Any:
        raise StorageError("the storage is busy")

    monkeypatch.setattr(JobRecord, "done", done)
    assert (await place.run(text=TEXT))["error_code"] == "STORAGE_ERROR"
    assert record_of(place)["state"] == "FAILED"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"text": ""}, "INVALID_INPUT"),
        ({"text": TEXT, "local_voice": "../../etc/passwd"}, "INVALID_INPUT"),
        ({"endpoint": "speak"}, "UNKNOWN_ENDPOINT"),
        ({"text": TEXT, "local_voice": "nobody"}, "VOICE_NOT_FOUND"),
        ({"endpoint": "delete_voice", "voice_name": "nobody"}, "VOICE_NOT_FOUND"),
        ({"endpoint": "upload", "voice_name": "a", "voice_file": "AAAA", "consent": True}, "VOICE_INVALID"),
        ({"endpoint": "status", "job_id": "none"}, "JOB_NOT_FOUND"),
        ({"endpoint": "result", "job_id": "none"}, "JOB_NOT_FOUND"),
        ({"endpoint": "download", "job_id": "none"}, "JOB_NOT_FOUND"),
    ],
)
async def test_what_the_caller_must_change_is_told_by_its_code(
    place: Workplace, fields: dict[str, Any], code: str
) -> None:
    answer = await place.run(**fields)
    assert (answer["error_code"], answer["retryable"]) == (code, False)
    assert answer["error"].startswith(f"{code}: ")
    assert place.engine.texts == []


@pytest.mark.parametrize("job_id", [None, 5, "", "../x", "a" * 200, "a/b"])
async def test_a_job_without_a_proper_id_is_refused(place: Workplace, job_id: Any) -> None:
    answer = await place.worker.handle({"id": job_id, "input": {"text": TEXT}})
    assert answer["error_code"] == "INVALID_INPUT"


async def test_urls_that_may_not_or_cannot_be_fetched_are_told_apart(tmp_path: Path) -> None:
    guarded = workplace(tmp_path / "guarded", ALLOW_PRIVATE_URLS="false")
    blocked = await guarded.run(text=TEXT, local_voice="https://127.0.0.1/voice.wav", ref_text="Hi.")
    assert blocked["error_code"] == "URL_BLOCKED"
    assert (await guarded.run(text=TEXT, local_voice="http://example.com/a.wav"))["error_code"] == "URL_BLOCKED"
    guarded.worker.close()
    place = workplace(tmp_path / "open")
    upload = {"endpoint": "upload", "voice_name": "a", "voice_file_url": "http://127.0.0.1:9/a.wav", "consent": True}
    failed = await place.run(**upload)
    assert (failed["error_code"], failed["retryable"]) == ("DOWNLOAD_FAILED", True)
    place.worker.close()


async def test_a_voice_behind_a_url_is_used(tmp_path: Path, recording: bytes) -> None:
    place = workplace(tmp_path)
    with serving({"/voice.wav?signature=s": recording}) as server:
        url = f"{server.address}/voice.wav?signature=s"
        answer = await place.run(text=TEXT, local_voice=url, ref_text="Some call me nature.")
    assert (answer["status"], answer["voice"]) == ("DONE", "url")
    assert "signature" not in json.dumps(record_of(place))
    place.worker.close()


# --- word times that fail


async def test_word_times_that_fail_cost_the_word_times_only(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("canary")

    monkeypatch.setattr(tts_job, "time_words", broken)
    answer = await place.run(text=TEXT, return_word_timings=True, timing_format=ALL_FORMATS)
    assert answer["status"] == "DONE"
    assert stored(place, answer["audio_url"])
    assert answer["timing_error"].startswith("INTERNAL: ")
    assert "canary" not in json.dumps(answer)
    assert "timing_files" not in answer


async def test_a_file_of_word_times_that_fails_leaves_those_before_it(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:

    def render(format: str, *args: Any, **kwargs: Any) -> Any:
        if format == "csv":
            raise StorageError("no room")
        return render_subtitles(format, *args, **kwargs)

    monkeypatch.setattr(tts_job, "render", render)
    answer = await place.run(text=TEXT, return_word_timings=True, timing_format=["srt", "csv", "vtt"])
    assert set(answer["timing_files"]) == {"srt"}
    assert answer["timing_error"] == "STORAGE_ERROR: no room"
    assert answer["words"]


async def test_too_little_time_for_word_times_leaves_the_audio(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*args: Any, cancelled: Any, **kwargs: Any) -> Any:
        while not cancelled():
            time.sleep(0.005)
        raise JobError("CANCELLED", "the job was cancelled")

    monkeypatch.setattr(tts_job, "time_words", slow)
    answer = await place.worker.handle(
        {"id": "job-1", "input": {"text": TEXT, "return_word_timings": True}, "policy": {"executionTimeout": 1500}}
    )
    assert answer["status"] == "DONE"
    assert answer["timing_error"] == "TIMEOUT: too little time was left for the word times"


@pytest.mark.parametrize("slow", ["time_words", "render"])
async def test_word_times_that_do_not_stop_in_time_leave_the_audio(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """As a call of Google or a pass of a model does not."""
    ended = threading.Event()
    if slow == "time_words":
        monkeypatch.setattr(tts_job, "time_words", lambda *args, **kwargs: ended.wait(WAIT_S))
    else:  # what writes the files of word times stands still
        put = place.storage.put

        def held(key: str, *args: Any, **kwargs: Any) -> None:
            if key.startswith("timings/"):
                ended.wait(WAIT_S)
            put(key, *args, **kwargs)

        monkeypatch.setattr(place.storage, "put", held)
    job = {"input": {"text": TEXT, "return_word_timings": True}, "policy": {"executionTimeout": 1500}}
    try:
        answer = await place.worker.handle({"id": "job-1", **job})
        assert answer["timing_error"] == "TIMEOUT: too little time was left for the word times"
        assert stored(place, answer["audio_url"])
        assert record_of(place)["state"] == "DONE"
        # and the next job does not wait for what still runs
        assert (await place.run("job-2", text=TEXT))["status"] == "DONE"
    finally:
        ended.set()


# --- what is told, and what is not


async def test_info_tells_the_licence_the_endpoints_and_what_this_worker_can_do(place: Workplace) -> None:
    info = await place.run(endpoint="info")
    assert "CC-BY-NC" in info["licence"]
    assert info["sample_rate"] == 24_000
    assert set(info["endpoints"]) > {"tts", "upload", "status", "result"}
    assert info["features"]["timing_google"].startswith("no account")
    assert (await place.run(endpoint="health"))["status"] == "ok"


async def test_health_says_what_is_wrong_with_the_storage(tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("a file where a directory belongs")
    place = workplace(tmp_path, storage=Watched(tmp_path / "elsewhere"))
    health = await place.run(endpoint="health")
    assert health["status"] == "failing"
    assert not health["checks"][0]["ok"]
    place.worker.close()


async def test_logs_hold_no_text_no_url_no_key_and_no_path(
    tmp_path: Path, recording: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    canary, key = "Canary sings secretly.", "canary-idempotency"
    failures: list[Exception] = [ZeroDivisionError(canary), OutOfMemory("full", stage="tts")]
    place = workplace(tmp_path, Talker(failures=failures), GOOGLE_CLOUD_PROJECT="canary-project")
    with capture_logs() as records:
        voice = {"endpoint": "upload", "voice_name": "canaryvoice", "voice_file": base64.b64encode(recording).decode()}
        await place.run("u", **voice, ref_text="Canary reference.", consent=True)
        for number in range(3):
            await place.run(
                f"job-{number}",
                text=canary,
                idempotency_key=f"{key}{number}",
                local_voice="canaryvoice",
                return_word_timings=True,
            )
        await place.run("r", endpoint="result", job_id="job-2")
        await place.run("bad", text=canary, speed="canary", canary_field=1)
        await place.run("url", text=canary, local_voice="https://canary.invalid/?signature=canary", ref_text="canary")
    place.worker.close()
    printed = capfd.readouterr()
    told = json.dumps(records, default=str) + printed.out + printed.err
    assert {record["event"] for record in records} >= {"job.started", "job.answered", "job.failed", "job.broke"}
    assert "anary" not in told
    assert "signature" not in told
    assert str(tmp_path) not in told
    assert any(record.get("n_chars") == len(canary) and len(record["text_sha256"]) == 12 for record in records)


async def test_hostile_inputs_never_reach_the_voice_and_write_nothing(place: Workplace, tmp_path: Path) -> None:
    hostile: list[Any] = [
        {"text": TEXT, "local_voice": "../" * 20 + "etc/passwd"},
        {"text": TEXT, "local_voice": "http://169.254.169.254/latest/meta-data", "ref_text": "x" * 10**6},
        {"text": TEXT, "speed": float("nan")},
        {"text": "x" * 10**6},
        {"text": {"$ne": None}},
        {"text": ["a"] * 1000},
        {"text": "\ud800"},
        {"text": "\u202e\u200b\x00"},
        {"text": TEXT, "timing_format": ["../../x"], "return_word_timings": True},
        {"text": TEXT, "output_format": "wav; rm -rf /"},
        {"endpoint": "upload", "voice_name": "a\x00.wav", "voice_file": "AAAA", "consent": True},
        {"endpoint": "confirm", "voice_name": "a", "upload_id": "../../jobs/x", "consent": True},
        {"endpoint": "list_voices", "prefix": "../", "cursor": "../../"},
        {"endpoint": "download", "job_id": "../../voices/a"},
        {"endpoint": "__import__('os')"},
        {"a" * 10**5: 1},
        None,
        [],
    ]
    for job_input in hostile:
        answer = await place.worker.handle({"id": "job-1", "input": job_input})
        assert answer["error_code"] in {"INVALID_INPUT", "UNKNOWN_ENDPOINT", "URL_BLOCKED", "DOWNLOAD_FAILED"}
        json.dumps(answer).encode()
        assert "Traceback" not in answer["error"]
    assert place.engine.texts == []
    assert place.storage.written == []
    assert names_in(tmp_path) <= {"storage", "cache", "models"}
