"""scripts/burn_subs.sh: the picture changes while a subtitle is shown, and only then."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serverless.subtitles import render
from serverless.timings import TimedWord, WordTimings

SCRIPT = Path(__file__).parents[2] / "scripts" / "burn_subs.sh"
WIDTH, HEIGHT, RATE = 320, 180, 10

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One black second with a tone, under a name that is a filter graph, an option and a quotation all at once."""
    folder = tmp_path_factory.mktemp("odd ' [0:v], ; %d")
    path = folder / "-i it's:a\\clip,[v].mkv"
    picture = ["-f", "lavfi", "-i", f"color=black:s={WIDTH}x{HEIGHT}:d=1:r={RATE}"]
    sound = ["-f", "lavfi", "-i", "sine=d=1"]
    subprocess.run(["ffmpeg", "-v", "error", *picture, *sound, "-c:v", "ffv1", f"file:{path}"], check=True)
    return path


@pytest.mark.parametrize("format", ["srt", "vtt", "ass"])
def test_the_picture_changes_while_the_word_is_shown_and_only_then(format: str, video: Path) -> None:
    timings = WordTimings((TimedWord("Hello", 0.25, 0.65),), "phonetic", (), 1.0, False, "en")
    made = render(format, timings, duration_s=1.0, job_id="j", karaoke=format == "ass", created=datetime.now(UTC))
    subtitles = video.parent / f"-x '\\:{format}{made.suffix}"
    subtitles.write_bytes(made.data)
    output = video.parent / f"-out:[{format}].mkv"
    command = [str(SCRIPT), video.name, subtitles.name, output.name]
    subprocess.run(command, cwd=video.parent, check=True, timeout=60)
    lit = brightness(output) > brightness(video) + 0.05
    assert [bool(frame) for frame in lit] == [False] * 3 + [True] * 4 + [False] * 3


@pytest.mark.parametrize("format", ["srt", "vtt", "ass"])
def test_a_backslash_in_a_word_breaks_no_line(format: str, video: Path, tmp_path: Path) -> None:
    heights = []
    for word in ("C:xNew", "C:\\New"):
        timings = WordTimings((TimedWord(word, 0.0, 1.0),), "phonetic", (), 1.0, False, "en")
        made = render(format, timings, duration_s=1.0, job_id="j", created=datetime.now(UTC))
        subtitles, output = tmp_path / f"words{made.suffix}", tmp_path / f"out{format}.mkv"
        subtitles.write_bytes(made.data)
        subprocess.run([str(SCRIPT), str(video), str(subtitles), str(output)], check=True, timeout=60)
        lit = np.flatnonzero((pixels(output)[5] > 100).any(axis=1))
        heights.append(int(lit[-1] - lit[0]))
    assert heights[1] < 1.5 * heights[0]


def test_what_is_missing_or_unknown_is_said_and_nothing_is_written(video: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    text = tmp_path / "words.txt"
    text.write_text("hello")
    for arguments, words in (
        ([str(video), "no-such.srt", str(output)], "no such file: no-such.srt"),
        ([str(video), str(text), str(output)], "must end in"),
        ([str(video)], "VIDEO SUBTITLES OUTPUT"),
    ):
        done = subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode != 0
        assert words in done.stderr
    assert not output.exists()


def brightness(path: Path) -> NDArray[np.float64]:
    """Mean of each frame, 0 to 255."""
    return np.asarray(pixels(path).mean(axis=(1, 2)), np.float64)


def pixels(path: Path) -> NDArray[np.uint8]:
    """Grey values, uint8 (n_frames, HEIGHT, WIDTH)."""
    command = ["ffmpeg", "-v", "error", "-i", f"file:{path}", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH)
