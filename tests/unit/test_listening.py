from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import AudioChunk
from pipeline.endpointing import EndpointRules
from pipeline.errors import TooLarge
from pipeline.listening import Heard, Listener
from tests.support.scripted import ScriptedVad

RATE = 16000


def listener(*, prefix_s: float = 0.3, max_utterance_s: float = 60.0, input_rate: int = RATE) -> Listener:
    return Listener(
        ScriptedVad(),
        EndpointRules(),
        input_rate=input_rate,
        prefix_s=prefix_s,
        max_utterance_s=max_utterance_s,
    )


def stretch(level: float, seconds: float, rate: int = RATE) -> AudioChunk:
    return AudioChunk(np.full(round(seconds * rate), level, np.float32), rate)


def feed(ear: Listener, *chunks: AudioChunk) -> list[Heard]:
    return [heard for chunk in chunks for heard in ear.feed(chunk)]


def utterances(heard: list[Heard]) -> list[AudioChunk]:
    return [h.utterance for h in heard if h.utterance is not None]


@settings(deadline=None, max_examples=40)
@given(
    speech=st.integers(7, 200),
    before=st.integers(0, 150),
    prefix=st.integers(0, 20),
    chunk_samples=st.integers(50, 9000),
)
def test_an_utterance_is_its_speech_the_prefix_and_the_wait(
    speech: int, before: int, prefix: int, chunk_samples: int
) -> None:
    ear = listener(prefix_s=prefix * 0.02)
    levels = [*[0.0] * before, *[0.5] * speech, *[0.0] * 40]
    samples = np.repeat(np.array(levels, np.float32), 320)
    chunks = [AudioChunk(samples[i : i + chunk_samples], RATE) for i in range(0, samples.size, chunk_samples)]
    (utterance,) = utterances(feed(ear, *chunks))
    loud = utterance.samples.reshape(-1, 320)[:, 0] > 0.1
    assert loud.tolist() == [False] * min(prefix, before) + [True] * speech + [False] * 30


def test_an_utterance_holds_nothing_of_the_one_before_it() -> None:
    ear = listener(prefix_s=2.0)
    heard = feed(ear, stretch(0.5, 1.0), stretch(0, 0.7), stretch(0.3, 1.0), stretch(0, 0.7))
    first, second = utterances(heard)
    assert first.samples.max() == pytest.approx(0.5)
    assert second.samples.max() == pytest.approx(0.3)
    assert second.seconds == pytest.approx(0.1 + 1.0 + 0.6)


def test_an_utterance_over_the_limit_is_ended_and_the_rest_is_the_next_one() -> None:
    ear = listener(max_utterance_s=2.0, prefix_s=0.1)
    first, second = utterances(feed(ear, stretch(0, 1.0), stretch(0.5, 3.0), stretch(0, 1.0)))
    assert first.seconds == pytest.approx(2.0)
    loud = sum(float((u.samples > 0.1).sum()) for u in (first, second)) / RATE
    assert loud == pytest.approx(3.0)


def test_silence_keeps_no_more_than_what_may_become_a_beginning() -> None:
    ear = listener(prefix_s=0.3)
    feed(ear, stretch(0, 30.0))
    assert ear.buffered_s < 1.5
    assert ear.audio_s == pytest.approx(30.0)


def test_hold_to_talk_keeps_all_and_refuses_what_is_over_the_limit() -> None:
    ear = listener(max_utterance_s=1.0)
    ear.detects = False
    assert feed(ear, stretch(0, 0.4), stretch(0.5, 0.4)) == []
    with pytest.raises(TooLarge) as caught:
        feed(ear, stretch(0.5, 0.5))
    assert caught.value.code == "input_audio_buffer_full"
    assert ear.take().seconds == pytest.approx(1.0)
    assert ear.buffered_s == 0


def test_a_clear_forgets_the_open_utterance_and_the_left_over() -> None:
    ear = listener()
    heard = feed(ear, stretch(0.5, 0.51))
    assert [h.endpoint.kind for h in heard] == ["started"]
    ear.clear()
    assert ear.buffered_s == 0
    assert feed(ear, stretch(0, 2.0)) == []
    (utterance,) = utterances(feed(ear, stretch(0.3, 0.5), stretch(0, 1.0)))
    assert utterance.samples.max() == pytest.approx(0.3)


@pytest.mark.parametrize("rate", [8000, 24000, 48000])
def test_any_rate_comes_in(rate: int) -> None:
    ear = listener(input_rate=rate)
    (utterance,) = utterances(feed(ear, stretch(0, 1.0, rate), stretch(0.5, 1.0, rate), stretch(0, 1.0, rate)))
    assert utterance.sample_rate == RATE
    assert (utterance.samples > 0.25).sum() / RATE == pytest.approx(1.0, abs=0.01)
    ear.set_input_rate(RATE)
    assert len(utterances(feed(ear, stretch(0.5, 1.0), stretch(0, 1.0)))) == 1


def test_stricter_rules_count_from_the_next_frame() -> None:
    ear = listener()
    ear.rules = EndpointRules(min_speech_s=0.5)
    assert feed(ear, stretch(0.5, 0.4), stretch(0, 0.3)) == []
    assert [h.endpoint.kind for h in feed(ear, stretch(0.5, 0.5))] == ["started"]


def test_audio_that_was_held_counts_in_the_time_of_what_is_said_later() -> None:
    ear = listener()
    ear.detects = False
    feed(ear, stretch(0.0, 5.0))
    ear.clear()
    ear.detects = True
    (started,) = feed(ear, stretch(0.0, 1.0), stretch(0.5, 0.3))[:1]
    assert started.endpoint.at_s == pytest.approx(6.0)
