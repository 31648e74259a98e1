"""Kokoro-82M (int8 ONNX) on the CPU: English, 28 voices, one piece of speech at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.audio import AudioChunk, Samples
from pipeline.engines import phonemes
from pipeline.engines.base import EngineInfo, SpeechChunk, SpeechPiece, Voice
from pipeline.engines.lanes import Lane, Stop
from pipeline.engines.piecewise import one_ahead
from pipeline.engines.trimming import pause_after, trimmed
from pipeline.errors import ConfigError, EngineFailed, EngineNotReady, InvalidInput, OutOfMemory
from pipeline.models import locate
from settings import Settings

MODEL_ID = "kokoro-82m"
MODEL_FILE = "kokoro-v1.0.int8.onnx"
SAMPLE_RATE = 24_000
MAX_SYMBOLS = 510  # rows of a voice file: the model's 512 positions less the two that frame the text
STYLE_WIDTH = 256
MIN_SPEED, MAX_SPEED = 0.5, 2.0  # outside, words run together or fall apart

ACCENTS = {"a": ("American", "en-us"), "b": ("British", "en-gb")}
GENDERS = {"f": "female", "m": "male"}


@dataclass(frozen=True, slots=True)
class _Weights:
    """`styles`: voice id -> float32 (510, 1, 256), a row for each length of text. `symbol_ids`: IPA -> number."""

    session: onnxruntime.InferenceSession
    styles: dict[str, NDArray[np.float32]]
    symbol_ids: dict[str, int]


class KokoroTts:
    """Text to 24 kHz speech. One lane of one thread: the model uses `threads` cores on one piece at a time."""

    def __init__(self, *, models_dir: Path, threads: int = 2) -> None:
        self._models_dir, self._threads = models_dir, threads
        self._lane = Lane("kokoro", 1, stage="tts")
        self._loading = asyncio.Lock()
        self._weights: _Weights | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> KokoroTts:
        """Unloaded; reads `models.dir` and `tts.threads`."""
        return cls(models_dir=settings.models.dir, threads=settings.tts.threads)

    @property
    def info(self) -> EngineInfo:
        """`voices` is complete once loaded."""
        voices = self._weights.styles if self._weights else ()
        return EngineInfo(
            kind="tts",
            name="kokoro",
            model=MODEL_ID,
            sample_rate=SAMPLE_RATE,
            languages=("en",),
            voices=tuple(Voice(id=voice, name=readable_name(voice), language="en") for voice in voices),
        )

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the lane."""
        return self._lane.n_waiting

    async def load(self) -> None:
        """Read the weights and speak one word, which also warms the memory arena."""
        async with self._loading:
            if self._weights is None:
                self._weights = await self._lane.run(self._read)

    async def close(self) -> None:
        """Stop the running piece after its step and drop the weights."""
        await self._lane.close()
        self._weights = None

    async def synthesize(
        self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice
    ) -> AsyncGenerator[SpeechChunk, None]:
        """Audio of the pieces in order, one prepared ahead. `InvalidInput` for a voice that is not in `info.voices`."""
        weights = self._weights
        if weights is None:
            raise EngineNotReady("the voice is still loading, or was closed", stage="tts")
        if voice.id not in weights.styles:
            raise InvalidInput("there is no such voice", code="voice_not_found", param="voice")

        async def speak(piece: SpeechPiece) -> Sequence[AudioChunk]:
            return await self._lane.run(lambda stop: _speak(weights, piece.spoken, voice, stop))

        async with aclosing(one_ahead(pieces, speak, sample_rate=SAMPLE_RATE)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _read(self, stop: Stop) -> _Weights:
        phonemes.require_program()
        directory = locate(self._models_dir, MODEL_ID)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # every length of text would leave its own block behind; no slower
        options.log_severity_level = 3  # warnings of the graph optimiser say nothing that a user could act on
        # A spinning pool would burn both cores between two pieces, while the LLM needs them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(
                str(directory / MODEL_FILE), options, providers=["CPUExecutionProvider"]
            )
            symbol_ids = json.loads((directory / "config.json").read_text(encoding="utf-8"))["vocab"]
            styles = {
                file.stem: np.fromfile(file, np.float32).reshape(MAX_SYMBOLS, 1, STYLE_WIDTH)
                for file in sorted((directory / "voices").glob("[ab][fm]_*.bin"))
            }
        except Exception as error:
            raise ConfigError(f"the model {MODEL_ID} in {directory} cannot be loaded: {error}") from error
        weights = _Weights(session, styles, symbol_ids)
        _speak(weights, "Hello.", Voice(id=next(iter(styles)), name="", language="en"), stop)
        return weights


def readable_name(voice_id: str) -> str:
    """`af_heart` -> `Heart (American, female)`."""
    kind, _, name = voice_id.partition("_")
    return f"{name.capitalize()} ({ACCENTS[kind[0]][0]}, {GENDERS[kind[1]]})"


def cut(ipa: str, max_symbols: int = MAX_SYMBOLS) -> list[str]:
    """Stretches of at most `max_symbols`, cut after a sentence, else a clause, else a word, as late as possible."""
    stretches = []
    while len(ipa) > max_symbols:
        head = ipa[:max_symbols]
        marks = (max(head.rfind(mark) for mark in group) for group in (".!?", ",;:—…", " "))
        end = next((i + 1 for i in marks if i > max_symbols // 4), max_symbols)
        stretches.append(ipa[:end].strip())
        ipa = ipa[end:].strip()
    return [*stretches, ipa] if ipa else stretches


def _speak(weights: _Weights, text: str, voice: Voice, stop: Stop) -> list[AudioChunk]:
    """Audio of one piece, a chunk for each run of the model; none when nothing can be pronounced."""
    accent = ACCENTS[voice.id[0]][1]
    ipa = phonemes.kokoro_spelling(phonemes.phonemes(text, accent), accent)
    known = "".join(symbol for symbol in ipa if symbol in weights.symbol_ids)
    chunks = []
    for stretch in cut(known):
        if stop:
            break
        samples = _infer(weights, stretch, voice)
        chunks.append(AudioChunk(trimmed(samples, SAMPLE_RATE, pause_s=pause_after(stretch)), SAMPLE_RATE))
    return chunks


def _infer(weights: _Weights, stretch: str, voice: Voice) -> Samples:
    ids = [weights.symbol_ids[symbol] for symbol in stretch]
    try:
        (samples,) = weights.session.run(
            ["audio"],
            {
                "tokens": np.array([[0, *ids, 0]], np.int64),  # 0 frames the text
                "style": weights.styles[voice.id][len(ids) - 1],
                "speed": np.array([min(max(voice.speed, MIN_SPEED), MAX_SPEED)], np.float32),
            },
        )
    except MemoryError as error:
        raise OutOfMemory("the voice ran out of memory", stage="tts") from error
    except Exception as error:
        raise EngineFailed("the voice failed", stage="tts") from error
    if not samples.size or not np.isfinite(samples).all():
        raise EngineFailed("the voice gave something that is not audio", stage="tts")
    audio: Samples = np.clip(samples.reshape(-1), -1.0, 1.0).astype(np.float32, copy=False)
    return audio
