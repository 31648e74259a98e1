"""Words by a wav2vec2 model with a CTC head from a local directory, and the best path of the known text through it.

`directory/{language}` holds a Hugging Face model (config.json, weights, vocab.json); a directory that is itself a
model serves the languages whose letters it knows. Nothing is downloaded. Letters that the model does not know match
any sound.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import AudioChunk
from serverless.timings.spoken import spoken_words
from serverless.timings.viterbi import STAR, best_path
from serverless.timings.voiced import FRAME_S, frame_levels, loud_frames, without_pauses
from serverless.timings.words import NotAligned, Span, Unusable

SAMPLE_RATE = 16_000
MAX_SECONDS = 60.0
MAX_UNKNOWN = 0.3  # share of letters that the model may not know
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    network: Any
    ids: dict[str, int]  # letter -> row of the emissions
    blank: int
    separator: int | None  # between words
    samples_a_frame: int
    normalize: bool
    device: str


def align(
    audio: AudioChunk, tokens: Sequence[str], language: str, *, directory: Path | None, device: str
) -> list[Span | None]:
    """Spans of the tokens, each with the mean probability of its letters. `NotAligned` without a model that fits."""
    path = model_directory(directory, language)
    if path is None:
        raise Unusable("there is no CTC model for the language")
    if audio.seconds > MAX_SECONDS:
        raise NotAligned(f"the chunk is longer than {MAX_SECONDS:g} s")
    with _LOCK:
        model = _load(path, device)
        words = [_letters(model, said) for said in _said(tokens, language)]
        letters = [letter for word in words for letter in word]
        unknown = sum(letter == STAR for letter in letters)
        if not letters or unknown > MAX_UNKNOWN * len(letters):
            raise NotAligned("the model does not know the letters of the text")
        emissions = _emissions(model, audio)
    labels, owners = _sequence(words, model.separator)
    found = best_path(emissions, labels, model.blank)
    if found is None:
        raise NotAligned("the text is too long for the audio")
    return _spans(audio, owners, found, len(words), model.samples_a_frame / SAMPLE_RATE)


def model_directory(directory: Path | None, language: str) -> Path | None:
    """Where the model of a language lies, if it is there."""
    if directory is None:
        return None
    own = directory / language
    return next((path for path in (own, directory) if (path / "config.json").is_file()), None)


def _said(tokens: Sequence[str], language: str) -> list[str]:
    if language in ("ja", "zh"):  # their models are trained on the characters
        return ["".join(c for c in token if c.isalnum()) for token in tokens]
    return ["".join(words) for words in spoken_words(tokens, language)]


def _letters(model: _Model, word: str) -> list[int]:
    out = []
    for char in word.replace("’", "'"):
        if char.isalnum() or char in model.ids:
            forms = (char, char.upper(), char.lower())
            out.append(next((model.ids[form] for form in forms if form in model.ids), STAR))
    return out


def _sequence(words: Sequence[Sequence[int]], separator: int | None) -> tuple[list[int], list[int]]:
    """All labels, and for each the word it belongs to, -1 for what stands between words."""
    labels: list[int] = []
    owners: list[int] = []
    for i, word in enumerate(words):
        if labels and word and separator is not None:
            labels.append(separator)
            owners.append(-1)
        labels += word
        owners += [i] * len(word)
    return labels, owners


def _spans(
    audio: AudioChunk,
    owners: Sequence[int],
    found: Sequence[tuple[int, int, float]],
    n_words: int,
    frame_s: float,
) -> list[Span | None]:
    """Letters to words; the model marks a letter where it is surest, and a word sounds on until the next or a pause."""
    ranges: dict[int, list[tuple[int, int, float]]] = {}
    for owner, letter in zip(owners, found, strict=True):
        if owner >= 0:
            ranges.setdefault(owner, []).append(letter)
    loud = loud_frames(frame_levels(audio))
    starts = [round(word[0][0] * frame_s / FRAME_S) for word in ranges.values()]
    lasts = [round(word[-1][1] * frame_s / FRAME_S) for word in ranges.values()]
    ends = [max(last, start) for last, start in zip(lasts, [*starts[1:], loud.size], strict=True)]
    sounding = without_pauses(list(zip(starts, ends, strict=True)), loud)
    spans: list[Span | None] = [None] * n_words
    for (owner, word), (start, end) in zip(ranges.items(), sounding, strict=True):
        spans[owner] = Span(start * FRAME_S, end * FRAME_S, float(np.mean([p for _, _, p in word])))
    return spans


@lru_cache(2)
def _load(path: Path, device: str) -> _Model:
    try:
        import torch
        from transformers import Wav2Vec2ForCTC
    except ImportError:
        raise Unusable("torch and transformers are not installed") from None
    try:
        vocabulary = json.loads((path / "vocab.json").read_text(encoding="utf-8"))
        extractor = path / "preprocessor_config.json"
        normalize = (
            json.loads(extractor.read_text(encoding="utf-8")).get("do_normalize", True) if extractor.is_file() else True
        )
        network = Wav2Vec2ForCTC.from_pretrained(str(path), local_files_only=True, dtype=torch.float32)
        network = network.eval().to(device)
    except (OSError, ValueError, RuntimeError) as error:
        raise Unusable("the CTC model cannot be loaded") from error
    if language_vocabulary := vocabulary.get(path.name):  # models of many languages nest their letters
        vocabulary = language_vocabulary if isinstance(language_vocabulary, dict) else vocabulary
    ids = {str(letter): int(i) for letter, i in vocabulary.items() if len(letter) == 1 and letter != "|"}
    return _Model(
        network,
        ids,
        int(vocabulary.get("<pad>", network.config.pad_token_id)),
        vocabulary.get("|"),
        int(network.config.inputs_to_logits_ratio),
        bool(normalize),
        device,
    )


def _emissions(model: _Model, audio: AudioChunk) -> NDArray[np.float32]:
    """Log probabilities, float32 (n_frames, n_letters)."""
    import torch

    samples = audio.resampled(SAMPLE_RATE).samples
    if model.normalize:
        samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    shortest = model.samples_a_frame * 4
    padded = np.pad(samples, (0, max(shortest - samples.size, 0)))
    with torch.inference_mode():
        logits = model.network(torch.from_numpy(padded)[None].to(model.device)).logits[0]
        return np.asarray(torch.log_softmax(logits.float(), dim=-1).cpu().numpy(), np.float32)
