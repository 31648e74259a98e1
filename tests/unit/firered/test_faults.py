"""What goes wrong around a stream, and that it stays with that stream: sinks, devices, numbers, room."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from firered import (
    FireRedEngine,
    GenerationError,
    InputError,
    PieceEnd,
    SpeechAudio,
    SpeechStream,
    StreamEnd,
    StreamEvent,
    StreamFailed,
    StreamOptions,
)
from firered.errors import FireRedError
from firered.segments import Segmenter
from firered.step_runner import StepRunner
from tests.unit.firered.conftest import OPTIONS, WAIT_S
from tests.unit.firered.test_scheduler import FREE, LateRunner, Stage, voice


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> NDArray[np.float32]:
    """What "Quite another thing to say." sounds like when nobody else speaks."""
    with torch.inference_mode():
        stage = Stage(checkpoint, ends_every=9, flat=False)
        stream = stage.open("Quite another thing to say.")
        stage.run()
        return stage.audio(stream)


def deaf(event: StreamEvent) -> None:
    """The sink of a listener who has gone away without a word."""
    raise ConnectionError(f"nobody wants {event}")


def test_a_sink_that_raises_ends_its_own_stream_alone(brief_engine: FireRedEngine) -> None:
    broken = brief_engine.open(FREE, deaf)
    broken.add_text("Nobody listens to this.")
    assert len(brief_engine.generate("Yes.", FREE)) > 0
    assert broken.cancelled
    assert brief_engine.n_streams == 0


def test_a_sink_that_raises_does_not_keep_a_failed_engine_from_telling_the_others(
    engine: FireRedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(engine._scheduler._runner, "launch", fail)
    broken, fine = engine.open(FREE, deaf), engine.open(FREE)
    broken.add_text("Nobody listens to this.")
    fine.add_text("Somebody listens to this.")
    with pytest.raises(GenerationError):
        list(fine)


class Impatient(list[StreamEvent]):
    """A sink that cancels its stream at the n-th event."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.stream: SpeechStream | None = None

    def __call__(self, event: StreamEvent) -> None:
        self.append(event)
        if len(self) == self.n and self.stream is not None:
            self.stream.cancel()


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("runner", [StepRunner, LateRunner])
def test_a_sink_may_cancel_its_stream_at_any_event(checkpoint: Path, runner: type[StepRunner]) -> None:
    stage = Stage(checkpoint, runner=runner, ends_every=4)
    for n_events in range(1, 8):
        sink = Impatient(n_events)
        sink.stream = SpeechStream(FREE, Segmenter(stage.tokenizer), lambda: None, sink)
        for text in ("First.", "Second."):
            sink.stream.add_text(text)
        stage.scheduler.add(sink.stream)
        stage.run()
        assert sink[-1] == StreamEnd(cancelled=True)
        assert len(sink) <= n_events + 3  # what the frame of that event brings with it: tail, end of the piece
    assert stage.scheduler.n_streams == 0


def test_a_sink_may_close_the_engine(checkpoint: Path) -> None:
    engine = FireRedEngine.from_pretrained(checkpoint, "cpu", torch.float32, options=OPTIONS)
    ended = threading.Event()

    def sink(event: StreamEvent) -> None:
        if isinstance(event, SpeechAudio):
            engine.close()
        if isinstance(event, StreamFailed):
            ended.set()

    engine.open(FREE, sink).add_text("Close it.")
    assert ended.wait(WAIT_S)
    engine.close()
    assert "firered" not in {thread.name for thread in threading.enumerate()}


def test_text_that_is_refused_leaves_no_stream_behind(brief_engine: FireRedEngine) -> None:
    with pytest.raises(InputError):
        brief_engine.generate("...", FREE)
    brief_engine.generate("Yes.", FREE)
    assert brief_engine.n_streams == 0


def test_a_stream_that_is_over_can_be_iterated_again(engine: FireRedEngine) -> None:
    stream = engine.open(FREE)
    stream.end()
    assert list(stream) == list(stream) == [StreamEnd(cancelled=False)]
    broken = engine.open(FREE)
    engine.close()
    for _ in range(2):
        with pytest.raises(FireRedError):
            list(broken)


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("moved", [False, True])
def test_not_a_number_in_a_slot_does_not_outlive_its_stream(
    checkpoint: Path, alone: NDArray[np.float32], moved: bool
) -> None:
    stage = Stage(checkpoint, ends_every=9, n_slots=2, flat=False)
    poisoned = stage.open("This one breaks.")
    if moved:
        stream = stage.open("Quite another thing to say.")
    stage.tick(2)
    stage.state.cache[:, 0] = torch.nan
    stage.state.hidden[0] = torch.nan
    poisoned.cancel()
    if not moved:
        stream = stage.open("Quite another thing to say.")
    stage.run()
    np.testing.assert_allclose(stage.audio(stream), alone, atol=1e-5)


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("where", ["hidden", "cache", "codec"])
@pytest.mark.parametrize("runner", [StepRunner, LateRunner])
def test_not_a_number_fails_its_stream_and_hurts_no_other(
    checkpoint: Path, alone: NDArray[np.float32], where: str, runner: type[StepRunner]
) -> None:
    stage = Stage(checkpoint, ends_every=9, runner=runner, flat=False)
    broken, fine = stage.open("This one breaks."), stage.open("Quite another thing to say.")
    stage.tick(2)
    tensors = {
        "hidden": stage.state.hidden[0],
        "cache": stage.state.cache[:, 0],
        "codec": stage.scheduler._codec_state.kv[:, 0],
    }
    tensors[where].fill_(torch.nan)
    stage.run()
    failed = stage.events[broken][-1]
    assert isinstance(failed, StreamFailed)
    assert isinstance(failed.error, GenerationError)
    assert np.isfinite(stage.audio(broken)).all()
    np.testing.assert_allclose(stage.audio(fine), alone, atol=1e-5)
    assert stage.ends(fine) == [PieceEnd(0, 8, "end_of_speech"), StreamEnd(cancelled=False)]


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("name", ["begin", "move"])
def test_a_device_that_fails_between_frames_leaves_no_stream_without_an_end(
    checkpoint: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(checkpoint, n_slots=3)
    streams = [stage.open("One."), stage.open("Two.")]
    stage.tick(2)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(type(stage.state), name, fail)
    if name == "begin":
        streams.append(stage.open("Three."))
    else:
        streams[0].cancel()
    with pytest.raises(RuntimeError):
        stage.tick()
    stage.scheduler.fail_all(FireRedError("gone"))
    for stream in streams:
        assert isinstance(stage.events[stream][-1], StreamEnd | StreamFailed)


@pytest.mark.usefixtures("inference")
def test_a_segment_that_does_not_fit_the_cache_fails_its_stream_alone(checkpoint: Path) -> None:
    stage = Stage(checkpoint, capacity=128, ends_every=9)
    fine = stage.open("Yes.")
    long = stage.open("A sentence that goes on for a good while, as sentences do, and on, and on, and then on again.")
    stage.run()
    (event,) = stage.events[long]
    assert isinstance(event, StreamFailed)
    assert stage.ends(fine) == [PieceEnd(0, 8, "end_of_speech"), StreamEnd(cancelled=False)]


@pytest.mark.usefixtures("inference")
def test_a_long_continuation_does_not_pile_up_its_prompts(checkpoint: Path) -> None:
    stage = Stage(checkpoint, ends_every=4)
    options = StreamOptions(voices={"[S1]": voice(3)}, mode="continuation", max_lead_s=None, seed=5)
    stream = stage.open(*["Yes."] * 6, options=options, end=False)
    stage.run()
    assert len(stage.slot(stream).history) <= 2


_LEAVES_WHILE_SPEAKING = """
import atexit, sys, threading
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))  # runs last
import torch
torch.set_num_threads(1)
from firered import EngineOptions, FireRedEngine, StreamOptions
engine = FireRedEngine.from_pretrained(sys.argv[1], "cpu", torch.float32, options=EngineOptions(max_streams=1))
stream = engine.open(StreamOptions(max_lead_s=None, seed=1))
stream.add_text("A sentence that is not finished when the program is. " * 20)
next(iter(stream))
"""


def test_a_program_that_ends_while_the_engine_speaks_ends_quietly(checkpoint: Path) -> None:
    """A thread that is inside torch while the interpreter goes down aborts the process, half of the time."""
    command = [sys.executable, "-c", _LEAVES_WHILE_SPEAKING, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['MainThread']\n", "")


def asleep(engine: FireRedEngine) -> None:
    """Returns once the engine's thread waits for something to do."""
    while True:
        with engine._changed:
            if engine._changed._waiters:  # type: ignore[attr-defined]
                return
        time.sleep(0.001)


def test_a_sleeping_engine_hears_of_text_of_its_end_and_of_a_cancel(brief_engine: FireRedEngine) -> None:
    stream, other = brief_engine.open(FREE), brief_engine.open(FREE)
    events = iter(stream)
    asleep(brief_engine)
    stream.add_text("Yes.")
    while not isinstance(next(events), PieceEnd):
        pass
    asleep(brief_engine)
    stream.end()
    assert list(events) == [StreamEnd(cancelled=False)]
    asleep(brief_engine)
    other.cancel()
    assert list(other) == [StreamEnd(cancelled=True)]


def test_a_wake_up_between_the_last_look_and_the_sleep_is_not_lost(
    brief_engine: FireRedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    stream = brief_engine.open(FREE, lambda event: ended.set() if isinstance(event, StreamEnd) else None)
    look = brief_engine._scheduler.tick

    def look_and_be_late(now_s: float) -> float | None:
        idle_s = look(now_s)
        if idle_s is None and not stream.text_ended:
            stream.end()  # the caller does this when the brief_engine has looked and does not sleep yet
        return idle_s

    monkeypatch.setattr(brief_engine._scheduler, "tick", look_and_be_late)
    stream.add_text("Yes.")
    assert ended.wait(WAIT_S)


def test_a_stream_that_is_opened_while_the_device_fails_is_told(
    engine: FireRedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[SpeechStream] = []

    def fail(*_: object, **__: object) -> None:
        late.append(engine.open(FREE))
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(engine._scheduler._runner, "launch", fail)
    with pytest.raises(GenerationError):
        engine.generate("Yes.", FREE)
    with pytest.raises(GenerationError):
        list(late[0])
