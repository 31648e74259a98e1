from __future__ import annotations

import pytest
from hypothesis import given
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
