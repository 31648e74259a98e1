"""The machine's NVIDIA cards through NVML. No card, no driver or no library: an empty list."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from api.ledger import CardMemory

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GpuMetrics:
    """One card. A figure that the card does not support, or that could not be read, is None."""

    index: int
    name: str
    utilisation_percent: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_c: float | None


class Gpus:
    """Reads all cards. Blocking: a call takes milliseconds, and for ever when a driver hangs.

    `nvml` is the module `pynvml` or something with the same functions.
    """

    def __init__(self, nvml: Any = None) -> None:
        self.n_errors = 0
        self._nvml = nvml
        self._handles: list[tuple[int, str, Any]] | None = None

    def read(self) -> tuple[GpuMetrics, ...]:
        """The cards as they are now."""
        if self._handles is None:
            self._handles = self._open()
        return tuple(self._card(index, name, handle) for index, name, handle in self._handles)

    def close(self) -> None:
        """Let go of the library."""
        if self._handles:
            self._ask(self._nvml.nvmlShutdown)
        self._handles = None

    def _open(self) -> list[tuple[int, str, Any]]:
        if self._nvml is None:
            self._nvml = importlib.import_module("pynvml")
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:  # on most machines: there is no driver
            log.debug("gpus.none", error=type(error).__name__)
            return []
        return [(i, self._name(handle), handle) for i, handle in enumerate(handles)]

    def _name(self, handle: Any) -> str:
        name = self._ask(lambda: self._nvml.nvmlDeviceGetName(handle))
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name or "GPU")

    def _card(self, index: int, name: str, handle: Any) -> GpuMetrics:
        nvml = self._nvml
        load = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        temperature = self._ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        return GpuMetrics(
            index=index,
            name=name,
            utilisation_percent=None if load is None else float(load.gpu),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            temperature_c=None if temperature is None else float(temperature),
        )

    def _ask(self, question: Callable[[], T]) -> T | None:
        """The answer; None when the card cannot say, which is an error unless it says so itself."""
        try:
            return question()
        except self._nvml.NVMLError as error:
            if getattr(error, "value", None) != self._nvml.NVML_ERROR_NOT_SUPPORTED:
                self.n_errors += 1
            return None


def read_card(gpus: Gpus | None = None) -> CardMemory | None:
    """The memory of the first card that this process may use; None without one. Blocking, as `Gpus`."""
    gpus = gpus or Gpus()
    try:
        return memory_of_own(gpus.read())
    finally:
        gpus.close()


def memory_of_own(cards: Sequence[GpuMetrics]) -> CardMemory | None:
    """The same of cards that were read: of the first one that this process may use."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    index = int(wanted) if wanted.isdecimal() else 0
    card = next((card for card in cards if card.index == index), None)
    if card is None or card.memory_used_bytes is None or not card.memory_total_bytes:
        return None
    return CardMemory(card.memory_used_bytes, card.memory_total_bytes)
