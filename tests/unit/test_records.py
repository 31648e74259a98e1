from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import MARKS, TurnRecord

NAMES = [name for name, _ in MARKS]


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1000)))
def test_the_parts_sum_to_the_total_whatever_was_marked(marks: dict[str, float]) -> None:
    record = TurnRecord(1, marks=marks)
    parts = record.parts_ms
    assert all(part >= 0 for part in parts.values())
    assert list(parts) == [part for _, part in MARKS if part in parts]
    if "first_audio" not in marks:
        assert record.total_ms is None
        return
    in_order = [marks[name] for name in NAMES if name in marks]
    assert record.total_ms == pytest.approx(sum(parts.values()), abs=0.05)
    assert record.total_ms == pytest.approx((max(in_order) - in_order[0]) * 1000, abs=0.05 * len(NAMES))


def test_a_part_runs_from_the_mark_before_it_that_was_set() -> None:
    record = TurnRecord(1)
    for name, at_s in (("speech_ended", 1.0), ("endpointed", 1.6), ("first_token", 1.9), ("first_audio", 2.0)):
        record.mark(name, at_s)
    assert record.parts_ms == {"endpointing": 600.0, "llm_first_token": 300.0, "tts_first_audio": 100.0}
    assert record.total_ms == 1000.0


def test_a_mark_is_set_once_and_its_name_is_known() -> None:
    record = TurnRecord(1)
    record.mark("first_token", 1.0)
    record.mark("first_token", 2.0)
    assert record.marks == {"first_token": 1.0}
    with pytest.raises(ValueError, match="unknown mark"):
        record.mark("first_tokn", 1.0)
