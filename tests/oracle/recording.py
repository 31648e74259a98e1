"""Upstream's generation made deterministic and bounded, and everything about it written down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.oracle.upstream import upstream_module

Array = NDArray[Any]


@dataclass
class Sentence:
    """One run of upstream's frame loop. Lists hold one entry a frame."""

    ids: Array  # (rows, 17) prompt
    mask: Array  # (rows, 17)
    codes: list[Array] = field(default_factory=list)  # (16,)
    hidden: list[Array] = field(default_factory=list)  # (width,) the backbone's output at the last row
    logits: list[list[Array]] = field(default_factory=list)  # 16 of (audio_vocab_size,)
    noise: list[list[Array]] = field(default_factory=list)  # 16 of (audio_vocab_size,), when sampling


class Recorder:
    """While it is active, special audio ids are masked and each sentence ends after the next count of `n_frames`."""

    def __init__(self, model: Any, *, n_frames: list[int], greedy: bool) -> None:
        self.sentences: list[Sentence] = []
        self._model = model
        self._n_codes = model.config.audio_vocab_size - 3  # the last three ids are special: they have no sound
        self._n_frames = n_frames
        self._greedy = greedy
        self._upstream_sample: Any = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        llm = upstream_module("llm.llm")
        self._upstream_sample, generate_frame = llm.sample_topk, llm.Model.generate_frame
        hook = self._model.codebook0_head.register_forward_pre_hook(self._keep_hidden)

        def bounded_frame(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, *sampling: Any) -> Tensor:
            return self._frame(generate_frame, model, ids, mask, positions, *sampling)

        llm.sample_topk, llm.Model.generate_frame = self._sample, bounded_frame
        try:
            yield
        finally:
            llm.sample_topk, llm.Model.generate_frame = self._upstream_sample, generate_frame
            hook.remove()

    def _frame(self, generate_frame: Any, model: Any, ids: Tensor, mask: Tensor, *rest: Any) -> Tensor:
        positions: Tensor = rest[0]
        if positions[0, 0] == 0:
            self.sentences.append(Sentence(_array(ids[0]), _array(mask[0])))
        sentence = self.sentences[-1]
        if len(sentence.codes) == self._n_frames[len(self.sentences) - 1]:
            return torch.zeros(1, ids.shape[-1] - 1, dtype=torch.int32)
        sentence.logits.append([])
        sentence.noise.append([])
        codes: Tensor = generate_frame(model, ids, mask, *rest)
        sentence.codes.append(_array(codes[0]).astype(np.int64))
        return codes

    def _keep_hidden(self, _module: object, args: tuple[Tensor, ...]) -> None:
        self.sentences[-1].hidden.append(_array(args[0][0]))

    def _sample(self, logits: Tensor, topk: int, temperature: float) -> Tensor:
        sentence = self.sentences[-1]
        sentence.logits[-1].append(_array(logits[0]))
        if self._greedy:
            return logits[:, : self._n_codes].argmax(dim=-1, keepdim=True).to(torch.int32)
        before = torch.get_rng_state()
        sentence.noise[-1].append(_array(torch.empty_like(logits).exponential_(1)[0]))
        torch.set_rng_state(before)  # upstream draws the same noise again
        masked = logits.clone()
        masked[:, self._n_codes :] = float("-inf")
        sampled: Tensor = self._upstream_sample(masked, topk, temperature)
        return sampled


def _array(tensor: Tensor) -> Array:
    return np.array(tensor.detach().cpu().numpy())
