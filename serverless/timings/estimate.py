"""Times by the number of characters, laid over the stretches that hold sound. It cannot fail, and is only a guess."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.audio import AudioChunk
from serverless.timings.tokens import is_cjk
from serverless.timings.voiced import voiced_spans
from serverless.timings.words import Span

MAX_RATIO = 1.6
_CLAUSE_ENDS = ".!?;:,…。！？；：、，"
_CLOSING = "\"'”’»)]}」』）"


def align(audio: AudioChunk, tokens: Sequence[str], language: str) -> list[Span | None]:
    """A span for every token; `language` plays no part."""
    spans = voiced_spans(audio)
    clauses = _clauses(tokens)
    groups = [(clauses, spans)]
    if _match(clauses, spans):
        groups = [([clause], [span]) for clause, span in zip(clauses, spans, strict=True)]
    found: list[Span | None] = []
    for some_clauses, some_spans in groups:
        found += _spread([token for clause in some_clauses for token in clause], some_spans)
    return found


def weight(token: str) -> float:
    """How long a token takes, in letters: a digit is a word, a Chinese or Japanese character a syllable."""
    return sum(3.0 if is_cjk(c) else 4.0 if c.isdigit() else 1.0 for c in token if c.isalnum()) + 1.0


def _match(clauses: Sequence[Sequence[str]], spans: Sequence[tuple[float, float]]) -> bool:
    """Each clause has a stretch of its own: as many of these as of those, and each about as long as it should be."""
    if len(clauses) != len(spans) or len(spans) < 2:
        return False
    letters = np.array([sum(weight(token) for token in clause) for clause in clauses])
    seconds = np.array([end - start for start, end in spans])
    ratios = letters / letters.sum() / (seconds / seconds.sum())
    return bool((ratios > 1 / MAX_RATIO).all() and (ratios < MAX_RATIO).all())


def _clauses(tokens: Sequence[str]) -> list[list[str]]:
    clauses: list[list[str]] = [[]]
    for token in tokens:
        clauses[-1].append(token)
        if token.rstrip(_CLOSING).endswith(tuple(_CLAUSE_ENDS)):
            clauses.append([])
    return [clause for clause in clauses if clause]


def _spread(tokens: Sequence[str], spans: Sequence[tuple[float, float]]) -> list[Span]:
    """Tokens over the time that is left when the pauses are taken out."""
    lengths = np.array([end - start for start, end in spans])
    heard = np.concatenate(([0.0], np.cumsum(lengths)))
    edges = np.concatenate(([0.0], np.cumsum([weight(token) for token in tokens])))
    edges *= heard[-1] / edges[-1]
    starts = np.clip(np.searchsorted(heard, edges[:-1] + 1e-9, side="right") - 1, 0, len(spans) - 1)
    ends = np.clip(np.searchsorted(heard, edges[1:] - 1e-9, side="left") - 1, 0, len(spans) - 1)
    return [
        Span(
            float(spans[i][0] + edges[n] - heard[i]),
            float(spans[j][0] + edges[n + 1] - heard[j]),
        )
        for n, (i, j) in enumerate(zip(starts, ends, strict=True))
    ]
