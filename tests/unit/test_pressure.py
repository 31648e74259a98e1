"""Steps that are taken under load, in order, and taken back."""

from __future__ import annotations

from pipeline.engines.lanes import Spoke, Waited
from pipeline.pressure import HOLD_S, STEPS, WINDOW_S, Pressure, Step
from pipeline.records import TurnRecord


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def record(*waits: tuple[str, float], rtf: float = 0.2) -> TurnRecord:
    turn = TurnRecord(1)
    for lane, seconds in waits:
        turn.note_work(Waited(lane, seconds))
    turn.note_work(Spoke(rtf * 2, 2.0))
    return turn


def pressed(wait_s: float, *, rtf: float = 0.2, n: int = 8) -> list[Step]:
    """The steps that are reached while every turn waits so long."""
    clock = Clock()
    pressure = Pressure(max_wait_s=2.0, clock=clock)
    steps: list[Step] = []
    for _ in range(n):
        pressure.note(record(("asr", wait_s / 2), ("tts", wait_s / 2), ("tts", 0.01), rtf=rtf))
        clock.now_s += HOLD_S / 2
        steps.append(pressure.step)
    return steps


def test_steps_are_taken_one_after_the_other_as_far_as_the_waiting_asks() -> None:
    assert set(pressed(0.0)) == {"normal"}
    assert pressed(0.6)[-1] == "first_clause"
    assert pressed(1.2)[-1] == "light_asr"
    all_of_them = pressed(3.0)
    assert all_of_them == sorted(all_of_them, key=STEPS.index)
    assert [step for step in STEPS if step in all_of_them] == list(STEPS)


def test_speech_that_is_made_as_slowly_as_it_is_heard_counts_too_but_refuses_nobody() -> None:
    assert pressed(0.0, rtf=1.1)[-1] == "light_asr"


def test_slow_speech_alone_keeps_nobody_out_either() -> None:
    clock = Clock()
    pressure = Pressure(max_wait_s=2.0, clock=clock)
    for wait_s in [5.0] * 8 + [0.0] * 16:
        pressure.note(record(("tts", wait_s), rtf=1.1))
        clock.now_s += HOLD_S
    assert pressure.step == "light_asr"


def test_one_slow_turn_is_no_load() -> None:
    pressure = Pressure(max_wait_s=2.0, clock=Clock())
    pressure.note(record(("llm", 30.0), rtf=3.0))
    assert pressure.step == "normal"
    assert pressure.wait_s == 30.0


def test_steps_are_taken_back_one_by_one_when_the_load_is_over_even_without_turns() -> None:
    clock = Clock()
    pressure = Pressure(max_wait_s=2.0, clock=clock)
    for _ in range(8):
        pressure.note(record(("tts", 5.0)))
        clock.now_s += HOLD_S
    assert pressure.step == "refuse"
    assert pressure.at_least("light_asr")
    clock.now_s += WINDOW_S
    steps = []
    for _ in range(4):
        steps.append(pressure.step)
        clock.now_s += HOLD_S
    assert steps == ["light_asr", "first_clause", "normal", "normal"]
    assert not pressure.at_least("first_clause")


def test_turns_that_waited_in_vain_count_as_waiting() -> None:
    clock = Clock()
    pressure = Pressure(max_wait_s=2.0, clock=clock)
    for _ in range(8):
        pressure.note(TurnRecord(1, outcome="failed", error_code="engine_timeout"))
        clock.now_s += HOLD_S
    assert pressure.step == "refuse"


def test_a_turn_that_used_no_engine_says_nothing() -> None:
    pressure = Pressure(max_wait_s=2.0, clock=Clock())
    pressure.note(TurnRecord(1))
    assert pressure.wait_s == 0.0
