"""Whisper by openai-whisper: float16 on a card, float32 on a CPU; one utterance at a time.

Importing this module needs no torch; `load` does. The weights are read by `whisper_weights.py`, never as a pickle, and
nothing is fetched: the tokenizer's files are part of the openai-whisper package.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import numpy as np

from pipeline.audio import Samples
from pipeline.engines.base import Transcript
from pipeline.engines.lanes import Stop
from pipeline.engines.out_of_memory import is_out_of_memory
from pipeline.engines.torch_device import import_torch, torch_device
from pipeline.engines.whisper_engine import STAGE, WhisperEngine
from pipeline.engines.whisper_guards import SAMPLE_RATE
from pipeline.engines.whisper_weights import read_whisper
from pipeline.errors import ConfigError, EngineError, EngineFailed, OutOfMemory
from pipeline.models import locate

if TYPE_CHECKING:
    from pipeline.engines.whisper_decoding import Hearing


class WhisperAsr(WhisperEngine["Hearing"]):
    """`path` may be CTranslate2 or Hugging Face.

    `compute_type` float32 keeps a card from float16; the int8 ones are CTranslate2's and give float16 as well. On a
    CPU all is float32, on `threads` cores.
    """

    name = "whisper"

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
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"The model {self._model_id} does not fit into the memory of {device}: set models.whisper_model to a "
                "smaller one, or free the device."
            ) from error
        heads = weights.alignment_heads or _upper_heads(weights.sizes.n_text_layers, weights.sizes.n_heads)
        hearing = Hearing(model, dtype, heads, self._beam_size)
        rumble = np.sin(np.arange(SAMPLE_RATE, dtype=np.float32) * 0.02) * 0.1  # loud enough to be looked at
        try:
            self._decode(hearing, rumble, "en", False, stop)
        except EngineError as error:
            raise ConfigError(f"The model {self._model_id} does not work on {device}: {error.message}.") from error
        return hearing, languages_of(model)

    def _device_of(self, loaded: Hearing) -> str:
        return str(loaded.model.device)

    def _decode(self, loaded: Hearing, samples: Samples, language: str | None, words: bool, stop: Stop) -> Transcript:
        """What `hear` gives, with the lane's threads set and all its failures as errors of ours."""
        from pipeline.engines import whisper_decoding

        torch = import_torch("asr.engine whisper")
        if loaded.model.device.type == "cpu":
            torch.set_num_threads(self._threads)  # of this thread
        try:
            return whisper_decoding.hear(loaded, samples, language, words, stop)
        except whisper_decoding.Stopped:
            return Transcript("", language or "en")  # the lane refuses it: nobody waits any more, or it is closed
        except EngineError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise EngineFailed("speech recognition failed", stage=STAGE) from error
            traceback.clear_frames(error.__traceback__)  # they hold what fills the card
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise OutOfMemory("speech recognition ran out of memory", stage=STAGE) from error


def _upper_heads(n_layers: int, n_heads: int) -> tuple[tuple[int, int], ...]:
    """What openai-whisper aligns with where a model names no heads: all those of the upper half of the layers."""
    return tuple((layer, head) for layer in range(n_layers // 2, n_layers) for head in range(n_heads))
