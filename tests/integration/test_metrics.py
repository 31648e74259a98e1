"""Metrics: what a talk on virtual time leaves behind, and what a scraper sees of it."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.gpus import GpuMetrics
from api.host import HostMetrics, HostMonitor
from api.live_figures import MAX_LABEL_VALUES
from api.metrics import STAGES, Metrics, metrics_router
from api.readiness import Readiness
from api.recent_turns import MAX_SESSIONS, RecentTurns, percentile
from api.talk_log import log_event
from pipeline import events
from pipeline.engines.lanes import Ran, Spoke, Waited
from pipeline.errors import EngineFailed, EngineTimeout
from pipeline.records import TurnRecord
from pipeline.session import Session
from tests.support.scripted import ScriptedLlm
from tests.support.talk import Talk

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class StillHost(HostMonitor):
    """A machine whose last snapshot is given."""

    def __init__(self, now: HostMetrics) -> None:
        self.now = now

    def snapshot(self) -> HostMetrics:
        return self.now


@pytest.fixture
def readiness() -> Readiness:
    readiness = Readiness()
    readiness.expect("asr", "scripted")
    return readiness


@pytest.fixture
def host() -> StillHost:
    return StillHost(HostMetrics(n_cpus=2.0))


@pytest.fixture
def metrics(readiness: Readiness, host: StillHost) -> Metrics:
    return Metrics(readiness, host, version="1.2.3")


def scrape(metrics: Metrics) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return scrape(metrics).get((f"voicepod_{name}", tuple(sorted(labels.items()))))


def tell(metrics: Metrics, talk: Talk, session: Session | None = None) -> None:
    for event in talk.told:
        metrics.listen(session or talk.session, event)


def done(turn_id: int = 1, **fields: Any) -> events.TurnDone:
    return events.TurnDone(at_s=0.0, turn_id=turn_id, record=TurnRecord(turn_id, **fields))


class Anybody:
    """As much of a session as a listener looks at."""

    def __init__(self, session_id: str) -> None:
        self.id = session_id


def listen(metrics: Metrics, event: events.Event, session_id: str = "sess_1") -> None:
    metrics.listen(Anybody(session_id), event)  # type: ignore[arg-type]


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as records:
        yield records


@pytest.mark.looptime(noop_cycles=2)
async def test_a_turn_observes_every_stage_once(metrics: Metrics) -> None:
    async with Talk(said=["hello there"], replies=["Nice to hear you, my friend."]) as talk:
        await talk.say(1.0)
        await talk.until(events.ReplyCaption)
        talk.session.played(1, 2400, started_ago_s=0.1)  # the page's report makes the last part
        await talk.quiet()
    tell(metrics, talk)
    for stage in STAGES:
        assert value(metrics, "stage_seconds_count", stage=stage) == 1, stage
    assert value(metrics, "stage_seconds_sum", stage="asr") == pytest.approx(0.15, abs=0.01)
    assert value(metrics, "turn_first_audio_seconds_count") == 1
    sent_s = sum(value(metrics, "stage_seconds_sum", stage=stage) or 0 for stage in STAGES if stage != "playout")
    assert value(metrics, "turn_first_audio_seconds_sum") == pytest.approx(sent_s, abs=0.01)
    assert value(metrics, "turns_total", outcome="completed") == 1
    assert value(metrics, "turns_total", outcome="failed") == 0
    assert value(metrics, "barge_in_stop_seconds_count") == 0


def test_a_turn_observes_the_waits_of_its_jobs_and_the_pace_of_its_pieces(metrics: Metrics) -> None:
    record = TurnRecord(1)
    for work in (Waited("voice", 0.5), Ran("voice", 0.6), Spoke(0.6, 2.0), Waited("voice", 0.0), Spoke(3.0, 2.0)):
        record.note_work(work)
    listen(metrics, events.TurnDone(at_s=0.0, turn_id=1, record=record))
    assert value(metrics, "queue_wait_seconds_count", lane="voice") == 2
    assert value(metrics, "queue_wait_seconds_sum", lane="voice") == 0.5
    assert value(metrics, "tts_rtf_sum") == pytest.approx(0.3 + 1.5)
    assert value(metrics, "tts_rtf_bucket", le="1.0") == 1


@pytest.mark.looptime(noop_cycles=2)
async def test_an_interruption_is_timed_from_the_onset_of_speech(metrics: Metrics) -> None:
    story = "Once upon a time there was a small house by the sea. An old man lived there with his dog."
    async with Talk(said=["tell me a story", "stop please"], replies=[story, "All right."]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(2.0)
        await talk.say(0.8)
        await talk.quiet()
    tell(metrics, talk)
    assert value(metrics, "turns_total", outcome="interrupted") == 1
    assert value(metrics, "barge_in_stop_seconds_count") == 1
    assert value(metrics, "barge_in_stop_seconds_sum") == pytest.approx(0.26, abs=0.05)  # the 250 ms that are asked for
    figures = metrics.session_figures(talk.session.id)
    assert figures is not None
    assert (figures["turns"], figures["interruptions"]) == (2, 1)


@pytest.mark.looptime(noop_cycles=2)
async def test_a_failed_turn_is_counted_by_its_code(metrics: Metrics) -> None:
    llm = ScriptedLlm([EngineTimeout("too slow", stage="llm")])
    async with Talk(said=["hello"], llm=llm) as talk:
        await talk.say(0.6)
        await talk.until(events.TurnDone)
    tell(metrics, talk)
    assert value(metrics, "turns_total", outcome="failed") == 1
    assert value(metrics, "turn_errors_total", code="engine_timeout") == 1
    assert metrics.figures()["error_rate"] == 1.0


@pytest.mark.looptime(noop_cycles=2)
async def test_the_log_has_one_line_a_turn_whose_parts_sum_to_the_total_and_no_words(logged: list[Any]) -> None:
    async with Talk(said=["my secret question"], replies=["My secret answer.", "Another answer."]) as talk:
        await talk.say(1.0)
        await talk.quiet()
        await talk.say(1.0)
        await talk.quiet()
        with structlog.testing.capture_logs() as logged:
            for event in talk.told:
                log_event(talk.session, event)
    lines = [line for line in logged if line["event"] == "turn.done"]
    assert [line["turn_id"] for line in lines] == [1, 2]
    for line in lines:
        assert line["log_level"] == "info"
        assert line["session_id"] == talk.session.id
        assert line["outcome"] == "completed"
        assert sum(line["parts_ms"].values()) == pytest.approx(line["total_ms"], abs=0.2)
    assert "secret" not in repr(logged)


@pytest.mark.looptime(noop_cycles=2)
async def test_the_log_says_once_that_a_conversation_started(logged: list[Any]) -> None:
    async with Talk() as talk:
        talk.session._observers = (log_event,)  # live, since it looks at the history of the moment
        for _ in range(2):
            await talk.say(1.0)
            await talk.quiet()
    assert [line["event"] for line in logged].count("conversation.started") == 1


def test_an_unforeseen_failure_is_logged_with_its_traceback(logged: list[Any]) -> None:
    failure = EngineFailed("the tts stage failed unexpectedly (KeyError)", stage="tts")
    failure.__cause__ = KeyError("weights")
    log_event(Anybody("sess_1"), events.TurnFailed(at_s=0.0, turn_id=3, error=failure))  # type: ignore[arg-type]
    (line,) = logged
    assert (line["event"], line["code"], line["stage"], line["turn_id"]) == ("turn.failed", "engine_failed", "tts", 3)
    assert line["exc_info"] is failure.__cause__


async def test_the_number_of_series_does_not_grow_with_sessions(metrics: Metrics) -> None:
    def one_session(number: int) -> None:
        listen(metrics, done(marks={"speech_ended": 0.0, "first_sent": 1.0}), f"sess_{number}")
        error = EngineFailed("broken", stage="tts")
        listen(metrics, events.TurnFailed(at_s=0.0, turn_id=1, error=error), f"sess_{number}")
        metrics.connected(+1)
        metrics.rejected("server_busy")
        metrics.resumed("unknown")
        metrics.observe_request("/health/live", 200)

    one_session(0)
    n_series = len(scrape(metrics))
    for number in range(1, 10_000):
        one_session(number)
    assert len(scrape(metrics)) == n_series <= 500
    assert metrics.session_figures("sess_9999") is not None
    assert metrics.session_figures("sess_0") is None  # forgotten: memory is bounded too


def test_a_label_that_somebody_makes_up_ends_as_other(metrics: Metrics) -> None:
    for number in range(1000):
        metrics.rejected(f"reason {number}")
    reasons = [labels for name, labels in scrape(metrics) if name == "voicepod_rejected_total"]
    assert len(reasons) == MAX_LABEL_VALUES + 1
    assert value(metrics, "rejected_total", reason="other") == 1000 - MAX_LABEL_VALUES


def test_every_name_and_help_text_is_ours(metrics: Metrics) -> None:
    for family in text_string_to_metric_families(metrics.text().decode()):
        assert family.name.startswith("voicepod_")
        assert family.documentation.endswith(".")


def test_what_is_not_known_is_absent_and_not_zero(metrics: Metrics) -> None:
    names = {name for name, _ in scrape(metrics)}
    assert "voicepod_sessions_active" not in names
    assert "voicepod_host_cpu_ratio" not in names
    assert "voicepod_host_memory_bytes" not in names
    assert set(metrics.figures().items()) == {
        ("active_sessions", None),
        ("queue_length", None),
        ("average_response_time", None),
        ("error_rate", None),
        ("first_audio_p50_ms", None),
        ("first_audio_p95_ms", None),
        ("first_audio_p99_ms", None),
        ("n_turns", 0),
    }


def test_a_figure_that_cannot_be_read_is_left_out_and_counted_and_hides_no_other(
    metrics: Metrics, logged: list[Any]
) -> None:
    def broken() -> float:
        raise RuntimeError("gone")

    metrics.watch_sessions(broken)
    metrics.watch_queue("asr", lambda: 3)
    assert value(metrics, "sessions_active") is None
    assert value(metrics, "queue_depth", stage="asr") == 3
    assert value(metrics, "collector_errors_total") == 3  # the third scrape
    assert metrics.figures()["active_sessions"] is None
    assert [line["event"] for line in logged] == ["metrics.source_failed"]


async def test_states_are_asked_for_at_the_scrape(metrics: Metrics, readiness: Readiness, host: StillHost) -> None:
    n_active, n_waiting = 0, 0
    metrics.watch_sessions(lambda: n_active)
    metrics.watch_queue("llm", lambda: n_waiting)
    assert value(metrics, "sessions_active") == 0
    assert value(metrics, "engine_up", engine="asr") == 0
    n_active, n_waiting = 3, 2
    metrics.connected(+1)
    metrics.connected(+1)
    metrics.connected(-1)
    async with readiness.loading("asr", "scripted"):
        await asyncio.sleep(0)
    card = GpuMetrics(0, "Card", 50.0, 2**30, 2**34, None)
    host.now = HostMetrics(n_cpus=2.0, cpu_percent=25.0, memory_used_bytes=10, memory_total_bytes=20, gpus=(card,))
    assert value(metrics, "sessions_active") == 3
    assert value(metrics, "queue_depth", stage="llm") == 2
    assert value(metrics, "ws_connections") == 1
    assert value(metrics, "engine_up", engine="asr") == 1
    assert value(metrics, "host_cpu_ratio") == 0.25
    assert value(metrics, "host_memory_bytes", state="used") == 10
    assert value(metrics, "gpu_utilisation_ratio", gpu="0") == 0.5
    assert value(metrics, "vram_bytes", gpu="0", state="used") == 2**30
    assert value(metrics, "gpu_temperature_celsius", gpu="0") is None
    assert value(metrics, "build_info", version="1.2.3", python=_python()) == 1
    figures = metrics.figures()
    assert (figures["active_sessions"], figures["queue_length"]) == (3, 2)


def test_scrapers_get_text_and_scripts_get_json(metrics: Metrics) -> None:
    app = FastAPI()
    app.include_router(metrics_router(metrics))
    client = TestClient(app)
    for first_sent_s in (0.5, 0.7, 0.9, 3.0):
        listen(metrics, done(marks={"speech_ended": 0.0, "first_sent": first_sent_s}))
    listen(metrics, done(outcome="failed", error_code="engine_failed"))
    metrics.underruns(2)
    metrics.slow_client()
    text = client.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert text.headers["cache-control"] == "no-store"
    assert "voicepod_audio_underruns_total 2.0" in text.text
    assert "voicepod_slow_client_drops_total 1.0" in text.text
    figures = client.get("/api/metrics").json()
    assert figures["average_response_time"] == 1275.0
    assert figures["error_rate"] == 0.2
    assert (figures["first_audio_p50_ms"], figures["first_audio_p99_ms"]) == (700.0, 3000.0)


def test_two_servers_in_one_process_do_not_share_figures(readiness: Readiness, host: StillHost) -> None:
    one, other = (Metrics(readiness, host, version="1") for _ in range(2))
    one.underruns(1)
    assert value(other, "audio_underruns_total") == 0


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 50.0), (0.95, 95.0), (0.99, 99.0), (1.0, 100.0)])
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], share) == expected
    assert percentile([], share) is None


def test_the_session_that_had_no_turn_for_longest_is_forgotten_first() -> None:
    recent = RecentTurns()
    for number in range(MAX_SESSIONS):
        recent.add(f"sess_{number}", TurnRecord(1), None)
    recent.add("sess_0", TurnRecord(2), None)
    recent.add("one more", TurnRecord(1), None)
    assert recent.of_session("sess_0") == {"turns": 2, "interruptions": 0, "v2v_p50_ms": None, "v2v_last_ms": None}
    assert recent.of_session("sess_1") is None


def _python() -> str:
    return platform.python_version()
