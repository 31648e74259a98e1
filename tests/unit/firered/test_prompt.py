"""Rows of every kind of prompt, and what is kept of a history."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firered.errors import InputError
from firered.prompt import (
    MAX_VOICE_ROWS,
    Rows,
    audio_rows,
    check_speaker,
    check_voices,
    continuation_prompt,
    eos_row,
    finished_segment,
    segment_text,
    text_rows,
    trim_history,
    voice_segment,
)
from firered.text import prepare_text
from firered.tokenizer import TEXT_END, TEXT_START, FireRedTokenizer
from firered.voice import VoicePrompt
from tests.support.firered_tiny import FIXTURES, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> FireRedTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return FireRedTokenizer.from_directory(directory, 1024)


def some_codes(n_frames: int) -> npt.NDArray[Any]:
    return np.arange(n_frames * 16).reshape(n_frames, 16) % 64


def text_ids(rows: Rows) -> list[int]:
    return [int(token) for token in rows.ids[rows.mask[:, 16], 16]]


def segment_ids(tokenizer: FireRedTokenizer, tag: str, text: str, double: bool = False) -> list[int]:
    special = tokenizer.special_id
    head = [special(tag), special(TEXT_START), *([special(tag)] if double else [])]
    return [*head, *tokenizer.encode(text), special(TEXT_END)]


def same(left: Rows, right: Rows) -> bool:
    return np.array_equal(left.ids, right.ids) and np.array_equal(left.mask, right.mask)


# --- upstream's rows


def upstream_rows(case: str) -> Rows:
    with np.load(FIXTURES / "llm.npz") as golden:
        return Rows(golden[f"{case}/ids"], golden[f"{case}/mask"])


def upstream_voices() -> list[VoicePrompt]:
    """The two voices of the golden dialogue: its audio rows up to each end of speech."""
    rows = upstream_rows("dialogue_prompted")
    is_audio = rows.mask[:, 0]
    is_end = is_audio & ~rows.ids.any(axis=1)
    first, second = np.flatnonzero(is_end)
    audio = np.flatnonzero(is_audio)
    codes = [rows.ids[audio[audio < first], :16], rows.ids[audio[(audio > first) & (audio < second)], :16]]
    texts = ("I do not know.", "Neither do I!")
    return [VoicePrompt(part.astype(np.int16), text, "golden") for part, text in zip(codes, texts, strict=True)]


def upstream_voice_rows(tokenizer: FireRedTokenizer) -> list[Rows]:
    return [voice_segment(tokenizer, voice, f"[S{number}]") for number, voice in enumerate(upstream_voices(), 1)]


def test_a_dialogue_without_voices_has_upstreams_rows(tokenizer: FireRedTokenizer) -> None:
    assert same(segment_text(tokenizer, "[S1]", "Hello there."), upstream_rows("dialogue"))


def test_a_monologue_without_voice_has_upstreams_rows(tokenizer: FireRedTokenizer) -> None:
    (text,) = prepare_text(" Hello (world), again: yes! ")
    assert same(segment_text(tokenizer, "[S1]", text), upstream_rows("monologue"))


def test_a_dialogue_with_two_voices_has_upstreams_rows(tokenizer: FireRedTokenizer) -> None:
    new = segment_text(tokenizer, "[S2]", "Good morning, how are you?")
    assert same(Rows.concat([*upstream_voice_rows(tokenizer), new]), upstream_rows("dialogue_prompted"))


def test_a_dialogue_with_history_has_upstreams_rows_but_for_the_history_codes(tokenizer: FireRedTokenizer) -> None:
    """Upstream encodes its own audio again, we keep the codes it was made from."""
    with np.load(FIXTURES / "llm.npz") as golden:
        codes = golden["dialogue_history/first_codes"]
    upstream = upstream_rows("dialogue_history")
    first = finished_segment(segment_text(tokenizer, "[S1]", "First sentence."), codes)
    voices = upstream_voice_rows(tokenizer)
    ours = Rows.concat([*voices, first, segment_text(tokenizer, "[S2]", "And an answer.")])
    start = sum(map(len, voices)) + len(first) - len(codes) - 1
    assert np.array_equal(ours.mask, upstream.mask)
    again = slice(start, start + len(codes))
    assert np.array_equal(np.delete(ours.ids, again, axis=0), np.delete(upstream.ids, again, axis=0))


def test_continuation_has_upstreams_rows_where_the_transcript_ends_in_punctuation(tokenizer: FireRedTokenizer) -> None:
    ours = continuation_prompt(tokenizer, upstream_voices()[0], "Yes, it is so.")
    assert same(ours, upstream_rows("monologue_prompted"))


def test_continuation_keeps_the_last_character_that_upstream_eats(tokenizer: FireRedTokenizer) -> None:
    voice = VoicePrompt(upstream_voices()[0].codes, "我不知道", "golden")
    upstream = upstream_rows("monologue_prompted_without_punctuation")
    assert text_ids(upstream) == segment_ids(tokenizer, "[S1]", "我不知,好的。")
    assert text_ids(continuation_prompt(tokenizer, voice, "好的。")) == segment_ids(
        tokenizer, "[S1]", "我不知道,好的。"
    )


# --- rows and segments


def rows_of(n_text: int, n_frames: int) -> Rows:
    """A finished segment of n_text + n_frames + 1 rows."""
    return finished_segment(text_rows(range(1, n_text + 1)), some_codes(n_frames))


def test_a_text_row_fills_only_the_last_column() -> None:
    rows = text_rows([7, 9])
    assert rows.ids.dtype == np.int64
    assert rows.ids.tolist() == [[0] * 16 + [7], [0] * 16 + [9]]
    assert rows.mask.tolist() == [[False] * 16 + [True]] * 2


def test_an_audio_row_fills_the_first_16_columns() -> None:
    rows = audio_rows(some_codes(2).astype(np.int16))
    assert rows.ids.dtype == np.int64
    assert rows.ids[1].tolist() == [*range(16, 32), 0]
    assert rows.mask.tolist() == [[True] * 16 + [False]] * 2


def test_the_end_of_speech_is_16_zeros_that_count() -> None:
    assert eos_row().ids.tolist() == [[0] * 17]
    assert eos_row().mask.tolist() == [[True] * 16 + [False]]


def test_rows_join_in_order_and_nothing_joins_to_nothing() -> None:
    joined = Rows.concat([text_rows([1]), audio_rows(some_codes(2)), text_rows([])])
    assert (len(joined), joined.n_audio_frames) == (3, 2)
    assert joined.ids[0, 16] == 1
    empty = Rows.concat([])
    assert empty.ids.shape == empty.mask.shape == (0, 17)
    assert empty.ids.dtype == np.int64
    assert empty.mask.dtype == np.bool_


def test_a_segment_is_its_text_its_audio_and_an_end(tokenizer: FireRedTokenizer) -> None:
    text = segment_text(tokenizer, "[S2]", "Hi there.")
    assert text_ids(text) == segment_ids(tokenizer, "[S2]", "Hi there.")
    whole = finished_segment(text, some_codes(3))
    assert same(whole, Rows.concat([text, audio_rows(some_codes(3)), eos_row()]))


def test_a_voice_in_a_dialogue_carries_its_tag_twice(tokenizer: FireRedTokenizer) -> None:
    voice = VoicePrompt(some_codes(9), "I do not know.", "anna")
    rows = voice_segment(tokenizer, voice, "[S1]")
    assert text_ids(rows) == segment_ids(tokenizer, "[S1]", "I do not know.", double=True)
    assert same(Rows(rows.ids[-10:], rows.mask[-10:]), Rows.concat([audio_rows(some_codes(9)), eos_row()]))


def test_continuation_is_one_segment_without_end_and_last_two_frames(tokenizer: FireRedTokenizer) -> None:
    voice = VoicePrompt(some_codes(9), "I do not know.", "anna")
    rows = continuation_prompt(tokenizer, voice, "Yes.")
    assert text_ids(rows) == segment_ids(tokenizer, "[S1]", "I do not know,Yes.")
    assert same(Rows(rows.ids[-7:], rows.mask[-7:]), audio_rows(some_codes(9)[:7]))
    assert rows.n_audio_frames == 7


@pytest.mark.parametrize(
    ("transcript", "start"),
    [
        ("I do not know", "I do not know,"),  # upstream eats the w
        ("我不知道。", "我不知道,"),
        ("Really?!", "Really,"),
        ("He said so, ", "He said so,"),
        ("in 3.14", "in 3.14,"),
    ],
)
def test_continuation_cuts_only_punctuation_from_the_transcript(
    transcript: str, start: str, tokenizer: FireRedTokenizer
) -> None:
    rows = continuation_prompt(tokenizer, VoicePrompt(some_codes(9), transcript, "anna"), "Yes.")
    assert text_ids(rows) == segment_ids(tokenizer, "[S1]", start + "Yes.")


def test_structure_in_a_callers_words_stays_words(tokenizer: FireRedTokenizer) -> None:
    rows = segment_text(tokenizer, "[S1]", "a<|text_end|>[S2]<|laugh|>", allow_tags=True)
    special = [token for token in text_ids(rows) if token >= 256]
    assert special == [tokenizer.special_id(t) for t in ("[S1]", TEXT_START, "<|laugh|>", TEXT_END)]


@pytest.mark.parametrize("tag", ["[S1]", "[S2]", "[S3]", "[S4]"])
def test_the_four_speakers_are_known(tag: str) -> None:
    assert check_speaker(tag) == tag


@pytest.mark.parametrize("tag", ["[S5]", "[S0]", "S1", "", "[s1]", "[S1] ", "[S_DIALOG_1]", "x" * 1000])
def test_any_other_speaker_is_an_input_error_that_names_the_four(tag: str, tokenizer: FireRedTokenizer) -> None:
    with pytest.raises(InputError, match=r"\[S1\], \[S2\], \[S3\], \[S4\]"):
        check_speaker(tag)
    with pytest.raises(InputError):
        segment_text(tokenizer, tag, "a")


def test_voices_that_leave_no_room_are_refused() -> None:
    check_voices([rows_of(49, 750), rows_of(49, 750)])
    with pytest.raises(InputError, match=f"at most {MAX_VOICE_ROWS}"):
        check_voices([rows_of(50, 750), rows_of(50, 750)])


def test_a_history_that_fits_is_kept_whole() -> None:
    segments = [rows_of(5, 10), rows_of(6, 11)]
    assert trim_history([rows_of(5, 50)], segments, 100) == segments
    assert trim_history([], [], 100) == []


def test_the_oldest_segments_go_first() -> None:
    segments = [rows_of(10, 89) for _ in range(5)]  # 100 rows each
    assert trim_history([rows_of(9, 90)], segments, 399) == segments[-2:]
    assert trim_history([rows_of(9, 90)], segments, 400) == segments[-3:]


def test_a_newest_segment_that_does_not_fit_leaves_nothing() -> None:
    assert trim_history([rows_of(9, 90)], [rows_of(1, 1), rows_of(10, 500)], 300) == []
    assert trim_history([rows_of(9, 90)], [rows_of(1, 1)], 50) == []
    assert trim_history([], [rows_of(1, 1)], -1) == []


def test_no_more_than_16_segments_count_voices_and_the_new_one() -> None:
    assert len(trim_history([rows_of(1, 3)] * 2, [rows_of(1, 1)] * 30)) == 13
    assert len(trim_history([], [rows_of(1, 1)] * 30)) == 15


def test_no_more_than_2300_audio_frames_are_kept() -> None:
    segments = [rows_of(1, 374)] * 8  # 375 audio rows each, with the end of speech
    kept = trim_history([rows_of(1, 374)], segments, 10_000)
    assert sum(segment.n_audio_frames for segment in kept) + 375 <= 2300
    assert len(kept) == 5


SIZES = st.tuples(st.integers(0, 300), st.integers(0, 400))


@settings(deadline=None)
@given(voices=st.lists(SIZES, max_size=4), history=st.lists(SIZES, max_size=25), budget_rows=st.integers(-100, 3100))
def test_what_is_kept_is_the_longest_newest_run_that_fits(
    voices: list[tuple[int, int]], history: list[tuple[int, int]], budget_rows: int
) -> None:
    voice_rows, segments = [rows_of(*size) for size in voices], [rows_of(*size) for size in history]

    def fits(kept: list[Rows]) -> bool:
        everything = Rows.concat([*voice_rows, *kept])
        few = len(voices) + len(kept) + 1 <= 16
        return len(everything) <= budget_rows and everything.n_audio_frames <= 2300 and few

    kept = trim_history(voice_rows, segments, budget_rows)
    start = len(segments) - len(kept)
    assert kept == segments[start:]
    assert not kept or fits(kept)
    assert start == 0 or not fits(segments[start - 1 :])
