"""The three searches for a best path, each against a slow one that tries everything."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.audio import AudioChunk
from serverless.timings.matching import matched
from serverless.timings.mfcc import SAMPLE_RATE, mfcc, path
from serverless.timings.viterbi import STAR, best_path

BLANK = 0


def collapsed(frames: tuple[int, ...], n_states: int) -> bool:
    """Whether states, one a frame, are a path of CTC from the start to the end of the labels."""
    return frames[0] <= 1 and frames[-1] >= n_states - 2


@st.composite
def emissions_and_labels(draw: st.DrawFn) -> tuple[NDArray[np.float32], list[int]]:
    n_frames, n_labels = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    seed = draw(st.integers(0, 10_000))
    logits = np.random.default_rng(seed).normal(0, 2, (n_frames, n_labels))
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = draw(st.lists(st.sampled_from([STAR, *range(1, n_labels)]), min_size=1, max_size=3))
    return logs.astype(np.float32), labels


def score_of_states(states: tuple[int, ...], emissions: NDArray[np.float32], labels: list[int]) -> float | None:
    """The sum of a path of states (even: blank, odd: label), None when it is none."""
    n_states = 2 * len(labels) + 1
    if not collapsed(states, n_states):
        return None
    for a, b in pairwise(states):
        skips = b - a == 2 and b % 2 == 1 and labels[a // 2] != labels[b // 2]
        if not (b - a in (0, 1) or skips):
            return None
    total = 0.0
    for t, state in enumerate(states):
        label = BLANK if state % 2 == 0 else labels[state // 2]
        row = emissions[t].astype(np.float64)
        total += float(np.delete(row, BLANK).max() if label == STAR else row[label])
    return total


@settings(max_examples=80, deadline=None)
@given(emissions_and_labels())
def test_the_best_path_is_the_best_of_all_paths(case: tuple[NDArray[np.float32], list[int]]) -> None:
    emissions, labels = case
    n_states = 2 * len(labels) + 1
    best, best_states = -np.inf, None
    for states in product(range(n_states), repeat=len(emissions)):
        score = score_of_states(states, emissions, labels)
        if score is not None and score > best:
            best, best_states = score, states
    found = best_path(emissions, labels, BLANK)
    if best_states is None:
        assert found is None
        return
    assert found is not None
    mine = sum(  # frames between labels are blanks
        float(emissions[t, BLANK]) for t in range(len(emissions)) if not any(a <= t < b for a, b, _ in found)
    )
    for label, (start, end, probability) in zip(labels, found, strict=True):
        rows = emissions[start:end].astype(np.float64)
        chosen = np.delete(rows, BLANK, axis=1).max(axis=1) if label == STAR else rows[:, label]
        mine += float(chosen.sum())
        assert probability == pytest.approx(float(np.exp(chosen).mean()), rel=1e-5)
    assert mine == pytest.approx(best, abs=1e-4)
    assert all(a[1] <= b[0] for a, b in pairwise(found))


def test_there_is_no_path_for_more_labels_than_frames() -> None:
    emissions = np.log(np.full((2, 3), 1 / 3, np.float32))
    assert best_path(emissions, [1, 2], BLANK) is not None
    assert best_path(emissions, [1, 1], BLANK) is None  # a blank must stand between the two
    assert best_path(emissions, [1, 2, 1], BLANK) is None
    assert best_path(emissions, [], BLANK) is None


def test_the_letters_are_found_where_the_model_hears_them() -> None:
    heard = [0, 1, 1, 0, 2, 0, 0, 2, 1, 0]
    emissions = np.full((10, 3), np.log(0.05), np.float32)
    emissions[range(10), heard] = np.log(0.9)
    found = best_path(emissions, [1, STAR, 2, 1], BLANK)
    assert found is not None
    assert [(start, end) for start, end, _ in found] == [(1, 3), (4, 5), (7, 8), (8, 9)]


def tones(*hertz: float, seconds: float = 0.2) -> AudioChunk:
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    waves = [sum(np.sin(2 * np.pi * k * h * t) / k for k in range(1, 6)) for h in hertz]
    noise = np.random.default_rng(1).normal(0, 1e-3, len(t) * len(hertz))
    return AudioChunk((np.concatenate(waves) * 0.1 + noise).astype(np.float32), SAMPLE_RATE)


def features(audio: AudioChunk) -> NDArray[np.float32]:
    return mfcc(audio, np.arange(80, audio.n_samples, 160, dtype=np.float64))


def test_a_sound_matches_itself_frame_by_frame() -> None:
    here = features(tones(200, 700, 300, 1500))
    assert np.array_equal(path(here, here), np.arange(len(here)))


def test_a_change_of_tempo_is_followed() -> None:
    slow_first = AudioChunk(
        np.concatenate([tones(200, seconds=0.6).samples, tones(1500, seconds=0.2).samples]), SAMPLE_RATE
    )
    fast_first = AudioChunk(
        np.concatenate([tones(200, seconds=0.3).samples, tones(1500, seconds=0.5).samples]), SAMPLE_RATE
    )
    found = path(features(slow_first), features(fast_first))
    assert np.all(np.diff(found) >= 0)
    assert (found[0], found[-1]) == (0, 79)
    assert abs(int(np.searchsorted(found, 30)) - 60) <= 2  # frame 60 here is where the tone changes, 30 there


def test_features_do_not_change_with_the_level() -> None:
    audio = tones(200, 700, 300)
    quieter = AudioChunk(audio.samples * np.float32(0.2), SAMPLE_RATE)
    assert np.allclose(features(audio), features(quieter), atol=0.1)


def distance(here: str, there: str) -> int:
    row = list(range(len(there) + 1))
    for i, a in enumerate(here, 1):
        above, row = row, [i]
        for j, b in enumerate(there, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_letters_are_matched_by_the_fewest_edits(here: str, there: str) -> None:
    from serverless.timings.matching import _same

    assume(here and there)
    pairs = _same(here, there)
    assert all(here[i] == there[j] for i, j in pairs)
    edits, at = 0, (0, 0)
    for i, j in [*pairs, (len(here), len(there))]:
        edits += max(i - at[0], j - at[1])
        at = (i + 1, j + 1)
    assert edits == distance(here, there)


@pytest.mark.parametrize(
    ("known", "recognised", "expected"),
    [
        (["I", "have", "fortytwo", "cats"], ["I", "have", "42", "cats"], [[0], [1], [], [3]]),
        (["I", "have", "fortytwo", "cats"], ["i", "have", "forty", "two", "Cats."], [[0], [1], [2, 3], [4]]),
        (["going", "to", "sing"], ["gonna", "sing"], [[0], [], [1]]),
        (["Hello", "there"], ["Hello"], [[0], []]),
        (["one", "two"], [], [[], []]),
        (["Größe", "café"], ["GRÖSSE", "cafe"], [[0], [1]]),
        (["the", "the", "the"], ["the", "the"], [[], [0], [1]]),
    ],
)
def test_recognised_words_are_laid_over_the_known_ones(
    known: list[str], recognised: list[str], expected: list[list[int]]
) -> None:
    found = matched(known, recognised)
    if known == ["the"] * 3:  # which two of them is a toss-up
        assert sorted(map(len, found)) == [0, 1, 1]
        assert [j for some in found for j in some] == [0, 1]
    else:
        assert found == expected
