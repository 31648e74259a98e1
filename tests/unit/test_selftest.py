"""The self-test's figures: what its player hears, and what its report makes of them."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from api.selftest.report import ADVICE, PART_NAMES, Fit, Memory, Report, Speeds, Spread, in_words
from api.selftest.talker import _Player
from pipeline.records import MARKS

GOOD = Report(
    engines={"vad": "silero", "llm": "qwen"},
    v2v_ms=Spread(600, 900, 8),
    parts_ms={"endpointing": Spread(400, 400, 8), "asr": Spread(90, 100, 8)},
    stop_ms=Spread(200, 300, 2),
    longest_gap_ms=0.0,
    rtf=Speeds(0.1, 0.3),
    talks=Fit(8, "bound"),
    memory=Memory(10**9, 10 * 10**9, 24 * 10**9),
)


def frame(turn: int, first_sample: int, seconds: float, *, level: int = 9000) -> bytes:
    return struct.pack("<II", turn, first_sample) + np.full(round(seconds * 24_000), level, "<i2").tobytes()


def test_an_answer_is_heard_where_its_first_loud_sample_is_played() -> None:
    player = _Player()
    player.frame(frame(1, 0, 0.5, level=3), 10.0)
    assert player.audible_at is None
    player.frame(frame(1, 12_000, 0.5), 10.1)  # it comes early, and waits until the silence was played
    assert player.audible_at == pytest.approx(10.5)
    assert (player.played(10.25), player.played(20.0)) == (6000, 24_000)


def test_audio_that_comes_after_the_last_was_played_is_a_gap() -> None:
    player = _Player()
    player.frame(frame(1, 0, 0.2), 10.0)
    player.frame(frame(1, 4800, 0.2), 10.1)
    assert player.gap_s == 0
    player.frame(frame(1, 9600, 0.2), 10.7)
    assert player.gap_s == pytest.approx(0.3)
    player.frame(frame(2, 0, 0.2), 15.0)
    assert player.gap_s == 0  # another turn


def test_audio_of_a_turn_that_was_flushed_is_not_heard() -> None:
    player = _Player()
    player.flushed = 3
    player.frame(frame(3, 0, 0.2), 10.0)
    assert player.audible_at is None
    assert player.turn == 0


def test_a_spread_is_the_middle_and_the_slowest_of_twenty() -> None:
    assert Spread.of([]) is None
    assert Spread.of([5.0]) == Spread(5.0, 5.0, 1)
    assert Spread.of([float(n) for n in range(100, 0, -1)]) == Spread(50.0, 95.0, 100)


def test_a_report_that_meets_all_targets_is_fine_and_has_no_advice() -> None:
    assert GOOD.is_fine
    assert GOOD.verdict() == "Fine: all targets are met."
    assert GOOD.advice() == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"v2v_ms": Spread(701, 900, 8)}, "answer, typical"),
        ({"v2v_ms": Spread(600, 1101, 8)}, "answer, slowest"),
        ({"stop_ms": Spread(251, 300, 2)}, "interruption, typical"),
        ({"stop_ms": Spread(200, 351, 2)}, "interruption, slowest"),
        ({"stop_ms": None}, "Not measured: interruption"),
        ({"failures": ("asr_failed",)}, "1 questions got no answer"),
    ],
)
def test_each_target_that_is_missed_is_named(changed: dict[str, Any], words: str) -> None:
    report = replace(GOOD, **changed)
    assert not report.is_fine
    assert words in report.verdict()
    assert "for a GPU" not in report.verdict()


def test_without_a_card_the_verdict_says_what_the_targets_are_for() -> None:
    slow = replace(GOOD, v2v_ms=Spread(3000, 4000, 8), memory=Memory(10**9))
    assert "The targets are for a GPU" in slow.verdict()
    assert replace(GOOD, memory=Memory()).is_fine


@pytest.mark.parametrize("part", ADVICE)
def test_the_longest_part_of_a_slow_answer_gets_its_advice(part: str) -> None:
    parts = {**GOOD.parts_ms, part: Spread(2000, 2500, 8)}
    assert ADVICE[part] in replace(GOOD, v2v_ms=Spread(3000, 4000, 8), parts_ms=parts).advice()


def test_every_part_of_a_turn_has_a_name_and_advice() -> None:
    parts = {part for _, part in MARKS if part}
    assert set(PART_NAMES) == set(ADVICE) == parts


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rtf": Speeds(0.1, 0.95)}, "gaps"),
        ({"longest_gap_ms": 400.0}, "400 ms"),
        ({"talks": Fit(3, "behind")}, "system.max_concurrent_users to 3"),
        ({"talks": Fit(4, "seats")}, "may be larger"),
        ({"memory": Memory(1, 96, 100)}, "all but full"),
        ({"failures": ("a", "a", "b")}, "a, b"),
    ],
)
def test_what_limits_the_server_is_said_in_words(changed: dict[str, Any], words: str) -> None:
    assert words in " ".join(replace(GOOD, **changed).advice())


def test_the_report_is_json_and_text_with_what_is_not_known_left_open() -> None:
    empty = replace(GOOD, v2v_ms=None, parts_ms={}, stop_ms=None, rtf=Speeds(), talks=Fit(0, "bound"), memory=Memory())
    for report in (GOOD, empty):
        told = json.loads(json.dumps(report.as_json(), allow_nan=False))
        assert len(told["targets"]) == 4
        assert told["verdict"] in in_words(report)
    assert in_words(empty).count("not known") == 3
    assert in_words(empty).count("not measured") == 2
