"""Streams over slots: joining, leaving, pacing, cancelling, history. Real tiny models, time by hand."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from firered.checkpoint import TOKENIZER_NAME, open_codec, open_llm
from firered.codec_decoder import CodecDecoder
from firered.config import read_codec_config, read_llm_config
from firered.errors import FireRedError, GenerationError
from firered.guards import GuardLimits
from firered.language_model import LanguageModel, SlotState
from firered.prompt import Rows, voice_segment
from firered.sampling import kth_largest_each, sample
from firered.scheduler import Scheduler
from firered.segments import Segmenter
from firered.slot import StreamSlot
from firered.step_runner import StepRunner
from firered.stream import PieceEnd, SpeechAudio, SpeechStream, StreamEnd, StreamEvent, StreamFailed, StreamOptions
from firered.tokenizer import FireRedTokenizer
from firered.voice import VoicePrompt

Samples = np.ndarray[Any, np.dtype[np.float32]]
NEVER = 1 << 40
MAX_TOKENS = 380
FREE = StreamOptions(max_lead_s=None, seed=5, top_k=20)
# Random weights say nothing: their audio may be quiet, their codes may repeat. The guards have tests of their own.
UNGUARDED = GuardLimits(silent_frames=NEVER, loop_frames=1 << 20)


class EndingModel(LanguageModel):
    """Ends speech at every n-th frame of a stream; random weights never would.

    A flat one draws all codes of a frame from the backbone, each with its own noise: three quarters of a frame's time
    are the depth decoder, which keeps nothing from one frame to the next.
    """

    ends_every = NEVER
    is_flat = True

    def _draw_codes(self, state: SlotState, n_batch: int, noise: Tensor) -> Tensor:
        if self.is_flat:
            logits = state.hidden[:n_batch].float() @ self._head  # (B, V)
            kth = kth_largest_each(logits, state.top_k[:n_batch])
            codes = sample(logits[:, None], kth[:, None], state.temperature[:n_batch, None], noise)
        else:
            codes = super()._draw_codes(state, n_batch, noise)
        ends = state.frame[:n_batch] % self.ends_every == self.ends_every - 1
        return codes * ~ends[:, None]


class LateRunner(StepRunner):
    """Pretends to be a card: every frame is read one frame late."""

    asynchronous = True


@cache
def _loaded(checkpoint: Path, capacity: int) -> tuple[EndingModel, CodecDecoder, FireRedTokenizer]:
    """What streams do not change."""
    config = read_llm_config(checkpoint / "config_llm.json")
    codec_config = read_codec_config(checkpoint / "config_codec.json")
    return (
        EndingModel(config, open_llm(checkpoint, config, "cpu", torch.float32), capacity=capacity),
        CodecDecoder(codec_config, open_codec(checkpoint, codec_config, "cpu", torch.float32)),
        FireRedTokenizer.from_directory(checkpoint / TOKENIZER_NAME, config.text_vocab_size),
    )


class Stage:
    """A scheduler with everything around it, and a clock that is moved by hand."""

    def __init__(
        self,
        checkpoint: Path,
        *,
        n_slots: int = 4,
        capacity: int = 1024,
        ends_every: int = NEVER,
        runner: type[StepRunner] = StepRunner,
        flat: bool = True,
    ) -> None:
        model, self.decoder, self.tokenizer = _loaded(checkpoint, capacity)
        self.model = copy(model)
        self.model.ends_every, self.model.is_flat = ends_every, flat
        self.state = self.model.new_state(n_slots)
        codec_state = self.decoder.new_state(n_slots, MAX_TOKENS, torch.float32)
        self.runner = runner(self.model, self.decoder, self.state, codec_state, max_tokens=MAX_TOKENS, graphs=False)
        self.scheduler = Scheduler(
            self.model, self.state, codec_state, self.runner, voice_rows=self.voice_rows, limits=UNGUARDED
        )
        self.events: dict[SpeechStream, list[StreamEvent]] = {}
        self.now_s = 100.0

    def voice_rows(self, stream: SpeechStream) -> list[Rows]:
        return [voice_segment(self.tokenizer, voice, tag) for tag, voice in sorted(stream.options.voices.items())]

    def open(self, *texts: str, options: StreamOptions = FREE, end: bool = True) -> SpeechStream:
        events: list[StreamEvent] = []
        stream = SpeechStream(options, Segmenter(self.tokenizer), lambda: None, events.append)
        self.events[stream] = events
        for text in texts:
            stream.add_text(text)
        if end:
            stream.end()
        self.scheduler.add(stream)
        return stream

    def tick(self, n: int = 1) -> float | None:
        for _ in range(n):
            idle_s = self.scheduler.tick(self.now_s)
        return idle_s

    def run(self) -> None:
        """Until nothing is left to do."""
        for _ in range(5000):
            if self.scheduler.tick(self.now_s) is None:
                return
        raise AssertionError("the streams never end")

    def audio(self, stream: SpeechStream, piece: int | None = None) -> Samples:
        chunks = self.chunks(stream, piece)
        return np.concatenate([np.zeros(0, np.float32), *chunks])

    def chunks(self, stream: SpeechStream, piece: int | None = None) -> list[Samples]:
        heard = [event for event in self.events[stream] if isinstance(event, SpeechAudio)]
        return [event.samples for event in heard if piece is None or event.piece == piece]

    def ends(self, stream: SpeechStream) -> list[StreamEvent]:
        return [event for event in self.events[stream] if not isinstance(event, SpeechAudio)]

    def slot(self, stream: SpeechStream) -> StreamSlot:
        (slot,) = [slot for slot in self.scheduler._slots if slot.stream is stream]
        return slot


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def voice(seed: int, n_frames: int = 30) -> VoicePrompt:
    codes = np.random.default_rng(seed).integers(0, 64, (n_frames, 16)).astype(np.int16)
    return VoicePrompt(codes, "I do not know.", f"voice {seed}")


def spoken_codes(slot: StreamSlot) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """The codes of each segment in the history, end-of-speech row left out."""
    return [rows.ids[rows.mask[:, 0], :16][:-1] for rows in slot.history]


def test_a_stream_sounds_like_the_full_decode_of_its_codes(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=13)
    stream = stage.open("The first sentence.", "And one more.", end=False)
    stage.run()
    codes = spoken_codes(stage.slot(stream))
    assert [len(each) for each in codes] == [12, 12]
    for piece, each in enumerate(codes):
        whole = stage.decoder.decode(torch.from_numpy(each)).numpy()
        np.testing.assert_allclose(stage.audio(stream, piece), whole, atol=1e-5)
    assert [len(chunk) for chunk in stage.chunks(stream, 1)] == [1560, *[1920] * 11, 360]


def test_the_first_audio_leaves_at_the_first_frame(checkpoint: Path) -> None:
    stage = Stage(checkpoint)
    stream = stage.open("Hello there.")
    stage.tick()
    assert [len(chunk) for chunk in stage.chunks(stream)] == [1560]


COMPANY = (("One, two, three.", "Four."), ("Quite another thing to say.",), ("Short.", "A second piece.", "Third."))


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> list[Samples]:
    """What each text of the company sounds like by itself."""
    heard = []
    with torch.inference_mode():
        for seed, pieces in enumerate(COMPANY):
            stage = Stage(checkpoint, ends_every=9, flat=False)
            stream = stage.open(*pieces, options=StreamOptions(max_lead_s=None, seed=seed, top_k=20))
            stage.run()
            heard.append(stage.audio(stream))
    return heard


@pytest.mark.parametrize("runner", [StepRunner, LateRunner])
def test_streams_in_company_sound_as_they_do_alone(
    checkpoint: Path, alone: list[Samples], runner: type[StepRunner]
) -> None:
    together = Stage(checkpoint, ends_every=9, n_slots=3, runner=runner, flat=False)
    streams = []
    for seed, pieces in enumerate(COMPANY):
        streams.append(together.open(*pieces, options=StreamOptions(max_lead_s=None, seed=seed, top_k=20)))
        together.tick(3)
    together.run()
    for stream, expected in zip(streams, alone, strict=True):
        np.testing.assert_allclose(together.audio(stream), expected, atol=1e-5)
        assert together.ends(stream)[-1] == StreamEnd(cancelled=False)


def test_reading_a_frame_late_changes_nothing_that_is_heard(checkpoint: Path) -> None:
    heard = []
    for runner in (StepRunner, LateRunner):
        stage = Stage(checkpoint, ends_every=7, runner=runner, flat=False)
        stream = stage.open("The first.", "The second.", "The third.")
        stage.run()
        heard.append((stage.audio(stream), stage.ends(stream)))
    np.testing.assert_allclose(heard[0][0], heard[1][0], atol=1e-5)
    assert heard[0][1] == heard[1][1]


def test_a_later_segment_continues_the_cache_as_if_all_had_been_read_at_once(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=11, flat=False)
    stream = stage.open("The first sentence.", "And one more.", end=False)
    stage.run()
    slot = stage.slot(stream)
    first, second = slot.history
    text = Rows(second.ids[~second.mask[:, 0]], second.mask[~second.mask[:, 0]])
    fresh = stage.model.new_state(1)
    fresh.begin(0, seed=stream.seed, temperature=0.9, top_k=20, greedy=False)
    stage.model.prefill(fresh, 0, Rows.concat([first, text]), 0)
    fresh.frame.fill_(11)  # the noise goes on where the first segment stopped
    codes = torch.cat([stage.model.frame(fresh, torch.ones(1, dtype=torch.bool), 512) for _ in range(10)])
    np.testing.assert_array_equal(codes.numpy(), spoken_codes(slot)[1])


def test_a_cancelled_stream_frees_its_slot_at_the_next_frame(checkpoint: Path) -> None:
    alone = Stage(checkpoint, ends_every=20)
    expected = alone.open("Somebody else speaks on.")
    alone.run()
    stage = Stage(checkpoint, ends_every=20, n_slots=2)
    cut = stage.open("I talk and talk and talk.", options=StreamOptions(max_lead_s=None, seed=1))
    kept = stage.open("Somebody else speaks on.")
    stage.tick(6)
    n_chunks = len(stage.chunks(cut))
    cut.cancel()
    stage.tick()
    assert stage.ends(cut) == [StreamEnd(cancelled=True)]
    assert len(stage.chunks(cut)) == n_chunks
    assert [slot.stream for slot in stage.scheduler._slots] == [kept]
    stage.run()
    np.testing.assert_allclose(stage.audio(kept), alone.audio(expected), atol=1e-5)


def test_a_stream_cancelled_before_it_got_a_slot_ends_too(checkpoint: Path) -> None:
    stage = Stage(checkpoint, n_slots=1)
    stage.open("First.")
    waiting = stage.open("Second.")
    stage.tick(2)
    waiting.cancel()
    stage.tick()
    assert stage.events[waiting] == [StreamEnd(cancelled=True)]


def test_streams_beyond_the_slots_wait_their_turn(checkpoint: Path) -> None:
    stage = Stage(checkpoint, n_slots=2, ends_every=5)
    streams = [stage.open(f"Number {n}.") for n in range(5)]
    stage.tick()
    assert stage.scheduler.n_streams == 5
    stage.run()
    for stream in streams:
        assert stage.ends(stream) == [PieceEnd(0, 4, "end_of_speech"), StreamEnd(cancelled=False)]
    assert stage.scheduler.n_streams == 0


def test_end_of_speech_as_the_first_frame_is_an_empty_piece(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=1)
    stream = stage.open("Say nothing.", "Nor here.")
    stage.run()
    assert stage.events[stream] == [
        PieceEnd(0, 0, "end_of_speech"),
        PieceEnd(1, 0, "end_of_speech"),
        StreamEnd(cancelled=False),
    ]


def test_a_model_that_never_stops_is_stopped_by_the_frame_limit(checkpoint: Path) -> None:
    stage = Stage(checkpoint)
    stream = stage.open("Yes.", "No.", end=False)
    limits = [segment.frame_limit for segment in stream.segments]
    stage.run()
    assert stage.ends(stream) == [PieceEnd(n, limit, "frame_limit") for n, limit in enumerate(limits)]
    assert len(stage.audio(stream, 0)) == 1920 * limits[0]
    assert stage.scheduler.stats.ends == {"frame_limit": 2}


def test_a_segment_cut_short_gets_its_end_of_speech_row(checkpoint: Path) -> None:
    stage = Stage(checkpoint)
    stream = stage.open("Yes.", end=False)
    stage.run()
    slot = stage.slot(stream)
    rows_before, n_text = slot.rows, len(stage.scheduler._slots[0].history[0])
    assert rows_before == n_text - 1  # all but the end-of-speech row
    stream.add_text("No.")
    n_new = len(stream.segments[0].rows)
    stage.tick()
    assert slot.rows == rows_before + 1 + n_new


def test_a_long_talk_trims_its_history_and_keeps_its_voice(checkpoint: Path) -> None:
    stage = Stage(checkpoint, capacity=320, ends_every=12)
    options = StreamOptions(voices={"[S1]": voice(3)}, max_lead_s=None, seed=5, top_k=20)
    stream = stage.open(*[f"This is sentence number {n} of a long talk." for n in range(8)], options=options)
    stage.run()
    assert [end.n_frames for end in stage.ends(stream)[:-1] if isinstance(end, PieceEnd)] == [11] * 8
    assert stage.scheduler.stats.n_trims > 1


def test_a_voice_is_read_once_for_all_its_streams(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=6)
    options = StreamOptions(voices={"[S1]": voice(3)}, max_lead_s=None, seed=5, top_k=20)
    first = stage.open("Hello.", options=options)
    stage.run()
    n_first = stage.scheduler.stats.n_prefilled_rows
    second = stage.open("Hello.", options=options)
    stage.run()
    n_second = stage.scheduler.stats.n_prefilled_rows - n_first
    assert n_first - n_second == len(stage.voice_rows(first)[0])
    np.testing.assert_array_equal(stage.audio(first), stage.audio(second))
    other = StreamOptions(voices={"[S1]": voice(4)}, max_lead_s=None, seed=5, top_k=20)
    third = stage.open("Hello.", options=other)
    stage.run()
    assert not np.array_equal(stage.audio(third), stage.audio(first))


def test_continuation_drops_the_repeated_frames_of_every_piece(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=10)
    options = StreamOptions(voices={"[S1]": voice(3)}, mode="continuation", max_lead_s=None, seed=5, top_k=20)
    stream = stage.open("Hello.", "And again.", options=options, end=False)
    stage.run()
    assert stage.ends(stream) == [PieceEnd(0, 7, "end_of_speech"), PieceEnd(1, 7, "end_of_speech")]
    for piece, codes in enumerate(spoken_codes(stage.slot(stream))):
        kept = codes[-7:]
        np.testing.assert_allclose(
            stage.audio(stream, piece), stage.decoder.decode(torch.from_numpy(kept)).numpy(), atol=1e-5
        )


def test_a_stream_is_not_made_further_ahead_than_asked(checkpoint: Path) -> None:
    stage = Stage(checkpoint)
    paced = StreamOptions(max_lead_s=0.5, seed=5)
    stream = stage.open("A sentence that goes on for a good while, as sentences do.", options=paced)
    for _ in range(40):
        idle_s = stage.tick()
    made_s = len(stage.audio(stream)) / 24000
    assert 0.5 < made_s <= 0.5 + 0.08
    assert idle_s == pytest.approx(made_s - 0.5)
    stage.now_s += 0.3
    stage.tick(40)
    assert made_s + 0.2 < len(stage.audio(stream)) / 24000 <= 0.8 + 0.08


def test_who_is_comfortably_ahead_sits_out_while_a_new_stream_begins(checkpoint: Path) -> None:
    stage = Stage(checkpoint)
    ahead = stage.open("A sentence that goes on for a good while, as sentences do.")
    stage.tick(10)  # 0.8 s of audio at the same moment
    n_chunks = len(stage.chunks(ahead))
    late = stage.open("Now I speak.", options=StreamOptions(max_lead_s=None, seed=6))
    stage.tick(6)
    assert len(stage.chunks(late)) == 6
    assert len(stage.chunks(ahead)) == n_chunks
    stage.now_s += 0.5  # the one who was ahead is short now, too
    stage.tick()
    assert len(stage.chunks(ahead)) == n_chunks + 1
    assert len(stage.chunks(late)) == 7


def test_only_one_prompt_a_frame_is_read_while_somebody_is_short(checkpoint: Path) -> None:
    stage = Stage(checkpoint)
    short = stage.open("A sentence that goes on for a good while, as sentences do.")
    stage.tick(2)
    stage.now_s += 0.1
    new = [stage.open("Hello.", options=StreamOptions(max_lead_s=None, seed=n)) for n in range(2)]
    stage.tick()
    assert [len(stage.chunks(stream)) for stream in [short, *new]] == [3, 1, 0]
    stage.tick()
    assert [len(stage.chunks(stream)) for stream in [short, *new]] == [4, 2, 1]


def test_a_prompt_that_cannot_be_read_fails_its_own_stream_alone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(checkpoint, ends_every=8)
    fine = stage.open("I am fine.")
    stage.tick(2)

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(stage.model, "prefill", out_of_memory)
        broken = stage.open("I am not.")
        stage.tick()
    (event,) = stage.events[broken]
    assert isinstance(event, StreamFailed)
    assert isinstance(event.error, GenerationError)
    stage.run()
    assert stage.ends(fine) == [PieceEnd(0, 7, "end_of_speech"), StreamEnd(cancelled=False)]


def test_fail_all_ends_every_stream(checkpoint: Path) -> None:
    stage = Stage(checkpoint, n_slots=1)
    streams = [stage.open("One."), stage.open("Two.")]
    stage.tick(2)
    error = FireRedError("gone")
    stage.scheduler.fail_all(error)
    assert [stage.events[stream][-1] for stream in streams] == [StreamFailed(error)] * 2
    assert stage.tick() is None


class _Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and the compiler's 900 modules need not be imported to skip it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_frame_waits_for_nothing_on_the_device(checkpoint: Path) -> None:
    """No op that needs a value on the host, none whose shape depends on values: what a CUDA graph demands."""
    stage = Stage(checkpoint, flat=False)
    stage.open("Hello there, all of you.")
    stage.tick(3)
    with _Ops() as ops:
        stage.runner.launch([0], n_rows=64, n_tokens=8)
    forbidden = ("item", "is_nonzero", "_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")
    assert len(ops.names) > 50
    assert [name for name in ops.names if name.split(".")[1] in forbidden] == []
