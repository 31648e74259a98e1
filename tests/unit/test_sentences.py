from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engines.base import SpeechPiece
from pipeline.sentences import FIRST_PIECE_MAX_CHARS, MIN_PIECE_CHARS, PieceSplitter, speakable

MAX_CHARS = 200

# Words, Markdown and symbols as models write them, so that random replies hit the rules and not only letters.
BITS = st.sampled_from(
    [
        *(
            "Hello",
            "the sun",
            " ",
            " ",
            " ",
            ". ",
            "? ",
            ", ",
            "; ",
            "\n",
            "\n\n",
            "- ",
            "1. ",
            "# ",
            "> ",
            "**",
            "*",
            "_",
        ),
        *("`", "```", "```py\n", "~~", "|", "---", "[a](http://x.org/y)", "https://example.com/a?b=c", "3.14", "1,000"),
        *("2024", "$5.50", "£3 million", "10%", "21°C", "3rd", "10:05", "0049", "e.g. ", "Dr. Who", "5-6", "😀", "❤️"),
        *("1️⃣", "👩‍💻", "→", "™", "…", "“quoted”", "don't", "snake_case", "é", "日本", "\u200b", "\t"),
    ]
)
REPLIES = st.lists(BITS | st.text(max_size=5), max_size=60).map("".join)


def split(reply: str, cuts: list[int], language: str = "en") -> list[SpeechPiece]:
    splitter = PieceSplitter(language=language, first_clause_min_chars=12, piece_max_chars=MAX_CHARS)
    pieces, start = [], 0
    for size in [*cuts, len(reply)]:
        pieces += splitter.feed(reply[start : start + size])
        start += size
    pieces += splitter.finish()
    assert splitter.reply == reply
    return pieces


@settings(deadline=None, max_examples=300, derandomize=True)
@given(REPLIES, st.lists(st.integers(1, 30), max_size=40))
def test_pieces_cover_the_reply_exactly_and_in_order(reply: str, cuts: list[int]) -> None:
    pieces = split(reply, cuts)
    assert "".join(reply[piece.reply_start : piece.reply_end] for piece in pieces) == reply
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    assert all(piece.reply_start < piece.reply_end for piece in pieces)
    assert all(a.reply_end == b.reply_start for a, b in pairwise(pieces))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(REPLIES, st.sampled_from(["en", "de", "fr", "ja", "xx"]))
def test_spoken_text_holds_no_markdown_and_no_emoji(text: str, language: str) -> None:
    spoken = speakable(text, language)
    assert not re.search(r"[*`~|\n\t]|  ", spoken)
    for character in spoken:
        assert unicodedata.category(character) not in {"So", "Sk", "Cc", "Cf", "Cs", "Co", "Cn", "Me"}
        assert character != "\ufe0f"
    assert spoken == spoken.strip()
    assert spoken == "" or any(character.isalnum() for character in spoken)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["the", "old", "man", "went", "home,", "slowly.", "Then", "night;", "came"]), max_size=120)
)
def test_plain_prose_is_spoken_whole_in_pieces_of_bounded_length(words: list[str]) -> None:
    reply = " ".join(words)
    pieces = split(reply, [4] * 200)
    assert " ".join(piece.spoken for piece in pieces if piece.spoken).split() == words
    assert all(piece.reply_end - piece.reply_start <= MAX_CHARS for piece in pieces)
    assert pieces == [] or pieces[0].reply_end <= FIRST_PIECE_MAX_CHARS


def test_the_first_clause_is_given_as_soon_as_it_stands() -> None:
    splitter = PieceSplitter(language="en", first_clause_min_chars=12, piece_max_chars=MAX_CHARS)
    assert splitter.feed("Well, that is easy") == []
    (first,) = splitter.feed(", I think")
    assert first.spoken == "Well, that is easy,"
    (rest,) = splitter.finish()
    assert rest.spoken == "I think"


def test_a_short_later_sentence_joins_the_next_one() -> None:
    pieces = split("This is the beginning of it. Yes. No. And this is a long enough sentence. End.", [5] * 30)
    assert [piece.spoken for piece in pieces] == [
        "This is the beginning of it.",
        "Yes. No. And this is a long enough sentence.",
        "End.",
    ]
    assert len("Yes. No. ") < MIN_PIECE_CHARS


def test_abbreviations_and_decimals_do_not_end_a_sentence() -> None:
    pieces = split("I met Dr. Smith at 3.5 miles from here. He was fine and well on that day.", [3] * 40)
    assert [piece.spoken for piece in pieces] == [
        "I met Doctor Smith at three point five miles from here.",
        "He was fine and well on that day.",
    ]


def test_a_code_block_is_a_piece_of_its_own_that_is_not_spoken() -> None:
    reply = "Here is the code you want. ```python\nprint('Hello. World.')\n``` That was all of it."
    for cuts in ([], [1] * len(reply), [7] * 20):
        pieces = split(reply, cuts)
        assert [piece.spoken for piece in pieces] == ["Here is the code you want.", "", "That was all of it."]
    (piece,) = split("```never closed. At all.", [2] * 20)
    assert piece.spoken == ""


def test_long_text_without_any_mark_is_cut_at_spaces_or_at_the_limit() -> None:
    pieces = split("word " * 200, [10] * 200)
    assert all(piece.spoken.endswith("word") for piece in pieces)
    pieces = split("x" * 1000, [10] * 200)
    assert max(len(piece.spoken) for piece in pieces) <= MAX_CHARS


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("**Bold** and _soft_ and `code`", "Bold and soft and code"),
        ("snake_case stays", "snake_case stays"),
        ("# Title", "Title"),
        ("> # 1. Quoted", "Quoted"),
        ("> quoted\n> text", "quoted text"),
        ("- one\n- two", "one two"),
        ("see [the docs](https://x.org/a)", "see the docs"),
        ("at https://www.example.com/path?q=1 now", "at example dot com now"),
        ("It costs $5.50.", "It costs five dollars fifty."),
        ("$3 million", "three million dollars"),
        ("1,234 men", "one thousand two hundred and thirty-four men"),
        ("the 3rd of May 1984", "the third of May nineteen eighty-four"),
        ("at 10:05 or 9:00", "at ten oh five or nine"),
        ("20 °C, 5%", "twenty degrees Celsius, five percent"),
        ("2 x 3 = 6", "two times three equals six"),
        ("0049", "zero zero four nine"),
        ("e.g. tea", "for example, tea"),
        ("I love you ❤️ 👩‍💻!", "I love you !"),
        ("1️⃣ first", "one first"),
        ("---", ""),
        ("🙂", ""),
        ("...", ""),
    ],
)
def test_written_english_becomes_spoken_english(written: str, spoken: str) -> None:
    assert speakable(written, "en") == spoken


def test_numbers_are_spoken_in_the_language_of_the_voice() -> None:
    assert speakable("21 Tage", "de") == "einundzwanzig Tage"
    assert speakable("21 jours", "fr") == "vingt et un jours"
    assert speakable("21 of an unknown tongue", "xx") == "21 of an unknown tongue"


@pytest.mark.timeout(60)  # each takes milliseconds; a pattern that backtracks would take hours
@pytest.mark.parametrize(
    "nasty",
    [
        *("*" * 20000, "a" + "_" * 20000 + "b", "- " * 10000 + "x", "[" * 20000, "[a](" * 5000, "\t" * 20000 + "x"),
        *("http://" + "a." * 10000, "#" * 20000, "1." * 10000, "1" * 20000 + "a", "1,111" * 500, "$1" + ",1" * 500),
        *(" " * 20000 + "x", "\n" * 20000, "e.g." * 5000, "```" * 5000, "`" * 20000, "= & " * 5000),
    ],
    ids=lambda text: repr(text[:8]),
)
def test_no_text_makes_the_normaliser_or_the_splitter_hang(nasty: str) -> None:
    assert "*" not in speakable(nasty, "en")
    assert split(nasty[:2000], [4] * 500)[-1].reply_end == min(len(nasty), 2000)
