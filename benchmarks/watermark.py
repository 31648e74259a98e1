"""How well the watermark is found again, what it costs, and how often speech without one is taken for marked.

    python -m benchmarks.watermark [DIRECTORY of speech, 24 kHz for a voice of ours]

Every clip is marked as a stream in chunks of 80 ms, then both it and the unmarked one go through each change.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.audio import AudioChunk, Samples, decode_file, file_bytes
from pipeline.watermark import THRESHOLD, Watermarker
from settings_sources import load_settings

CLIPS = Path(__file__).parents[1] / "tests/fixtures/speech"
CHUNK_S = 0.08
MIN_S = 1.0
Change = Callable[[AudioChunk], AudioChunk]


def through(codec: str, container: str) -> Change:
    """What is left after an encoder and its decoder."""

    def coded(audio: AudioChunk) -> AudioChunk:
        common = ("ffmpeg", "-nostdin", "-loglevel", "error", "-i", "pipe:0")
        there = (*common, *codec.split(), "-f", container, "pipe:1")
        packed = subprocess.run(there, input=file_bytes(audio, "wav"), capture_output=True, check=True).stdout
        back = (*common, "-ar", str(audio.sample_rate), "-f", "s16le", "pipe:1")
        pcm = subprocess.run(back, input=packed, capture_output=True, check=True).stdout
        return AudioChunk.from_pcm16(pcm, audio.sample_rate)

    return coded


def scaled(gain_db: float) -> Change:
    """Louder or quieter, clipped at full scale."""
    return lambda audio: AudioChunk(np.clip(audio.samples * np.float32(10 ** (gain_db / 20)), -1, 1), audio.sample_rate)


def with_noise(snr_db: float) -> Change:
    """White noise below the speech."""

    def noisy(audio: AudioChunk) -> AudioChunk:
        level = float(np.sqrt(np.mean(audio.samples**2))) * 10 ** (-snr_db / 20)
        noise = np.random.default_rng(7).standard_normal(audio.n_samples).astype(np.float32)
        return AudioChunk(np.clip(audio.samples + level * noise, -1, 1), audio.sample_rate)

    return noisy


def cut_out(seconds: float) -> Change:
    """So many seconds from the middle."""

    def cut(audio: AudioChunk) -> AudioChunk:
        start = max(0, audio.n_samples // 2 - round(seconds * audio.sample_rate / 2))
        return audio.slice(start, start + round(seconds * audio.sample_rate))

    return cut


def faster(factor: float) -> Change:
    """Played at another speed, pitch and all."""
    return lambda audio: AudioChunk(audio.resampled(round(audio.sample_rate / factor)).samples, audio.sample_rate)


CHANGES: dict[str, Change] = {
    "none": lambda audio: audio,
    "opus 24 kbit/s": through("-c:a libopus -b:a 24k", "ogg"),
    "opus 12 kbit/s": through("-c:a libopus -b:a 12k", "ogg"),
    "mp3 64 kbit/s": through("-c:a libmp3lame -b:a 64k", "mp3"),
    "8 kHz": lambda audio: audio.resampled(8000),
    "G.711 at 8 kHz": through("-ar 8000 -c:a pcm_mulaw", "wav"),
    "12 dB quieter": scaled(-12),
    "6 dB louder": scaled(6),
    "noise at 30 dB": with_noise(30),
    "noise at 20 dB": with_noise(20),
    "noise at 10 dB": with_noise(10),
    "3 s from the middle": cut_out(3),
    "1 s from the middle": cut_out(1),
    "5 % faster": faster(1.05),
    "20 % faster": faster(1.2),
    "high-pass 300 Hz": through("-af highpass=f=300", "wav"),
    "high-pass 2 kHz": through("-af highpass=f=2000:p=2,highpass=f=2000:p=2", "wav"),
}


def marked(watermarker: Watermarker, audio: AudioChunk) -> AudioChunk:
    """As a talk marks a piece."""
    stream, step = watermarker.stream(audio.sample_rate), round(audio.sample_rate * CHUNK_S)
    parts = [stream.add(audio.samples[start : start + step]) for start in range(0, audio.n_samples, step)]
    return AudioChunk(np.concatenate([*parts, stream.flush()]), audio.sample_rate)


def snr_db(clean: Samples, changed: Samples) -> float:
    """Power of the signal over that of the difference."""
    return float(10 * np.log10(np.sum(clean**2) / np.sum((changed - clean) ** 2)))


def measure(clips: Sequence[AudioChunk], watermarker: Watermarker) -> None:
    """Mark, change, listen, print."""
    seconds = sum(clip.seconds for clip in clips)
    started_s = time.process_time()
    pairs = [(clip, marked(watermarker, clip)) for clip in clips]
    mark_s = time.process_time() - started_s
    ratios = [snr_db(clip.samples, with_mark.samples) for clip, with_mark in pairs]
    print(f"{len(clips)} clips, {seconds:.0f} s; marking RTF {mark_s / seconds:.3f}")
    print(f"speech over mark: {min(ratios):.1f} / {np.median(ratios):.1f} / {max(ratios):.1f} dB (min, median, max)")
    print("| change | marked: found | lowest | median | unmarked: found | highest |\n|---|---|---|---|---|---|")
    for name, change in CHANGES.items():
        without = [watermarker.detect(change(clip)) for clip, _ in pairs]
        found = [watermarker.detect(change(with_mark)) for _, with_mark in pairs]
        n_found, n_wrong = (sum(value >= THRESHOLD for value in values) for values in (found, without))
        print(
            f"| {name} | {n_found} of {len(found)} | {min(found):.2f} | {np.median(found):.2f} "
            f"| {n_wrong} of {len(without)} | {max(without):.2f} |",
            flush=True,
        )
    started_s = time.process_time()
    for _, with_mark in pairs:
        watermarker.detect(with_mark)
    print(f"detecting RTF {(time.process_time() - started_s) / seconds:.3f}")


if __name__ == "__main__":
    directories = [CLIPS, *map(Path, sys.argv[1:])]
    files = [
        path for directory in directories for path in sorted(directory.iterdir()) if path.suffix in (".wav", ".flac")
    ]
    speech = [decode_file(path.read_bytes(), max_seconds=120) for path in files]
    measure(
        [clip for clip in speech if clip.seconds >= MIN_S],
        Watermarker.installed(load_settings(None, os.environ).settings.models.dir),
    )
