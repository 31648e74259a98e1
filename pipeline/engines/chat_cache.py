"""Keys and values of talks: kept between turns, and joined for a step that several talks take together.

A talk's next prompt begins as its last one did, so that only what is new has to be computed. Importing this module
imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The cache of an ended answer, and the tokens it has seen."""

    tokens: list[int]
    cache: Any


def is_plain(cache: Any) -> bool:
    """Whether every layer keeps all it saw, so that it can be cut and joined: no sliding window, no running state."""
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for n, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return n
    return min(len(one), len(other))


class CacheStore:
    """At most `capacity` caches, those in use included. For one thread."""

    def __init__(self, config: Any, capacity: int) -> None:
        self._config, self._capacity = config, capacity
        self._kept: list[Kept] = []  # the one that was used last stands last
        self._n_lent = 0

    def take(self, prompt: Sequence[int]) -> tuple[Any, int]:
        """A cache and how many tokens of the prompt it has seen already: never all, since the last one gives logits."""
        found = max(self._kept, key=lambda kept: common_prefix(kept.tokens, prompt), default=None)
        n = 0 if found is None else min(common_prefix(found.tokens, prompt), len(prompt) - 1)
        if found is None or n == 0:
            taken = DynamicCache(config=self._config)
        elif 2 * n >= len(found.tokens) or len(self._kept) + self._n_lent >= self._capacity:
            # The same talk one turn later, or the nearest one where there is no room for a copy.
            self._kept.remove(found)
            taken = found.cache
            taken.crop(n - len(found.tokens))
        else:  # another talk, with the same system prompt
            taken = self._copied(found.cache, n)
        self._n_lent += 1  # not before there is one: a copy may not fit into the memory
        self._make_room()
        return taken, n

    def give_back(self, tokens: list[int], cache: Any) -> None:
        """Keep it for the talk's next turn, where it can be cut to what that turn shares with this one."""
        self._n_lent -= 1
        if tokens and is_plain(cache):
            self._kept.append(Kept(tokens, cache))
        self._make_room()

    def drop(self) -> None:
        """One that was taken does not come back."""
        self._n_lent -= 1

    def clear(self) -> None:
        """Forget all that are not in use."""
        self._kept.clear()

    def _make_room(self) -> None:
        while self._kept and len(self._kept) + self._n_lent > self._capacity:
            del self._kept[0]

    def _copied(self, cache: Any, n: int) -> Any:
        copy = DynamicCache(config=self._config)
        for index, layer in enumerate(cache.layers):
            copy.update(layer.keys[..., :n, :].clone(), layer.values[..., :n, :].clone(), index)
        return copy


class _JoinedLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """One layer of several talks: each keeps its own keys and values, attention sees them side by side."""

    def __init__(self, parts: list[Any]) -> None:
        super().__init__()
        self._parts = parts

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """All talks' keys and values, zeros after the end of the shorter ones: (n_talks, n_heads, longest, width)."""
        seen = [part.update(key_states[i : i + 1], value_states[i : i + 1]) for i, part in enumerate(self._parts)]
        return _side_by_side([keys for keys, _ in seen]), _side_by_side([values for _, values in seen])

    def get_seq_length(self) -> int:
        """Of the longest talk."""
        return max(int(part.get_seq_length()) for part in self._parts)


def _side_by_side(parts: list[torch.Tensor]) -> torch.Tensor:
    _, n_heads, _, width = parts[0].shape
    longest = max(part.shape[-2] for part in parts)
    joined = parts[0].new_zeros(len(parts), n_heads, longest, width)
    for i, part in enumerate(parts):
        joined[i, :, : part.shape[-2]] = part[0]
    return joined


def joined(caches: Sequence[Any]) -> tuple[Any, torch.Tensor]:
    """The talks' plain caches as one, and which positions each sees in its next step: bool (n_talks, 1, 1, longest)."""
    layers = [_JoinedLayer([cache.layers[n] for cache in caches]) for n in range(len(caches[0].layers))]
    device = caches[0].layers[0].keys.device
    lengths = torch.tensor([cache.get_seq_length() + 1 for cache in caches], device=device)
    seen = torch.arange(int(max(cache.get_seq_length() + 1 for cache in caches)), device=device) < lengths[:, None]
    return Cache(layers=layers), seen[:, None, None, :]


def cut(cache: Any, n: int) -> None:
    """Back to `n` tokens, also where a step that failed went through some of the layers only."""
    for layer in cache.layers:
        layer.crop(min(0, n - layer.get_seq_length()))
