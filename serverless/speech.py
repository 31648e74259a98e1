"""Text to speech of any length: chunks one after the other, joined without clicks, the same again for the same seed.

The seed of a chunk follows from the job's seed and the chunk's number, and one run of the model happens at a time, so
the same text, reference, speed, steps and seed give the same samples, bit for bit, on the same kind of device. The one
exception: after running out of memory the text is cut smaller (`Speech.n_oom_retries`), and that is another reading.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Final, Protocol

import numpy as np

from pipeline.audio import AudioChunk, Samples
from pipeline.engines import f5_reference
from pipeline.engines.f5_text import SAMPLE_RATE, byte_rate, max_text_bytes
from pipeline.errors import EngineFailed, InvalidInput, OutOfMemory
from pipeline.text_chunks import chunks_of, is_speakable
from serverless.audio_files import EncodedAudio, OutputFormat, check_output, encode
from serverless.clean_text import clean, plain
from serverless.errors import JobError

__all__ = [
    "ChunkEngine",
    "EncodedAudio",
    "OutputFormat",
    "Reference",
    "Speech",
    "SpokenChunk",
    "check_output",
    "cut_reference",
    "default_reference",
    "encode",
    "prepare_reference",
    "synthesize",
]

CROSS_FADE_S: Final = 0.15  # upstream's
PARAGRAPH_PAUSE_S: Final = 0.35
EDGE_FADE_S: Final = 0.005  # at the ends and beside pauses; long enough not to click
PEAK: Final = 0.98
MAX_SEED: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Reference:
    """A prepared reference voice. `audio`: mono float32 at 24 kHz, at most 12 s, in which `text` is said.

    The same `key` means the same audio and text.
    """

    key: str
    audio: AudioChunk
    text: str


@dataclass(frozen=True, slots=True)
class SpokenChunk:
    """One stretch of text and where it sounds in the final audio. Chunks do not overlap: a cross-fade is halved."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Speech:
    """Mono float32 at 24 kHz within ±0.98, and what led to it."""

    audio: AudioChunk
    chunks: tuple[SpokenChunk, ...]
    seed: int
    n_oom_retries: int = 0


class ChunkEngine(Protocol):
    """A voice that speaks one stretch of text, as `pipeline.engines.f5_model.F5Model` does."""

    def speak_chunk(
        self,
        reference: AudioChunk,
        reference_text: str,
        text: str,
        *,
        seed: int,
        speed: float,
        nfe_step: int,
        cfg_strength: float,
        cancelled: Callable[[], bool],
    ) -> Samples:
        """`text` in the voice of `reference`: float32 (n_samples,) at 24 kHz. `OutOfMemory`, `EngineFailed`."""
        ...


def prepare_reference(audio: AudioChunk, text: str) -> Reference:
    """A recording of at most 12 s, cut in a pause together with its text where it is longer. VOICE_INVALID says why."""
    try:
        return _reference(*f5_reference.prepare(audio, plain(text).replace("\n", " ")))
    except InvalidInput as error:
        raise JobError("VOICE_INVALID", error.message) from error


def cut_reference(audio: AudioChunk) -> AudioChunk:
    """The same for a recording that is yet to be transcribed; `prepare_reference` takes what comes of it."""
    try:
        return f5_reference.cut(audio)
    except InvalidInput as error:
        raise JobError("VOICE_INVALID", error.message) from error


@cache
def default_reference() -> Reference:
    """The voice of a job that names none: the English reference of the package f5-tts."""
    return _reference(*f5_reference.default_recording())


def _reference(audio: AudioChunk, text: str) -> Reference:
    digest = hashlib.sha256(audio.samples.tobytes())
    digest.update(text.encode())
    return Reference(digest.hexdigest()[:32], audio, text)


def synthesize(
    engine: ChunkEngine,
    reference: Reference,
    text: str,
    *,
    speed: float = 1.0,
    seed: int | None = None,
    nfe_step: int = 32,
    cfg_strength: float = 2.0,
    cancelled: Callable[[], bool],
    progress: Callable[[int, int, float], None],
) -> Speech:
    """All of `text` as one audio. `seed` None draws one. `progress(chunks_done, n_chunks, seconds_so_far)`.

    `cancelled` is asked between chunks and between steps of the model; what it raises comes out, and true is
    `JobError` CANCELLED. INVALID_INPUT when there is nothing to speak. Out of memory, everything is done once more in
    chunks of half the length; then OUT_OF_MEMORY.
    """
    text = clean(text)
    seed = secrets.randbelow(MAX_SEED + 1) if seed is None else seed
    max_bytes = max_text_bytes(reference.audio.seconds, byte_rate(reference.audio.seconds, reference.text), speed)

    def speak(stretch: str, index: int) -> Samples:
        _stop_if(cancelled)
        try:
            samples = engine.speak_chunk(
                reference.audio,
                reference.text,
                stretch.strip(),
                seed=chunk_seed(seed, index),
                speed=speed,
                nfe_step=nfe_step,
                cfg_strength=cfg_strength,
                cancelled=cancelled,
            )
        except (JobError, OutOfMemory):
            raise
        except Exception:
            _stop_if(cancelled)  # which is why it ended
            raise
        if not samples.size or not np.isfinite(samples).all():
            raise EngineFailed("the voice gave something that is not audio", stage="tts")
        return samples.astype(np.float32, copy=False)

    for n_retries in (0, 1):
        stretches = [stretch for stretch in chunks_of(text, max_bytes >> n_retries) if is_speakable(stretch)]
        spoken: list[Samples] = []
        n_samples = 0
        try:
            for index, stretch in enumerate(stretches):
                spoken.append(speak(stretch, index))
                n_samples += spoken[-1].size
                progress(len(spoken), len(stretches), n_samples / SAMPLE_RATE)
        except OutOfMemory as error:
            if n_retries:
                raise JobError("OUT_OF_MEMORY", "the voice ran out of memory, with smaller chunks as well") from error
            continue
        _stop_if(cancelled)
        audio, spans = joined(spoken, [stretch.endswith("\n") for stretch in stretches])
        chunks = (SpokenChunk(s.strip(), start, end) for s, (start, end) in zip(stretches, spans, strict=True))
        return Speech(audio, tuple(chunks), seed, n_retries)
    raise AssertionError("the loop above returns or raises")


def chunk_seed(seed: int, index: int) -> int:
    """The seed of a chunk, below 2**63: neighbouring jobs and chunks have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "big") >> 1


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise JobError("CANCELLED", "the job was cancelled")


def joined(spoken: Sequence[Samples], ends_paragraph: Sequence[bool]) -> tuple[AudioChunk, list[tuple[float, float]]]:
    """Chunks as one audio, and the seconds `[start, end)` of each.

    Neighbours are cross-faded by 0.15 s, or half of the shorter one; after a paragraph there is a pause of 0.35 s.
    The spans meet in the middle of a fade and leave pauses out. Louder than ±0.98 lowers all of it.
    """
    pause = round(PARAGRAPH_PAUSE_S * SAMPLE_RATE)
    starts = [0]
    for (before, after), is_paragraph in zip(pairwise(spoken), ends_paragraph, strict=False):
        overlap = min(round(CROSS_FADE_S * SAMPLE_RATE), before.size // 2, after.size // 2)
        starts.append(starts[-1] + before.size + (pause if is_paragraph else -overlap))
    out = np.zeros(starts[-1] + spoken[-1].size, np.float32)
    spans = []
    for index, (samples, start) in enumerate(zip(spoken, starts, strict=True)):
        end = start + samples.size
        overlap_before = max(starts[index - 1] + spoken[index - 1].size - start, 0) if index else 0
        overlap_after = max(end - starts[index + 1], 0) if index + 1 < len(spoken) else 0
        out[start:end] += samples * _envelope(samples.size, overlap_before, overlap_after)
        spans.append(((start + overlap_before // 2), (end - (overlap_after - overlap_after // 2))))
    peak = float(np.abs(out).max(initial=0.0))
    if peak > PEAK:
        out *= np.float32(PEAK / peak)
    return AudioChunk(out, SAMPLE_RATE), [(start / SAMPLE_RATE, end / SAMPLE_RATE) for start, end in spans]


def _envelope(n_samples: int, fade_in: int, fade_out: int) -> Samples:
    """1, with linear ramps at both ends; two that overlap sum to 1."""
    envelope = np.ones(n_samples, np.float32)
    edge = min(round(EDGE_FADE_S * SAMPLE_RATE), n_samples // 2)
    for n_ramp, part in ((fade_in or edge, envelope), (fade_out or edge, envelope[::-1])):
        part[:n_ramp] *= (np.arange(n_ramp, dtype=np.float32) + 0.5) / max(n_ramp, 1)
    return envelope
