from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.endpointing import Endpoint, Endpointer, EndpointRules

FRAME_S = 0.02


def run(endpointer: Endpointer, *stretches: tuple[float, float]) -> list[tuple[str, float]]:
    """Feed (probability, seconds) stretches; gives (kind, time) of each change."""
    found: list[Endpoint] = []
    for probability, seconds in stretches:
        for _ in range(round(seconds / FRAME_S)):
            endpoint = endpointer.feed(probability, FRAME_S)
            if endpoint is not None:
                found.append(endpoint)
    return [(endpoint.kind, round(endpoint.at_s, 3)) for endpoint in found]


def test_speech_starts_at_its_onset_and_ends_at_its_last_frame() -> None:
    endpointer = Endpointer(EndpointRules())
    assert run(endpointer, (0, 1.0), (1, 0.5), (0, 0.58)) == [("started", 1.0), ("paused", 1.5)]
    assert endpointer.is_speaking
    assert run(endpointer, (0, 0.02)) == [("ended", 1.5)]
    assert not endpointer.is_speaking
    assert endpointer.last_speech_s == pytest.approx(1.5)


def test_speech_is_confirmed_by_the_frame_that_completes_the_least_length() -> None:
    endpointer = Endpointer(EndpointRules(min_speech_s=0.12))
    assert run(endpointer, (1, 0.10)) == []
    assert run(endpointer, (1, 0.02)) == [("started", 0.0)]


def test_a_click_is_no_speech_and_leaves_no_trace() -> None:
    endpointer = Endpointer(EndpointRules(min_speech_s=0.12))
    assert run(endpointer, (1, 0.08), (0, 0.14), (1, 0.08), (0, 0.14)) == []
    assert run(endpointer, (1, 0.2)) == [("started", 0.44)]


def test_a_dip_while_speech_is_confirmed_does_not_move_the_onset() -> None:
    endpointer = Endpointer(EndpointRules(min_speech_s=0.12))
    assert run(endpointer, (1, 0.08), (0, 0.08), (1, 0.04)) == [("started", 0.0)]


def test_speech_that_goes_on_is_held_to_a_lower_threshold() -> None:
    endpointer = Endpointer(EndpointRules(threshold=0.5))
    assert run(endpointer, (0.49, 1.0)) == []
    assert run(endpointer, (0.5, 0.12)) == [("started", 1.0)]
    assert run(endpointer, (0.36, 2.0)) == []
    assert run(endpointer, (0.34, 0.6)) == [("paused", 3.056), ("ended", 3.056)]


def test_a_pause_shorter_than_the_wait_is_told_and_forgiven() -> None:
    endpointer = Endpointer(EndpointRules(end_wait_s=0.6))
    kinds = run(endpointer, (1, 0.4), (0, 0.5), (1, 0.4), (0, 0.5), (1, 0.4), (0, 0.6))
    assert [kind for kind, _ in kinds] == ["started", "paused", "resumed", "paused", "resumed", "paused", "ended"]


def test_a_sure_turn_detector_ends_the_pause_early() -> None:
    endpointer = Endpointer(EndpointRules(end_wait_s=0.6, sure_wait_s=0.24))
    run(endpointer, (1, 0.4), (0, 0.1))
    endpointer.turn_score(0.9)
    assert run(endpointer, (0, 0.12)) == []
    assert run(endpointer, (0, 0.02)) == [("ended", 0.4)]


def test_a_verdict_is_forgotten_when_speech_goes_on_and_an_unsure_one_changes_nothing() -> None:
    endpointer = Endpointer(EndpointRules(end_wait_s=0.6, sure_wait_s=0.24))
    run(endpointer, (1, 0.4), (0, 0.1))
    endpointer.turn_score(0.9)
    assert run(endpointer, (1, 0.1), (0, 0.58)) == [("resumed", 0.52), ("paused", 0.6)]
    endpointer.turn_score(0.1)
    assert run(endpointer, (0, 0.02)) == [("ended", 0.6)]


def test_a_sure_detector_never_waits_longer_than_the_patience() -> None:
    endpointer = Endpointer(EndpointRules(end_wait_s=0.1, sure_wait_s=0.24))
    run(endpointer, (1, 0.4), (0, 0.04))
    endpointer.turn_score(0.9)
    assert run(endpointer, (0, 0.06)) == [("ended", 0.4)]


def test_a_reset_forgets_the_utterance_and_time_goes_on() -> None:
    endpointer = Endpointer(EndpointRules(min_speech_s=0.12))
    run(endpointer, (1, 0.4))
    endpointer.reset()
    assert not endpointer.is_speaking
    assert run(endpointer, (1, 0.1)) == []
    assert run(endpointer, (1, 0.02)) == [("started", 0.4)]


@given(st.lists(st.floats(0, 1), max_size=400))
def test_changes_alternate_and_never_run_ahead_of_time(probabilities: list[float]) -> None:
    follows = {
        "ended": {"started"},
        "started": {"paused"},
        "paused": {"resumed", "ended"},
        "resumed": {"paused"},
    }
    endpointer = Endpointer(EndpointRules(end_wait_s=0.1, min_speech_s=0.06))
    before, last_s = "ended", 0.0
    for probability in probabilities:
        endpoint = endpointer.feed(probability, FRAME_S)
        if endpoint is None:
            continue
        assert endpoint.kind in follows[before]
        assert last_s <= endpoint.at_s + 1e-9
        assert endpoint.at_s <= endpointer.audio_s
        assert endpointer.is_speaking is (endpoint.kind != "ended")
        before, last_s = endpoint.kind, endpoint.at_s if endpoint.kind != "resumed" else last_s
    assert endpointer.audio_s == pytest.approx(len(probabilities) * FRAME_S)


def run_levels(endpointer: Endpointer, *stretches: tuple[float, float, float]) -> list[tuple[str, float]]:
    """Feed (probability, level in dB, seconds) stretches; gives (kind, time) of each start and end."""
    found: list[Endpoint] = []
    for probability, level_db, seconds in stretches:
        for _ in range(round(seconds / FRAME_S)):
            endpoint = endpointer.feed(probability, FRAME_S, level_db)
            if endpoint is not None and endpoint.kind in {"started", "ended"}:
                found.append(endpoint)
    return [(endpoint.kind, round(endpoint.at_s, 3)) for endpoint in found]


TALKER, TELEVISION, SILENCE = (1, -26), (1, -44), (0, -80)


def test_a_television_far_below_the_talker_holds_no_turn_open() -> None:
    endpointer = Endpointer(EndpointRules(end_wait_s=0.6))
    assert run_levels(endpointer, (*TELEVISION, 2.0), (*TALKER, 3.0), (*TELEVISION, 0.58)) == [("started", 0.0)]
    assert run_levels(endpointer, (*TELEVISION, 5.0)) == [("ended", 5.0)]
    # known now, it opens no turn, and the next one ends as if it were silent
    at_s = endpointer.audio_s
    turn = [(*TALKER, 1.0), (*TELEVISION, 0.4), (*TALKER, 1.0), (*TELEVISION, 5.0)]
    assert run_levels(endpointer, *turn) == [("started", round(at_s, 3)), ("ended", round(at_s + 2.4, 3))]


def test_speech_that_only_the_background_spoke_ends_where_it_began() -> None:
    endpointer = Endpointer(EndpointRules(end_wait_s=0.6))
    run_levels(endpointer, (*TELEVISION, 2.0), (*TALKER, 3.0), (*SILENCE, 0.7))
    assert run_levels(endpointer, (*TELEVISION, 3.0)) == [("started", 5.7), ("ended", 5.7)]


def test_who_speaks_lower_when_a_television_runs_is_heard_after_a_while() -> None:
    endpointer = Endpointer(EndpointRules(end_wait_s=0.6))
    run_levels(endpointer, (*TELEVISION, 2.0), (*TALKER, 3.0), (*TELEVISION, 2.0))
    assert run_levels(endpointer, (1, -40, 1.0), (*SILENCE, 8.0)) == []
    assert [kind for kind, _ in run_levels(endpointer, (1, -40, 1.0), (*SILENCE, 1.0))] == ["started", "ended"]


def test_who_speaks_lower_and_still_far_above_a_quiet_television_is_heard_at_once() -> None:
    endpointer = Endpointer(EndpointRules(end_wait_s=0.6))
    run_levels(endpointer, (1, -60, 2.0), (*TALKER, 3.0), (1, -60, 2.0))
    kinds = [kind for kind, _ in run_levels(endpointer, (1, -44, 1.0), (1, -60, 1.0))]
    assert kinds == ["started", "ended"]


@pytest.mark.parametrize("pause_s", [0.8, 1.2, 2.0])
def test_who_speaks_low_then_loudly_then_low_with_a_pause_between_is_one_talker(pause_s: float) -> None:
    low, pause = (1, -44, 2.0), (0, -80, pause_s)
    (*_, started, ended) = run_levels(Endpointer(EndpointRules()), low, pause, (*TALKER, 2.0), pause, low, pause)
    begin_s = round(4 + 2 * pause_s, 3)
    assert (started, ended) == (("started", begin_s), ("ended", begin_s + 2))


def test_a_television_that_was_switched_off_is_forgotten() -> None:
    endpointer = Endpointer(EndpointRules(end_wait_s=0.6))
    run_levels(endpointer, (*TELEVISION, 2.0), (*TALKER, 3.0), (*TELEVISION, 2.0), (*SILENCE, 20.0), (*TALKER, 1.0))
    assert run_levels(endpointer, (1, -50, 3.0)) == []
    assert [kind for kind, _ in run_levels(endpointer, (*SILENCE, 1.0))] == ["ended"]


@pytest.mark.parametrize(("gap_s", "loud_db", "loud_s"), [(0.0, -15, 0.5), (0.3, -12, 0.3), (0.3, -15, 0.9)])
def test_a_cough_or_a_shout_among_words_does_not_make_these_a_background(
    gap_s: float, loud_db: float, loud_s: float
) -> None:
    words, gap, pause = (1.0, -30.0, 3.0), (0.0, -70.0, gap_s), (0.0, -70.0, 2.0)
    stretches = (words, gap, (1.0, loud_db, loud_s), gap, words, pause, words, pause)
    level = [(probability, -30.0, seconds) for probability, _, seconds in stretches]
    rules = EndpointRules()
    assert run_levels(Endpointer(rules), *stretches) == run_levels(Endpointer(rules), *level)


SYLLABLES = st.tuples(st.just(1.0), st.floats(-9, 0), st.floats(0.02, 0.4))  # probability, dB, seconds
WEAK = st.tuples(st.floats(0, 1), st.floats(-50, 0), st.floats(0, 0.5))
PAUSES = st.tuples(st.just(0.0), st.just(-60.0), st.floats(0, 4))
DYING = st.tuples(st.floats(0, 1), st.floats(-50, -11), st.floats(0, 6))  # a last word, or a whisper
REPLIES = st.tuples(st.just(0.0), st.just(-60.0), st.floats(1.4, 8))


@settings(deadline=None, max_examples=40)
@given(
    own_db=st.floats(-50, 0),
    turns=st.lists(
        st.tuples(st.lists(st.tuples(SYLLABLES, WEAK, SYLLABLES, PAUSES), max_size=3), DYING, REPLIES), max_size=4
    ),
)
def test_a_talker_alone_is_cut_as_if_no_level_were_looked_at(own_db: float, turns: list[tuple[Any, ...]]) -> None:
    stretches = [s for words, dying, reply in turns for s in (*(s for word in words for s in word), dying, reply)]
    with_levels, without = Endpointer(EndpointRules()), Endpointer(EndpointRules())
    for probability, level_db, seconds in stretches:
        for _ in range(round(seconds / FRAME_S)):
            endpoint = without.feed(probability, FRAME_S)
            assert with_levels.feed(probability, FRAME_S, own_db + level_db) == endpoint
