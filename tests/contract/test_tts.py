"""What every voice must do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import jiwer
import numpy as np
import pytest

from pipeline.audio import concat
from pipeline.engines.base import Asr, SpeechChunk, SpeechPiece, Tts, Voice
from pipeline.errors import InvalidInput
from tests.contract.conftest import WAIT_S, idle, needs_words
from tests.support.speech_clips import pieces, spoken
from tests.support.words import plain

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

SENTENCES = (
    "The capital of France is Paris.",
    "There are seven days in a week, and most people work on five of them.",
    "Why did the cat sit on the computer? It wanted to catch the mouse!",
    "I would be happy to help you with that.",
)


def a_voice(tts: Tts) -> Voice:
    return next((v for v in tts.info.voices if v.id == "af_heart"), tts.info.voices[0])


async def chunks_of(tts: Tts, *texts: str) -> list[SpeechChunk]:
    async with asyncio.timeout(WAIT_S), aclosing(tts.synthesize(pieces(*texts), voice=a_voice(tts))) as stream:  # type: ignore[type-var]
        return [chunk async for chunk in stream]


async def test_what_is_spoken_is_understood_by_the_recogniser(tts: Tts, recogniser: Asr) -> None:
    needs_words(tts)
    heard, seconds = [], 0.0
    for sentence in SENTENCES:
        audio = await spoken(tts, a_voice(tts), sentence)
        seconds += audio.seconds
        heard.append((await recogniser.transcribe(audio, language="en")).text)
    assert seconds >= 10, "too little to judge by"
    assert jiwer.wer([plain(s) for s in SENTENCES], [plain(h) for h in heard]) <= 0.15


async def test_each_piece_ends_with_one_mark_and_pieces_come_in_order(tts: Tts) -> None:
    chunks = await chunks_of(tts, "Well,", "yes.", "Good.")
    assert [chunk.piece_index for chunk in chunks if chunk.final] == [0, 1, 2]
    assert [chunk.piece_index for chunk in chunks] == sorted(chunk.piece_index for chunk in chunks)
    last_of_piece = {chunk.piece_index: chunk for chunk in chunks}
    assert all(chunk.final for chunk in last_of_piece.values())


async def test_audio_is_finite_audible_within_range_and_at_the_rate_of_info(tts: Tts) -> None:
    chunks = await chunks_of(tts, "One sentence,", "and another one!")
    for piece in (0, 1):
        samples = concat([chunk.audio for chunk in chunks if chunk.piece_index == piece], tts.info.sample_rate).samples
        assert np.isfinite(samples).all()
        assert 0.05 < np.abs(samples).max() <= 1.0


async def test_speech_begins_and_ends_without_long_silence(tts: Tts) -> None:
    needs_words(tts)
    (chunk,) = await chunks_of(tts, "Good morning.")
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


async def test_the_first_audio_comes_before_the_second_piece_is_asked_for(tts: Tts) -> None:
    asked: list[int] = []

    async def watched() -> AsyncIterator[SpeechPiece]:
        async for piece in pieces("Hello.", "How are you?", "And you?"):
            asked.append(piece.index)
            yield piece

    async with asyncio.timeout(WAIT_S), aclosing(tts.synthesize(watched(), voice=a_voice(tts))) as stream:  # type: ignore[type-var]
        first = await anext(stream)
        assert (first.piece_index, asked) == (0, [0])


async def test_no_more_than_one_piece_is_prepared_ahead(tts: Tts) -> None:
    asked: list[int] = []
    second_asked = asyncio.Event()

    async def watched() -> AsyncIterator[SpeechPiece]:
        async for piece in pieces("One.", "Two.", "Three.", "Four."):
            asked.append(piece.index)
            if piece.index == 1:
                second_asked.set()
            yield piece

    async with asyncio.timeout(WAIT_S), aclosing(tts.synthesize(watched(), voice=a_voice(tts))) as stream:  # type: ignore[type-var]
        async for chunk in stream:
            if chunk.final:
                break
        await second_asked.wait()
        await idle(tts)
        assert asked == [0, 1]


async def test_closing_within_a_piece_leaves_the_lane_idle(tts: Tts) -> None:
    long = "This is a long sentence, with many words in it, that takes the model a good while to speak aloud."
    stream = tts.synthesize(pieces(long, long), voice=a_voice(tts))
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with aclosing(tts.synthesize(pieces("Hi.", long), voice=a_voice(tts))) as other:  # type: ignore[type-var]
        await anext(other)
    await idle(tts)
    assert await chunks_of(tts, "Hi.")


# Piper draws the length of each sound at random, FireRedTTS-2 every sound; Kokoro speaks a text the same way each time,
# and the random weights, which never end a piece, are ended after the same time. F5-TTS fills a time that it is told.
SPREAD = {"f5": 0.05, "kokoro": 0.01, "piper": 0.3, "firered": 0.01, "firered_upstream": 0.5}


async def test_two_talks_at_once_get_their_own_audio(tts: Tts) -> None:
    alone = [await chunks_of(tts, "One.", "Two."), await chunks_of(tts, "A much longer sentence this is.")]
    together = await asyncio.gather(chunks_of(tts, "One.", "Two."), chunks_of(tts, "A much longer sentence this is."))
    for one, other in zip(alone, together, strict=True):
        assert [c.piece_index for c in one if c.final] == [c.piece_index for c in other if c.final]
        seconds, seconds_again = (sum(c.audio.seconds for c in chunks) for chunks in (one, other))
        assert seconds == pytest.approx(seconds_again, rel=SPREAD[tts.info.name])


async def test_speed_makes_speech_shorter(tts: Tts) -> None:
    voice = a_voice(tts)
    fast = Voice(voice.id, voice.name, voice.language, speed=1.5)
    text = "This sentence is spoken twice."
    assert (await spoken(tts, fast, text)).seconds < 0.8 * (await spoken(tts, voice, text)).seconds


async def test_an_unknown_voice_is_refused(tts: Tts) -> None:
    with pytest.raises(InvalidInput):
        await spoken(tts, Voice("../../etc/passwd", "no", "en"), "Hello.")


async def test_voices_have_readable_names_and_languages(tts: Tts) -> None:
    assert tts.info.voices
    for voice in tts.info.voices:
        assert voice.name
        assert voice.language in tts.info.languages
