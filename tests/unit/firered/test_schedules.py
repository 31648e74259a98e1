"""Streams that come, speak, change their mind and go at random: whatever happens, each sounds as it does alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from firered.guards import GuardLimits, RunawayGuard
from firered.prompt import Rows
from firered.step_runner import BATCH_BUCKETS, ROW_BUCKETS, TOKEN_BUCKETS, StepRunner
from firered.stream import PieceEnd, SpeechAudio, SpeechStream, StreamEnd, StreamFailed, StreamOptions
from tests.unit.firered.test_scheduler import LateRunner, Stage, voice

RUNNERS = [StepRunner, LateRunner]
SENTENCES = ("Yes.", "No, not at all.", "One, two, three.")


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@dataclass(frozen=True)
class Script:
    """What a stream is to say, and how."""

    texts: tuple[str, ...]
    options: StreamOptions


def scripts(seed: int, n: int) -> list[Script]:
    dice = np.random.default_rng(seed)
    kinds: tuple[dict[str, object], ...] = (
        {},
        {"voices": {"[S1]": voice(3)}},
        {"voices": {"[S1]": voice(4)}, "mode": "continuation"},
    )
    made = []
    for number in range(n):
        texts = tuple(dice.choice(SENTENCES, int(dice.integers(3, 9))))
        lead_s = float(dice.choice([0.2, 1.0, 1e9]))
        options = StreamOptions(seed=number, top_k=20, max_lead_s=lead_s, **dice.choice(np.array(kinds, object)))
        made.append(Script(texts, options))
    return made


def stage_for(checkpoint: Path, runner: type[StepRunner], n_slots: int, *, flat: bool = True) -> Stage:
    """Histories are cut: there are 192 rows."""
    return Stage(checkpoint, ends_every=5, capacity=192, n_slots=n_slots, runner=runner, flat=flat)


def alone(checkpoint: Path, script: Script, *, flat: bool = True) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """The audio of each piece when nobody else speaks and nothing is read late."""
    stage = stage_for(checkpoint, StepRunner, 1, flat=flat)
    stream = stage.open(*script.texts, options=script.options)
    while (idle_s := stage.tick()) is not None:
        stage.now_s += idle_s + 1e-3  # more than a rounding error of the clock
    return [stage.audio(stream, piece) for piece in range(len(script.texts))]


class Play:
    """Scripts acted out with random joins, pauses between texts, and cancels."""

    def __init__(self, stage: Stage, scripts: list[Script], seed: int) -> None:
        self.stage, self.scripts, self.dice = stage, scripts, np.random.default_rng(seed)
        self.streams: list[SpeechStream] = []
        self.n_said = [0] * len(scripts)
        self.idle_s: float | None = None

    def run(self) -> None:
        for _ in range(3000):
            acted = self._act()
            idle_before, before = self.idle_s, self._progress()
            self.idle_s = self.stage.tick()
            assert acted or idle_before != 0.0 or self._progress() != before, "the engine spins"
            if self.idle_s:
                self.stage.now_s += 1e-3 + self.idle_s * float(self.dice.choice([0.5, 1.0, 2.0]))
            if self.idle_s is None and self._is_over():
                return
        raise AssertionError("the streams never end")

    def _act(self) -> bool:
        """Something that a caller may do between two frames."""
        if self.dice.random() < 0.6 and self.idle_s is not None:
            return False
        n = len(self.streams)
        if n < len(self.scripts) and self.dice.random() < 0.3:
            self.streams.append(self.stage.open(options=self.scripts[n].options, end=False))
        for number, stream in enumerate(self.streams):
            script = self.scripts[number]
            if stream.text_ended or stream.cancelled or self.dice.random() < 0.5:
                continue
            if self.n_said[number] < len(script.texts):
                stream.add_text(script.texts[self.n_said[number]])
                self.n_said[number] += 1
            elif self.dice.random() < 0.3:
                stream.cancel()
            else:
                stream.end()
        return True

    def _progress(self) -> tuple[int, ...]:
        stats = self.stage.scheduler.stats
        n_events = sum(map(len, self.stage.events.values()))
        n_underway = 0 if self.stage.scheduler._launched is None else 1  # a frame that is read and thrown away
        return stats.n_steps, stats.n_prefilled_rows, n_events, self.stage.scheduler.n_streams, n_underway

    def _is_over(self) -> bool:
        return len(self.streams) == len(self.scripts) and self.stage.scheduler.n_streams == 0


@pytest.mark.parametrize(("runner", "seed", "flat"), [(StepRunner, 0, True), (LateRunner, 1, False)])
def test_a_stream_sounds_as_it_does_alone_whatever_happens_around_it(
    checkpoint: Path, runner: type[StepRunner], seed: int, flat: bool
) -> None:
    acts = scripts(seed, 5)
    play = Play(stage_for(checkpoint, runner, 3, flat=flat), acts, seed)
    play.run()
    stage = play.stage
    assert stage.scheduler.stats.n_trims > 0
    for stream, script in zip(play.streams, acts, strict=True):
        (end,) = [event for event in stage.events[stream] if isinstance(event, StreamEnd)]
        assert end is stage.events[stream][-1]
        for piece, whole in enumerate(alone(checkpoint, script, flat=flat)):
            heard = stage.audio(stream, piece)
            assert end.cancelled or len(heard) == len(whole)
            np.testing.assert_allclose(heard, whole[: len(heard)], atol=1e-5)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("ends_every", [1, 2, 3, 4])
def test_a_continuation_that_ends_within_its_repeated_frames_is_an_empty_piece(
    checkpoint: Path, runner: type[StepRunner], ends_every: int
) -> None:
    stage = Stage(checkpoint, ends_every=ends_every, runner=runner)
    options = StreamOptions(voices={"[S1]": voice(3)}, mode="continuation", max_lead_s=None, seed=5)
    stream = stage.open("Hello.", "And again.", options=options)
    stage.run()
    n_kept = max(0, ends_every - 1 - 2)
    ends = [PieceEnd(piece, n_kept, "end_of_speech") for piece in range(2)]
    assert stage.ends(stream) == [*ends, StreamEnd(cancelled=False)]
    assert len(stage.audio(stream)) == 2 * n_kept * 1920


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_repeated_frames_of_a_continuation_do_not_count_towards_its_frame_limit(
    checkpoint: Path, runner: type[StepRunner]
) -> None:
    stage = Stage(checkpoint, runner=runner)
    options = StreamOptions(voices={"[S1]": voice(3)}, mode="continuation", max_lead_s=None, seed=5)
    stream = stage.open("Yes.", options=options)
    limit = stream.segments[0].frame_limit
    stage.run()
    assert stage.ends(stream) == [PieceEnd(0, limit, "frame_limit"), StreamEnd(cancelled=False)]
    assert len(stage.audio(stream)) == limit * 1920


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("n_frames", range(1, 6))
def test_a_continuation_may_change_its_slot_at_any_of_its_first_frames(
    checkpoint: Path, runner: type[StepRunner], n_frames: int
) -> None:
    options = StreamOptions(voices={"[S1]": voice(3)}, mode="continuation", max_lead_s=None, seed=5)
    single = Stage(checkpoint, ends_every=9)
    expected = single.open("Hello.", options=options)
    single.run()
    stage = Stage(checkpoint, ends_every=9, runner=runner)
    leaving, moved = stage.open("I leave."), stage.open("Hello.", options=options)
    stage.tick(n_frames)
    leaving.cancel()
    stage.run()
    np.testing.assert_allclose(stage.audio(moved), single.audio(expected), atol=1e-5)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_cache_holds_what_the_history_says(checkpoint: Path, runner: type[StepRunner]) -> None:
    """After ends of speech, a frame limit and frames read late, rows and noise go on where the history stops."""
    stage = Stage(checkpoint, ends_every=40, runner=runner)
    stream = stage.open("Yes.", "No.", options=StreamOptions(max_lead_s=None, seed=2), end=False)
    stage.run()
    assert {end.reason for end in stage.ends(stream) if isinstance(end, PieceEnd)} == {"end_of_speech", "frame_limit"}
    slot = stage.slot(stream)
    rows = Rows.concat(slot.history)
    assert slot.rows == len(rows) - slot.owes_end_row == int(stage.state.position[0])
    assert slot.n_drawn == int(stage.state.frame[0])
    n_ends = sum(end.reason == "end_of_speech" for end in stage.ends(stream) if isinstance(end, PieceEnd))
    assert slot.n_drawn == sum(piece.n_audio_frames - 1 for piece in slot.history) + n_ends
    fresh = stage.model.new_state(1)
    stage.model.prefill(fresh, 0, rows, 0)
    kept = slice(0, slot.rows)
    torch.testing.assert_close(stage.state.cache[:, 0, :, :, kept], fresh.cache[:, 0, :, :, kept], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("capacity", "ends_every", "n_texts", "n_trims"),
    [
        (1024, 2, 36, 3),  # the 16th segment is one too many: 8 remain, and 8 more have room
        (192, 5, 26, 2),  # 147 rows hold 12 segments: half of that remains, and 6 more have room
    ],
)
def test_a_history_that_was_cut_has_room_for_many_more_segments(
    checkpoint: Path, capacity: int, ends_every: int, n_texts: int, n_trims: int
) -> None:
    """Cutting means reading the rest of the history again: not for every segment."""
    stage = Stage(checkpoint, capacity=capacity, ends_every=ends_every)
    stage.open(*["Yes."] * n_texts, options=StreamOptions(max_lead_s=None, seed=5))
    stage.run()
    assert stage.scheduler.stats.n_trims == n_trims


def test_the_same_recording_is_another_voice_under_another_tag(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=6)
    heard = []
    for tag in ("[S1]", "[S2]", "[S1]"):
        options = StreamOptions(voices={tag: voice(3)}, max_lead_s=None, seed=5)
        stream = stage.open("Hello.", options=options)
        stage.run()
        heard.append(stage.audio(stream))
    np.testing.assert_array_equal(heard[0], heard[2])
    assert not np.array_equal(heard[0], heard[1])


def test_more_voices_than_are_remembered_are_read_again(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=2)

    def speak(seed: int) -> int:
        before = stage.scheduler.stats.n_prefilled_rows
        stage.open("Yes.", options=StreamOptions(voices={"[S1]": voice(seed, 3)}, max_lead_s=None))
        stage.run()
        return stage.scheduler.stats.n_prefilled_rows - before

    first = speak(0)
    for seed in range(1, 16):
        assert speak(seed) == first
    assert speak(0) < first  # sixteen are remembered, and this one is the newest now
    assert speak(16) == first
    assert speak(0) < first
    assert speak(1) == first  # the one that was not heard for longest is forgotten
    assert len(stage.scheduler._voices) == 16


class _EveryShape:
    """Stands in for the graphs: runs the work and knows which shapes were captured."""

    def __init__(self) -> None:
        self.keys: set[tuple[str, int, int]] = set()
        self.is_closed = False

    def __len__(self) -> int:
        return len(self.keys)

    def run(self, key: tuple[str, int, int], work: object, active: torch.Tensor) -> None:
        assert key in self.keys or not self.is_closed, f"{key} was not captured"
        self.keys.add(key)
        if self.is_closed:
            work()  # type: ignore[operator]


def test_every_shape_that_a_frame_may_need_is_captured_before_the_first_talk(checkpoint: Path) -> None:
    stage = Stage(checkpoint, n_slots=3, capacity=300, ends_every=5, runner=LateRunner)
    graphs = _EveryShape()
    stage.runner._graphs = graphs  # type: ignore[assignment]
    n_graphs = stage.runner.capture_all()
    graphs.is_closed = True
    assert n_graphs == 3 * (3 + 5)  # batches 1, 2, 3; rows 128, 256, 320; tokens 32 to 256 and 380
    single = alone(checkpoint, Script(("One, two, three.",) * 4, StreamOptions(max_lead_s=None, seed=4)))
    streams = [
        stage.open(*["One, two, three."] * 4, options=StreamOptions(max_lead_s=None, seed=seed)) for seed in (5, 6, 4)
    ]
    stage.run()
    np.testing.assert_allclose(stage.audio(streams[2]), np.concatenate(single), atol=1e-5)
    last = stage.runner._n_slots - 1
    for n_rows in range(1, stage.state.capacity + 1, 29):
        stage.runner.launch([last], n_rows=n_rows, n_tokens=1)
    assert max(len(chunk) for chunk in stage.chunks(streams[0])) == 1920


@pytest.mark.parametrize(
    ("buckets", "largest"), [(BATCH_BUCKETS, 5), (ROW_BUCKETS, 3136), (TOKEN_BUCKETS, 379), (BATCH_BUCKETS, 64)]
)
def test_a_bucket_holds_what_it_is_for_and_no_smaller_one_would(
    checkpoint: Path, buckets: tuple[int, ...], largest: int
) -> None:
    runner = Stage(checkpoint, n_slots=1).runner
    runner._graphs = _EveryShape()  # type: ignore[assignment]
    sizes = sorted({runner._bucket(n, buckets, largest, 1) for n in range(1, largest + 1)})
    assert sizes == [*(size for size in buckets if size < largest), largest]
    assert all(runner._bucket(size, buckets, largest, 1) == size for size in sizes)


def test_who_is_heard_late_gets_its_audio_events_in_order(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=5, runner=LateRunner)
    stream = stage.open("One.", "Two.", "Three.")
    stage.run()
    pieces = [event.piece for event in stage.events[stream] if isinstance(event, SpeechAudio | PieceEnd)]
    assert pieces == sorted(pieces)


def test_while_somebody_is_short_the_one_with_the_least_ahead_is_read_first(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=4)
    free = StreamOptions(max_lead_s=None, seed=1)
    ahead, behind = stage.open("Yes.", options=free, end=False), stage.open("No.", options=free, end=False)
    stage.tick(5)
    stage.slot(behind)._played_until_s -= 0.2
    short = stage.open("One, two, three.", options=free)
    stage.tick()
    for stream in (ahead, behind):
        stream.add_text("More.")
    assert stage.slot(short).lead_s(stage.now_s) < 0.16
    stage.tick()
    assert [stage.slot(stream).segment is not None for stream in (ahead, behind)] == [False, True]


def test_who_is_far_ahead_gets_no_prompt_read(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=5)  # four frames and the tail are 0.32 s
    stream = stage.open("Yes.", "No.", options=StreamOptions(max_lead_s=0.3, seed=1))
    stage.tick(4)
    stage.now_s += (stage.tick() or 0.0) + 1e-3
    stage.tick()
    assert stage.ends(stream) == [PieceEnd(0, 4, "end_of_speech")]
    n_rows = stage.scheduler.stats.n_prefilled_rows
    stage.tick(3)
    assert stage.scheduler.stats.n_prefilled_rows == n_rows
    stage.now_s += 1.0
    stage.tick()
    assert stage.scheduler.stats.n_prefilled_rows > n_rows


def test_a_slot_has_room_for_the_end_of_speech_row_and_for_a_frame_under_way(checkpoint: Path) -> None:
    stage = Stage(checkpoint, capacity=64)
    tight, fitting = stage.open("Number ten"), stage.open("Eighteen")
    (segment,) = tight.segments
    assert len(segment.rows) + segment.frame_limit == stage.state.capacity
    stage.run()
    assert isinstance(stage.events[tight][0], StreamFailed)
    assert stage.ends(fitting)[-1] == StreamEnd(cancelled=False)


def test_an_empty_piece_after_a_spoken_one_is_silent(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=4)
    stream = stage.open("Yes.", "No.", options=StreamOptions(max_lead_s=None, seed=1))
    while not stage.ends(stream):
        stage.tick()
    stage.model.ends_every = 1
    stage.run()
    assert stage.ends(stream)[1:] == [PieceEnd(1, 0, "end_of_speech"), StreamEnd(cancelled=False)]
    assert stage.chunks(stream, 1) == []


def test_a_frame_goes_to_another_slot_when_as_many_are_active(checkpoint: Path) -> None:
    stage = Stage(checkpoint, n_slots=2)
    for active, positions in (([0], [1, 0]), ([1], [1, 1]), ([0, 1], [2, 2]), ([1], [2, 3])):
        stage.runner.launch(active, n_rows=8, n_tokens=8)
        assert stage.state.position.tolist() == positions


def test_pauses_add_up_to_nothing_and_a_long_phrase_may_be_said_three_times() -> None:
    loud, silent = np.full(1920, 0.1, np.float32), np.zeros(1920, np.float32)
    codes = np.random.default_rng(1).integers(0, 2048, 300).tolist()
    guard = RunawayGuard(375, GuardLimits())
    sounds = [loud] * 20 + [silent] * 39 + [loud] * 1 + [silent] * 39 + [loud]
    assert not any(guard.check(code, samples) for code, samples in zip(codes, sounds, strict=False))
    guard = RunawayGuard(375, GuardLimits())
    assert not any(guard.check(code, loud) for code in [*codes[:35], *codes[100:125] * 3, *codes[200:240]])
