"""The self-test over a real socket: what it measures, when it refuses, what its command and its route say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from api.rest.jobs import Jobs
from api.selftest import measure, talker
from api.selftest.measure import Plan, load_clips, run
from api.selftest.remote import RemoteServer
from api.selftest.report import Report
from pipeline.engines.base import Engines
from pipeline.errors import Busy, EngineFailed, Unauthorized
from scripts import selftest
from tests.support.client import connected
from tests.support.closed_server import closed_server
from tests.support.live_server import Live, live_server, scripted_settings
from tests.support.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedVad
from tests.support.tiny_model import closed_port

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

WAIT_S = 60.0
# As little as an interruption needs: scripted ears hear any sound.
CLIPS = [np.round(12_000 * np.sin(np.arange(n) / 6)).astype(np.int16) for n in (8000, 9600, 8000)]
LONG = "This answer goes on for long enough that somebody can interrupt it in the middle."


def settings(**sections: dict[str, Any]) -> Any:
    return scripted_settings(**{"turn": {"end_wait_ms": 200}, **sections})


def scripted_llm(*replies: str | Exception) -> ScriptedLlm:
    return ScriptedLlm(replies=list(replies), first_token_s=0.02, token_s=0.002)


async def report_of(live: Live, plan: Plan) -> Report:
    server = RemoteServer(live.http, None)
    async with asyncio.timeout(WAIT_S), aclosing(run(server.connect, server, plan, CLIPS)) as steps:
        found = [step async for step in steps]
    shares = [step for step in found if not isinstance(step, Report)]
    assert shares == sorted(shares)
    assert all(0 < share <= 1 for share in shares)
    assert isinstance(found[-1], Report)
    return found[-1]


async def test_it_measures_answers_interruptions_speeds_and_talks_at_once() -> None:
    llm = scripted_llm("Yes.", LONG, "No.", "Yes.", "No.")
    async with live_server(settings(), llm=llm) as live:
        report = await report_of(live, Plan(n_turns=3, max_talks=2))
        assert report.failures == ()
        assert report.v2v_ms is not None
        assert report.v2v_ms.n == 3
        assert report.v2v_ms.p50 >= 200  # the silence that ends an utterance
        assert list(report.parts_ms)[:3] == ["endpointing", "asr", "prompt"]
        assert report.stop_ms is not None
        assert report.stop_ms.n == 1
        assert report.rtf.asr is not None
        assert report.rtf.tts is not None
        assert report.talks.n in (1, 2)
        assert report.memory.process is not None
        assert report.engines["llm"] == "script"
        assert json.loads(json.dumps(report.as_json()))["v2v_ms"]["n"] == 3
        assert live.llm.asked[0][0].content.startswith("Answer in two short sentences")


async def test_seats_bound_the_talks_at_once_and_are_free_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SEAT_FREED_S", 0.5)
    config = settings(system={"max_concurrent_users": 1})
    async with live_server(config, llm=scripted_llm("Yes.")) as live:
        report = await report_of(live, Plan(n_turns=1, max_talks=4))
        assert (report.talks.n, report.talks.limit) == (1, "seats")
        async with asyncio.timeout(WAIT_S):
            while live.server.registry.n_active:
                await asyncio.sleep(0.01)


async def test_an_answer_that_goes_on_and_on_is_cut_once_its_start_was_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talker, "HEARD_S", 0.2)
    async with live_server(settings(), llm=scripted_llm(" ".join([LONG] * 20))) as live:
        report = await report_of(live, Plan(n_turns=1, max_talks=1))
        assert report.failures == ()
        assert report.v2v_ms is not None
        assert report.stop_ms is None  # nobody interrupted it


async def test_questions_that_fail_are_told_and_end_the_test_early() -> None:
    llm = scripted_llm(*[EngineFailed("broken", stage="llm")] * 4)
    async with live_server(settings(), llm=llm) as live:
        report = await report_of(live, Plan(n_turns=8, max_talks=4))
        assert report.failures == ("engine_failed", "engine_failed")
        assert report.talks.n == 0
        assert not report.is_fine
        assert "engine_failed" in " ".join(report.advice())


async def test_it_refuses_while_people_talk_unless_it_is_forced() -> None:
    async with live_server(settings(), llm=scripted_llm("Yes.")) as live, connected(live.url) as person:
        await person.until("session.created")
        with pytest.raises(Busy, match="people are talking"):
            await report_of(live, Plan(n_turns=1))
        report = await report_of(live, Plan(n_turns=1, max_talks=4, force=True))
        assert report.v2v_ms is not None
        assert (report.talks.n, report.talks.limit) == (1, "people")  # forced or not, it takes no more than one seat


async def test_a_server_without_figures_leaves_them_out() -> None:
    config = settings(system={"enable_monitoring": False})
    async with live_server(config, llm=scripted_llm("Yes.")) as live:
        server = RemoteServer(live.http, None)
        assert await server.n_talks() is None
        assert (await server.memory()).process is None


async def test_the_bundled_questions_are_understood_as_speech_and_cut_to_their_words() -> None:
    clips = load_clips()
    assert len(clips) >= 3
    assert all(16_000 < clip.size < 5 * 16_000 for clip in clips)
    assert all(abs(int(clip[0])) > 300 and abs(int(clip[-1])) > 300 for clip in clips)


# --- the command


async def test_the_command_prints_the_verdict_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "load_clips", lambda: CLIPS)
    async with live_server(settings(), llm=scripted_llm("Yes.")) as live:
        file = tmp_path / "report.json"
        options = ["--url", live.http, "--turns", "1", "--talks", "1", "--json", str(file)]
        status = await asyncio.to_thread(selftest.main, options)
    told = json.loads(file.read_text())
    assert status == 1  # no interruption was measured
    assert told["is_fine"] is False
    assert "Not measured: interruption" in told["verdict"]
    assert told["verdict"] in capsys.readouterr().out


async def test_the_command_starts_a_server_of_its_own_from_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = Engines(ScriptedVad(), ScriptedAsr(), scripted_llm("Yes."), ScriptedTts())
    monkeypatch.setattr(Engines, "from_settings", lambda settings: engines)
    monkeypatch.setattr(selftest, "require_models", lambda settings: None)
    monkeypatch.setattr(selftest, "load_clips", lambda: CLIPS)
    monkeypatch.setenv("VOICEPOD_DATA", str(tmp_path / "data"))
    options = ["--turns", "1", "--talks", "1", "--set", "tts.voice=anna"]
    assert await asyncio.to_thread(selftest.main, options) == 1
    assert "from the last word to the answer" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()  # the operator's records are left alone


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--url", f"http://127.0.0.1:{closed_port()}"], "no server answers"),
        (["--url", "nowhere"], "looks like"),
        (["--url", "http://127.0.0.1:1", "--profile", "cpu"], "--profile"),
        (["--set", "llm.nothing=1"], "unknown key"),
    ],
)
def test_a_test_that_cannot_run_says_why(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(options) == 2
    assert words in capsys.readouterr().err


async def test_a_server_that_asks_for_a_key_says_so() -> None:
    with closed_server() as closed:
        for key in (None, "vp_wrong"):
            with pytest.raises(Unauthorized, match="VOICEPOD_KEY"):
                async with RemoteServer(closed.url, key).connect():
                    pass


# --- the route


async def test_the_route_runs_it_in_the_background_and_keeps_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.rest.selftest.load_clips", lambda: CLIPS)
    config = settings(system={"max_concurrent_users": 3})
    async with live_server(config, llm=scripted_llm("Yes.", LONG, "No.", "Yes.", "No.")) as live:
        async with httpx.AsyncClient(base_url=live.http, headers={"Origin": live.http}, timeout=WAIT_S) as http:
            assert (await http.get("/api/selftest")).json() == {"object": "selftest", "job": None}
            begun = await http.post("/api/selftest", json={"turns": 1, "talks": 16})
            assert begun.status_code == 202, begun.text
            assert begun.json()["job"]["status"] in ("queued", "running")
            again = await http.post("/api/selftest", json={"force": True})
            assert (again.status_code, again.json()["job"]["id"]) == (202, begun.json()["job"]["id"])
            async with asyncio.timeout(WAIT_S):
                while (answer := await http.get("/api/selftest")).json()["job"]["status"] in ("queued", "running"):
                    assert answer.headers["Retry-After"]
                    await asyncio.sleep(0.5)
            job = answer.json()["job"]
            assert job["status"] == "done", job
            assert job["result"]["object"] == "selftest_report"
            assert job["result"]["v2v_ms"]["n"] == 1
            assert job["result"]["talks"]["n"] <= 2  # a seat stays free


async def test_a_job_that_is_deleted_while_it_waits_is_no_longer_open() -> None:
    async def work() -> AsyncGenerator[float, None]:
        yield 1.0

    jobs = Jobs()
    job = jobs.add("selftest", "owner", work())
    assert job.is_open
    await jobs.delete(job.id, "owner")
    assert not job.is_open


async def test_the_route_refuses_while_somebody_talks_and_where_there_is_no_socket() -> None:
    async with live_server(settings()) as live, connected(live.url) as person:
        await person.until("session.created")
        async with httpx.AsyncClient(base_url=live.http, headers={"Origin": live.http}) as http:
            answer = await http.post("/api/selftest", json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_busy")
    async with live_server(settings(network={"websocket_enabled": False})) as live:
        async with httpx.AsyncClient(base_url=live.http, headers={"Origin": live.http}) as http:
            assert (await http.post("/api/selftest", json={})).status_code == 400
