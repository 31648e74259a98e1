"""Whisper by openai-whisper: float16 on a card, float32 on a CPU; one utterance at a time.

Importing this module needs no torch; `load` does. The weights are read by `whisper_weights.py`, never as a pickle, and
nothing is fetched: the tokenizer's files are part of the openai-whisper package.
"""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.base import EngineInfo, Transcript
from pipeline.engines.lanes import Lane, Stop
from pipeline.engines.torch_device import import_torch, torch_device
from pipeline.engines.whisper_guards import SAMPLE_RATE, is_audible
from pipeline.engines.whisper_weights import read_whisper
from pipeline.errors import ConfigError, EngineError, EngineFailed, EngineNotReady, InvalidInput, OutOfMemory
from pipeline.models import locate
from settings import Settings

if TYPE_CHECKING:
    from pipeline.engines.whisper_decoding import Hearing

STAGE: Final = "asr"


class WhisperAsr:
    """Speech of one utterance to text. `model` is Whisper's size: `base`, `tiny.en`, `large-v3` ...

    `path` is a directory with another Whisper, CTranslate2 or Hugging Face; it goes before `model`. `device` is auto,
    cpu, cuda or cuda:N. `compute_type` float32 keeps a card from float16; the int8 ones are CTranslate2's and give
    float16 as well. On a CPU all is float32, on `threads` cores.
    """

    def __init__(
        self,
        *,
        models_dir: Path,
        model: str = "base",
        path: Path | None = None,
        threads: int = 2,
        beam_size: int = 1,
        compute_type: str = "default",
        device: str = "auto",
    ) -> None:
        self._models_dir, self._path = models_dir, path
        self._model_id = path.name if path else f"whisper-{model}"
        self._threads, self._beam_size = threads, beam_size
        self._compute_type, self._device = compute_type, device
        self._lane = Lane("whisper", 1, stage=STAGE)
        self._loading = asyncio.Lock()
        self._hearing: Hearing | None = None
        self._languages: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, settings: Settings) -> WhisperAsr:
        """Unloaded; reads `models`, `asr` and `system.gpu_device`."""
        asr = settings.asr
        return cls(
            models_dir=settings.models.dir,
            model=settings.models.whisper_model,
            path=asr.path,
            threads=asr.threads,
            beam_size=asr.beam_size,
            compute_type=asr.compute_type,
            device=settings.system.gpu_device if asr.device == "auto" else asr.device,
        )

    @property
    def info(self) -> EngineInfo:
        """`languages` and `device` are complete once loaded."""
        return EngineInfo(
            kind=STAGE,
            name="whisper",
            model=self._model_id,
            device=str(self._hearing.model.device) if self._hearing else "cpu",
            sample_rate=SAMPLE_RATE,
            languages=self._languages,
        )

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the lane."""
        return self._lane.n_waiting

    async def idle(self) -> None:
        """Return once no step runs."""
        await self._lane.idle()

    async def load(self) -> None:
        """Read the weights and hear one second of silence."""
        async with self._loading:
            if self._hearing is None:
                self._hearing, self._languages = await self._lane.run(self._read)

    async def close(self) -> None:
        """Stop before the next token and drop the weights."""
        await self._lane.close()
        self._hearing = None

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """What was said. Text is empty for silence and noise; `InvalidInput` for a language the model does not know."""
        return await self._heard(utterance, language, words=False)

    async def transcribe_words(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """As `transcribe`, with word times: the decoder's attention is aligned with the audio once more."""
        return await self._heard(utterance, language, words=True)

    async def _heard(self, utterance: AudioChunk, language: str | None, *, words: bool) -> Transcript:
        hearing = self._hearing
        if hearing is None:
            raise EngineNotReady("speech recognition is still loading, or was closed", stage=STAGE)
        if len(self._languages) == 1:
            language = self._languages[0]
        elif language is not None and language not in self._languages:
            raise InvalidInput("the speech recogniser does not know this language", param="language")
        return await self._lane.run(lambda stop: self._hear(hearing, utterance, language, words, stop))

    # --- in the lane's thread

    def _read(self, stop: Stop) -> tuple[Hearing, tuple[str, ...]]:
        directory = self._path or locate(self._models_dir, self._model_id)
        torch = import_torch("asr.engine whisper")
        device = torch_device(self._device, torch, setting="asr.device")
        weights = read_whisper(directory)
        from pipeline.engines.whisper_decoding import Hearing
        from pipeline.engines.whisper_model import build, languages_of

        is_half = device != "cpu" and self._compute_type != "float32"
        dtype = torch.float16 if is_half else torch.float32
        try:
            model = build(weights, torch.device(device), dtype)
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            raise ConfigError(
                f"The model {self._model_id} does not fit into the memory of {device}: set models.whisper_model to a "
                "smaller one, or free the device."
            ) from error
        heads = weights.alignment_heads or _upper_heads(weights.sizes.n_text_layers, weights.sizes.n_heads)
        hearing = Hearing(model, dtype, heads, self._beam_size)
        rumble = np.sin(np.arange(SAMPLE_RATE, dtype=np.float32) * 0.02) * 0.1  # loud enough to be looked at
        try:
            self._guarded(hearing, rumble, "en", False, stop)
        except EngineError as error:
            raise ConfigError(f"The model {self._model_id} does not work on {device}: {error.message}.") from error
        return hearing, languages_of(model)

    def _hear(
        self, hearing: Hearing, utterance: AudioChunk, language: str | None, words: bool, stop: Stop
    ) -> Transcript:
        if not is_audible(utterance):
            return Transcript("", language or "en", audio_seconds=utterance.seconds)
        heard = self._guarded(hearing, utterance.resampled(SAMPLE_RATE).samples, language, words, stop)
        return replace(heard, audio_seconds=utterance.seconds)

    def _guarded(self, hearing: Hearing, samples: Samples, language: str | None, words: bool, stop: Stop) -> Transcript:
        """What `hear` gives, with the lane's threads set and all its failures as errors of ours."""
        from pipeline.engines import whisper_decoding

        torch = import_torch("asr.engine whisper")
        if hearing.model.device.type == "cpu":
            torch.set_num_threads(self._threads)  # of this thread
        try:
            return whisper_decoding.hear(hearing, samples, language, words, stop)
        except whisper_decoding.Stopped:
            return Transcript("", language or "en")  # the lane refuses it: nobody waits any more, or it is closed
        except EngineError:
            raise
        except Exception as error:
            if not _is_memory(error):
                raise EngineFailed("speech recognition failed", stage=STAGE) from error
            traceback.clear_frames(error.__traceback__)  # they hold what fills the card
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise OutOfMemory("speech recognition ran out of memory", stage=STAGE) from error


def _upper_heads(n_layers: int, n_heads: int) -> tuple[tuple[int, int], ...]:
    """What openai-whisper aligns with where a model names no heads: all those of the upper half of the layers."""
    return tuple((layer, head) for layer in range(n_layers // 2, n_layers) for head in range(n_heads))


def _is_memory(error: Exception) -> bool:
    """Whether a card or the machine is full; torch says so in words only where it is the machine."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
