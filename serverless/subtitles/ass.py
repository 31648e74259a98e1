r"""Advanced SubStation Alpha for a picture of 1920 x 1080, with `\k` times where asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serverless.subtitles.cues import Cue, text_of

# Braces open commands and a backslash makes line breaks; neither can be escaped for every player.
_SIGNS = str.maketrans({"{": "｛", "}": "｝", "\\": "＼"})


@dataclass(frozen=True, slots=True)
class Style:
    """How the text looks; colours are &HAABBGGRR, `primary` is what has been said and `secondary` what will be."""

    font: str = "Arial"
    size: int = 64
    primary: str = "&H00FFFFFF"
    secondary: str = "&H0000D7FF"
    outline: str = "&H00000000"
    margin: int = 60


def ass(cues: Sequence[Cue], *, karaoke: bool, style: Style | None = None) -> str:
    r"""A script of cues in centiseconds. The `\k` times of a cue add up to its length."""
    look = style or Style()
    lines = [
        "[Script Info]",
        "ScriptType: v4.00+",
        "PlayResX: 1920",
        "PlayResY: 1080",
        "WrapStyle: 0",
        "ScaledBorderAndShadow: yes",
        "",
        "[V4+ Styles]",
        "Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, "
        "Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, "
        "MarginR, MarginV, Encoding",
        f"Style: Default,{look.font},{look.size},{look.primary},{look.secondary},{look.outline},&H80000000,0,0,0,0,"
        f"100,100,0,0,1,3,1,2,{look.margin},{look.margin},{look.margin},1",
        "",
        "[Events]",
        "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text",
    ]
    for cue in cues:
        text = _karaoke(cue) if karaoke else "\\N".join(text_of(line).translate(_SIGNS) for line in cue.lines)
        lines.append(f"Dialogue: 0,{_stamp(cue.start)},{_stamp(cue.end)},Default,,0,0,0,,{text}")
    return "\n".join(lines) + "\n"


def _karaoke(cue: Cue) -> str:
    """Each word lights up when it begins; the pause behind it counts to it."""
    words = cue.words
    edges = [cue.start]
    for word in words[1:]:
        edges.append(min(max(word.start, edges[-1]), cue.end))
    edges.append(cue.end)
    text = ""
    position = 0
    for number, line in enumerate(cue.lines):
        text += "\\N" if number else ""
        before = ""
        for i, word in enumerate(line):
            upto = text_of(line[: i + 1])
            gap = upto[len(before) : len(upto) - len(word.text)]
            length = edges[position + 1] - edges[position]
            text += f"{gap}{{\\k{length}}}{word.text.translate(_SIGNS)}"
            before = upto
            position += 1
    return text


def _stamp(cs: int) -> str:
    seconds, cs = divmod(cs, 100)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}.{cs:02}"
