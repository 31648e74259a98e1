"""What this process holds of the memory that its models live in: the card's where it uses one, else the machine's."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes held now, and the most that was held since the process began. `device` says of which memory.

    `rss_bytes` is what it holds of the machine's own memory in any case.
    """

    device: Literal["cuda", "cpu"]
    used_bytes: int
    peak_bytes: int
    rss_bytes: int


def read_memory() -> Memory:
    """A look, in microseconds. On a card: what torch's allocator keeps, without the driver's own context."""
    with open("/proc/self/statm", encoding="ascii") as file:
        rss = int(file.read().split()[1]) * _PAGE_BYTES
    torch = _torch()
    if torch is not None and torch.cuda.is_initialized():
        cards = range(torch.cuda.device_count())
        used = sum(torch.cuda.memory_reserved(card) for card in cards)
        return Memory("cuda", used, sum(torch.cuda.max_memory_reserved(card) for card in cards), rss)
    with open("/proc/self/status", encoding="ascii") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    return Memory("cpu", rss, max(rss, peak), rss)


def _torch() -> Any:
    """Torch where this process uses it; another thread may be in the middle of importing it."""
    torch = sys.modules.get("torch")
    return None if torch is None or getattr(torch.__spec__, "_initializing", False) else torch


def cap_card_memory(share: float) -> None:
    """At most this share of each card for torch in this process: beyond it an allocation fails as for a full card."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        for card in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(share, card)
