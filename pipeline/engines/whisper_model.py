"""openai-whisper's model on a device, filled with weights of our own reading (`whisper_weights.py`).

numba stays out: openai-whisper imports it to align words, which `whisper_words.py` does here without a compiler. It
would cost 60 MB of memory, and ten seconds at the first alignment. A stand-in takes its place during the import.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.engines.stand_in import in_place_of
from pipeline.engines.whisper_weights import (
    N_AUDIO_POSITIONS,
    N_TEXT_POSITIONS,
    WhisperSizes,
    WhisperWeights,
    tensor_shapes,
)
from pipeline.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


def _not_compiled(**options: object) -> Callable[[F], F]:
    return lambda function: function


@cache
def import_whisper() -> ModuleType:
    """openai-whisper, with a module in numba's place while it is imported, which compiles nothing."""
    stand_in = ModuleType("numba", "Stands in for numba, which is not to be loaded.")
    stand_in.jit = _not_compiled  # type: ignore[attr-defined]
    with in_place_of(stand_in):
        import whisper.decoding
        import whisper.model
        import whisper.tokenizer
    module: ModuleType = whisper
    return module


def build(weights: WhisperWeights, device: torch.device, dtype: torch.dtype) -> Any:
    """A `whisper.model.Whisper` on `device`, ready to run: norms in float32, all else in `dtype`.

    ConfigError when a weight is no finite number in that type.
    """
    whisper = import_whisper()
    model = whisper.model.Whisper.__new__(whisper.model.Whisper)
    nn.Module.__init__(model)  # not Whisper's own: it would draw billions of random numbers first
    model.dims = _dimensions(whisper, weights.sizes)
    sizes = weights.sizes
    with _without_values(whisper):
        model.encoder = whisper.model.AudioEncoder(
            sizes.n_mels, N_AUDIO_POSITIONS, sizes.width, sizes.n_heads, sizes.n_audio_layers
        )
        model.decoder = whisper.model.TextDecoder(
            sizes.n_vocabulary, N_TEXT_POSITIONS, sizes.width, sizes.n_heads, sizes.n_text_layers
        )
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    state = {}
    for name in tensor_shapes(sizes):
        wanted = torch.float32 if name.rpartition(".")[0] in norms else dtype
        state[name] = _finite(weights.read(name).to(device, wanted, copy=True), name)
    model.load_state_dict(state, strict=True, assign=True)
    mask = torch.full((N_TEXT_POSITIONS, N_TEXT_POSITIONS), -torch.inf, device=device).triu_(1)
    model.decoder.register_buffer("mask", mask, persistent=False)
    return model.requires_grad_(False).eval()


class _NothingDrawn(TorchFunctionMode):
    """Leaves new tensors as they are. To fill them on no device, torch would import its compiler and sympy: 2 s."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init" or function is Tensor.triu_:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


@contextmanager
def _without_values(whisper: ModuleType) -> Iterator[None]:
    """What is built here has shapes and no values, and the encoder's table of positions is not computed either."""
    computed, whisper.model.sinusoids = whisper.model.sinusoids, torch.empty
    try:
        with torch.device("meta"), _NothingDrawn():
            yield
    finally:
        whisper.model.sinusoids = computed


@cache
def whisper_tokenizer(*, is_multilingual: bool, n_languages: int, language: str) -> Any:
    """openai-whisper's own tokenizer, from the file inside its package; `language` counts in multilingual models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its file to the garbage collector
        return import_whisper().tokenizer.get_tokenizer(
            is_multilingual, num_languages=n_languages, language=language, task="transcribe"
        )


def tokenizer_of(model: Any, language: str) -> Any:
    """The tokenizer that belongs to a model."""
    return whisper_tokenizer(is_multilingual=model.is_multilingual, n_languages=model.num_languages, language=language)


def languages_of(model: Any) -> tuple[str, ...]:
    """Codes of the languages that the model knows."""
    if not model.is_multilingual:
        return ("en",)
    return tuple(import_whisper().tokenizer.LANGUAGES)[: model.num_languages]


def _dimensions(whisper: ModuleType, sizes: WhisperSizes) -> Any:
    return whisper.model.ModelDimensions(
        n_mels=sizes.n_mels,
        n_audio_ctx=N_AUDIO_POSITIONS,
        n_audio_state=sizes.width,
        n_audio_head=sizes.n_heads,
        n_audio_layer=sizes.n_audio_layers,
        n_vocab=sizes.n_vocabulary,
        n_text_ctx=N_TEXT_POSITIONS,
        n_text_state=sizes.width,
        n_text_head=sizes.n_heads,
        n_text_layer=sizes.n_text_layers,
    )


def _finite(tensor: Tensor, name: str) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError(f"The Whisper model is damaged: {name} holds values that are no numbers as {tensor.dtype}.")
    return tensor
