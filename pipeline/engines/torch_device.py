"""Torch and the device to run on, for the engines that use it. Importing this module needs no torch."""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.errors import ConfigError
from process_tuning import long_import


def import_torch(engine: str, *also: str) -> Any:
    """Torch, after the libraries `also`; a `ConfigError` that says what to install for `engine`."""
    try:
        with long_import():
            for library in also:
                importlib.import_module(library)
            return importlib.import_module("torch")
    except ImportError as error:
        raise ConfigError(
            f"{engine} needs what the GPU profile installs. Run: .venv/bin/pip install -r requirements/gpu.txt"
        ) from error


def torch_device(device: str, torch: Any, *, setting: str) -> str:
    """The device that auto stands for; `ConfigError` for a card that is not there."""
    n_cards = torch.cuda.device_count()
    if device == "auto":
        return "cuda" if n_cards else "cpu"
    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= n_cards:
        raise ConfigError(f"{setting}: there is no card {device}; torch sees {n_cards}")
    return device
