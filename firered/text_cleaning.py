"""Written text to text the model can say: no control characters, emoji, brackets or special-token literals.

The rules follow upstream's cleaner (utils/spliter.py), which the weights were made with, except where it loses words or
sentences: a newline or a bracket never joins two words, `9:30` keeps its colon, `！` stays a sentence end, and no
`[S2]` or `<|text_end|>` in a text survives.
"""

from __future__ import annotations

import re
import unicodedata

from firered.tokenizer import EXPRESSION_TAGS

# Scripts written without spaces, and their punctuation.
CJK = "\u2e80-\u2fdf\u3000-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"

# Where something was taken out: becomes a space only if words would run together otherwise.
_GAP = "\0"
_FIRST_TAG = 0xE000  # private use: stands for an allowed tag while the text is cleaned

_TOKEN_LITERAL = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[S(?:_[A-Z]{1,10}_)?\d{1,3}\]")
_LINE_BREAK_IN_CJK = re.compile(rf"(?<=[{CJK}])[^\S\n]*\n\s*(?=[{CJK}])")
_WIDE_LETTERS = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uff9f]+")  # and halfwidth kana
_GROUPED_DIGITS = re.compile("(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")  # French "10 000"
_PLURAL_IN_BRACKETS = re.compile(r"(?<=[^\W\d_]{2})\((s|es|e|en|n|in|innen)\)")
_GAPS = re.compile(r"\s*\0[\0\s]*")
_DASH = re.compile(r"\s*[—―]+\s*|\s+–\s+")
_ELLIPSIS = re.compile(r"\s*(?:…|\.{2,}|。{2,})[….。]*\s*")
_CLAUSE_MARK = re.compile(r"(?<![0-9])[:：]|[:：](?![0-9])|[;；]")
_TILDE = re.compile(r"[~～〜](?![0-9])")
_SPACE_BEFORE_MARK = re.compile(r"\s+(?=[.,!?。，！？、]+(?:\s|$))")
_MARKS = re.compile(r"[.,!?。，！？、]{2,}")
_LEADING_MARKS = re.compile(r"^(?:[\s,!?。，！？、]|\.(?![0-9]))+")
_SPACES = re.compile(r"\s+")

_SYMBOLS = str.maketrans(
    {
        **dict.fromkeys('“”„‟«»‹›"*`|【】[]（）(){}・·•〰〽', _GAP),
        **dict.fromkeys("‘’‚‛「」『』《》〈〉", "'"),
        **{"‼": "!", "⁉": "?", "⁈": "?", "‽": "?", "：": ":"},
    }
)
_MAX_MARKS = 4  # combining marks on one character: more are never speech, and would make a character of any length


def clean_text(text: str, *, keep_tags: bool = False) -> str:
    """`text` ready to be split and spoken; may be empty. Cleaning twice changes nothing.

    `keep_tags` leaves tags such as `<|laugh|>` (EXPRESSION_TAGS) in place; speaker and structure tags always go.
    """
    text = _readable_characters(text)
    if keep_tags:
        for index, tag in enumerate(EXPRESSION_TAGS):
            text = text.replace(tag, chr(_FIRST_TAG + index))
    text = _TOKEN_LITERAL.sub(_GAP, text)
    text = _PLURAL_IN_BRACKETS.sub(r"\1", text).translate(_SYMBOLS)
    text = _GAPS.sub(_filled_gap, text)
    text = _punctuated(unicodedata.normalize("NFC", text))
    return "".join(_tag(character) for character in text)


def _tag(character: str) -> str:
    index = ord(character) - _FIRST_TAG
    return EXPRESSION_TAGS[index] if 0 <= index < len(EXPRESSION_TAGS) else character


# --- characters


def _readable_characters(text: str) -> str:
    """Letters, digits, marks, punctuation and spaces in composed form; a gap where a picture stood."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")  # joins pairs, drops halves of pairs
    text = _GROUPED_DIGITS.sub("", text.replace("\0", ""))
    text = _LINE_BREAK_IN_CJK.sub("", text)
    text = _WIDE_LETTERS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFC", "".join(map(_readable, text)))
    return _SPACES.sub(" ", _with_few_marks(text))


def _readable(character: str) -> str:
    if character.isspace():
        return " "
    category, code = unicodedata.category(character), ord(character)
    if category[0] == "C" or category == "Me" or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:
        return ""  # control, format, private, unassigned, enclosing marks; variants of pictures and ideographs
    return _GAP if _is_picture(category, code) else character


def _is_picture(category: str, code: int) -> bool:
    """Emoji, dingbats, arrows, boxes; not the letterlike and enclosed symbols (№, ™, ℃, ㎏) that are read as words."""
    if category == "So":
        return 0x2190 <= code <= 0x2BFF or code >= 0x10000 or code in (0xFFFC, 0xFFFD)
    return 0x1F3FB <= code <= 0x1F3FF or 0x2190 <= code <= 0x21FF or 0x27F0 <= code <= 0x27FF  # skin tones, arrows


def _with_few_marks(text: str) -> str:
    kept, n_marks = [], 0
    for character in text:
        n_marks = n_marks + 1 if unicodedata.category(character)[0] == "M" else 0
        if n_marks <= _MAX_MARKS:
            kept.append(character)
    return "".join(kept)


def _filled_gap(gap: re.Match[str]) -> str:
    """A space where there was one, or where two words would touch that are not Chinese or Japanese."""
    before, after = _neighbours(gap)
    if gap[0].strip(_GAP) and before and after:
        return " "
    touching = (before + after).isalnum() and len(before + after) == 2
    return " " if touching and not (_is_cjk(before) or _is_cjk(after)) else ""


def _neighbours(match: re.Match[str]) -> tuple[str, str]:
    """The characters before and after the match, empty at the ends of the text."""
    start, end = match.span()
    return match.string[start - 1 : start] if start else "", match.string[end : end + 1]


def _is_cjk(character: str) -> bool:
    return re.match(f"[{CJK}]", character) is not None


# --- punctuation


def _punctuated(text: str) -> str:
    text = _DASH.sub(_pause, text)
    text = _SPACE_BEFORE_MARK.sub("", text)
    text = _ELLIPSIS.sub(_trailing_off, text)
    text = _CLAUSE_MARK.sub(",", text)
    text = _TILDE.sub(lambda tilde: "，" if _is_cjk(_neighbours(tilde)[0]) else ",", text)
    text = _SPACE_BEFORE_MARK.sub("", text)
    text = _MARKS.sub(lambda match: _strongest(match[0]), text)
    return _LEADING_MARKS.sub("", text).strip()


def _pause(dash: re.Match[str]) -> str:
    before, after = _neighbours(dash)
    if not (before.isalnum() and after.isalnum()):
        return " "
    return "," if _is_cjk(after) else ", "


def _trailing_off(ellipsis: re.Match[str]) -> str:
    """A full stop before a new sentence or the end, else a comma: "Wait... what" goes on."""
    before, after = _neighbours(ellipsis)
    if after.isdigit() and not ellipsis[0][-1:].isspace():
        return "."
    mark = "," if after and not after.isupper() else "。" if _is_cjk(before) else "."
    return mark if not after or _is_cjk(after) else mark + " "


def _strongest(marks: str) -> str:
    """One mark for a run of them: a question outranks an exclamation, that a full stop, that a comma."""
    for kind in ("?？", "!！", ".。"):
        found = [mark for mark in marks if mark in kind]
        if found:
            return found[0]
    return marks[0]
