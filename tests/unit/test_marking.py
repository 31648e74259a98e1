"""`MarkingTts` around scripted engines; with weights of zero the mark is nothing, and what changes is a fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.base import CloningTts, SpeechChunk, SpeechPiece, Tts, Voice, Word
from pipeline.engines.marking import MarkingCloningTts, MarkingTts, with_watermark
from pipeline.errors import ConfigError, EngineFailed, EngineNotReady
from pipeline.torch_file import Weights
from pipeline.watermark import MAX_HELD_S, Watermarker
from settings import Settings
from tests.support.scripted import TTS_RATE, ScriptedTts
from tests.support.speech_clips import pieces
from tests.support.voices import CloningPitchTts

CLONED, STOCK = Voice("voice_ada", "Ada", "en", cloned=True), Voice("anna", "Anna", "en")


class Zeros(dict[str, Samples]):
    """Weights of any shape: the mark of zeros is nothing."""

    def take(self, key: str, shape: tuple[int, ...]) -> Samples:
        value = 1.0 if key.startswith("encoder.layers.6") and key.endswith("bias") and self else 0.0
        return np.full(shape, 0.03 * value, np.float32)


@dataclass
class ChunkTts(ScriptedTts):
    """Says the given chunks, whatever it is asked for; `n_asked` counts what was taken from it."""

    chunks: list[SpeechChunk] = field(default_factory=list)
    n_asked: int = 0

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        self.open_streams += 1
        try:
            for chunk in self.chunks:
                self.n_asked += 1
                await asyncio.sleep(0)
                yield chunk
        finally:
            self.open_streams -= 1


def noise(n_samples: int, seed: int = 0) -> AudioChunk:
    samples = 0.1 * np.random.default_rng(seed).standard_normal(n_samples)
    return AudioChunk(samples.astype(np.float32), TTS_RATE)


def piece_of(index: int, *sizes: int, words: tuple[Word, ...] = ()) -> list[SpeechChunk]:
    chunks = [SpeechChunk(noise(size, index), index) for size in sizes]
    return (
        [replace(chunks[0], words=words), *chunks[1:-1], replace(chunks[-1], final=True)]
        if len(chunks) > 1
        else [replace(chunks[0], words=words, final=True)]
    )


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Weights without a file: `{}` marks nothing, anything in it makes the low bands louder by 5.85 dB."""
    chosen = Zeros()
    monkeypatch.setattr(Watermarker, "installed", classmethod(lambda cls, directory: cls(chosen)))
    return chosen


async def loaded(tts: Tts, *, all_voices: bool = False) -> MarkingTts:
    marking = MarkingTts(tts, Path("models"), all_voices=all_voices)
    await marking.load()
    return marking


async def said(tts: Tts, voice: Voice = CLONED) -> list[SpeechChunk]:
    async with aclosing(tts.synthesize(pieces("One.", "Two."), voice=voice)) as stream:  # type: ignore[type-var]
        return [chunk async for chunk in stream]


def joined(chunks: list[SpeechChunk], index: int) -> Samples:
    return np.concatenate([chunk.audio.samples for chunk in chunks if chunk.piece_index == index])


@pytest.mark.parametrize(
    "sizes",
    [[(30_000,), (5_000,)], [(100, 200, 1), (0,), (1920,) * 9], [(0, 4000, 0), (1,), (1000, 0, 0)], [(50_000, 1)]],
)
async def test_pieces_keep_their_order_ends_and_every_sample(weights: Any, sizes: list[tuple[int, ...]]) -> None:
    chunks = [chunk for index, of_piece in enumerate(sizes) for chunk in piece_of(index, *of_piece)]
    marking = await loaded(ChunkTts(chunks=chunks))
    out = await said(marking)
    assert [chunk.piece_index for chunk in out if chunk.final] == list(range(len(sizes)))
    assert [chunk.piece_index for chunk in out] == sorted(chunk.piece_index for chunk in out)
    for index in range(len(sizes)):
        assert np.array_equal(joined(out, index), joined(chunks, index))
        assert [chunk.final for chunk in out if chunk.piece_index == index][:-1].count(True) == 0
    assert all(chunk.audio.n_samples or chunk.final for chunk in out)
    await marking.close()


async def test_the_mark_is_put_on_cloned_voices_and_not_on_others(weights: Any) -> None:
    weights["loud"] = np.ones(1, np.float32)
    chunks = piece_of(0, 24_000)
    marking = await loaded(ChunkTts(chunks=chunks))
    assert [chunk is other for chunk, other in zip(await said(marking, STOCK), chunks, strict=True)] == [True]
    marked = joined(await said(marking), 0)
    assert not np.allclose(marked, chunks[0].audio.samples)
    await marking.close()
    everything = await loaded(ChunkTts(chunks=chunks), all_voices=True)
    assert np.array_equal(joined(await said(everything, STOCK), 0), marked)
    await everything.close()


async def test_word_times_come_with_the_first_audio_of_their_piece(weights: Any) -> None:
    words = (Word("one", 0.0, 0.5), Word("two", 0.5, 0.9))
    marking = await loaded(ChunkTts(chunks=[*piece_of(0, 10, 10, 40_000, words=words), *piece_of(1, 0, words=words)]))
    out = await said(marking)
    assert [chunk.words for chunk in out if chunk.words] == [words, words]
    assert out[0].words == words
    assert out[0].audio.n_samples
    await marking.close()


async def test_the_first_audio_leaves_before_the_engine_is_asked_for_more(weights: Any) -> None:
    engine = ChunkTts(chunks=piece_of(0, *[round(0.2 * TTS_RATE)] * 3))
    marking = await loaded(engine)
    async with aclosing(marking.synthesize(pieces("One."), voice=CLONED)) as stream:  # type: ignore[type-var]
        first = await anext(stream)
        assert engine.n_asked == 1
    assert first.audio.seconds >= 0.2 - MAX_HELD_S
    await marking.close()


async def test_a_long_chunk_is_heard_before_all_of_it_is_marked(weights: Any) -> None:
    marking = await loaded(ChunkTts(chunks=piece_of(0, 10 * TTS_RATE)))
    async with aclosing(marking.synthesize(pieces("One."), voice=CLONED)) as stream:  # type: ignore[type-var]
        assert 0.3 < (await anext(stream)).audio.seconds <= 0.5
    await marking.close()


@pytest.mark.parametrize("voice", [CLONED, STOCK])
async def test_closing_the_stream_early_closes_the_engines(weights: Any, voice: Voice) -> None:
    engine = ChunkTts(chunks=piece_of(0, *[4800] * 20))
    marking = await loaded(engine)
    async with aclosing(marking.synthesize(pieces("One."), voice=voice)) as stream:  # type: ignore[type-var]
        await anext(stream)
        assert engine.open_streams == 1
    assert engine.open_streams == 0
    await marking.close()


async def test_cancelling_the_reader_closes_the_engines_stream(weights: Any) -> None:
    engine = ChunkTts(chunks=piece_of(0, *[TTS_RATE] * 100))
    marking = await loaded(engine)
    reading = asyncio.create_task(said(marking))
    while not engine.open_streams:
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert engine.open_streams == 0
    await marking.close()


async def test_an_error_of_the_engine_comes_out_after_the_audio_before_it(weights: Any) -> None:
    engine = ScriptedTts(first_audio_s=0, real_time_factor=0)
    engine.fail_on = lambda piece: EngineFailed("no more", stage="tts") if piece.index else None
    marking = await loaded(engine)
    async with aclosing(marking.synthesize(pieces("One.", "Two."), voice=CLONED)) as stream:  # type: ignore[type-var]
        while not (await anext(stream)).final:
            pass
        with pytest.raises(EngineFailed, match="no more"):
            await anext(stream)
    await marking.close()


async def test_audio_of_another_rate_than_promised_is_the_engines_fault(weights: Any) -> None:
    marking = await loaded(ChunkTts(chunks=[SpeechChunk(AudioChunk.silence(0.1, 8000), 0, final=True)]))
    with pytest.raises(EngineFailed, match="another rate"):
        await said(marking)
    await marking.close()


async def test_before_loading_and_after_closing_a_cloned_voice_does_not_speak_unmarked(weights: Any) -> None:
    marking = MarkingTts(ChunkTts(chunks=piece_of(0, 100)), Path("models"), all_voices=False)
    with pytest.raises(EngineNotReady):
        await said(marking)
    await marking.load()
    await marking.load()
    assert await said(marking)
    await marking.close()
    with pytest.raises(EngineNotReady):
        await said(marking)


def choosing(watermark: str, models_dir: Path = Path("models")) -> Settings:
    return Settings.model_validate({"voices": {"watermark": watermark}, "models": {"dir": models_dir}})


def test_where_nothing_can_be_marked_the_engine_stays_alone() -> None:
    plain, cloning = ScriptedTts(), CloningPitchTts()
    assert with_watermark(plain, choosing("cloned")) is plain
    assert with_watermark(plain, choosing("off")) is plain
    assert with_watermark(cloning, choosing("off")) is cloning
    assert isinstance(with_watermark(plain, choosing("all")), MarkingTts)
    assert isinstance(with_watermark(cloning, choosing("cloned")), MarkingCloningTts)


async def test_cloning_is_reached_through_it(weights: Any) -> None:
    engine = CloningPitchTts()
    marking = with_watermark(engine, choosing("cloned"))
    await marking.load()
    assert isinstance(marking, CloningTts)
    assert not isinstance(with_watermark(ScriptedTts(), choosing("all")), CloningTts)
    data = await marking.clone(noise(72_000), "hello", name="Ada")
    await marking.add_voice(CLONED, data)
    assert await said(marking)
    assert marking.info is engine.info
    await marking.remove_voice(CLONED.id)
    await marking.close()


async def test_missing_weights_stop_the_start_with_the_command_that_gets_them(tmp_path: Path) -> None:
    marking = with_watermark(CloningPitchTts(), choosing("cloned", tmp_path))
    with pytest.raises(ConfigError, match=r"download_models --model perth-implicit"):
        await marking.load()
    await marking.close()


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiny\.pt .* encoder\.layers\.0\.conv\.weight"):
        Watermarker(Weights({}, "tiny.pt"))
