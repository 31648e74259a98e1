"""Which recognised words stand for which known ones, by the cheapest edits between the two texts' letters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

MIN_SHARE = 0.5  # of a known word's letters that a recognised one must agree with


def matched(known: Sequence[str], recognised: Sequence[str]) -> list[list[int]]:
    """For each known word the indexes of the recognised words that stand for it, in order; empty where none does.

    Letters are compared, not words, so "forty two" can stand for "42" read as "fortytwo", and "gonna" for two words.
    """
    here = [(letter, i) for i, word in enumerate(known) for letter in _plain(word)]
    there = [(letter, j) for j, word in enumerate(recognised) for letter in _plain(word)]
    votes: list[dict[int, int]] = [{} for _ in known]
    for a, b in _same([letter for letter, _ in here], [letter for letter, _ in there]):
        word, other = here[a][1], there[b][1]
        votes[word][other] = votes[word].get(other, 0) + 1
    lengths = [max(len(_plain(word)), 1) for word in known]
    others = [max(len(_plain(word)), 1) for word in recognised]
    out: list[list[int]] = []
    for word, counts in enumerate(votes):
        if sum(counts.values()) < MIN_SHARE * lengths[word]:
            out.append([])
            continue
        out.append(sorted(j for j, n in counts.items() if 2 * n >= min(others[j], lengths[word])))
    return out


def _plain(word: str) -> str:
    folded = unicodedata.normalize("NFKD", word.casefold())
    return "".join(char for char in folded if char.isalnum())


def _same(here: Sequence[str], there: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of equal letters on the cheapest path of edits (a change costs 1, one more or less costs 1)."""
    n, m = len(here), len(there)
    codes = np.array([ord(c) for c in there], np.int64)
    costs = np.zeros((n + 1, m + 1), np.int32)
    costs[0] = np.arange(m + 1)
    columns = np.arange(m + 1)
    for i, letter in enumerate(here, 1):
        row = np.empty(m + 1, np.int32)
        row[0] = i
        row[1:] = np.minimum(costs[i - 1, 1:] + 1, costs[i - 1, :-1] + (codes != ord(letter)))
        costs[i] = np.minimum.accumulate(row - columns) + columns  # letters that only the other has
    pairs = []
    i, j = n, m
    while i and j:
        changed = here[i - 1] != there[j - 1]
        if costs[i, j] == costs[i - 1, j - 1] + changed:
            if not changed:
                pairs.append((i - 1, j - 1))
            i, j = i - 1, j - 1
        elif costs[i, j] == costs[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]
