"""What every VAD must do."""

import time

import numpy as np
import pytest

from pipeline.audio import AudioChunk, Framer, Samples
from pipeline.endpointing import EndpointRules
from pipeline.engines.base import Vad
from pipeline.errors import EngineFailed
from pipeline.listening import Listener
from tests.support.speech_clips import noises, questions, recordings

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

RNG = np.random.default_rng(7)
QUIET = {
    "silence": np.zeros(32_000, np.float32),
    "room": (RNG.standard_normal(32_000) * 0.001).astype(np.float32),
    "hiss": (RNG.standard_normal(32_000) * 0.02).astype(np.float32),
}


def probabilities(vad: Vad, audio: AudioChunk) -> list[float]:
    stream = vad.stream()
    frames = Framer(vad.frame_samples).feed(audio.resampled(vad.info.sample_rate).samples)
    return [stream.probability(frame) for frame in frames]


async def test_speech_is_found_where_it_is_and_not_around_it(vad: Vad) -> None:
    frame_s = vad.frame_samples / vad.info.sample_rate
    for clip in questions():
        found = [i * frame_s for i, p in enumerate(probabilities(vad, clip.audio)) if p > 0.5]
        assert abs(found[0] - clip.start_s) < 0.2, clip.name
        assert abs(found[-1] - clip.end_s) < 0.3, clip.name
        assert len(found) * frame_s > 0.7 * (clip.end_s - clip.start_s), clip.name


async def test_people_are_heard(vad: Vad) -> None:
    for clip in recordings():
        heard = probabilities(vad, clip.audio)
        assert sum(p > 0.5 for p in heard) > 0.4 * len(heard), clip.name


@pytest.mark.parametrize("name", sorted(QUIET))
async def test_silence_and_hiss_are_no_speech(vad: Vad, name: str) -> None:
    assert max(probabilities(vad, AudioChunk(QUIET[name], 16_000))) <= 0.5


async def test_everyday_noise_is_no_speech(vad: Vad) -> None:
    if vad.info.name == "webrtc":
        pytest.skip("webrtc takes loud tonal noise for speech; its module says so")
    for clip in noises():
        assert max(probabilities(vad, clip.audio)) < 0.5, clip.name


async def test_talks_do_not_share_state(vad: Vad) -> None:
    first, second = (clip.audio.samples for clip in questions()[:2])
    alone = probabilities(vad, AudioChunk(first, 16_000))
    one, other = vad.stream(), vad.stream()
    n = vad.frame_samples
    mixed = []
    for i in range(min(first.size, second.size) // n):
        mixed.append(one.probability(first[i * n : (i + 1) * n]))
        other.probability(second[i * n : (i + 1) * n])
    assert mixed == pytest.approx(alone[: len(mixed)], abs=1e-5)


@pytest.mark.parametrize("frame", [np.zeros(7, np.float32), np.zeros(0, np.float32)])
async def test_a_frame_of_the_wrong_size_is_refused(vad: Vad, frame: Samples) -> None:
    with pytest.raises(EngineFailed):
        vad.stream().probability(frame)


async def test_a_frame_costs_little_enough_for_the_event_loop(vad: Vad) -> None:
    stream = vad.stream()
    frame = np.zeros(vad.frame_samples, np.float32)
    costs_s = []
    for _ in range(200):
        start_s = time.thread_time()
        stream.probability(frame)
        costs_s.append(time.thread_time() - start_s)
    assert sorted(costs_s)[100] < 0.002  # CPU time: what other processes take does not count


async def test_a_television_far_below_the_talker_holds_no_turn_open(vad: Vad) -> None:
    television = np.concatenate(
        [c.audio.resampled(16_000).samples for c in recordings() if c.name.startswith("LJ")] * 5
    )
    heard = 0.09 * television / np.abs(television).max()  # 18 dB below the question
    question = questions()[0]
    start = 3 * 16_000
    heard[start : start + question.audio.n_samples] += question.audio.samples
    listener = Listener(vad, EndpointRules(), input_rate=16_000, prefix_s=0.3, max_utterance_s=60)
    ended = [found.endpoint.at_s for found in listener.feed(AudioChunk(heard, 16_000)) if found.utterance is not None]
    assert any(abs(end_s - 3 - question.end_s) < 0.5 for end_s in ended)
