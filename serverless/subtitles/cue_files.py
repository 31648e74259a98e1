"""SubRip and WebVTT, with what is a sign of the format in the words made harmless."""

from __future__ import annotations

from collections.abc import Sequence

from serverless.subtitles.cues import Cue, CueWord, text_of

# SubRip has no escapes. Players take <b>, {\an8} and \N for commands, so these signs become ones that look like them.
_SRT = str.maketrans({"<": "‹", ">": "›", "{": "｛", "}": "｝", "\\": "＼"})
_VTT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def srt(cues: Sequence[Cue]) -> str:
    """SubRip. No cues give an empty file."""
    blocks = []
    for number, cue in enumerate(cues, 1):
        times = f"{stamp(cue.start, ',')} --> {stamp(cue.end, ',')}"
        text = "\n".join(text_of(line) for line in cue.lines).translate(_SRT)
        blocks.append(f"{number}\n{times}\n{text}\n")
    return "\n".join(blocks)


def vtt(cues: Sequence[Cue], *, karaoke: bool = False) -> str:
    """WebVTT; with `karaoke` each word but the first of a cue has the time at which it begins in front of it."""
    blocks = ["WEBVTT\n"]
    for number, cue in enumerate(cues, 1):
        first = cue.words[0]
        text = "\n".join(_vtt_line(line, karaoke, first) for line in cue.lines)
        blocks.append(f"{number}\n{stamp(cue.start, '.')} --> {stamp(cue.end, '.')}\n{text}\n")
    return "\n".join(blocks)


def stamp(ms: int, point: str) -> str:
    """`01:02:03.004`; hours run on past 99."""
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{ms:03}"


def _vtt_line(line: Sequence[CueWord], karaoke: bool, first: CueWord) -> str:
    if not karaoke:
        return text_of(line).translate(_VTT)
    text = ""
    before = ""
    for i, word in enumerate(line):
        upto = text_of(line[: i + 1])
        gap = upto[len(before) : len(upto) - len(word.text)]
        mark = "" if word is first else f"<{stamp(word.start, '.')}>"
        text += gap + mark + word.text.translate(_VTT)
        before = upto
    return text
