import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from pipeline.audio import AudioChunk
from pipeline.engines.base import SpeechPiece
from pipeline.engines.lanes import Lane, Ran, Spoke, Waited, Work, work_told
from pipeline.engines.piecewise import one_ahead
from pipeline.engines.tts_kokoro import cut, readable_name

RATE = 1000


class Recorder:
    """Pieces and a voice that say what was asked of them."""

    def __init__(self, *n_chunks: int) -> None:
        self.n_chunks = n_chunks
        self.log: list[str] = []
        self.n_speaking = 0

    async def pieces(self) -> AsyncIterator[SpeechPiece]:
        for index in range(len(self.n_chunks)):
            self.log.append(f"ask {index}")
            yield SpeechPiece(index, str(index), 0, 1)

    async def speak(self, piece: SpeechPiece) -> Sequence[AudioChunk]:
        self.n_speaking += 1
        try:
            await asyncio.sleep(0)
            self.log.append(f"spoke {piece.index}")
            return [AudioChunk.silence(0.1, RATE)] * self.n_chunks[piece.index]
        finally:
            self.n_speaking -= 1


async def turns() -> None:
    """Let everything that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_each_piece_ends_with_one_mark_even_without_audio() -> None:
    recorder = Recorder(1, 3, 0)
    out = [
        (chunk.piece_index, chunk.audio.n_samples, chunk.final)
        async for chunk in one_ahead(recorder.pieces(), recorder.speak, sample_rate=RATE)
    ]
    assert out == [(0, 100, True), (1, 100, False), (1, 100, False), (1, 100, True), (2, 0, True)]


async def test_one_piece_is_prepared_while_another_is_consumed_and_no_more() -> None:
    recorder = Recorder(1, 1, 1, 1)
    stream = one_ahead(recorder.pieces(), recorder.speak, sample_rate=RATE)
    await anext(stream)
    assert recorder.log == ["ask 0", "spoke 0"]
    await turns()
    assert recorder.log == ["ask 0", "spoke 0", "ask 1", "spoke 1"]
    await anext(stream)
    await turns()
    assert recorder.log[4:] == ["ask 2", "spoke 2"]
    await stream.aclose()


async def test_closing_cancels_the_piece_that_is_being_prepared() -> None:
    recorder = Recorder(1, 1)
    stopped = asyncio.Event()

    async def endless(piece: SpeechPiece) -> Sequence[AudioChunk]:
        if piece.index == 0:
            return [AudioChunk.silence(0.1, RATE)]
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return []

    stream = one_ahead(recorder.pieces(), endless, sample_rate=RATE)
    await anext(stream)
    await turns()
    await stream.aclose()
    assert stopped.is_set()


async def test_an_error_comes_after_the_audio_before_it() -> None:
    recorder = Recorder(1, 1)

    async def fails_at_once(piece: SpeechPiece) -> Sequence[AudioChunk]:
        if piece.index:
            raise ValueError("broken")
        return await recorder.speak(piece)

    stream = one_ahead(recorder.pieces(), fails_at_once, sample_rate=RATE)
    assert (await anext(stream)).final
    await turns()
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)


async def test_an_error_that_nobody_waited_for_is_not_reported_at_the_end() -> None:
    recorder = Recorder(1, 1)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def fails_at_once(piece: SpeechPiece) -> Sequence[AudioChunk]:
        if piece.index:
            raise ValueError("broken")
        return await recorder.speak(piece)

    stream = one_ahead(recorder.pieces(), fails_at_once, sample_rate=RATE)
    await anext(stream)
    await turns()
    await stream.aclose()
    await turns()
    assert reported == []


def test_long_phonemes_are_cut_after_sentences_then_clauses_then_words() -> None:
    assert cut("aaaa. bbbb, cc dd", 12) == ["aaaa.", "bbbb, cc dd"]
    assert cut("aaaa, bbbb ccc", 10) == ["aaaa,", "bbbb ccc"]
    assert cut("aaaa bbbb cccc", 10) == ["aaaa bbbb", "cccc"]
    assert cut("a" * 25, 10) == ["a" * 10, "a" * 10, "a" * 5]
    assert cut("", 10) == []


def test_voices_have_readable_names() -> None:
    assert readable_name("af_heart") == "Heart (American, female)"
    assert readable_name("bm_george") == "George (British, male)"


async def test_the_turn_is_told_what_each_audible_piece_took_to_compute() -> None:
    recorder, lane = Recorder(2, 0, 1), Lane("voice", 1, stage="tts")
    told: list[Work] = []

    async def speak(piece: SpeechPiece) -> Sequence[AudioChunk]:
        return await lane.run(lambda stop: [AudioChunk.silence(0.1, RATE)] * recorder.n_chunks[piece.index])

    work_told.set(told.append)
    async for _ in one_ahead(recorder.pieces(), speak, sample_rate=RATE):
        pass
    await lane.close()
    assert [type(work) for work in told] == [Waited, Ran, Spoke, Waited, Ran, Waited, Ran, Spoke]
    ran = [work.seconds for work in told if isinstance(work, Ran)]
    assert [work for work in told if isinstance(work, Spoke)] == [Spoke(ran[0], 0.2), Spoke(ran[2], 0.1)]
