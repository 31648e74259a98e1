"""Text deltas of a reply become pieces to speak: the first clause as soon as it stands, then whole sentences.

`speakable` turns written text into text that can be read aloud. A piece keeps which characters of the reply it stands
for, so that the history can be cut to what was heard.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from num2words import num2words
from sentencex import segment

from pipeline.engines.base import SpeechPiece

# Without punctuation the first piece is cut at a space here, so that a long first sentence does not cost the start.
FIRST_PIECE_MAX_CHARS = 90
# A later piece shorter than this joins the next sentence: very short ones sound clipped and cost as much as longer.
MIN_PIECE_CHARS = 24
_CLAUSE_END = re.compile(r"[,;:—–](?=\s)")
_PLAIN_END = re.compile(r"[a-z]{3}[.!?]\s*$")
_FENCE = "```"


class PieceSplitter:
    """Feed it deltas, take pieces. Pure; one object per reply."""

    def __init__(
        self,
        *,
        language: str,
        first_clause_min_chars: int,
        piece_max_chars: int,
        first_piece_max_chars: int = FIRST_PIECE_MAX_CHARS,
    ) -> None:
        self._language = language
        self._first_min, self._first_max, self._max = first_clause_min_chars, first_piece_max_chars, piece_max_chars
        self._reply = ""
        self._start = 0
        self._index = 0

    @property
    def reply(self) -> str:
        """All text so far."""
        return self._reply

    def feed(self, delta: str) -> list[SpeechPiece]:
        """Pieces that are complete with this delta."""
        self._reply += delta
        return self._pieces(self._cut)

    def finish(self) -> list[SpeechPiece]:
        """The pieces of what is left."""
        return self._pieces(lambda rest: self._cut(rest) or len(rest))

    def _pieces(self, cut: Callable[[str], int]) -> list[SpeechPiece]:
        pieces = []
        while rest := self._reply[self._start :]:
            length = cut(rest)
            if not length:
                break
            spoken = "" if rest.lstrip().startswith(_FENCE) else speakable(rest[:length], self._language)
            pieces.append(SpeechPiece(self._index, spoken, self._start, self._start + length))
            self._start += length
            self._index += 1
        return pieces

    def _cut(self, rest: str) -> int:
        """Length of the next piece at the front of `rest`, or 0 when it is not complete yet."""
        body = rest.lstrip()
        if _FENCE.startswith(body[:3]):  # a fence, or what may become one
            end = body.find(_FENCE, 3)
            return len(rest) - len(body) + end + 3 if len(body) >= 3 and end >= 0 else 0
        fence = rest.find(_FENCE)
        if fence > 0:
            return self._sentence(rest[:fence]) or fence
        return self._sentence(rest)

    def _sentence(self, rest: str) -> int:
        first = self._index == 0
        least = 1 if first else MIN_PIECE_CHARS
        length = 0
        sentences = list(segment(self._language, rest))
        if first and len(sentences) == 1 and _PLAIN_END.search(rest):
            # the next word would tell for sure that the sentence ends here; the first piece does not wait for it
            sentences = list(segment(self._language, f"{rest.rstrip()} Then"))
        for sentence in sentences[:-1]:
            length = min(length + len(sentence), len(rest))
            if length >= least and any(c.isalnum() for c in rest[:length]):
                break
        else:
            length = 0
        if first and (clause := self._first_clause(rest[: length or len(rest)])):
            return clause
        if length and length <= self._max:
            return length
        return self._long(rest[: length or len(rest)])

    def _first_clause(self, rest: str) -> int:
        for match in _CLAUSE_END.finditer(rest):
            if match.end() >= self._first_min:
                return match.end()
        return _last_space(rest, self._first_max) if len(rest) > self._first_max else 0

    def _long(self, rest: str) -> int:
        """A cut for a sentence over the limit: at its last clause end within it, else at a space."""
        if len(rest) <= self._max:
            return 0
        ends = [m.end() for m in _CLAUSE_END.finditer(rest[: self._max])]
        return ends[-1] if ends and ends[-1] > MIN_PIECE_CHARS else _last_space(rest, self._max)


def _last_space(text: str, limit: int) -> int:
    space = text.rfind(" ", 1, limit)
    return space + 1 if space > 0 else limit


# --- written text to spoken text

_LINK = re.compile(r"!?\[([^\]\n]{0,300})\]\([^)\n]{0,500}\)")
_URL = re.compile(r"https?://(?:www\.)?([^\s/?#]{1,253})\S*")
_LIST_MARK = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+", re.MULTILINE)
_LINE_MARK = re.compile(r"^[ \t]*(?:[#>]+[ \t]*)+", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*(?:[-*_=][ \t]*){3,}$", re.MULTILINE)
_EMPHASIS = re.compile(r"[*`~]+|(?<![^\W_])_+|_+(?![^\W_])")
_SPACES = re.compile(r"\s+")
_NUMBER = re.compile(r"(?<![\w.])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(st|nd|rd|th)?\b")
_MONEY = re.compile(r"([$€£])\s?(\d[\d,]*(?:\.\d+)?)(?:\s(thousand|million|billion|trillion))?")
_TIME = re.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)\b")
_YEAR = re.compile(r"\b(1[1-9]\d\d|20\d\d)\b(?![.,]\d|%)")

_CURRENCY = {"$": "dollars", "€": "euros", "£": "pounds"}
_ENGLISH = (
    (re.compile(r"\be\.g\.,?", re.IGNORECASE), "for example,"),
    (re.compile(r"\bi\.e\.,?", re.IGNORECASE), "that is,"),
    (re.compile(r"\betc\."), "et cetera."),
    (re.compile(r"\bvs\."), "versus"),
    (re.compile(r"\bapprox\."), "approximately"),
    (re.compile(r"\bDr\.(?= [A-Z])"), "Doctor"),
    (re.compile(r"\bMr\.(?= [A-Z])"), "Mister"),
    (re.compile(r"\bMrs\.(?= [A-Z])"), "Missus"),
    (re.compile(r"\bProf\.(?= [A-Z])"), "Professor"),
    (re.compile(r"(?<=\d)\s?°\s?C\b"), " degrees Celsius"),
    (re.compile(r"(?<=\d)\s?°\s?F\b"), " degrees Fahrenheit"),
    (re.compile(r"(?<=\d)\s?°"), " degrees"),
    (re.compile(r"(?<=\d)\s?%"), " percent"),
    (re.compile(r"(?<=\d)\s?[x×*]\s?(?=\d)"), " times "),
    (re.compile(r"(?<=\d)\s?\+\s?(?=\d)"), " plus "),
    (re.compile(r"(?<=\d)\s?[–-]\s?(?=\d)"), " to "),
    (re.compile(r"\s=\s"), " equals "),
    (re.compile(r"\s&\s"), " and "),
    (re.compile(r"(?<=\w)@(?=\w)"), " at "),
)


def speakable(text: str, language: str) -> str:
    """`text` as it should be read aloud: no Markdown, no emoji, symbols and numbers as words. May be empty."""
    text = _LINK.sub(r"\1", text)
    text = _URL.sub(lambda m: m[1].replace(".", " dot "), text)
    text = _RULE.sub(" ", text)
    text = _LIST_MARK.sub("", _LINE_MARK.sub("", text))
    if language == "en":
        text = _english(text)
    text = _EMPHASIS.sub("", text).replace("|", ", ")
    text = _numbers(text, language)
    text = "".join(c for c in unicodedata.normalize("NFC", text) if _is_spoken(c))
    text = _SPACES.sub(" ", text).strip()
    return text if any(c.isalnum() for c in text) else ""


def _english(text: str) -> str:
    text = _MONEY.sub(_money, text)
    for pattern, words in _ENGLISH:
        text = pattern.sub(words, text)
    text = _TIME.sub(lambda m: f"{int(m[1])} {'' if m[2] == '00' else _minutes(m[2])}".strip(), text)
    return _YEAR.sub(lambda m: num2words(int(m[1]), to="year", lang="en"), text)


def _money(match: re.Match[str]) -> str:
    currency, amount, scale = _CURRENCY[match[1]], match[2], match[3]
    whole, _, cents = amount.partition(".")
    if scale or len(cents) != 2:
        return f"{amount} {scale + ' ' if scale else ''}{currency}"
    return f"{whole} {currency}" if cents == "00" else f"{whole} {currency} {int(cents)}"


def _minutes(digits: str) -> str:
    return f"oh {digits[1]}" if digits[0] == "0" else digits


def _numbers(text: str, language: str) -> str:
    def words(match: re.Match[str]) -> str:
        digits, fraction, ordinal = match[1].replace(",", ""), match[2] or "", match[3]
        try:
            if len(digits) > 15 or (len(digits) > 1 and digits[0] == "0" and not fraction):
                return " ".join(num2words(int(d), lang=language) for d in digits)  # codes and telephone numbers
            if ordinal:
                return str(num2words(int(digits), to="ordinal", lang=language))
            return str(num2words(digits + fraction, lang=language)).replace(",", "")
        except (NotImplementedError, ValueError, OverflowError, IndexError):
            return match[0]  # a language or form the library does not know is left to the engine

    return _NUMBER.sub(words, text)


def _is_spoken(character: str) -> bool:
    """Neither emoji nor control: those are shown, not read."""
    if character in "\n\t ":
        return True
    category = unicodedata.category(character)
    return category not in {"So", "Sk", "Cc", "Cf", "Cs", "Co", "Cn", "Me"} and not "\ufe00" <= character <= "\ufe0f"
