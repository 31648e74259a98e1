"""`POST /v1/audio/transcriptions`, the same as a job, and the jobs themselves, with a scripted recogniser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from api.access.principal import USER_SCOPES, Principal
from api.rest.jobs import KEEP_S, MAX_KEPT_OF_OWNER, Jobs, Progress
from api.rest.transcriptions import MAX_DIRECT_S, MAX_FILE_S
from pipeline.audio import AudioChunk, file_bytes
from pipeline.engines.base import Transcript
from pipeline.errors import EngineFailed, NotFound
from tests.support.rest import BusyAsr, Rest, TimedAsr, a_file, rest_server, tone
from tests.support.scripted import ScriptedAsr

ROUTE, JOBS = "/v1/audio/transcriptions", "/api/transcriptions"


@dataclass
class HeldAsr(BusyAsr):
    """Hears only what it is let hear."""

    may_hear: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        self.n_open += 1
        try:
            await self.may_hear.acquire()
            return await ScriptedAsr.transcribe(self, utterance, language=language)
        finally:
            self.n_open -= 1


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with rest_server(asr=TimedAsr(delay_s=0.0)) as running:
        yield running


@pytest.fixture
async def held() -> AsyncIterator[Rest]:
    async with rest_server(asr=HeldAsr(delay_s=0.0)) as running:
        yield running


async def post(rest: Rest, route: str = ROUTE, *, audio: bytes | None = None, **fields: Any) -> httpx.Response:
    files = {"file": ("speech.wav", audio or a_file(), "audio/wav")}
    return await rest.client.post(route, files=files, data={"model": "whisper-1", **fields})


async def until_ended(rest: Rest, location: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            answer = await rest.client.get(location)
            job: dict[str, Any] = answer.json()
            if job["status"] in ("done", "failed"):
                return job
            assert int(answer.headers["retry-after"]) >= 1
            await asyncio.sleep(0.01)


async def until(happened: Any) -> None:
    async with asyncio.timeout(5):
        while not happened():
            await asyncio.sleep(0.01)


FORMS = {
    "json": ("application/json", None),
    "text": ("text/plain; charset=utf-8", "Hello there. General.\n"),
    "srt": (
        "application/x-subrip; charset=utf-8",
        "1\n00:00:00,000 --> 00:00:00,900\nHello there.\n\n2\n00:00:01,000 --> 00:00:01,400\nGeneral.\n\n",
    ),
    "vtt": (
        "text/vtt; charset=utf-8",
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.900\nHello there.\n\n00:00:01.000 --> 00:00:01.400\nGeneral.\n\n",
    ),
    "verbose_json": ("application/json", None),
}


@pytest.mark.parametrize("kind", FORMS)
async def test_every_form_of_a_transcript(rest: Rest, kind: str) -> None:
    rest.live.asr.texts = ["Hello there. General."]
    answer = await post(rest, response_format=kind)
    content_type, text = FORMS[kind]
    assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)
    if text is not None:
        assert answer.text == text
    else:
        assert answer.json()["text"] == "Hello there. General."
        assert answer.json()["usage"] == {"type": "duration", "seconds": 1.0}


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ([], {"segments"}),
        (["segment"], {"segments"}),
        (["word"], {"words"}),
        (["word", "segment"], {"words", "segments"}),
    ],
    ids=lambda value: repr(sorted(value)),
)
async def test_times_come_for_what_was_asked(rest: Rest, asked: list[str], given: set[str]) -> None:
    rest.live.asr.texts = ["Hello there. General."]
    fields: dict[str, Any] = {"timestamp_granularities[]": asked}
    answer = await post(rest, response_format="verbose_json", **fields)
    found = answer.json()
    assert found.keys() & {"words", "segments"} == given
    assert (found["language"], found["duration"]) == ("en", 1.0)
    if "words" in given:
        assert found["words"][1] == {"word": "there.", "start": 0.5, "end": 0.9}
    if "segments" in given:
        assert [segment["text"] for segment in found["segments"]] == ["Hello there.", "General."]
        assert found["segments"][0]["avg_logprob"] is None  # what the engine does not tell is not invented


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "docx"}, "response_format"),
        ({"language": "english"}, "language"),
        ({"language": "xx"}, "language"),
        ({"temperature": "hot"}, "temperature"),
        ({"timestamp_granularities[]": ["letter"]}, "timestamp_granularities"),
        ({"stream": "perhaps"}, "stream"),
        ({"language": ["en", "de"]}, "language"),
    ],
    ids=str,
)
async def test_a_wrong_field_is_named(rest: Rest, fields: dict[str, Any], param: str) -> None:
    answer = await post(rest, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_what_is_no_recording_is_refused_with_a_reason(rest: Rest) -> None:
    refused = {
        "text": (b"hello, I am no sound", "not_audio"),
        "silence": (file_bytes(AudioChunk.silence(1.0, 16_000), "wav"), "silent"),
        "cut": (a_file()[:3000], "broken"),
    }
    for audio, code in refused.values():
        answer = await post(rest, audio=audio)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    nothing = await rest.client.post(ROUTE, data={"model": "whisper-1"}, files={"other": b"x"})
    assert nothing.status_code == 400
    assert (await rest.client.post(ROUTE, json={"file": "x"})).status_code == 415


async def test_the_prompt_is_accepted_and_the_language_is_handed_on() -> None:
    asr = BusyAsr(delay_s=0.0)
    async with rest_server(asr=asr) as rest:
        answer = await post(rest, prompt="Names: Anna, Bruno.", language="en", unheard_of="x")
        assert answer.status_code == 200
        await post(rest)
        assert asr.languages_asked == ["en", None]


async def test_a_long_file_is_heard_in_stretches_and_told_as_it_is_heard(held: Rest) -> None:
    asr = held.live.asr
    assert isinstance(asr, HeldAsr)
    asr.texts = ["First part.", "", "Last part."]
    files = {"file": ("long.wav", a_file(70.0))}
    asr.may_hear.release()
    async with held.client.stream("POST", ROUTE, files=files, data={"model": "m", "stream": "true"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (json.loads(line.removeprefix("data: ")) async for line in answer.aiter_lines() if line)
        assert await anext(lines) == {"type": "transcript.text.delta", "delta": "First part."}
        assert len(asr.utterances) == 1
        for _ in range(2):
            asr.may_hear.release()
        assert [event["delta"] async for event in _deltas(lines)] == ["", " Last part."]
    assert [chunk.seconds <= 29 for chunk in asr.utterances] == [True] * 3
    assert sum(chunk.seconds for chunk in asr.utterances) == pytest.approx(70.0)


async def _deltas(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    async for event in events:
        if event["type"] == "transcript.text.done":
            assert event["text"] == "First part. Last part."
            return
        yield event


async def test_a_client_that_goes_away_stops_the_recogniser(held: Rest) -> None:
    asr = held.live.asr
    assert isinstance(asr, HeldAsr)
    for stream in ("false", "true"):
        asking = asyncio.create_task(post(held, stream=stream))
        await until(lambda: asr.n_open == 1)
        asking.cancel()
        await until(lambda: asr.n_open == 0)


async def test_a_file_that_takes_too_long_for_one_request_is_told_where_to_go(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    async def decode(data: bytes, *, max_seconds: float) -> AudioChunk:
        limits.append(max_seconds)
        return tone(MAX_DIRECT_S + 1)

    monkeypatch.setattr("api.rest.transcriptions.decode", decode)
    answer = await post(rest)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_long")
    assert "/api/transcriptions" in answer.json()["error"]["message"]
    assert (await post(rest, stream="true")).status_code == 200
    assert (await post(rest, JOBS)).status_code == 202
    assert limits == [MAX_FILE_S] * 3


async def test_a_file_over_the_limit_is_cut_while_it_comes_in() -> None:
    async with rest_server(security={"max_upload_size_mb": 0.1, "rate_limiting": False}) as rest:
        assert (await post(rest, audio=a_file(10.0))).status_code == 413
        assert (await post(rest, JOBS, audio=a_file(10.0))).status_code == 413
        assert (await rest.client.post("/api/converse", content=a_file(10.0))).status_code == 413


async def test_uploads_count_against_the_limits() -> None:
    async with rest_server(security={"max_requests_per_minute": 1000}) as rest:
        statuses = [(await post(rest)).status_code for _ in range(11)]
        assert statuses == [200] * 10 + [429]


@pytest.mark.parametrize(
    ("route", "costs"),
    [
        (ROUTE, {"api": 1, "upload": 1, "audio_s": 1.5}),
        (JOBS, {"api": 1, "upload": 1, "audio_s": 1.5}),
        ("/api/converse", {"api": 1, "generation": 1, "audio_s": 1.5}),
        ("/api/tts", {"api": 1, "generation": 1, "characters": 12}),
    ],
)
async def test_every_route_counts_what_it_costs(
    rest: Rest, monkeypatch: pytest.MonkeyPatch, route: str, costs: dict[str, float]
) -> None:
    spent: dict[str, float] = {}

    async def spend(principal: Principal, kind: str, amount: float = 1) -> None:
        spent[kind] = spent.get(kind, 0) + amount

    monkeypatch.setattr(rest.live.server.access.limiter, "spend", spend)
    if route == "/api/converse":
        await rest.client.post(route, content=a_file(1.5))
    elif route == "/api/tts":
        await rest.client.post(route, json={"text": "Hello there."})
    else:
        await post(rest, route, audio=a_file(1.5))
    assert spent == pytest.approx(costs)


# --- jobs


async def test_a_job_tells_how_far_it_is_and_then_what_was_said(held: Rest) -> None:
    asr = held.live.asr
    assert isinstance(asr, HeldAsr)
    asr.texts = ["First part.", "Last part."]
    taken = await post(held, JOBS, audio=a_file(50.0), response_format="text")
    assert taken.status_code == 202
    location = taken.headers["location"]
    assert location == f"/api/jobs/{taken.json()['id']}"
    asr.may_hear.release()
    await until(lambda: len(asr.utterances) == 1)
    await until(lambda: asr.n_open == 1)
    running = (await held.client.get(location)).json()
    assert running["status"] == "running"
    assert 0.2 < running["progress"] < 0.9
    asr.may_hear.release()
    done = await until_ended(held, location)
    assert (done["status"], done["progress"], done["result"]) == ("done", 1.0, "First part. Last part.\n")
    assert done["expires_at"] > done["created_at"]


async def test_a_job_that_fails_says_why_and_the_next_one_works() -> None:
    asr = ScriptedAsr(texts=[EngineFailed("it failed", stage="asr"), ValueError("secret"), "Fine."], delay_s=0.0)
    async with rest_server(asr=asr) as rest:
        jobs = [await until_ended(rest, (await post(rest, JOBS)).headers["location"]) for _ in range(3)]
        assert [job["status"] for job in jobs] == ["failed", "failed", "done"]
        assert jobs[0]["error"]["code"] == "engine_failed"
        assert "secret" not in json.dumps(jobs[1])


async def test_a_deleted_job_stops_and_is_gone(held: Rest) -> None:
    asr = held.live.asr
    assert isinstance(asr, HeldAsr)
    first, second = [(await post(held, JOBS)).headers["location"] for _ in range(2)]
    await until(lambda: asr.n_open == 1)
    for location in (second, first):  # one that waits, one that runs
        assert (await held.client.delete(location)).status_code == 204
        assert (await held.client.get(location)).status_code == 404
        assert (await held.client.delete(location)).status_code == 404
    await until(lambda: asr.n_open == 0)
    asr.may_hear.release()
    third = (await post(held, JOBS)).headers["location"]
    assert (await until_ended(held, third))["status"] == "done"
    assert len(asr.utterances) == 1


async def test_jobs_are_bounded_for_each_owner_and_for_all(held: Rest) -> None:
    statuses = [(await post(held, JOBS)) for _ in range(3)]
    assert [answer.status_code for answer in statuses] == [202, 202, 429]
    assert int(statuses[-1].headers["retry-after"]) >= 1


async def test_the_jobs_of_all_owners_together_are_bounded(held: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for name in ("anna", "anna", "bruno", "bruno", "clara"):

        async def somebody(connection: Any, name: str = name) -> Principal:
            return Principal(name, f"key:{name}", USER_SCOPES)

        monkeypatch.setattr(held.live.server.access, "principal", somebody)
        answers.append(await post(held, JOBS))
    assert [answer.status_code for answer in answers] == [202] * 4 + [503]
    assert int(answers[-1].headers["retry-after"]) >= 1


async def test_a_job_is_forgotten_after_its_time_and_when_there_are_too_many() -> None:
    now_s = 0.0
    jobs = Jobs(lambda: now_s)

    async def nothing() -> AsyncGenerator[Progress, None]:
        yield "result"

    working = asyncio.create_task(jobs.run())
    ended = []
    for _ in range(MAX_KEPT_OF_OWNER + 2):
        ended.append(jobs.add("transcription", "anna", nothing()))
        await until(lambda: not ended[-1].is_open)
    for job in ended[:2]:
        with pytest.raises(NotFound):
            jobs.get(job.id, "anna")
    assert jobs.get(ended[2].id, "anna").result == "result"
    now_s = KEEP_S + 1
    with pytest.raises(NotFound):
        jobs.get(ended[2].id, "anna")
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_a_job_belongs_to_its_owner(held: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    location = (await post(held, JOBS)).headers["location"]

    async def another(connection: Any) -> Principal:
        return Principal("another", "key:another", USER_SCOPES)

    monkeypatch.setattr(held.live.server.access, "principal", another)
    for method in ("GET", "DELETE"):
        answer = await held.client.request(method, location)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")


async def test_a_server_that_stops_leaves_no_job_behind() -> None:
    asr = HeldAsr()
    async with rest_server(asr=asr) as rest:
        await post(rest, JOBS)
        await until(lambda: asr.n_open == 1)
    assert asr.n_open == 0
