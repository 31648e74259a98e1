"""A text that is read aloud: all of it, in pieces, without holding anybody up."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from pipeline.audio import concat
from pipeline.engines.base import SpeechPiece
from pipeline.engines.lanes import LATER_AUDIO, Lane, job_priority
from pipeline.errors import EngineFailed, EngineTimeout, InvalidInput
from pipeline.reading import MAX_CHUNKS_AHEAD, TEXT_STEP_CHARS, read_aloud
from pipeline.sentences import PieceSplitter
from pipeline.turn import Waits
from settings import TurnSettings
from tests.support.scripted import SECONDS_PER_CHAR, TTS_RATE, VOICES, ScriptedTts

SENTENCES = "The first sentence is short. " * 30


class Spy(PieceSplitter):
    """Notes what it is fed."""

    def __init__(self) -> None:
        super().__init__(language="en", first_clause_min_chars=12, piece_max_chars=200)
        self.fed: list[str] = []

    def feed(self, delta: str) -> list[SpeechPiece]:
        self.fed.append(delta)
        return super().feed(delta)


def reading(text: str, tts: ScriptedTts | None = None, *, waits: Waits | None = None, **how: Any) -> Any:
    return read_aloud(
        text,
        tts=tts or ScriptedTts(0.0, 0.0),
        voice=VOICES[0],
        splitter=how.pop("splitter", None) or Spy(),
        sample_rate=how.pop("sample_rate", TTS_RATE),
        waits=waits or Waits.from_settings(TurnSettings()),
        **how,
    )


async def drain(reading: Any) -> None:
    async with aclosing(reading) as chunks:
        async for _ in chunks:
            pass


async def test_the_whole_text_is_spoken_at_the_rate_that_was_asked_for() -> None:
    async with aclosing(reading("Hello there. How are you?", sample_rate=8000)) as chunks:
        audio = concat([chunk async for chunk in chunks], 8000)
    assert audio.seconds == pytest.approx(len("Hello there.How are you?") * SECONDS_PER_CHAR, abs=0.05)


@pytest.mark.parametrize("text", [SENTENCES, "x" * 1000, "a " * 700, "?! " * 200 + "so", "\n\n".join("abc" * 40)])
async def test_the_splitter_gets_all_of_the_text_in_small_steps(text: str) -> None:
    splitter = Spy()
    await drain(reading(text, splitter=splitter))
    assert "".join(splitter.fed) == text
    assert max(map(len, splitter.fed)) <= TEXT_STEP_CHARS


@pytest.mark.parametrize("text", ["", "   ", "🎉 ... !", "```\ncode\n```"])
async def test_a_text_without_words_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        async with aclosing(reading(text, param="input")) as chunks:
            await anext(chunks)
    assert (raised.value.code, raised.value.param) == ("nothing_to_say", "input")


async def test_a_slow_reader_holds_the_voice_back() -> None:
    tts = ScriptedTts(0.0, 0.0)
    async with aclosing(reading(SENTENCES, tts)) as chunks:
        await anext(chunks)
        for _ in range(1000):
            await asyncio.sleep(0)
        ready = [await anext(chunks) for _ in range(MAX_CHUNKS_AHEAD)]
        assert len(ready) == MAX_CHUNKS_AHEAD
        assert tts.open_streams == 1
    assert tts.open_streams == 0


async def test_closing_it_stops_the_voice_and_leaves_no_task() -> None:
    tts = ScriptedTts(first_audio_s=60.0)
    chunks = reading(SENTENCES, tts)
    first = asyncio.ensure_future(anext(chunks))
    while not tts.open_streams:
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await chunks.aclose()
    assert tts.open_streams == 0
    assert len(asyncio.all_tasks()) == 1


async def test_errors_come_out_as_they_are_and_unforeseen_ones_by_their_stage() -> None:
    for failure, expected in ((EngineFailed("no", stage="tts"), "no"), (KeyError("x"), "KeyError")):
        tts = ScriptedTts(0.0, 0.0, fail_on=lambda piece, failure=failure: failure if piece.index else None)  # type: ignore[misc]
        with pytest.raises(EngineFailed, match=expected):
            await drain(reading(SENTENCES, tts))


async def test_a_voice_that_says_nothing_is_not_waited_for_ever() -> None:
    waits = Waits(asr_s=1.0, first_token_s=1.0, token_s=1.0, first_audio_s=0.01, audio_s=0.01)
    with pytest.raises(EngineTimeout):
        async with aclosing(reading("Hello.", ScriptedTts(first_audio_s=60.0), waits=waits)) as chunks:
            await anext(chunks)


async def test_work_outside_a_talk_goes_behind_the_audio_of_all_talks() -> None:
    lane, order = Lane("test", 1, stage="tts"), []
    may_go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(stop: object) -> None:
        asyncio.run_coroutine_threadsafe(may_go_on.wait(), loop).result()

    async def talk() -> None:
        job_priority.set(lambda: (LATER_AUDIO, 3600.0))  # an hour of audio ahead
        await lane.run(lambda stop: order.append("talk"))

    running = asyncio.create_task(lane.run(hold))
    while not lane.n_running:
        await asyncio.sleep(0)
    waiting = [asyncio.create_task(lane.run(lambda stop: order.append("file"))) for _ in range(2)]
    while lane.n_waiting < 2:
        await asyncio.sleep(0)
    talking = asyncio.create_task(talk())
    while lane.n_waiting < 3:
        await asyncio.sleep(0)
    may_go_on.set()
    await asyncio.gather(running, talking, *waiting)
    assert order == ["talk", "file", "file"]
    await lane.close()
