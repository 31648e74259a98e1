"""The language model of FireRedTTS-2: rows of text and audio in, one frame of 16 codes per step out.

A backbone reads the rows and predicts codebook 0; a small depth decoder, run anew for every frame, predicts codebooks
1-15 from the backbone's hidden state and the codes before. Many streams run as one batch: each has a slot in
`SlotState`, and a step covers the slots 0..B-1. Nothing in `frame` looks at a value on the host, so that it can be a
CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from firered.sampling import GumbelNoise, kth_largest, kth_largest_each, sample
from firered.transformer import LayerCache, Transformer, absorb_scale

if TYPE_CHECKING:
    from firered.checkpoint import Weights
    from firered.config import LlmConfig
    from firered.prompt import Rows

# Upstream samples codebooks 1-15 with these, whatever the caller asks for codebook 0 (llm/llm.py:299).
DEPTH_TOP_K = 10
DEPTH_TEMPERATURE = 0.75


@dataclass(frozen=True, slots=True, eq=False)
class SlotState:
    """Everything a stream needs on the device, for S slots; slot s belongs to one stream at a time."""

    cache: Tensor  # (layers, S, 2, K, capacity, D) backbone keys and values
    depth_cache: Tensor  # (layers, S, 2, K, n_codebooks, D) the depth decoder's, overwritten in every frame
    hidden: Tensor  # (S, d) the backbone's last output, from which the next frame is drawn
    position: Tensor  # (S,) int64, rows in the cache
    frame: Tensor  # (S,) int64, frames drawn: the counter of the noise
    seed: Tensor  # (S,) int64 below 2^32
    temperature: Tensor  # (S, 1) float32, codebook 0
    top_k: Tensor  # (S, 1) int64, codebook 0
    noise_scale: Tensor  # (S, 1, 1) float32: 1 draws, 0 takes the most likely code
    _views: dict[tuple[int, int], list[LayerCache]] = field(default_factory=dict)
    _depth_views: dict[int, list[list[LayerCache]]] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        """Rows that a slot holds."""
        return self.cache.shape[4]

    def views(self, n_batch: int, n_rows: int) -> list[LayerCache]:
        """The backbone's cache as a batch reads it."""
        key = n_batch, n_rows
        if key not in self._views:
            self._views[key] = Transformer.views(self.cache, n_batch, 0, n_rows)
        return self._views[key]

    def depth_views(self, n_batch: int) -> list[list[LayerCache]]:
        """The depth decoder's cache for each pass: the first writes positions 0 and 1, pass i position i + 1."""
        if n_batch not in self._depth_views:
            n_positions = self.depth_cache.shape[4]
            edges = [(0, 2), *((position, position + 1) for position in range(2, n_positions))]
            self._depth_views[n_batch] = [Transformer.views(self.depth_cache, n_batch, *edge) for edge in edges]
        return self._depth_views[n_batch]

    def begin(self, slot: int, *, seed: int, temperature: float, top_k: int, greedy: bool) -> None:
        """Gives the slot to a new stream.

        The cache is cleared although the mask hides its old rows: a hidden NaN, say from an overflow in 16 bits, times
        an attention weight of 0 is NaN and would spoil every later stream of the slot.
        """
        self.cache[:, slot].zero_()
        self.position[slot].zero_()
        self.frame[slot].zero_()
        self.seed[slot].fill_(seed)
        self.temperature[slot].fill_(temperature)
        self.top_k[slot].fill_(top_k)
        self.noise_scale[slot].fill_(0.0 if greedy else 1.0)

    def rewind(self, slot: int, position: int, frame: int) -> None:
        """Forgets the rows from `position` on and the draws from `frame` on."""
        self.position[slot].fill_(position)
        self.frame[slot].fill_(frame)

    def move(self, source: int, target: int, n_rows: int) -> None:
        """Copies a stream of n_rows rows to another slot and clears the rest of that (see `begin`)."""
        self.cache[:, target, :, :, :n_rows] = self.cache[:, source, :, :, :n_rows]
        self.cache[:, target, :, :, n_rows:].zero_()
        small = (self.hidden, self.position, self.frame, self.seed, self.temperature, self.top_k, self.noise_scale)
        for tensor in small:
            tensor[target] = tensor[source]


class LanguageModel:
    """Backbone, depth decoder, embeddings and heads. V = codebook size: special audio ids have no logit and no row."""

    def __init__(self, config: LlmConfig, weights: Weights, *, capacity: int, int8_depth: bool = False) -> None:
        # Attention kernels want aligned masks, and caches are read in steps of 64 rows.
        self.config, self.capacity = config, -(-capacity // 64) * 64
        self.backbone = Transformer(config.backbone, weights.scope("backbone"), self.capacity)
        self.decoder = Transformer(config.decoder, weights.scope("decoder"), config.n_codebooks, int8=int8_depth)
        self.text_embeddings = weights.take("text_embeddings.weight")  # (text vocabulary, d)
        self.audio_embeddings = weights.take("audio_embeddings.weight")  # (n_codebooks * V, d), row code + V * codebook
        projection = weights.take("projection.weight", dtype=torch.float32)  # (d_decoder, d)
        # The depth decoder only ever reads projected audio embeddings, so the projection is applied once, here.
        projected = self.audio_embeddings.float() @ projection.T
        self._projected_embeddings = projected.to(weights.dtype)  # (n_codebooks * V, d_decoder)
        backbone_scale, depth_scale = self.backbone.final_scale, self.decoder.final_scale
        self._projection = absorb_scale(backbone_scale, projection, weights.dtype)  # (d, d_decoder)
        # Heads and sampling stay in float32: in bf16, ties between logits are common.
        head = weights.take("codebook0_head.weight", dtype=torch.float32)  # (V, d)
        self._head = absorb_scale(backbone_scale, head, torch.float32)  # (d, V)
        depth_heads = weights.take("audio_head", dtype=torch.float32)
        self._depth_heads = depth_heads * depth_scale[:, None]  # (n_codebooks - 1, d_decoder, V)
        self.device, self.dtype = self.text_embeddings.device, self.text_embeddings.dtype
        self.noise = GumbelNoise(config.n_codebooks, config.codebook_size, self.device)
        self._offsets = torch.arange(config.n_codebooks, device=self.device) * config.codebook_size  # (n_codebooks,)
        self._rows = torch.arange(self.capacity, device=self.device)
        self._depth_top_k = min(DEPTH_TOP_K, config.codebook_size)

    def new_state(self, n_slots: int) -> SlotState:
        """Empty slots."""
        device = self.device
        return SlotState(
            cache=self.backbone.new_cache(n_slots, self.capacity, self.dtype),
            depth_cache=self.decoder.new_cache(n_slots, self.config.n_codebooks, self.dtype),
            hidden=torch.zeros(n_slots, self.config.backbone.width, dtype=self.dtype, device=device),
            position=torch.zeros(n_slots, dtype=torch.int64, device=device),
            frame=torch.zeros(n_slots, dtype=torch.int64, device=device),
            seed=torch.zeros(n_slots, dtype=torch.int64, device=device),
            temperature=torch.ones(n_slots, 1, device=device),
            top_k=torch.ones(n_slots, 1, dtype=torch.int64, device=device),
            noise_scale=torch.zeros(n_slots, 1, 1, device=device),
        )

    def embed(self, rows: Rows) -> Tensor:
        """Text rows are the embedding of their id, audio rows the sum of their 16 codes' -> (n, d)."""
        is_text = torch.from_numpy(rows.mask[:, -1])  # (n,)
        ids = torch.from_numpy(rows.ids).to(self.device)  # (n, n_codebooks + 1)
        text, audio = (torch.nonzero(kind)[:, 0].to(self.device) for kind in (is_text, ~is_text))
        embedded = torch.empty(len(rows), self.config.backbone.width, dtype=self.dtype, device=self.device)
        embedded[text] = F.embedding(ids[text, -1], self.text_embeddings)
        embedded[audio] = self._embed_codes(ids[audio, :-1])
        return embedded

    def prefill(self, state: SlotState, slot: int, rows: Rows, start: int) -> None:
        """Appends rows to a slot that holds `start` rows; the next frame continues them."""
        views = Transformer.views(state.cache[:, slot : slot + 1], 1, start, start + len(rows))
        state.hidden[slot] = self.backbone.append(self.embed(rows)[None], views, start)[0, -1]
        state.position[slot].fill_(start + len(rows))

    def frame(self, state: SlotState, active: Tensor, n_rows: int, noise: Tensor | None = None) -> Tensor:
        """Draws a frame for each of the slots 0..B-1 and feeds it to the backbone.

        `active` (B,) bool: other slots are computed too (shapes are static) but stay as they are. `n_rows`: rows of the
        cache that are read, more than the position of every active slot. `noise` (B, n_codebooks, V) replaces the
        slots' own. -> codes (B, n_codebooks) int64. A frame of zeros is the end of speech, and feeding it appends the
        end-of-speech row.
        """
        n_batch = len(active)
        if noise is None:
            noise = self.noise(state.seed[:n_batch], state.frame[:n_batch]) * state.noise_scale[:n_batch]
        codes = self._draw_codes(state, n_batch, noise)
        hidden, position = state.hidden[:n_batch], state.position[:n_batch]
        mask = (self._rows[:n_rows] <= position[:, None])[:, None, None]  # (B, 1, 1, n_rows)
        advanced = self.backbone.step(self._embed_codes(codes), state.views(n_batch, n_rows), position, mask)
        hidden.copy_(torch.where(active[:, None], advanced, hidden))
        position += active
        state.frame[:n_batch] += active
        return codes

    def _draw_codes(self, state: SlotState, n_batch: int, noise: Tensor) -> Tensor:
        """Codebook 0 from the backbone's hidden state, then the others, one pass of the depth decoder each."""
        hidden, views = state.hidden[:n_batch], state.depth_views(n_batch)
        logits = hidden.float() @ self._head  # (B, V)
        kth = kth_largest_each(logits, state.top_k[:n_batch])
        codes = [self._draw(0, logits, kth, state.temperature[:n_batch], noise[:, 0])]
        inputs = [hidden @ self._projection, self._projected(codes[0], 0)]
        out = self.decoder.append(torch.stack(inputs, 1), views[0], 0)[:, 1]  # positions 0 and 1 -> (B, d_decoder)
        for codebook in range(1, self.config.n_codebooks):
            logits = out.float() @ self._depth_heads[codebook - 1]  # (B, V)
            kth = kth_largest(logits, self._depth_top_k)
            codes.append(self._draw(codebook, logits, kth, DEPTH_TEMPERATURE, noise[:, codebook]))
            if codebook + 1 < self.config.n_codebooks:
                x = self._projected(codes[-1], codebook)[:, None]  # (B, 1, d_decoder)
                out = self.decoder.append(x, views[codebook], codebook + 1)[:, 0]
        return torch.stack(codes, 1)

    def _draw(self, codebook: int, logits: Tensor, kth: Tensor, temperature: Tensor | float, noise: Tensor) -> Tensor:
        """One code per slot: (B, V) -> (B,). Apart from the rest so that a test can record the logits."""
        return sample(logits, kth, temperature, noise)

    def _projected(self, codes: Tensor, codebook: int) -> Tensor:
        """(B,) codes of one codebook -> (B, d_decoder), input of the depth decoder."""
        return F.embedding(codes + codebook * self.config.codebook_size, self._projected_embeddings)

    def _embed_codes(self, codes: Tensor) -> Tensor:
        """(n, n_codebooks) -> (n, d): the sum of the codes' embeddings, summed in float32."""
        embedded = F.embedding(codes + self._offsets, self.audio_embeddings)  # (n, n_codebooks, d)
        return embedded.sum(1, dtype=torch.float32).to(self.dtype)
