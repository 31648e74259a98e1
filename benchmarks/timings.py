"""How far the word times of the serverless worker are off, on speech whose word times are known.

    python -m benchmarks.timings                         every method of English, two voices of festival
    python -m benchmarks.timings --methods phonetic --speeds 0.8 1 1.25 --json out.json
    python -m benchmarks.timings --languages             dtw in eight languages, against espeak-ng itself: circular
    python -m benchmarks.timings --write tests/fixtures/timings    the corpus of the tests, made anew

festival writes down when it says each word, so nobody has to measure by ear. Its voices are synthetic and clean: real
recordings with noise are harder. RTF is seconds of one method over seconds of audio, the first sentence (which loads
models) left out. A speed is a change of tempo by ffmpeg, which scales the true times.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from benchmarks import espeak_speech
from benchmarks.festival_speech import SENTENCES, VOICES, KnownSpeech, speak
from pipeline.audio import AudioChunk, decode_file, file_bytes
from pipeline.errors import ConfigError
from serverless.speech import SpokenChunk
from serverless.timings import LANGUAGES, Tools, WordTimings, time_words
from serverless.timings.ctc import model_directory

FIXTURE_SENTENCES = (4, 6, 9)  # of SENTENCES; short ones
FIXTURE_GAIN = 0.15  # festival is loud, and each bit less is 2 kB a second
FIXTURE_RATE = 16_000


@dataclass(frozen=True, slots=True)
class Errors:
    """Absolute errors in milliseconds over all words of one voice at one speed; `n_failed` sentences fell back."""

    method: str
    voice: str
    speed: float
    n_words: int
    start_mean: float
    start_median: float
    start_p95: float
    end_mean: float
    end_median: float
    end_p95: float
    n_failed: int
    rtf: float


def measured(
    speeches: Sequence[KnownSpeech], method: str, tools: Tools, *, speed: float = 1.0, language: str = "en"
) -> Errors:
    """The errors of one method; a sentence that it could not do counts as failed and by what stood in for it."""
    starts: list[float] = []
    ends: list[float] = []
    n_failed, audio_s, spent_s = 0, 0.0, 0.0
    for i, speech in enumerate(speeches):
        began = time.perf_counter()
        timings = timed(speech, method, tools, language)
        if i:
            spent_s += time.perf_counter() - began
            audio_s += speech.audio.seconds
        n_failed += timings.method != method
        for word, (start_s, end_s) in zip(timings.words, speech.times, strict=True):
            starts.append(1000 * abs(word.start_s - start_s))
            ends.append(1000 * abs(word.end_s - end_s))
    voice = speeches[0].voice
    rtf = round(spent_s / max(audio_s, 1e-9), 4)
    return Errors(method, voice, speed, len(starts), *_figures(starts), *_figures(ends), n_failed, rtf)


def timed(speech: KnownSpeech, method: str, tools: Tools, language: str = "en") -> WordTimings:
    """The word times that the worker would give for this sentence as one chunk."""
    chunk = SpokenChunk(speech.text, 0.0, speech.audio.seconds)
    return time_words(speech.audio, [chunk], method=method, language=language, tools=tools, cancelled=lambda: False)


def at_speed(speech: KnownSpeech, speed: float) -> KnownSpeech:
    """The same sentence spoken faster or slower, with the pitch it had."""
    if speed == 1.0:
        return speech
    command = ["ffmpeg", "-v", "error", "-i", "-", "-af", f"atempo={speed}", "-f", "wav", "-c:a", "pcm_s16le", "-"]
    done = subprocess.run(command, input=file_bytes(speech.audio, "wav"), capture_output=True, check=True)
    audio = decode_file(done.stdout, max_seconds=600)
    ratio = audio.seconds / speech.audio.seconds
    return replace(speech, audio=audio, times=tuple((start * ratio, end * ratio) for start, end in speech.times))


def write_fixtures(folder: Path) -> None:
    """Some of the sentences as FLAC with a JSON of their times, for tests that run without festival."""
    listed: list[dict[str, Any]] = []
    for voice in VOICES:
        for i, speech in enumerate(speak([SENTENCES[n] for n in FIXTURE_SENTENCES], voice)):
            name = f"{voice}_{i}.flac"
            audio = speech.audio.resampled(FIXTURE_RATE)
            quieter = AudioChunk(audio.samples * np.float32(FIXTURE_GAIN), FIXTURE_RATE)
            (folder / name).write_bytes(file_bytes(quieter, "flac"))
            times = [[round(start, 4), round(end, 4)] for start, end in speech.times]
            listed.append({"file": name, "voice": voice, "text": speech.text, "times": times})
    (folder / "words.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def _figures(errors: Sequence[float]) -> tuple[float, float, float]:
    mean, median, p95 = np.mean(errors), np.median(errors), np.percentile(errors, 95)
    return round(float(mean), 1), round(float(median), 1), round(float(p95), 1)


def _table(rows: Sequence[Errors]) -> str:
    lines = [
        "| method | voice | speed | words | start mean / median / p95 ms | end mean / median / p95 ms | failed | RTF |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        start = f"{row.start_mean:.0f} / {row.start_median:.0f} / {row.start_p95:.0f}"
        end = f"{row.end_mean:.0f} / {row.end_median:.0f} / {row.end_p95:.0f}"
        lines.append(
            f"| {row.method} | {row.voice} | {row.speed:g} | {row.n_words} | {start} | {end} | {row.n_failed} "
            f"| {row.rtf:.3f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when festival is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["phonetic", "dtw", "estimate"])
    parser.add_argument("--voices", nargs="+", default=list(VOICES), choices=list(VOICES))
    parser.add_argument("--speeds", nargs="+", type=float, default=[1.0])
    parser.add_argument("--languages", action="store_true", help="dtw in eight languages, against espeak-ng itself")
    parser.add_argument("--ctc", type=Path, help="directory with CTC models; adds the method ctc")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--write", type=Path, help="write the corpus of the tests to this folder and stop")
    options = parser.parse_args(arguments)
    # Else there is a line for each sentence before the table.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    tools = Tools(ctc_dir=options.ctc, google=None, device=options.device, google_timeout_s=20.0)
    try:
        if options.languages:
            spoken = {language: espeak_speech.speak(language) for language in LANGUAGES}
            print(_table([measured(some, "dtw", tools, language=language) for language, some in spoken.items()]))
            return 0
        if options.write:
            write_fixtures(options.write)
            return 0
        speeches = {voice: speak(SENTENCES, voice) for voice in options.voices}
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 1
    methods = [*options.methods, *(["ctc"] if model_directory(options.ctc, "en") else [])]
    rows = [
        measured([at_speed(speech, speed) for speech in speeches[voice]], method, tools, speed=speed)
        for method in methods
        for voice in options.voices
        for speed in options.speeds
    ]
    print(_table(rows))
    if options.json:
        figures = {"machine": platform.machine(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
