"""Where CTranslate2 runs and with which numbers: cards, the library they need, and number formats that they have."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from pipeline.errors import ConfigError

CUBLAS: Final = "libcublas.so.12"  # what CTranslate2 4.8 opens on a card; torch 2.13 brings that of CUDA 13
_CUBLAS_PACKAGE, _CUBLAS_PIN = "nvidia.cublas", "nvidia-cublas-cu12==12.9.1.4"

# What an asked format becomes: the first that the device has. A card computes in float16 whatever the weights are
# kept in, so int8 there means int8_float16; int16 is for Intel's CPU library alone.
_CPU: Final[Mapping[str, tuple[str, ...]]] = {
    "int8": ("int8", "float32"),
    "int8_float16": ("int8", "float32"),
    "int16": ("int16", "float32"),
    "float16": ("float32",),
    "bfloat16": ("bfloat16", "float32"),
    "float32": ("float32",),
}
_CARD: Final[Mapping[str, tuple[str, ...]]] = {
    "int8": ("int8_float16", "int8", "float32"),
    "int8_float16": ("int8_float16", "int8", "float32"),
    "int16": ("float16", "float32"),
    "float16": ("float16", "float32"),
    "bfloat16": ("bfloat16", "float16", "float32"),
    "float32": ("float32",),
}


def resolved_device(device: str, *, setting: str) -> tuple[str, int]:
    """Cpu or cuda, and the card's number; ConfigError names `setting` when there is no such card."""
    import ctranslate2

    n_cards = ctranslate2.get_cuda_device_count()
    kind, _, index = device.partition(":")
    if kind == "auto":
        kind = "cuda" if n_cards else "cpu"
    number = int(index or 0)
    if kind == "cuda" and number >= n_cards:
        raise ConfigError(
            f"{setting}: there is no card {device}; CTranslate2 sees {n_cards}. Set it to cpu, or look "
            "at what nvidia-smi says about the driver"
        )
    return kind, number


def supported_types(kind: str, number: int) -> Collection[str]:
    """The number formats that a device has."""
    import ctranslate2

    found: Collection[str] = ctranslate2.get_supported_compute_types(kind, number)
    return found


def runnable_type(compute_type: str, kind: str, supported: Collection[str]) -> str:
    """The number format to run with where `compute_type` is asked for; default and auto are CTranslate2's to choose."""
    wanted = (_CPU if kind == "cpu" else _CARD).get(compute_type, ())
    return next((name for name in wanted if name in supported), compute_type)


def load_cublas() -> None:
    """Open cuBLAS, so that CTranslate2 finds it also where it lies in a Python package; ConfigError when it is nowhere.

    Without this the first utterance would fail, not the start.
    """
    for name in (CUBLAS, *_packaged()):
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return
    raise ConfigError(
        f"asr.engine faster_whisper needs cuBLAS of CUDA 12 ({CUBLAS}) on a card, and it is not there or not whole. "
        f"Run: .venv/bin/pip install {_CUBLAS_PIN}, or set asr.engine to whisper, or asr.device to cpu"
    )


def _packaged() -> list[str]:
    """Where NVIDIA's package of cuBLAS has it, when that is installed."""
    try:
        spec = importlib.util.find_spec(_CUBLAS_PACKAGE)
    except ModuleNotFoundError:  # not even the package around it
        return []
    folders = spec.submodule_search_locations if spec is not None else None
    return [str(path) for folder in folders or () if (path := Path(folder) / "lib" / CUBLAS).is_file()]
