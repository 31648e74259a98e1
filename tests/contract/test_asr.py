"""What every speech recogniser must do."""

import asyncio

import jiwer
import numpy as np
import pytest
import pytest_asyncio

from pipeline.audio import AudioChunk, concat
from pipeline.engines.base import Asr, Transcript, WordTimes
from pipeline.errors import InvalidInput
from tests.contract.conftest import WAIT_S, idle
from tests.support.speech_clips import SAMPLE_RATE, Clip, noises, questions, recordings
from tests.support.words import plain

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

RNG = np.random.default_rng(7)
SILENT = {
    "nothing": np.zeros(0, np.float32),
    "silence": np.zeros(32_000, np.float32),
    "room": (RNG.standard_normal(32_000) * 0.001).astype(np.float32),
    "hiss": (RNG.standard_normal(32_000) * 0.02).astype(np.float32),
}


def is_slow(asr: Asr) -> bool:
    """Whether it takes seconds of a core for each clip, with the weights and the guards of the other engine."""
    return asr.info.name == "whisper"


def clips_of(asr: Asr) -> list[Clip]:
    """Each is one utterance; the one in the middle is of several people one after another."""
    asked, said = questions(), recordings()
    if is_slow(asr):
        return [*asked[:2], said[1]]
    pause = AudioChunk.silence(0.5, SAMPLE_RATE)
    several = [*asked[2:], said[1]]
    audio = concat([part for clip in several for part in (clip.audio.resampled(SAMPLE_RATE), pause)], SAMPLE_RATE)
    text = " ".join(clip.text for clip in several)
    return [*asked[:2], Clip("several", text, audio, 0.0, audio.seconds), *said[2:]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def heard(asr: Asr) -> list[tuple[Clip, Transcript]]:
    """Clips that were given to the engine at once, and what it heard. Of the second the language was not told."""
    clips = clips_of(asr)
    languages = [None if i == 1 else "en" for i in range(len(clips))]
    transcripts = await asyncio.gather(
        *(asr.transcribe(clip.audio, language=language) for clip, language in zip(clips, languages, strict=True))
    )
    return list(zip(clips, transcripts, strict=True))


async def test_clips_are_understood(heard: list[tuple[Clip, Transcript]]) -> None:
    assert jiwer.wer([plain(clip.text) for clip, _ in heard], [plain(text.text) for _, text in heard]) <= 0.15
    assert [text.audio_seconds for _, text in heard] == pytest.approx([clip.audio.seconds for clip, _ in heard])


async def test_the_language_is_detected(heard: list[tuple[Clip, Transcript]]) -> None:
    clip, transcript = heard[1]
    assert transcript.language == "en"
    assert plain(transcript.text) == plain(clip.text)


async def test_two_utterances_at_once_do_not_mix(heard: list[tuple[Clip, Transcript]]) -> None:
    assert [plain(text.text) for _, text in heard[:2]] == [plain(clip.text) for clip, _ in heard[:2]]


async def test_more_than_one_window_of_speech_is_understood_to_the_end(asr: Asr) -> None:
    jfk = recordings()[0]
    pause = AudioChunk.silence(0.5, jfk.audio.sample_rate)
    long = concat([jfk.audio, pause] * 3, jfk.audio.sample_rate)
    assert long.seconds > 30
    transcript = await asr.transcribe(long, language="en")
    assert jiwer.wer(plain(" ".join([jfk.text] * 3)), plain(transcript.text)) <= 0.15


@pytest.mark.parametrize("name", sorted(SILENT))
async def test_silence_gives_no_words(asr: Asr, name: str) -> None:
    assert (await asr.transcribe(AudioChunk(SILENT[name], 16_000), language="en")).text == ""


async def test_noise_gives_no_words(asr: Asr) -> None:
    for clip in noises()[:1] if is_slow(asr) else noises():
        assert (await asr.transcribe(clip.audio, language=None)).text == "", clip.name


async def test_each_word_is_told_when_it_was_said(asr: Asr) -> None:
    assert isinstance(asr, WordTimes)
    heard = await asr.transcribe_words(questions()[0].audio, language="en")
    assert (
        [word.text for word in heard.words] == heard.text.split() == ["What", "is", "the", "capital", "of", "France?"]
    )
    assert [word.start_s for word in heard.words[1:]] == pytest.approx([0.50, 0.62, 0.75, 1.09, 1.28], abs=0.15)
    assert heard.words[-1].end_s == pytest.approx(1.57, abs=0.15)


async def test_an_unknown_language_is_refused(asr: Asr) -> None:
    with pytest.raises(InvalidInput):
        await asr.transcribe(questions()[0].audio, language="xx")


async def test_cancelling_frees_the_caller_and_then_the_lane(asr: Asr) -> None:
    clip = questions()[0]
    caller = asyncio.create_task(asr.transcribe(clip.audio, language="en"))
    await asyncio.sleep(0)  # it takes the lane
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await idle(asr)
    after = await asyncio.wait_for(asr.transcribe(clip.audio, language="en"), WAIT_S)
    assert plain(after.text) == plain(clip.text)
