"""Which token comes next: penalty, temperature, top-k and top-p, in transformers' order. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 takes the likeliest; a `repetition_penalty` of 1 is none."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float


class Picker:
    """Draws one talk's tokens and remembers those it has seen, prompt included."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._sampling, self._unmarked = sampling, list(prompt)
        self._seen: torch.Tensor | None = None

    def pick(self, logits: torch.Tensor) -> torch.Tensor:
        """A token, as a tensor on the logits' device. `logits`: finite float32 (n_tokens,)."""
        sampling = self._sampling
        if sampling.repetition_penalty != 1:
            logits = self._penalised(logits)
        if sampling.temperature == 0:
            return logits.argmax()
        best = (logits / sampling.temperature).topk(min(sampling.top_k, logits.numel()))
        shares = best.values.softmax(-1)
        shares = shares.where(shares.cumsum(-1) - shares < sampling.top_p, 0)  # the one that passes the limit stays
        return best.indices[torch.multinomial(shares, 1)[0]]

    def saw(self, token: int) -> None:
        """The talk went on with this token."""
        self._unmarked.append(token)

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        """As in CTRL (arXiv 1909.05858), section 4.1."""
        if self._seen is None:
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
        self._seen[self._unmarked] = True
        self._unmarked.clear()
        penalty = self._sampling.repetition_penalty
        return logits.where(~self._seen, torch.where(logits < 0, logits * penalty, logits / penalty))


def pick(logits: torch.Tensor, pickers: Sequence[Picker]) -> list[int | None]:
    """The next token of each row, None where the network gave something that is no number.

    Such a row must not reach `multinomial`: on a card that ends every talk of the process.
    """
    is_sound = logits.amax(-1).isfinite()  # NaN is the largest; -inf may stand for tokens that are never said
    sound = logits.where(is_sound[:, None], 0)
    tokens = torch.stack([picker.pick(row) for picker, row in zip(pickers, sound, strict=True)])
    return [token if ok else None for token, ok in zip(tokens.tolist(), is_sound.tolist(), strict=True)]
