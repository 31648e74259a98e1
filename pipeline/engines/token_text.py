"""Tokens to text as they come: a character is given once all its bytes are there."""

from __future__ import annotations

from typing import Any, Final

_UNFINISHED: Final = "\N{REPLACEMENT CHARACTER}"
# A character has four bytes at the most; what is still none after that many tokens is said as it is.
_MAX_HELD: Final = 4


class TokenText:
    """The text of one answer, without special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []  # from the last token that was given on: what follows is read in its light
        self._n_given = 0

    def add(self, token: int) -> str:
        """What the token adds; empty while a character lacks bytes, and for a special token."""
        self._tokens.append(token)
        text = self._decoded(self._tokens)
        is_unfinished = text.endswith(_UNFINISHED) and len(self._tokens) - self._n_given < _MAX_HELD
        return "" if is_unfinished else self._given(text)

    def rest(self) -> str:
        """What is left at the end, bytes of an unfinished character left out."""
        return self._given(self._decoded(self._tokens).rstrip(_UNFINISHED))

    def _given(self, text: str) -> str:
        # Decoded together with the tokens before: alone, many tokenisers take a word's leading space away.
        before = self._decoded(self._tokens[: self._n_given])
        self._tokens = self._tokens[self._n_given :]
        self._n_given = len(self._tokens)
        return text[len(before) :]

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
