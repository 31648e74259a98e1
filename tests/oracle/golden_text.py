"""What upstream's text rules make of ordinary and odd inputs."""

from __future__ import annotations

from typing import Any

from tests.oracle.upstream import upstream_module

LONG_ENGLISH = "The quick brown fox, it is said, jumps over the lazy dog every single day. "
LONG_CHINESE = "今天天气很好，我们去公园散步吧。"

TEXTS = [
    "Hello there.",
    "",
    "   ",
    " padded with spaces \n",
    "line one\nline two\ttabbed",
    "a\nb",
    "no\u00a0break",
    "“curly” and ‘single’ quotes",
    '"straight" quotes',
    "「日本語」の《本》・カタカナ",
    "[S1]Hello.",
    "brackets (round) [square] 【thick】 （full）",
    "dash—em and ——two and ————four and - one",
    "wait… what…… really......",
    "commas,,, and dots... mixed.,.,",
    "colons: and; semis： ；",
    "wave~ full～ bang！ ASCII bang! question? 问？",
    "*bold* text with * star",
    "smile 😀 rocket 🚀 flag 🇫🇷 sun 🌞 heart ❤ robot 🤖 family 👨‍👩‍👧",
    "pi is 3.14 and e is 2.718.",
    "1,000,000 and 3..14",
    "...",
    "?!",
    ".,!?",
    "-",
    "<|text_end|> literal",
    "tags <|laugh|> stay",
    "Ünïcödé ñandú ßtraße",
    "e\u0301 combining",
    "\u200bzero width",
    "mixed 中文 and English. 然后。",
    "한국어 문장입니다. 또 하나.",
    "ひらがなだけのぶんしょう。もうひとつ。",
    "A.B.C. Dr. Smith went home. He slept.",
    "50% of $3.50 & more @ 9:30",
    LONG_ENGLISH * 3,
    LONG_ENGLISH * 6,
    LONG_CHINESE * 9,
    LONG_CHINESE * 14,
    "word " * 200,
    "x" * 900,
    "字" * 300,
    "comma, " * 90,
    "The value 3.14 is pi. " * 25,
    "Short. " + "y" * 450 + " End.",
    "a! b? c. " * 60,
]

# The dialogue path: each starts with a tag.
TAGGED = [
    "[S1]Hello there.",
    "[S2] padded ",
    "[S3]",
    "[S4]。",
    "[S1][S2]two tags",
    "[S1]no [S2] middle tag",
    "[S2]not cleaned: “quotes” (brackets)…",
    "[S1]" + LONG_ENGLISH * 5,
    "[S1]" + LONG_ENGLISH * 12,
    "[S2]" + LONG_CHINESE * 9,
    "[S2]" + LONG_CHINESE * 10,
    "[S2]" + LONG_CHINESE * 25,
    "[S3]" + "word " * 200,
    "[S3]" + "The value 3.14 is pi! " * 25,
    "[S4]" + "中 " + LONG_ENGLISH * 3,
    "[S4]" + "ひらがなだけ。" * 40,
    "[S1]" + "한국어 문장입니다. " * 45,
    "[S1]" + "one two three four five six seven eight? " * 11 + "No stop at the end",
    "[S1]" + "Wait... what?! " * 50,
]
REFUSED = ["Hello there.", "[S5]Hello.", "[S10]Hello.", "", " [S1]Hello.", "[s1]Hello."]


def text_tables() -> dict[str, Any]:
    spliter = upstream_module("utils.spliter")
    # The packaged version turns these two into an apostrophe; the last upstream commit (404f3f6) deletes them.
    spliter.SYMBOLS_MAPPING |= {"“": "", "”": ""}
    return {
        "clean_text": [[text, spliter.clean_text(text)] for text in TEXTS],
        "split_text_400": [[text, spliter.split_text(text, 400)] for text in TEXTS],
        "process_text_list": [[text, spliter.process_text_list([text])] for text in TAGGED],
        "process_text_list_refuses": [text for text in REFUSED if _is_refused(spliter, text)],
    }


def _is_refused(spliter: Any, text: str) -> bool:
    try:
        spliter.process_text_list([text])
    except AssertionError:
        return True
    raise AssertionError(f"upstream takes {text!r}")
