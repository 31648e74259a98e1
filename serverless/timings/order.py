"""Spans in order: what was not found is filled in, what overlaps is parted, and nothing lies outside its bounds."""

from __future__ import annotations

from collections.abc import Sequence

from serverless.timings.words import Span

MIN_WORD_MS = 10


def filled(spans: Sequence[Span | None], guesses: Sequence[Span], start_s: float, end_s: float) -> list[Span]:
    """Words that were not found get the room between the found ones beside them, shared out as the guesses are."""
    out: list[Span] = []
    position = 0
    while position < len(spans):
        span = spans[position]
        if span is not None:
            out.append(span)
            position += 1
            continue
        end = position
        while end < len(spans) and spans[end] is None:
            end += 1
        left = out[-1].end_s if out else min(start_s, guesses[position].start_s)
        following = spans[end] if end < len(spans) else None
        right = following.start_s if following is not None else end_s
        if not out and following is not None:
            left = max(start_s, min(guesses[position].start_s, right - 0.05 * (end - position)))
        if following is None:
            right = max(min(end_s, guesses[end - 1].end_s), min(end_s, left + 0.05 * (end - position)))
        lengths = [max(guess.end_s - guess.start_s, 1e-3) for guess in guesses[position:end]]
        scale = max(right - left, 0.0) / sum(lengths)
        for length in lengths:
            out.append(Span(left, left + length * scale))
            left += length * scale
        position = end
    return out


def in_order(spans: Sequence[Span], duration_s: float) -> list[Span]:
    """The same words in whole milliseconds, none before the one ahead of it ends, all inside `[0, duration_s]`.

    Each is at least `MIN_WORD_MS` long where there is room; where there is not a millisecond for each, all get the
    same length.
    """
    n, last = len(spans), int(duration_s * 1000)
    if not n or duration_s <= 0:
        return []
    if last < n:
        return [
            Span(duration_s * i / n, min(duration_s * (i + 1) / n, duration_s), s.confidence)
            for i, s in enumerate(spans)
        ]
    least = min(MIN_WORD_MS, last // n)
    starts: list[int] = []
    for i, span in enumerate(spans):
        start = min(max(round(span.start_s * 1000), 0), last - (n - i) * least)
        starts.append(max(start, starts[-1] + least) if starts else start)
    out = []
    for i, span in enumerate(spans):
        limit = starts[i + 1] if i + 1 < n else last
        end = max(min(round(span.end_s * 1000), limit), starts[i] + least)
        out.append(Span(starts[i] / 1000, end / 1000, span.confidence))
    return out
