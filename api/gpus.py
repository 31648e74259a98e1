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
    """One card. A figure that the card does not support, or that could not be read, is None.

    `uuid` is what CUDA_VISIBLE_DEVICES may call it, "" where it does not say.
    """

    index: int
    name: str
    utilisation_percent: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_c: float | None
    uuid: str = ""


class Gpus:
    """Reads all cards. Blocking: a call takes milliseconds, and for ever when a driver hangs.

    `nvml` is the module `pynvml` or something with the same functions.
    """

    def __init__(self, nvml: Any = None) -> None:
        self.n_errors = 0
        self._nvml = nvml
        self._handles: list[tuple[int, str, str, Any]] | None = None

    def read(self) -> tuple[GpuMetrics, ...]:
        """The cards as they are now."""
        if self._handles is None:
            self._handles = self._open()
        return tuple(self._card(*found) for found in self._handles)

    def close(self) -> None:
        """Let go of the library."""
        if self._handles:
            self._ask(self._nvml.nvmlShutdown)
        self._handles = None

    def _open(self) -> list[tuple[int, str, str, Any]]:
        if self._nvml is None:
            self._nvml = importlib.import_module("pynvml")
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:  # on most machines: there is no driver
            log.debug("gpus.none", error=type(error).__name__)
            return []
        return [
            (i, self._text(nvml.nvmlDeviceGetName, handle) or "GPU", self._text(nvml.nvmlDeviceGetUUID, handle), handle)
            for i, handle in enumerate(handles)
        ]

    def _text(self, question: Callable[[Any], Any], handle: Any) -> str:
        text = self._ask(lambda: question(handle))
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text or "")

    def _card(self, index: int, name: str, uuid: str, handle: Any) -> GpuMetrics:
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
            uuid=uuid,
        )

    def _ask(self, question: Callable[[], T]) -> T | None:
        """The answer; None when the card cannot say, which is an error unless it says so itself."""
        try:
            return question()
        except self._nvml.NVMLError as error:
            if getattr(error, "value", None) != self._nvml.NVML_ERROR_NOT_SUPPORTED:
                self.n_errors += 1
            return None


def read_card(gpus: Gpus | None = None, device: str = "auto") -> CardMemory | None:
    """The memory of the card that engines on `device` use; None without one. Blocking, as `Gpus`."""
    gpus = gpus or Gpus()
    try:
        return memory_of_own(gpus.read(), device)
    finally:
        gpus.close()


def memory_of_own(cards: Sequence[GpuMetrics], device: str = "auto") -> CardMemory | None:
    """The same of cards that were read. cuda:N is the Nth of those that the process may use, anything else the first.

    The order is that of NVML: `app.py` sets CUDA_DEVICE_ORDER. None for a part of a card (MIG), whose memory the card's
    own figures do not tell.
    """
    number = int(device.removeprefix("cuda:")) if device.startswith("cuda:") else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    entries = [str(card.index) for card in cards] if visible is None else visible.split(",")
    wanted = entries[number].strip() if number < len(entries) else ""
    if wanted.startswith("GPU-"):
        found = [card for card in cards if card.uuid.startswith(wanted)]
    else:
        found = [card for card in cards if str(card.index) == wanted]
    if len(found) != 1 or found[0].memory_used_bytes is None or not found[0].memory_total_bytes:
        return None
    return CardMemory(found[0].memory_used_bytes, found[0].memory_total_bytes)
