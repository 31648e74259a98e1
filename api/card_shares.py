"""Who may take how much of the card: torch's own limit is one of a process, and several processes use the card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from api.ledger import CardMemory
from pipeline.engines.base import EngineKind
from pipeline.engines.process_supervisor import EngineProcess
from pipeline.memory import cap_card_memory, read_memory

TORCH_ENGINES: Final = frozenset(("whisper", "transformers", "firered", "firered_upstream", "f5"))


class CardShares:
    """Sets the limits of all processes so that their sum stays below `fraction` of the card."""

    def __init__(self, processes: Sequence[EngineProcess], *, fraction: float) -> None:
        self._processes, self._fraction = tuple(processes), fraction

    def before_load(self, kind: EngineKind, name: str, card: CardMemory) -> None:
        """Who loads next may take what the others have left of the card."""
        if self._holder(kind) is None and name not in TORCH_ENGINES:
            return  # setting the limit would open the card for a server that does not use it
        used = card.used_bytes - self._own_bytes(kind)
        self._cap(kind, max(self._fraction - used / card.total_bytes, 0.01))

    def share_rest(self, kinds: Sequence[EngineKind], card: CardMemory) -> None:
        """What is free once all are loaded and warm is divided evenly: each keeps its peak and may grow by its part."""
        holders = {self._holder(kind): kind for kind in kinds}
        rest = max(self._fraction * card.total_bytes - card.used_bytes, 0.0) / len(holders)
        for holder, kind in holders.items():
            memory = read_memory() if holder is None else holder.memory
            if memory is not None and memory.device == "cuda":
                self._cap(kind, min((memory.peak_bytes + rest) / card.total_bytes, 1.0))

    def _holder(self, kind: EngineKind) -> EngineProcess | None:
        """The process of an engine; None: the server's own."""
        return next((process for process in self._processes if kind in process.kinds), None)

    def _own_bytes(self, kind: EngineKind) -> int:
        holder = self._holder(kind)
        memory = read_memory() if holder is None else holder.memory
        return memory.used_bytes if memory is not None and memory.device == "cuda" else 0

    def _cap(self, kind: EngineKind, share: float) -> None:
        holder = self._holder(kind)
        if holder is None:
            cap_card_memory(share)
        else:
            holder.cap(share)
