"""What every voice must do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import jiwer
import numpy as np
import pytest
import pytest_asyncio

from pipeline.audio import concat
from pipeline.engines.base import Asr, SpeechChunk, SpeechPiece, Tts, Voice
from pipeline.errors import InvalidInput
from tests.contract.conftest import WAIT_S, idle, needs_words, speaks_words
from tests.support.speech_clips import pieces, spoken
from tests.support.words import plain

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

# A talk of one reply. Random weights speak only the beginning of it.
PIECES = (
    "Well,",
    "yes.",
    "The capital of France is Paris.",
    "There are seven days in a week,",
    "and most people work on five of them.",
    "Why did the cat sit on the computer? It wanted to catch the mouse!",
)
SENTENCE = 2


def a_voice(tts: Tts) -> Voice:
    return next((v for v in tts.info.voices if v.id == "af_heart"), tts.info.voices[0])


async def chunks_of(tts: Tts, *texts: str) -> list[SpeechChunk]:
    wait_s = WAIT_S * len(texts)
    async with asyncio.timeout(wait_s), aclosing(tts.synthesize(pieces(*texts), voice=a_voice(tts))) as stream:  # type: ignore[type-var]
        return [chunk async for chunk in stream]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def speech(tts: Tts) -> list[SpeechChunk]:
    """What the engine gives for the pieces of the reply."""
    return await chunks_of(tts, *(PIECES if speaks_words(tts) else PIECES[: SENTENCE + 1]))


def of_pieces(speech: list[SpeechChunk], *indices: int) -> list[SpeechChunk]:
    return [chunk for chunk in speech if chunk.piece_index in indices]


def seconds(speech: list[SpeechChunk]) -> float:
    return sum(chunk.audio.seconds for chunk in speech)


async def test_what_is_spoken_is_understood_by_the_recogniser(
    tts: Tts, speech: list[SpeechChunk], recogniser: Asr
) -> None:
    needs_words(tts)
    audio = concat([chunk.audio for chunk in speech], tts.info.sample_rate)
    assert 10 <= audio.seconds < 30, "too little to judge by, or too much to hear at once"
    heard = await recogniser.transcribe(audio, language="en")
    assert jiwer.wer(plain(" ".join(PIECES)), plain(heard.text)) <= 0.15


async def test_each_piece_ends_with_one_mark_and_pieces_come_in_order(speech: list[SpeechChunk]) -> None:
    indices = [chunk.piece_index for chunk in speech]
    assert [chunk.piece_index for chunk in speech if chunk.final] == list(range(len(set(indices))))
    assert len(set(indices)) > SENTENCE
    assert indices == sorted(indices)
    last_of_piece = {chunk.piece_index: chunk for chunk in speech}
    assert all(chunk.final for chunk in last_of_piece.values())


async def test_audio_is_finite_audible_within_range_and_at_the_rate_of_info(
    tts: Tts, speech: list[SpeechChunk]
) -> None:
    for piece in {chunk.piece_index for chunk in speech}:
        samples = concat([chunk.audio for chunk in of_pieces(speech, piece)], tts.info.sample_rate).samples
        assert np.isfinite(samples).all()
        assert 0.05 < np.abs(samples).max() <= 1.0


async def test_speech_begins_and_ends_without_long_silence(tts: Tts, speech: list[SpeechChunk]) -> None:
    needs_words(tts)
    (chunk,) = of_pieces(speech, SENTENCE)
    loud = np.flatnonzero(np.abs(chunk.audio.samples) > 0.02)
    assert loud[0] < 0.1 * chunk.audio.sample_rate
    assert 0.1 < (chunk.audio.n_samples - loud[-1]) / chunk.audio.sample_rate < 0.4


@pytest.mark.parametrize("text", ["", "...", "😀 🎉", "— !", "日本語"])
async def test_what_cannot_be_pronounced_gives_a_mark_without_audio(tts: Tts, text: str) -> None:
    if text == "日本語" and {"ja", "zh"} & set(tts.info.languages):
        pytest.skip("this voice reads these characters")
    (chunk,) = await chunks_of(tts, text)
    assert chunk.final
    assert chunk.audio.n_samples == 0


async def test_the_first_audio_comes_before_the_second_piece_is_asked_for_and_only_one_is_prepared_ahead(
    tts: Tts,
) -> None:
    asked: list[int] = []
    second_asked = asyncio.Event()

    async def watched() -> AsyncIterator[SpeechPiece]:
        async for piece in pieces("One.", "Two.", "Three.", "Four."):
            asked.append(piece.index)
            if piece.index == 1:
                second_asked.set()
            yield piece

    async with asyncio.timeout(WAIT_S), aclosing(tts.synthesize(watched(), voice=a_voice(tts))) as stream:  # type: ignore[type-var]
        chunk = await anext(stream)
        assert (chunk.piece_index, asked) == (0, [0])
        while not chunk.final:
            chunk = await anext(stream)
        await second_asked.wait()
        await idle(tts)
        assert asked == [0, 1]


async def test_closing_within_a_piece_leaves_the_lane_idle(tts: Tts) -> None:
    sentence = "This sentence takes a while to speak."
    stream = tts.synthesize(pieces(sentence, sentence), voice=a_voice(tts))
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with aclosing(tts.synthesize(pieces("Hi.", sentence), voice=a_voice(tts))) as other:  # type: ignore[type-var]
        await anext(other)
    await idle(tts)
    assert await chunks_of(tts, "Hi.")


# Piper draws the length of each sound at random, FireRedTTS-2 every sound; Kokoro speaks a text the same way each time,
# and the random weights, which never end a piece, are ended after the same time. F5-TTS fills a time that it is told.
SPREAD = {"f5": 0.05, "kokoro": 0.01, "piper": 0.3, "firered": 0.01, "firered_upstream": 0.5}


async def test_two_talks_at_once_get_their_own_audio(tts: Tts, speech: list[SpeechChunk]) -> None:
    talks = [tuple(range(SENTENCE)), (SENTENCE,)]
    together = await asyncio.gather(*(chunks_of(tts, *(PIECES[i] for i in indices)) for indices in talks))
    for indices, chunks in zip(talks, together, strict=True):
        assert [chunk.piece_index for chunk in chunks if chunk.final] == list(range(len(indices)))
        alone = of_pieces(speech, *indices)
        assert seconds(chunks) == pytest.approx(seconds(alone), rel=SPREAD[tts.info.name])


async def test_speed_makes_speech_shorter(tts: Tts, speech: list[SpeechChunk]) -> None:
    voice = a_voice(tts)
    fast = Voice(voice.id, voice.name, voice.language, speed=1.5)
    assert (await spoken(tts, fast, PIECES[SENTENCE])).seconds < 0.8 * seconds(of_pieces(speech, SENTENCE))


async def test_an_unknown_voice_is_refused(tts: Tts) -> None:
    with pytest.raises(InvalidInput):
        await spoken(tts, Voice("../../etc/passwd", "no", "en"), "Hello.")


async def test_voices_have_readable_names_and_languages(tts: Tts) -> None:
    assert tts.info.voices
    for voice in tts.info.voices:
        assert voice.name
        assert voice.language in tts.info.languages
