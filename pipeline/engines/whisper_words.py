"""When each word was said: the decoder's attention to the audio, aligned with the words by dynamic time warping.

The method is that of openai-whisper (whisper/timing.py) in numpy and plain torch: no compiler is needed, the audio is
not encoded again, and nothing is switched in the class that other models of the process share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.base import Word

FRAME_S: Final = 0.02  # of audio in one position of the encoder
_FILTER_WIDTH: Final = 7  # positions of the median filter, as openai-whisper has it
_JOIN_NEXT, _JOIN_PREVIOUS = frozenset("\"'“¿([{-"), frozenset("\"'.。,，!！?？:：”)]}、")
_ENDS_SENTENCE: Final = tuple(".。!！?？")
_MAX_MEDIAN_S: Final = 0.7  # a word may last twice the median, and no pause counts as part of it


def word_times(
    model: Any,
    tokenizer: Any,
    heads: Sequence[tuple[int, int]],
    features: Tensor,
    text_tokens: Sequence[int],
    seconds: float,
) -> list[Word]:
    """The words of `text_tokens` with times in the window that `features` (1, 1500, width) encode, in order.

    `seconds` of the window are audio. `heads` are those whose attention follows the speech, as (layer, head).
    """
    tokens = [token for token in text_tokens if token < tokenizer.eot]
    n_frames = min(max(round(seconds / FRAME_S), 1), features.shape[1])
    if not tokens:
        return []
    prompt = tokenizer.sot_sequence_including_notimestamps
    attention = _attention(model, heads, features, [*prompt, *tokens, tokenizer.eot], n_frames)
    # From the token before the first word on: its attention is where that word is looked for.
    rows, columns = cheapest_path(-attention[len(prompt) - 1 : -1])
    begins = columns[np.flatnonzero(np.diff(rows, prepend=-1))] * FRAME_S
    texts, parts = tokenizer.split_to_word_tokens(tokens)
    edges = np.minimum(np.cumsum([0, *(len(part) for part in parts)]), len(begins) - 1)
    timed = [
        Word(text, float(begins[edges[i]]), float(begins[edges[i + 1]])) for i, text in enumerate(texts[: len(parts)])
    ]
    return [replace(word, text=word.text.strip()) for word in shortened(joined(timed))]


def cheapest_path(cost: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the cheapest way through `cost` (n_rows, n_columns), corner to corner, never back.

    One diagonal at a time: 220 words over 30 s take 20 ms.
    """
    n_rows, n_columns = cost.shape
    total = np.full((n_rows + 1, n_columns + 1), np.inf, np.float32)
    total[0, 0] = 0.0
    steps = np.zeros((n_rows + 1, n_columns + 1), np.int8)
    for diagonal in range(2, n_rows + n_columns + 1):
        i = np.arange(max(1, diagonal - n_columns), min(n_rows, diagonal - 1) + 1)
        j = diagonal - i
        before = np.stack((total[i, j - 1], total[i - 1, j - 1], total[i - 1, j]))
        steps[i, j] = before.argmin(axis=0)
        total[i, j] = cost[i - 1, j - 1] + before.min(axis=0)
    back = ((0, 1), (1, 1), (1, 0))
    path = []
    row, column = n_rows, n_columns
    while row > 0 and column > 0:
        path.append((row - 1, column - 1))
        up, left = back[steps[row, column]]
        row, column = row - up, column - left
    whole = np.array(path[::-1], np.int64)
    return whole[:, 0], whole[:, 1]


def joined(words: Sequence[Word]) -> list[Word]:
    """Punctuation that stands alone goes to its word: opening marks to the next one, all others to the one before."""
    found: list[Word] = []
    opening: Word | None = None
    for word in words:
        mark = word.text.strip()
        if opening is not None:
            word, opening = Word(opening.text + word.text, opening.start_s, word.end_s), None
        elif word.text.startswith(" ") and mark in _JOIN_NEXT:
            opening = word
            continue
        elif found and mark in _JOIN_PREVIOUS:
            found[-1] = replace(found[-1], text=found[-1].text + mark)
            continue
        found.append(word)
    return [*found, opening] if opening is not None else found


def shortened(words: list[Word]) -> list[Word]:
    """Words without the pause that the alignment gives them: before the first one, and after a sentence."""
    lengths = [word.end_s - word.start_s for word in words if word.end_s > word.start_s]
    longest = 2 * min(float(np.median(lengths)), _MAX_MEDIAN_S) if lengths else 0.0
    found = []
    for i, word in enumerate(words):
        if word.end_s - word.start_s > longest:
            if i == 0 or words[i - 1].text.endswith(_ENDS_SENTENCE):
                word = replace(word, start_s=word.end_s - longest)
            elif word.text.endswith(_ENDS_SENTENCE):
                word = replace(word, end_s=word.start_s + longest)
        found.append(replace(word, start_s=round(word.start_s, 2), end_s=round(word.end_s, 2)))
    return found


def _attention(
    model: Any, heads: Sequence[tuple[int, int]], features: Tensor, tokens: list[int], n_frames: int
) -> NDArray[np.float32]:
    """How much each token looks at each of the first `n_frames`, float32 (n_tokens, n_frames): the heads' mean."""
    queries: dict[int, Tensor] = {}
    keys: dict[int, Tensor] = {}
    hooks = []
    try:
        for layer in {layer for layer, _ in heads}:
            attention = model.decoder.blocks[layer].cross_attn
            hooks.append(attention.query.register_forward_hook(_keep(queries, layer)))
            hooks.append(attention.key.register_forward_hook(_keep(keys, layer)))
        model.decoder(torch.tensor([tokens], device=features.device), features)
    finally:
        for hook in hooks:
            hook.remove()
    size = model.dims.n_text_state // model.dims.n_text_head
    each = []
    for layer, head in heads:
        part = slice(head * size, (head + 1) * size)
        query, key = queries[layer][0, :, part].float(), keys[layer][0, :n_frames, part].float()
        each.append((query @ key.T * size**-0.5).softmax(dim=-1))
    weights = torch.stack(each)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    # A head that looks at all the same says nothing; without the floor it would say "not a number".
    weights = _median_filtered((weights - mean) / std.clamp_min(1e-8))
    smoothed: NDArray[np.float32] = weights.mean(dim=0).cpu().numpy()
    return smoothed


def _keep(found: dict[int, Tensor], layer: int) -> Any:
    def hook(module: object, inputs: object, output: Tensor) -> None:
        found[layer] = output

    return hook


def _median_filtered(weights: Tensor) -> Tensor:
    """The median of each value and its neighbours along the frames of (heads, tokens, frames), mirrored at the ends."""
    margin = _FILTER_WIDTH // 2
    if weights.shape[-1] <= margin:
        return weights
    padded = torch.nn.functional.pad(weights, (margin, margin), mode="reflect")
    return padded.unfold(-1, _FILTER_WIDTH, 1).sort().values[..., margin]
