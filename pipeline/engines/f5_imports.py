"""The package `f5_tts`, imported without what only its training and its page need.

Its `api` module imports wandb, datasets, accelerate, librosa, matplotlib, transformers' pipelines and more: 2 GB of
packages and most of its import time, none of which speaks. Stand-ins take their names while it is imported and are gone
afterwards; so does what F5-TTS uses of torchaudio (`f5_spectrogram.py`). Importing this module imports none of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pipeline.engines.stand_in import in_place_of
from pipeline.errors import ConfigError
from process_tuning import long_import

# What training, plots, downloads and the transcription of references need. None of it is called here.
_UNUSED: Final = (
    *("wandb", "datasets", "accelerate", "accelerate.utils", "ema_pytorch", "matplotlib", "matplotlib.pylab"),
    *("librosa", "librosa.filters", "cached_path", "encodec"),
    # Of x_transformers only the rotary embedding speaks, of torchdiffeq only its own solvers: einx brings torch's
    # compiler and sympy, the other scipy.integrate.
    *("einx", "torchdiffeq._impl.scipy_wrapper"),
)
_HOW_TO_INSTALL: Final = "Run: .venv/bin/pip install --no-deps -r requirements/serverless.txt"
_importing = threading.Lock()


class _StandIn(ModuleType):
    """Has every name that is imported from it, as an empty class: some are bases of classes, none is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "Stands in for a module that speaking does not need.")
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None)  # who looks whether a package is there, asks for it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init_subclass__": classmethod(lambda cls, **_: None)})


def _matplotlib() -> _StandIn:
    module = _StandIn("matplotlib")
    module.__dict__["use"] = lambda _: None
    return module


def package_directory() -> Path:
    """Where `f5_tts` is installed, found without importing it; `ConfigError` says how to install it."""
    spec = importlib.util.find_spec("f5_tts")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"F5-TTS needs the package f5-tts. {_HOW_TO_INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def import_f5() -> ModuleType:
    """The module `f5_tts.api`, whose `F5TTS` loads a model. It prints nothing any more.

    Takes 5 s on top of torch, once. `ConfigError` says what is not installed. No other thread may import transformers
    meanwhile, which looks for torchaudio: models are loaded one after the other.
    """
    package_directory()
    with _importing, _environment_kept(), long_import(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between versions of torch and what uses it
        try:
            from pipeline.engines.f5_spectrogram import torchaudio_modules

            with ExitStack() as stack:
                for name in _UNUSED:
                    stack.enter_context(in_place_of(_matplotlib() if name == "matplotlib" else _StandIn(name)))
                for module in torchaudio_modules():
                    stack.enter_context(in_place_of(module))
                return _import_behind_stand_ins()
        except ImportError as error:
            raise ConfigError(f"F5-TTS cannot be imported: {error}. {_HOW_TO_INSTALL}") from error


def _import_behind_stand_ins() -> ModuleType:
    # transformers is used by other engines, so its name is lent for the shortest time: all other imports come before.
    for name in ("huggingface_hub", "hydra.utils", "omegaconf", "pydub", "soundfile", "tqdm", "vocos", "f5_tts.model"):
        importlib.import_module(name)
    with in_place_of(_StandIn("transformers")):
        inference = importlib.import_module("f5_tts.infer.utils_infer")
    api = importlib.import_module("f5_tts.api")
    # It prints paths and, when it speaks, the text. The module's own name goes before the built-in one.
    inference.__dict__["print"] = lambda *_, **__: None
    return api


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Upstream sets a variable and extends the path on import."""
    variable, path = "PYTORCH_ENABLE_MPS_FALLBACK", list(sys.path)
    before = os.environ.get(variable)
    try:
        yield
    finally:
        sys.path[:] = path
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before
