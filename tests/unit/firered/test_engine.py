"""The engine as its users see it: loading, streams over threads, closing, failing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from firered import (
    EngineClosedError,
    FireRedEngine,
    GenerationError,
    InputError,
    PieceEnd,
    SpeechAudio,
    StreamEnd,
    StreamEvent,
    StreamOptions,
)
from firered.voice import VoicePrompt
from tests.unit.firered.conftest import BRIEF_FRAMES, OPTIONS, WAIT_S


def free(seed: int = 1, **options: Any) -> StreamOptions:
    return StreamOptions(seed=seed, max_lead_s=None, **options)


def recording(seconds: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Something voiced at 16 kHz: a hum with a syllable's rhythm."""
    t = np.arange(int(16000 * seconds)) / 16000
    hum = sum(np.sin(2 * np.pi * 140 * n * t) / n for n in range(1, 12))
    return (0.1 * hum * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def test_a_seed_repeats_the_audio_whatever_else_is_spoken(brief_engine: FireRedEngine) -> None:
    alone = brief_engine.generate("Yes.", free(7))
    others = [brief_engine.open(free(n)) for n in range(2)]
    for stream in others:
        for _ in range(30):  # more than is heard before they are cancelled
            stream.add_text("Somebody else talks.")
    again = brief_engine.generate("Yes.", free(7))
    for stream in others:
        stream.cancel()
    np.testing.assert_allclose(alone, again, atol=1e-5)
    assert len(alone) == BRIEF_FRAMES * 1920
    assert np.isfinite(alone).all()
    different = brief_engine.generate("Yes.", free(8))
    assert not np.array_equal(alone, different)


def test_greedy_speech_needs_no_seed(brief_engine: FireRedEngine) -> None:
    options = StreamOptions(greedy=True, max_lead_s=None)
    np.testing.assert_array_equal(brief_engine.generate("Yes.", options), brief_engine.generate("Yes.", options))


def test_text_may_come_while_earlier_audio_leaves(brief_engine: FireRedEngine) -> None:
    stream = brief_engine.open(free())
    stream.add_text("Yes.")
    events = iter(stream)
    assert isinstance(next(events), SpeechAudio)
    assert stream.add_text("No.") == 1
    stream.end()
    rest = list(events)
    assert [event.piece for event in rest if isinstance(event, PieceEnd)] == [0, 1]
    assert rest[-1] == StreamEnd(cancelled=False)


def test_a_cancelled_stream_ends_and_its_slot_serves_the_next(engine: FireRedEngine) -> None:
    for _ in range(5):  # more than there are slots
        stream = engine.open(free())
        stream.add_text("A sentence that is not finished, because nobody wants to hear the rest of it.")
        events = iter(stream)
        next(events)
        stream.cancel()
        assert list(events)[-1] == StreamEnd(cancelled=True)
        with pytest.raises(InputError, match="no more text"):
            stream.add_text("More.")


def test_a_sink_gets_the_events_on_the_engines_thread(brief_engine: FireRedEngine) -> None:
    seen: list[tuple[str, StreamEvent]] = []
    ended = threading.Event()

    def sink(event: StreamEvent) -> None:
        seen.append((threading.current_thread().name, event))
        if isinstance(event, StreamEnd):
            ended.set()

    stream = brief_engine.open(free(), sink)
    stream.add_text("Yes.")
    stream.end()
    assert ended.wait(WAIT_S)
    assert {name for name, _ in seen} == {"firered"}


def test_a_stream_without_text_ends_at_once(engine: FireRedEngine) -> None:
    stream = engine.open()
    stream.end()
    assert list(stream) == [StreamEnd(cancelled=False)]


@pytest.mark.parametrize("text", ["", "   ", "...", "!?", "😀"])
def test_text_without_words_is_refused(engine: FireRedEngine, text: str) -> None:
    with pytest.raises(InputError):
        engine.generate(text, free())


def test_one_character_is_spoken(brief_engine: FireRedEngine) -> None:
    assert len(brief_engine.generate("A", free())) > 0


def test_ten_thousand_characters_are_split_and_can_be_cancelled(engine: FireRedEngine) -> None:
    stream = engine.open(free())
    stream.add_text("This is one of very many sentences. " * 280)
    assert len(stream.segments) >= 40
    assert all(segment.frame_limit <= 375 for segment in list(stream.segments))
    next(iter(stream))
    stream.cancel()
    assert list(stream)[-1] == StreamEnd(cancelled=True)


def test_an_unknown_speaker_is_refused(engine: FireRedEngine) -> None:
    stream = engine.open()
    with pytest.raises(InputError, match=r"\[S5\]"):
        stream.add_text("Hello.", speaker="[S5]")
    stream.cancel()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"seed": -1},
        {"seed": 2**32},
        {"max_lead_s": 0.0},
        {"mode": "continuation"},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        StreamOptions(**options)


def test_a_voice_is_encoded_once_and_spoken_with(brief_engine: FireRedEngine) -> None:
    voice = brief_engine.encode_voice(recording(2.0), 16000, "I do not know.", "hum")
    assert 20 <= voice.n_frames <= 25
    assert len(voice.to_bytes()) < 2000
    assert VoicePrompt.from_bytes(voice.to_bytes(), 64) == voice
    spoken = brief_engine.generate("Yes.", free(3, voices={"[S1]": voice}))
    assert not np.array_equal(spoken, brief_engine.generate("Yes.", free(3)))


def test_a_voice_of_another_codec_is_refused(engine: FireRedEngine) -> None:
    foreign = VoicePrompt(np.full((10, 16), 2000, np.int16), "Hello.", "foreign")
    with pytest.raises(InputError, match="another codec"):
        engine.open(StreamOptions(voices={"[S1]": foreign}))


def test_a_speaker_tag_that_does_not_exist_is_refused_with_its_voice(engine: FireRedEngine) -> None:
    voice = VoicePrompt(np.ones((10, 16), np.int16), "Hello.", "fine")
    with pytest.raises(InputError, match="speaker"):
        engine.open(StreamOptions(voices={"Anna": voice}))


def test_closing_ends_running_streams_and_refuses_new_ones(checkpoint: Path) -> None:
    engine = FireRedEngine.from_pretrained(checkpoint, "cpu", torch.float32, options=OPTIONS)
    stream = engine.open(free())
    stream.add_text("A sentence that is not finished, because the engine is closed before its end.")
    events = iter(stream)
    next(events)
    engine.close()
    with pytest.raises(EngineClosedError):
        list(events)
    with pytest.raises(EngineClosedError):
        engine.open()
    engine.close()
    assert not engine._thread.is_alive()


def test_a_failing_device_ends_all_streams_with_a_typed_error(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FireRedEngine.from_pretrained(checkpoint, "cpu", torch.float32, options=OPTIONS) as engine:
        stream = engine.open(free())
        stream.add_text("A sentence in the middle of which the device fails.")
        events = iter(stream)
        next(events)

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("device-side assert")

        monkeypatch.setattr(engine._scheduler._runner, "launch", fail)
        with pytest.raises(GenerationError):
            list(events)
        with pytest.raises(GenerationError):
            engine.generate("Again.", free())


def test_an_idle_engine_sleeps(brief_engine: FireRedEngine) -> None:
    brief_engine.generate("Yes.", free())
    n_steps = brief_engine.stats.n_steps
    assert brief_engine._scheduler.tick(0.0) is None
    assert brief_engine.stats.n_steps == n_steps
