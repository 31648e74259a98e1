"""The golden vectors are those of the library itself:

pip install resemblyzer==0.1.4 torch "scipy<2" (with `scipy.ndimage` in the place of `scipy.ndimage.morphology`), then
`VoiceEncoder("cpu").embed_utterance(preprocess_wav(samples, rate))` of each file, rounded to four digits.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio import AudioChunk, Samples, concat, decode_file
from pipeline.errors import ConfigError, InvalidInput
from pipeline.models import locate
from pipeline.speaker import MODEL_ID, SpeakerEncoder, similarity
from settings_sources import load_settings
from tests.support.rest import tone

# Measured on ten voices and two people, recordings of 3 s or more (docs/measurements.md): 0.81 and more for one person,
# up to 0.72 for 95 % of the pairs of two; the two stock voices that sound most alike reach 0.87.
SAME_SPEAKER = 0.75

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDEN = json.loads((FIXTURES / "speaker" / "resemblyzer.json").read_text(encoding="utf-8"))


def clip(name: str) -> AudioChunk:
    return decode_file((FIXTURES / "speech" / name).read_bytes(), max_seconds=60)


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    """The real weights; a skip says how to get them."""
    try:
        return SpeakerEncoder.load(locate(load_settings(None, os.environ).settings.models.dir, MODEL_ID))
    except ConfigError as error:
        if os.environ.get("VOICEPOD_REQUIRE_MODELS"):
            raise
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def vector(encoder: SpeakerEncoder) -> Samples:
    """Of one person's recording."""
    return encoder.embed(clip("jfk.flac"))


@pytest.mark.models
@pytest.mark.parametrize("name", GOLDEN)
def test_a_voice_has_the_vector_that_the_library_gives(encoder: SpeakerEncoder, name: str) -> None:
    vector = encoder.embed(clip(name))
    assert vector.shape == (256,)
    assert vector.dtype == np.float32
    assert np.abs(vector - np.array(GOLDEN[name])).max() < 1e-3
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.models
def test_one_person_is_more_like_himself_than_like_another(encoder: SpeakerEncoder) -> None:
    jfk, woman = clip("jfk.flac"), concat([clip("LJ001-0002.wav"), clip("LJ001-0008.wav")], 22050)
    half = jfk.n_samples // 2
    first, second = encoder.embed(jfk.slice(0, half)), encoder.embed(jfk.slice(half))
    assert similarity(first, second) > SAME_SPEAKER
    assert similarity(first, encoder.embed(woman)) < SAME_SPEAKER - 0.1
    assert similarity(first, first) == pytest.approx(1.0)


@pytest.mark.models
def test_stretches_overlap_and_each_has_a_vector_of_its_own(encoder: SpeakerEncoder) -> None:
    partials = encoder.partials(clip("jfk.flac"))
    assert partials.shape == (12, 256)
    assert np.linalg.norm(partials, axis=1) == pytest.approx(np.ones(12), abs=1e-5)


@pytest.mark.models
def test_many_stretches_give_what_few_give(encoder: SpeakerEncoder, vector: Samples) -> None:
    """More than are heard at a time: none is lost between two batches."""
    jfk = clip("jfk.flac")
    partials = encoder.partials(concat([jfk] * 2, jfk.sample_rate))
    assert len(partials) > 16
    assert partials[:12] == pytest.approx(encoder.partials(jfk), abs=0.2)
    assert similarity(encoder.embed(concat([jfk] * 2, jfk.sample_rate)), vector) > 0.98


@pytest.mark.models
@pytest.mark.parametrize("gain", [0.003, 0.1, 2.0])
def test_quiet_and_clipped_speech_is_the_same_voice(encoder: SpeakerEncoder, vector: Samples, gain: float) -> None:
    jfk = clip("jfk.flac")
    scaled = AudioChunk(np.clip(jfk.samples * np.float32(gain), -1, 1), jfk.sample_rate)
    assert similarity(encoder.embed(scaled), vector) > SAME_SPEAKER


@pytest.mark.models
@pytest.mark.parametrize(
    "audio",
    [AudioChunk.silence(0, 16000), AudioChunk.silence(0.01, 16000), AudioChunk.silence(2, 24000)],
    ids=["nothing", "10 ms", "silence"],
)
def test_a_recording_without_speech_is_refused(encoder: SpeakerEncoder, audio: AudioChunk) -> None:
    with pytest.raises(InvalidInput) as refused:
        encoder.embed(audio)
    assert refused.value.code == "no_speech"


@pytest.mark.models
@pytest.mark.parametrize("audio", [tone(3.0), tone(0.3, 48000)], ids=["a tone", "a short tone"])
def test_a_sound_that_is_no_speech_ends_in_a_vector_or_a_refusal(encoder: SpeakerEncoder, audio: AudioChunk) -> None:
    try:
        assert np.isfinite(encoder.embed(audio)).all()
    except InvalidInput as refused:
        assert refused.code == "no_speech"  # noqa: PT017 (both ends are fine)


def test_weights_of_something_else_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pretrained.pt").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"pretrained\.pt is not what it should be"):
        SpeakerEncoder.load(tmp_path)
