"""What every speech recogniser must do."""

import asyncio

import jiwer
import numpy as np
import pytest
import pytest_asyncio

from pipeline.audio import AudioChunk, concat
from pipeline.engines.base import Asr, Transcript, WordTimes
from pipeline.engines.whisper_guards import WINDOW_S
from pipeline.errors import InvalidInput
from tests.contract.conftest import WAIT_S, Kept, english, idle
from tests.support.speech_clips import SAMPLE_RATE, Clip, noises, questions, recordings
from tests.support.words import plain

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

YES = "yes.wav"  # a single word, heard alone
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


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def listener(asr: Asr, kept: Kept) -> Asr:
    """The engine with a smaller model, for what is no question of accuracy: how it cuts and joins sound."""
    return await english(asr.info.name, kept)


@pytest.fixture(scope="module")
def usual(asr: Asr, listener: Asr) -> Asr:
    """The default model where it is not slow: for what depends on it, such as what is invented and what is left out."""
    return listener if is_slow(asr) else asr


def long_clip() -> Clip:
    """Several people one after another, for longer than Whisper hears at once."""
    asked, (jfk, *said) = questions(), recordings()
    several = [jfk, *asked[2:], *(clip for clip in said if clip.name != YES), jfk]
    pause = AudioChunk.silence(0.5, SAMPLE_RATE)
    audio = concat([part for clip in several for part in (clip.audio.resampled(SAMPLE_RATE), pause)], SAMPLE_RATE)
    assert WINDOW_S < audio.seconds < 2 * WINDOW_S - 10
    return Clip("several", " ".join(clip.text for clip in several), audio, 0.0, audio.seconds)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def heard(asr: Asr, listener: Asr) -> list[tuple[Clip, Transcript]]:
    """Clips that were given to the engine at once, and what it heard: each is heard once for several tests.

    Of the first the times of the words were asked for, of the second the language was not told, the last one is long.
    """
    assert isinstance(asr, WordTimes)
    yes = [] if is_slow(asr) else [clip for clip in recordings() if clip.name == YES]
    clips = [*questions()[:2], *yes, long_clip()]
    transcripts = await asyncio.gather(
        asr.transcribe_words(clips[0].audio, language="en"),
        asr.transcribe(clips[1].audio, language=None),
        *(asr.transcribe(clip.audio, language="en") for clip in yes),
        listener.transcribe(clips[-1].audio, language="en"),
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


async def test_more_than_one_window_of_speech_is_understood_to_the_end(heard: list[tuple[Clip, Transcript]]) -> None:
    clip, transcript = heard[-1]
    assert clip.audio.seconds > WINDOW_S
    assert jiwer.wer(plain(clip.text), plain(transcript.text)) <= 0.15
    assert plain(transcript.text).split()[-3:] == plain(clip.text).split()[-3:]


@pytest.mark.parametrize(("pause_s", "level"), [(4.0, 0.0), (3.0, 0.003)], ids=["silence", "a room"])
async def test_what_is_said_after_a_pause_is_heard(listener: Asr, pause_s: float, level: float) -> None:
    capital, week, *_ = questions()  # of these the small model hears nothing but the first one in one run
    room = np.random.default_rng(1).standard_normal(round(pause_s * SAMPLE_RATE)) * level
    pause = AudioChunk(room.astype(np.float32), SAMPLE_RATE)
    heard = await listener.transcribe(concat([capital.audio, pause, week.audio], SAMPLE_RATE), language="en")
    assert plain(heard.text) == plain(f"{capital.text} {week.text}")
    assert not heard.words  # not asked for


async def test_what_is_said_before_a_pause_is_heard(usual: Asr) -> None:
    capital, week, sky, *_ = questions()  # of these both models hear nothing but the last two in one run
    pause = AudioChunk.silence(0.7, SAMPLE_RATE)
    said = concat([week.audio, pause, sky.audio, pause, capital.audio], SAMPLE_RATE)
    heard = await usual.transcribe(said, language="en")
    assert jiwer.wer(plain(f"{week.text} {sky.text} {capital.text}"), plain(heard.text)) <= 0.15


@pytest.mark.parametrize("name", sorted(SILENT))
async def test_silence_gives_no_words(usual: Asr, name: str) -> None:
    assert (await usual.transcribe(AudioChunk(SILENT[name], 16_000), language="en")).text == ""


async def test_noise_gives_no_words(usual: Asr) -> None:
    for clip in noises()[:1] if is_slow(usual) else noises():
        assert (await usual.transcribe(clip.audio, language=None)).text == "", clip.name


async def test_each_word_is_told_when_it_was_said(heard: list[tuple[Clip, Transcript]]) -> None:
    _, transcript = heard[0]
    words = [word.text for word in transcript.words]
    assert words == transcript.text.split() == ["What", "is", "the", "capital", "of", "France?"]
    assert [word.start_s for word in transcript.words[1:]] == pytest.approx([0.50, 0.62, 0.75, 1.09, 1.28], abs=0.15)
    assert transcript.words[-1].end_s == pytest.approx(1.57, abs=0.15)
    assert not heard[1][1].words  # not asked for


async def test_an_unknown_language_is_refused(asr: Asr) -> None:
    with pytest.raises(InvalidInput):
        await asr.transcribe(questions()[0].audio, language="xx")


async def test_cancelling_frees_the_caller_and_then_the_lane(asr: Asr, kept: Kept) -> None:
    engine = await english(asr.info.name, kept)
    clip = questions()[0]
    caller = asyncio.create_task(engine.transcribe(clip.audio, language="en"))
    await asyncio.sleep(0)  # it takes the lane
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await idle(engine)
    after = await asyncio.wait_for(engine.transcribe(clip.audio, language="en"), WAIT_S)
    assert plain(after.text) == plain(clip.text)
