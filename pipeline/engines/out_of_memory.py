"""Whether an error of a model library means that the card or the machine is full."""

from __future__ import annotations

# Torch says the first for a card, the others for the machine; CTranslate2 the first.
_TOLD = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Many libraries say so by a plain RuntimeError, in words only."""
    words = str(error).lower()
    is_named_so = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, without torch
    return is_named_so or any(told in words for told in _TOLD)
