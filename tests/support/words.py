"""Texts as bare words, for comparing what was said with what was heard."""

import re


def plain(text: str) -> str:
    """Lower case without punctuation, single spaces; "isn't" stays one word."""
    return " ".join(re.findall(r"\w+", text.lower().replace("'", "").replace("’", "")))
