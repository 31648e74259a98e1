from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audio import AudioChunk
from pipeline.engines.base import SpeechPiece, Word
from pipeline.playout import REPORT_GAP_S, REPORT_PATIENCE_S, Playout

RATE = 1000


def frame(n_samples: int) -> AudioChunk:
    return AudioChunk(np.zeros(n_samples, np.float32), RATE)


def made_and_sent(*sizes: int, at_s: float = 0.0) -> Playout:
    playout = Playout(1, RATE)
    for size in sizes:
        playout.sent(playout.add(size), frame(size), at_s)
    return playout


def spoken(*pieces: tuple[str, int]) -> tuple[Playout, str]:
    """A playout with one span a piece, of so many samples each; gives it and the reply."""
    playout, reply = Playout(1, RATE), ""
    for i, (text, n_samples) in enumerate(pieces):
        playout.begin_piece(SpeechPiece(i, text, len(reply), len(reply) + len(text)))
        playout.add(n_samples)
        playout.end_piece()
        reply += text
    return playout, reply


# --- the server's clock


def test_without_reports_the_position_follows_the_clock_and_never_passes_what_was_sent() -> None:
    playout = made_and_sent(500, at_s=10.0)
    assert [playout.position(10.0 + s) for s in (-1.0, 0.0, 0.25, 0.5, 9.0)] == [0, 0, 250, 500, 500]
    assert playout.lead_s(10.25) == pytest.approx(0.25)
    assert playout.seconds_left(10.25) == pytest.approx(0.25)


def test_after_the_player_ran_dry_the_clock_starts_again_with_the_next_frame() -> None:
    playout = made_and_sent(500, at_s=10.0)
    playout.sent(playout.add(500), frame(500), 12.0)
    assert [playout.position(12.0 + s) for s in (0.0, 0.125, 0.5, 1.0)] == [500, 625, 1000, 1000]


def test_frames_sent_ahead_do_not_move_the_clock() -> None:
    playout = made_and_sent(500, at_s=10.0)
    playout.sent(playout.add(500), frame(500), 10.375)
    assert playout.position(10.75) == 750


# --- the client's reports


def test_a_report_is_the_truth_and_moves_on_for_at_most_the_gap() -> None:
    playout = made_and_sent(10_000)
    playout.report(300, 1.0)
    assert playout.position(1.1) == 400
    assert playout.position(3.0) == 300 + REPORT_GAP_S * RATE
    assert playout.position(1.0 + REPORT_PATIENCE_S) == 300 + REPORT_PATIENCE_S * RATE


def test_reports_never_go_back_nor_beyond_what_was_sent() -> None:
    playout = made_and_sent(500)
    playout.report(300, 1.0)
    playout.report(200, 1.0)
    assert playout.position(1.0) == 300
    playout.report(9000, 1.0)
    assert playout.position(1.0) == 500
    assert made_and_sent(500).position(0.0) == 0


# --- the end


def test_a_turn_is_done_when_all_was_made_sent_and_heard() -> None:
    playout = made_and_sent(500)
    assert not playout.is_done(9.0)
    playout.finish()
    assert not playout.is_done(0.4)
    assert playout.is_done(0.5)
    playout.add(100)
    assert not playout.is_done(9.0)
    assert playout.ahead_s(9.0) == pytest.approx(0.1)


def test_a_cut_fixes_the_position_once() -> None:
    playout = made_and_sent(500)
    playout.changed.clear()
    assert playout.cut(0.2) == 200
    assert playout.changed.is_set()
    assert playout.cut(0.4) == 200
    assert playout.is_done(0.2)
    assert playout.rewind(0, 0.2) == []


# --- sending again


def test_what_was_sent_and_not_heard_can_be_sent_again_from_any_sample() -> None:
    playout = made_and_sent(100, 100, 100)
    frames = playout.rewind(150, 5.0)
    assert [(f.first_sample, f.audio.n_samples) for f in frames] == [(150, 50), (200, 100)]
    assert playout.sent_samples == 150
    assert playout.position(9.0) == 150
    for again in frames:
        playout.sent(again.first_sample, again.audio, 9.0)
    assert playout.sent_samples == 300
    assert playout.position(9.125) == 275


def test_a_rewind_takes_back_what_was_reported_too_far() -> None:
    playout = made_and_sent(100, 100, 100)
    playout.report(120, 1.0)
    frames = playout.rewind(110, 2.0)
    assert [(f.first_sample, f.audio.n_samples) for f in frames] == [(110, 90), (200, 100)]
    playout.sent(frames[0].first_sample, frames[0].audio, 2.0)
    playout.report(115, 2.0)
    assert playout.position(2.0) == 115


def test_a_rewind_to_what_is_not_there_any_more_starts_at_the_oldest_frame_kept() -> None:
    playout = made_and_sent(100, 100, 100)
    playout.report(250, 1.0)
    assert [f.first_sample for f in playout.rewind(0, 1.0)] == [200]
    assert made_and_sent(100).rewind(100, 1.0) == []


def test_no_more_than_the_replay_length_is_kept() -> None:
    playout = Playout(1, RATE, replay_s=0.25)
    for _ in range(10):
        playout.sent(playout.add(100), frame(100), 0.0)
    assert [f.first_sample for f in playout.rewind(0, 0.0)] == [700, 800, 900]


# --- what was heard


def test_only_wholly_played_words_count() -> None:
    playout, reply = spoken(("one two three four", 1800))
    assert [reply[: playout.heard_chars(n, reply)] for n in (0, 299, 301, 699, 701, 1799, 1800)] == [
        *("", "", "one", "one", "one two", "one two three", reply),
    ]


def test_whole_pieces_count_whole_and_silent_ones_pass_with_what_follows() -> None:
    playout, reply = spoken(("Hi there. ", 500), ("```code``` ", 0), ("And bye.", 400))
    assert reply[: playout.heard_chars(500, reply)] == "Hi there. "
    assert reply[: playout.heard_chars(501, reply)] == "Hi there. ```code``` "
    assert reply[: playout.heard_chars(900, reply)] == reply


def test_a_piece_that_is_still_made_is_judged_by_its_expected_length() -> None:
    playout, reply = Playout(1, RATE), "one two three four five six"
    playout.begin_piece(SpeechPiece(0, reply, 0, len(reply)))
    playout.add(600)  # a third of the 1.8 s that 27 characters take
    assert reply[: playout.heard_chars(600, reply)] == "one two"
    playout.finish()


def test_word_times_are_better_than_a_share() -> None:
    playout, reply = Playout(1, RATE), "one two three"
    playout.begin_piece(SpeechPiece(0, reply, 0, len(reply)))
    playout.add_words((Word("one", 0.0, 1.0), Word("two", 1.0, 1.1), Word("three", 1.1, 1.3)))
    playout.add(1300)
    playout.end_piece()
    assert [reply[: playout.heard_chars(n, reply)] for n in (900, 1000, 1100, 1299)] == [
        *("", "one", "one two", "one two"),
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from(["Hello you. ", "a ", "```x``` ", "one two three four. "]), st.integers(0, 900))
    ),
    st.integers(0, 5000),
    st.integers(0, 5000),
)
def test_more_samples_never_mean_fewer_words_and_never_half_a_word(
    pieces: list[tuple[str, int]], first: int, second: int
) -> None:
    playout, reply = spoken(*pieces)
    low, high = sorted((first, second))
    heard = playout.heard_chars(low, reply)
    assert 0 <= heard <= playout.heard_chars(high, reply) <= len(reply)
    assert reply[:heard].split() == reply.split()[: len(reply[:heard].split())]
    if low >= playout.made_samples > 0 and pieces[-1][1]:
        assert heard == len(reply)


# --- what a microphone may pick up


def sounding(n_samples: int) -> Playout:
    """Frames of 100 samples, the value of each sample its number in thousands from 1 on."""
    playout = Playout(1, RATE)
    for start in range(0, n_samples, 100):
        samples = np.arange(start + 1, start + 101) / 1000
        playout.sent(playout.add(100), AudioChunk(samples.astype(np.float32), RATE), 0.0)
    return playout


def numbers(playout: Playout, before_s: float, after_s: float) -> list[int]:
    around = playout.around(0.0, before_s, after_s)
    assert around.sample_rate == RATE
    return [round(float(sample) * 1000) for sample in around.samples]


def test_what_sounds_around_now_is_what_was_played_and_what_comes_next() -> None:
    playout = sounding(500)
    playout.report(250, 0.0)
    assert numbers(playout, 0.2, 0.1) == list(range(51, 351))


def test_before_the_first_sample_and_after_the_last_one_sent_is_silence() -> None:
    playout = sounding(200)
    playout.report(100, 0.0)
    assert numbers(playout, 0.15, 0.15) == [0] * 50 + list(range(1, 201)) + [0] * 50


def test_what_was_heard_is_kept_for_two_seconds_also_when_all_was_played() -> None:
    playout = sounding(5000)
    playout.report(4000, 0.0)
    assert numbers(playout, 2.5, 0.0) == [0] * 400 + list(range(1901, 4001))
    playout.report(5000, 0.0)
    playout.finish()
    playout.forget_sent()
    assert numbers(playout, 1.0, 0.0) == list(range(4001, 5001))
    playout.forget_heard()
    assert numbers(playout, 1.0, 0.0) == [0] * 1000


def test_what_was_heard_before_a_cut_is_kept_also_without_reports() -> None:
    playout = sounding(500)
    playout.go_on(-0.25)
    assert playout.cut(0.0) == 250
    playout.forget_sent()
    assert numbers(playout, 0.25, 0.0)[:200] == list(range(1, 201))
