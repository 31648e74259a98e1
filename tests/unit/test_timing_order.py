"""Spans that are filled in, parted and kept inside the audio; sound and silence; the estimate."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audio import AudioChunk
from serverless.timings import estimate
from serverless.timings.espeak_words import _split
from serverless.timings.order import filled, in_order
from serverless.timings.voiced import frame_levels, loud_frames, voiced_spans, without_pauses
from serverless.timings.words import Span

RATE = 16_000


def sound(*parts: tuple[float, float]) -> AudioChunk:
    """Noise: pairs of seconds and amplitude."""
    noise = np.random.default_rng(0)
    pieces = [noise.standard_normal(round(seconds * RATE)) * amplitude for seconds, amplitude in parts]
    return AudioChunk(np.concatenate(pieces).astype(np.float32), RATE)


def times(spans: list[Span | None] | list[Span]) -> list[tuple[float, float]]:
    return [(round(span.start_s, 3), round(span.end_s, 3)) for span in spans if span is not None]


times_of_words = st.lists(st.tuples(st.floats(-5, 50), st.floats(-5, 50)), max_size=20)


@given(times_of_words, st.floats(0.001, 40.0))
def test_words_in_order_do_not_overlap_and_lie_inside_the_audio(
    spans: list[tuple[float, float]], duration_s: float
) -> None:
    found = in_order([Span(start, end) for start, end in spans], duration_s)
    assert len(found) == len(spans)
    at = 0.0
    for span in found:
        assert at <= span.start_s < span.end_s <= duration_s
        at = span.end_s


def test_words_that_are_in_order_stay_as_they_are() -> None:
    spans = [Span(0.1, 0.3, 0.5), Span(0.3, 0.45), Span(0.9, 1.0)]
    assert in_order(spans, 2.0) == spans


def test_of_two_words_that_overlap_the_first_ends_where_the_second_begins() -> None:
    assert in_order([Span(0.0, 0.5), Span(0.4, 0.8)], 1.0) == [Span(0.0, 0.4), Span(0.4, 0.8)]


def test_words_at_the_same_place_get_ten_milliseconds_each() -> None:
    assert times(in_order([Span(1.0, 1.0)] * 3, 1.0)) == [(0.97, 0.98), (0.98, 0.99), (0.99, 1.0)]


def test_audio_of_no_length_has_no_words() -> None:
    assert in_order([Span(0.0, 1.0)], 0.0) == []


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([Span(0.0, 1.0), None, Span(2.0, 3.0)], [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]),
        ([Span(0.0, 1.0), None, None], [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]),
        ([None, None, Span(2.5, 3.0)], [(0.0, 1.25), (1.25, 2.5), (2.5, 3.0)]),
        ([None, None, None], [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]),
    ],
)
def test_words_that_were_not_found_share_the_room_beside_the_found_ones(
    known: list[Span | None], expected: list[tuple[float, float]]
) -> None:
    guesses = [Span(0.0, 1.0), Span(1.0, 2.0), Span(2.0, 3.0)]
    assert times(filled(known, guesses, 0.0, 4.0)) == expected


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_filling_keeps_what_was_found_and_gives_every_word_a_span(found: list[bool]) -> None:
    guesses = [Span(i * 0.5, i * 0.5 + 0.4) for i in range(len(found))]
    spans = [guess if is_found else None for guess, is_found in zip(guesses, found, strict=True)]
    whole = filled(spans, guesses, 0.0, len(found) * 0.5)
    assert [span for span, is_found in zip(whole, found, strict=True) if is_found] == [s for s in spans if s]
    assert all(a.end_s <= b.start_s + 1e-9 and a.start_s < a.end_s for a, b in pairwise(whole))


def test_sound_is_found_between_pauses_and_short_ones_belong_to_it() -> None:
    audio = sound((0.5, 0.0), (0.6, 0.1), (0.06, 0.0), (0.34, 0.1), (0.5, 1e-4), (0.5, 0.05), (0.3, 0.0))
    assert np.allclose(voiced_spans(audio), [(0.5, 1.5), (2.0, 2.5)], atol=0.011)


def test_sound_above_constant_noise_is_found() -> None:
    audio = sound((0.5, 0.004), (0.5, 0.1), (0.5, 0.004))
    assert np.allclose(voiced_spans(audio), [(0.5, 1.0)], atol=0.011)


def test_a_pause_full_of_uneven_noise_is_found() -> None:
    uneven = [(0.1, amplitude) for amplitude in (0.0022, 0.0055, 0.003, 0.005, 0.0022, 0.0055, 0.004, 0.003)]
    audio = sound(*uneven, (1.0, 0.2), *uneven, (1.0, 0.15), *uneven)
    assert np.allclose(voiced_spans(audio), [(0.8, 1.8), (2.6, 3.6)], atol=0.011)


@pytest.mark.parametrize("seconds", [0.0, 0.004, 1.0])
def test_silence_counts_as_one_stretch(seconds: float) -> None:
    assert voiced_spans(AudioChunk.silence(seconds, RATE)) == [(0.0, seconds)]


def test_a_word_loses_the_silence_at_its_ends_and_what_lies_behind_a_pause() -> None:
    loud = np.zeros(100, np.bool_)
    loud[10:30] = loud[32:40] = True  # a word with a short gap
    loud[42:45] = loud[60:80] = True  # the tail of it, a pause, and the next word
    assert without_pauses([(5, 41), (41, 90)], loud) == [(10, 45 - 5), (60, 80)]
    assert without_pauses([(5, 41), (42, 90)], loud) == [(10, 40), (60, 80)]


def test_the_tail_in_front_of_a_pause_goes_to_the_word_before() -> None:
    loud = np.zeros(100, np.bool_)
    loud[10:44] = loud[60:80] = True
    assert without_pauses([(5, 41), (41, 90)], loud) == [(10, 44), (60, 80)]


def test_a_silent_word_keeps_its_frames() -> None:
    assert without_pauses([(3, 9)], np.zeros(20, np.bool_)) == [(3, 9)]


def test_no_frame_of_nothing_is_loud() -> None:
    assert loud_frames(frame_levels(AudioChunk.silence(0.0, RATE))).size == 0


def test_the_estimate_follows_the_letters_and_leaves_the_pauses_out() -> None:
    audio = sound((1.0, 0.0), (0.6, 0.1), (1.0, 0.0), (0.4, 0.1))
    found = estimate.align(audio, ["aaaaa", "bbb"], "en")  # weights 6 and 4
    assert np.allclose(times(found), [(1.0, 1.6), (2.6, 3.0)], atol=0.02)


def test_the_estimate_gives_each_clause_its_own_stretch_where_there_are_as_many() -> None:
    audio = sound((0.5, 0.1), (0.5, 0.0), (0.7, 0.1))
    found = estimate.align(audio, ["aaa,", "bbb"], "en")  # by letters alone the first would end in the second stretch
    assert np.allclose(times(found), [(0.0, 0.5), (1.0, 1.7)], atol=0.02)


@pytest.mark.parametrize("audio", [AudioChunk.silence(0.0, RATE), AudioChunk.silence(2.0, RATE), sound((0.01, 0.5))])
@pytest.mark.parametrize("tokens", [["a"], ["…"], ["a,", "b.", "好", "1998"], ["x" * 5000]])
def test_the_estimate_never_fails(audio: AudioChunk, tokens: list[str]) -> None:
    found = estimate.align(audio, tokens, "xx")
    assert len(times(found)) == len(tokens)
    assert all(0.0 <= start <= end <= audio.seconds + 1e-6 for start, end in times(found))


def test_a_pause_longer_than_the_others_holds_the_closure_of_the_stop_behind_it() -> None:
    parts = [(0.3, 0.1), (0.3, 0.0), (0.2, 0.1), (0.05, 0.0), (0.1, 0.1), (0.36, 0.0), (0.4, 0.1), (0.3, 0.0)]
    words = _split(sound(*parts), 3)
    assert words is not None
    assert [round(word.seconds, 2) for word in words] == [0.3, 0.35, 0.46]
    assert _split(sound(*parts), 4) is None
