from __future__ import annotations

from dataclasses import dataclass

import pytest

from pipeline.engines.whisper_decoding import _whole_sentences

BEGIN = 1000  # the token of the first time stamp; the next ones are 0.02 s later each
WINDOW = 480_000


@dataclass(frozen=True)
class Result:
    tokens: list[int]
    text: str = "whole"


class Tokenizer:
    timestamp_begin = BEGIN

    def decode(self, tokens: list[int]) -> str:
        return " ".join(str(token) for token in tokens if token < BEGIN)


def stamp(seconds: float) -> int:
    return BEGIN + round(seconds / 0.02)


@pytest.mark.parametrize(
    ("tokens", "text", "samples"),
    [
        # A third sentence is cut off: the next window begins with it.
        ([stamp(0), 1, 2, stamp(4), stamp(4.5), 3, stamp(20), stamp(20.5), 4], "1 2 3", 320_000),
        # The window ends with a whole sentence, and nothing follows it.
        ([stamp(0), 1, stamp(4), stamp(4.5), 2, stamp(29)], "whole", WINDOW),
        ([stamp(0), 1, stamp(7)], "whole", WINDOW),
        # One sentence fills the window, or Whisper wrote no stamps.
        ([stamp(0), 1, 2], "whole", WINDOW),
        ([1, 2], "whole", WINDOW),
        ([], "whole", WINDOW),
        # A step of half a second: with such steps a minute of noise would take a hundred windows.
        ([stamp(0), 1, stamp(0.5), stamp(0.5), 2], "whole", WINDOW),
    ],
)
def test_a_sentence_that_the_window_cuts_off_is_heard_again(tokens: list[int], text: str, samples: int) -> None:
    result, step = _whole_sentences(Result(tokens), Tokenizer())
    assert (result.text, step) == (text, samples)
