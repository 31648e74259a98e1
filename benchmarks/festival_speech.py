"""Speech whose word times are known: sentences spoken by festival, which writes down when it says each word."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.audio import AudioChunk, decode_file
from pipeline.errors import ConfigError

VOICES = {"kal": "voice_kal_diphone", "slt": "voice_cmu_us_slt_arctic_hts"}
INSTALL = "apt-get install festival festvox-kallpc16k festvox-us-slt-hts"

SENTENCES = (
    "The quick brown fox jumps over the lazy dog near the bank of the river.",
    "She sells sea shells by the sea shore, and the shells she sells are surely real.",
    "When the sunlight strikes raindrops in the air, they act as a prism and form a rainbow.",
    "Please call Stella, and ask her to bring these things with her from the store.",
    "It was the best of times; it was the worst of times.",
    "In 1998, about 42 people lived in the small village on the hill.",
    "Doctor Smith's dog didn't like the mailman. What a noisy animal!",
    "I think, therefore I am. But are you sure about that?",
    "Yes.",
    "Good morning, everyone, and welcome to the show.",
    "The committee decided to postpone the meeting until next Wednesday afternoon.",
    "He paid five dollars for a cup of coffee, which seemed rather too much.",
    "All happy families are alike; each unhappy family is unhappy in its own way.",
    "Turn left at the corner, walk two blocks, and you will see a red door.",
    "Never mind. We can always try again tomorrow.",
    "The voicepod worker synthesizes wibbly sentences about Zarkon and Quixby.",
)

_PROGRAM = r"""
(define (save text base)
  (let ((u (utt.synth (eval (list 'Utterance 'Text text)))) (fd nil))
    (utt.save.wave u (string-append base ".wav") 'riff)
    (set! fd (fopen (string-append base ".txt") "w"))
    (mapcar (lambda (token)
      (mapcar (lambda (word)
        (format fd "%s\t%f\t%f\n" (item.name token) (item.feat word "word_start") (item.feat word "word_end")))
        (item.daughters token))
      (format fd "\n"))
      (utt.relation.items u 'Token))
    (fclose fd)))
"""


@dataclass(frozen=True, slots=True)
class KnownSpeech:
    """A sentence, its sound, and (start, end) in seconds of each of its words, split at white space."""

    voice: str
    text: str
    audio: AudioChunk
    times: tuple[tuple[float, float], ...]


def speak(texts: Sequence[str], voice: str) -> list[KnownSpeech]:
    """The texts by one of `VOICES`. `ConfigError` says how to install what is missing."""
    if shutil.which("festival") is None:
        raise ConfigError(f"festival is not installed: {INSTALL}")
    with tempfile.TemporaryDirectory(prefix="festival-") as folder:
        saves = [f'(save "{text}" "{folder}/{i}")' for i, text in enumerate(texts)]
        program = Path(folder) / "speak.scm"
        program.write_text("\n".join([_PROGRAM, f"({VOICES[voice]})", *saves]), encoding="ascii")
        done = subprocess.run(["festival", "--batch", str(program)], capture_output=True, timeout=300, check=False)
        if done.returncode or not Path(folder, f"{len(texts) - 1}.wav").is_file():
            raise ConfigError(f"festival could not speak with its voice {voice}: {INSTALL}")
        return [_read(Path(folder), i, text, voice) for i, text in enumerate(texts)]


def _read(folder: Path, index: int, text: str, voice: str) -> KnownSpeech:
    audio = decode_file((folder / f"{index}.wav").read_bytes(), max_seconds=120)
    times: list[tuple[float, float]] = []
    # A token is a block of lines, one for each word it is read as; punctuation has no times of its own.
    for block in re.split(r"\n{2,}", (folder / f"{index}.txt").read_text().strip()):
        words = [tuple(map(float, line.split("\t")[1:])) for line in block.splitlines() if line]
        sounding = [(start, end) for start, end in words if end > 0]
        times.append((sounding[0][0], max(end for _, end in sounding)))
    if len(times) != len(text.split()):
        raise ConfigError("festival counts other words in this sentence than we do; leave it out")
    return KnownSpeech(voice, text, audio, tuple(times))
