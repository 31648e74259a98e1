"""Subtitle files, read back by other people's readers."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pysubs2
import pytest
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import VoicepodError
from serverless.subtitles import FORMATS, render
from serverless.subtitles.cues import LINE_WIDTH, MAX_SEGMENT_MS, milliseconds, one_line, segment_cues, word_times
from serverless.timings import TimedWord, WordTimings

CREATED = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
LOOK_ALIKE = str.maketrans({"<": "‹", ">": "›", "{": "｛", "}": "｝", "\\": "＼"})
HOSTILE = (
    "<b>",
    "a-->b",
    "{\\an8}x",
    "\\N",
    "&amp;",
    '"quoted"',
    "=1+2",
    "@x",
    "a,b",
    "<00:00:01.000>",
    "-5",
    "]]>",
    "＝1",
    "x;=1+2",
)


def timings(*words: TimedWord, language: str = "en") -> WordTimings:
    return WordTimings(words, "phonetic", (), 1.0, False, language)


def file(format: str, *words: TimedWord, duration_s: float = 100.0, **options: object) -> str:
    made = render(format, timings(*words), duration_s=duration_s, job_id="j1", created=CREATED, **options)  # type: ignore[arg-type]
    return made.data.decode()


def spaced(*texts: str, each_s: float = 0.5, gap_s: float = 0.0) -> list[TimedWord]:
    step = each_s + gap_s
    return [TimedWord(text, i * step, i * step + each_s) for i, text in enumerate(texts)]


def plain(text: str) -> bool:
    return bool(one_line(text)) and all(unicodedata.category(c) not in ("Cf", "Cn", "Co", "Zs") for c in one_line(text))


texts = st.one_of(st.text(min_size=1, max_size=12), st.sampled_from(HOSTILE)).filter(plain)


@st.composite
def timed_words(draw: st.DrawFn, step_ms: int = 1) -> list[TimedWord]:
    """Words on a grid of `step_ms`, at least one step long, with gaps between."""
    words, at = [], 0
    for text in draw(st.lists(texts, min_size=1, max_size=8)):
        start = at + draw(st.integers(0, 400)) * step_ms
        at = start + draw(st.integers(1, 400)) * step_ms
        words.append(TimedWord(text, start / 1000, at / 1000, draw(st.none() | st.floats(0, 1))))
    return words


def milliseconds_of(words: list[TimedWord]) -> list[tuple[int, int]]:
    return [(round(word.start_s * 1000), round(word.end_s * 1000)) for word in words]


@settings(max_examples=60)
@given(timed_words())
def test_srt_reads_back_the_same_words_and_milliseconds(words: list[TimedWord]) -> None:
    read = pysubs2.SSAFile.from_string(file("srt", *words), format_="srt", keep_unknown_html_tags=True)
    assert [(event.start, event.end) for event in read] == milliseconds_of(words)
    assert [event.text for event in read] == [one_line(word.text).translate(LOOK_ALIKE) for word in words]


@settings(max_examples=60)
@given(timed_words(), st.booleans())
def test_vtt_reads_back_the_same_words_and_milliseconds(words: list[TimedWord], karaoke: bool) -> None:
    read = webvtt.from_string(file("vtt", *words, karaoke=karaoke)).captions
    assert [(_stamp_ms(cue.start), _stamp_ms(cue.end)) for cue in read] == milliseconds_of(words)
    raw = [cue.raw_text for cue in read]
    unescaped = [text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for text in raw]
    assert unescaped == [one_line(word.text) for word in words]
    assert not any("<" in text or ">" in text for text in raw)


@settings(max_examples=60)
@given(timed_words(step_ms=10))
def test_ass_reads_back_the_same_words_and_centiseconds(words: list[TimedWord]) -> None:
    read = pysubs2.SSAFile.from_string(file("ass", *words), format_="ass")
    assert [(event.start, event.end) for event in read] == milliseconds_of(words)
    signs = str.maketrans({"{": "｛", "}": "｝", "\\": "＼"})
    assert [event.text for event in read] == [one_line(word.text).translate(signs) for word in words]
    assert [event.plaintext for event in read] == [event.text for event in read]
    assert (read.info["PlayResX"], read.info["PlayResY"]) == ("1920", "1080")


@settings(max_examples=60)
@given(timed_words())
def test_csv_reads_back_the_same_words_and_runs_no_formula(words: list[TimedWord]) -> None:
    rows = list(csv.reader(io.StringIO(file("csv", *words), newline="")))
    assert rows[0] == ["word", "start_time", "end_time", "confidence"]
    assert [(round(float(row[1]) * 1000), round(float(row[2]) * 1000)) for row in rows[1:]] == milliseconds_of(words)
    for row, word in zip(rows[1:], words, strict=True):
        assert row[0].removeprefix("'") == one_line(word.text).removeprefix("'")
        assert row[0][0] not in "=+-@＝＋－＠"
        assert row[3] == ("" if word.confidence is None else f"{word.confidence:.3f}")


@settings(max_examples=60)
@given(timed_words())
def test_json_reads_back_the_same_words_and_milliseconds(words: list[TimedWord]) -> None:
    read = json.loads(file("json", *words, granularity="segments"))
    assert read["schema_version"] == 1
    assert datetime.fromisoformat(read["created_at"]) == CREATED
    assert [word["word"] for word in read["words"]] == [one_line(word.text) for word in words]
    found = [(round(word["start_time"] * 1000), round(word["end_time"] * 1000)) for word in read["words"]]
    assert found == milliseconds_of(words)
    assert sum(len(segment["text"]) for segment in read["segments"]) >= sum(len(word["word"]) for word in read["words"])


@settings(max_examples=60)
@given(timed_words(), st.sampled_from(["words", "segments"]))
def test_the_karaoke_times_of_a_cue_add_up_to_its_length(words: list[TimedWord], granularity: str) -> None:
    written = file("ass", *words, granularity=granularity, karaoke=True)
    events = pysubs2.SSAFile.from_string(written, format_="ass")
    assert len(events) > 0
    n_words = 0
    for event in events:
        lengths = [int(length) for length in re.findall(r"\{\\k(\d+)\}", event.text)]
        assert sum(lengths) * 10 == event.end - event.start
        n_words += len(lengths)
    assert n_words == len(words)


@settings(max_examples=60)
@given(timed_words())
def test_karaoke_stamps_of_vtt_rise_inside_their_cue(words: list[TimedWord]) -> None:
    for cue in webvtt.from_string(file("vtt", *words, granularity="segments", karaoke=True)).captions:
        stamps = [_stamp_ms(stamp) for stamp in re.findall(r"<([\d:.]+)>", cue.raw_text)]
        assert stamps == sorted(set(stamps))
        assert all(_stamp_ms(cue.start) < stamp < _stamp_ms(cue.end) for stamp in stamps)


@settings(max_examples=120)
@given(
    st.lists(st.tuples(st.floats(-1, 20), st.floats(-1, 20)), max_size=12),
    st.floats(0.0, 15.0),
    st.sampled_from(["words", "segments"]),
)
def test_whatever_the_times_cues_are_in_order_and_inside_the_audio(
    times: list[tuple[float, float]], duration_s: float, granularity: str
) -> None:
    words = [TimedWord(f"w{i}", start, end) for i, (start, end) in enumerate(times)]
    written = file("srt", *words, duration_s=duration_s, granularity=granularity)
    read = pysubs2.SSAFile.from_string(written, format_="srt") if words else pysubs2.SSAFile()
    at = 0
    for event in read:
        assert at <= event.start < event.end <= max(duration_s * 1000, len(words))
        at = event.end
    assert sum(len(event.text.replace("\\N", " ").split()) for event in read) == len(words)
    ends = [event.end for event in pysubs2.SSAFile.from_string(file("ass", *words, duration_s=duration_s), "ass")]
    assert len(ends) == len(words)
    assert all(end <= max(duration_s * 1000, 10 * len(words)) for end in ends)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0004, 0), (0.0005, 1), (1.0005, 1001), (2.0015, 2002), (59.9996, 60_000), (0.29, 290)]
)
def test_milliseconds_are_rounded_half_up(seconds: float, expected: int) -> None:
    assert milliseconds(seconds) == expected


def test_a_time_just_before_a_minute_is_carried_over() -> None:
    assert "00:01:00,000 -->" in file("srt", TimedWord("x", 59.9996, 61.0))
    assert "01:00:00.000 -->" in file("vtt", TimedWord("x", 3599.9996, 3601.0), duration_s=4000.0)


def test_cues_that_touch_in_milliseconds_touch_in_centiseconds() -> None:
    words = [TimedWord("a", 0.0, 0.105), TimedWord("b", 0.105, 0.114), TimedWord("c", 0.114, 0.118)]
    events = pysubs2.SSAFile.from_string(file("ass", *words), "ass")
    assert [(event.start, event.end) for event in events] == [(0, 110), (110, 120), (120, 130)]


def test_nothing_is_shown_after_the_audio_has_ended() -> None:
    read = json.loads(file("json", TimedWord("x", 1.2, 1.9999), duration_s=1.5))
    assert read["words"][0]["end_time"] == 1.5


@pytest.mark.parametrize("format", FORMATS)
def test_no_words_make_a_valid_empty_file(format: str) -> None:
    written = file(format, granularity="segments", karaoke=True)
    if format == "srt":
        assert written == ""
    elif format == "vtt":
        assert len(webvtt.from_string(written)) == 0
    elif format == "ass":
        assert len(pysubs2.SSAFile.from_string(written, "ass")) == 0
    elif format == "csv":
        assert list(csv.reader(io.StringIO(written))) == [["text", "start_time", "end_time", "confidence"]]
    else:
        assert json.loads(written)["words"] == json.loads(written)["segments"] == []


@pytest.mark.parametrize("format", FORMATS)
def test_line_ends_are_lf_or_crlf_throughout_and_no_byte_order_mark_is_written(format: str) -> None:
    words = spaced("\ufeffone\r\ntwo", "three.")
    assert "\r" not in file(format, *words)
    with_crlf = file(format, *words, crlf=True)
    assert with_crlf.count("\n") == with_crlf.count("\r\n") > 0
    assert "\ufeff" not in with_crlf
    assert with_crlf.replace("\r\n", "\n") == file(format, *words)


def test_a_line_break_or_a_lone_surrogate_in_a_word_cannot_break_a_cue() -> None:
    written = file("srt", TimedWord("one\n\n2\n00:00 --> x\ud800", 0.0, 1.0))
    assert written == "1\n00:00:00,000 --> 00:00:01,000\none 2 00:00 --› x\n"


@pytest.mark.parametrize(("name", "value"), [("format", "txt"), ("granularity", "letters")])
def test_an_unknown_format_or_granularity_is_refused(name: str, value: str) -> None:
    options: dict[str, Any] = {"format": "srt", "granularity": "words"} | {name: value}
    with pytest.raises(VoicepodError, match="must be one of"):
        render(timings=timings(), duration_s=1.0, job_id="j", created=CREATED, **options)


def test_segments_end_with_a_sentence_and_at_a_pause() -> None:
    words = [
        *spaced("It", "ended.", "Then", "we"),
        TimedWord("left", 2.31, 2.8),
        TimedWord("again", 2.9, 3.4),
    ]
    assert segment_texts(words) == ["It ended.", "Then we", "left again"]


def test_the_dot_of_an_abbreviation_ends_no_segment() -> None:
    words = spaced("I", "met", "J.", "R.", "Tolkien", "and", "Dr.", "Smith.", "“Why?”", "They", "left.", each_s=0.3)
    assert segment_texts(words) == ["I met J. R. Tolkien and Dr. Smith.", "“Why?”", "They left."]


def test_a_word_cannot_begin_a_cell_where_lists_are_separated_by_semicolons() -> None:
    lines = file("csv", *spaced("x;=1+2", 'a";=1', "b\t=1")).splitlines()
    assert lines[1:] == [
        '"x;=1+2","0.000","0.500",""',
        '"a"";=1","0.500","1.000",""',
        '"b =1","1.000","1.500",""',
    ]


def test_a_short_pause_does_not_end_a_segment() -> None:
    assert segment_texts([TimedWord("one", 0.0, 0.5), TimedWord("two", 0.8, 1.2)]) == ["one two"]


def test_segments_have_two_lines_of_42_letters_and_last_seven_seconds_at_most() -> None:
    words = spaced(*["word"] * 60, each_s=0.3)
    cues = segment_cues(word_times(words, 100.0), 100.0, "en")
    assert all(len(cue.lines) <= 2 and cue.end - cue.start <= MAX_SEGMENT_MS for cue in cues)
    assert all(len(" ".join(word.text for word in line)) <= LINE_WIDTH for cue in cues for line in cue.lines)
    assert [len(cue.words) for cue in cues] == [16, 16, 16, 12]  # sixteen words are 79 letters
    slow = segment_cues(word_times(spaced(*["a"] * 20, each_s=1.0), 100.0), 100.0, "en")
    assert [len(cue.words) for cue in slow] == [7, 7, 6]


def test_the_two_lines_of_a_segment_are_about_as_long_as_each_other() -> None:
    written = file("srt", *spaced(*["word"] * 9, each_s=0.2), granularity="segments")
    assert [len(line) for line in written.splitlines()[2:]] == [19, 24]


def test_a_segment_stays_long_enough_to_be_read_but_gives_way_to_the_next() -> None:
    words = [TimedWord("Yes.", 0.0, 0.2), TimedWord("No.", 0.7, 0.9), TimedWord("Extraordinarily-long-word.", 5.0, 5.2)]
    cues = segment_cues(word_times(words, 5.9), 5.9, "en")
    assert [(cue.start, cue.end) for cue in cues] == [(0, 700), (700, 1700), (5000, 5900)]
    cues = segment_cues(word_times(words, 60.0), 60.0, "en")
    assert cues[-1].end == 5000 + 1300  # 26 letters at 20 a second


def test_chinese_words_have_no_spaces_between_and_lines_half_as_long() -> None:
    words = spaced(*["今天", "天气", "OK", "很好。"], each_s=0.2)
    assert segment_texts(words) == ["今天天气OK很好。"]
    cues = segment_cues(word_times(spaced(*["今天天气"] * 12, each_s=0.2), 50.0), 50.0, "zh")
    assert [[len(line) for line in cue.lines] for cue in cues] == [[5, 5], [2]]


def segment_texts(words: list[TimedWord]) -> list[str]:
    rows = list(csv.reader(io.StringIO(file("csv", *words, granularity="segments"))))
    return [row[0] for row in rows[1:]]


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("format", ["srt", "vtt", "ass"])
def test_ffmpeg_reads_every_cue_with_its_times(format: str, tmp_path: Path) -> None:
    words = [TimedWord(text, i * 0.5, i * 0.5 + 0.25) for i, text in enumerate(HOSTILE)]
    path = tmp_path / f"words.{format}"
    path.write_text(file(format, *words, karaoke=True), encoding="utf-8")
    shown = ["ffprobe", "-v", "error", "-show_entries", "packet=pts_time,duration_time", "-of", "json", str(path)]
    packets = json.loads(subprocess.run(shown, capture_output=True, check=True).stdout)["packets"]
    times = [(float(packet["pts_time"]), float(packet["duration_time"])) for packet in packets]
    assert times == [(word.start_s, 0.25) for word in words]


def _stamp_ms(stamp: str) -> int:
    hours, minutes, seconds = stamp.split(":") if stamp.count(":") == 2 else ("0", *stamp.split(":"))
    return int(hours) * 3_600_000 + int(minutes) * 60_000 + round(float(seconds) * 1000)
