"""What a recording must be before it becomes a voice, and the errors that say what it is not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from pipeline.audio import AudioChunk
from pipeline.errors import InvalidInput
from pipeline.sample_quality import Verdict, judge
from pipeline.untrusted_audio import decode
from serverless.errors import FieldError, JobError
from serverless.level_vad import LevelVad
from serverless.speech import cut_reference
from serverless.voice_cache import SAMPLE_RATE, Recording
from serverless.voice_records import Quality

MAX_BYTES: Final = 25_000_000
MIN_SECONDS, MAX_SECONDS = 1.0, 30.0


async def decoded(data: bytes) -> Recording:
    """The file as mono audio at 24 kHz, 1 to 30 s, decoded in memory by the shared decoder."""
    if len(data) > MAX_BYTES:
        raise too_large()
    try:
        audio = await decode(data, max_seconds=MAX_SECONDS, sample_rate=SAMPLE_RATE, min_seconds=MIN_SECONDS)
    except InvalidInput as error:
        raise invalid_voice([(error.code, error.message)]) from None
    return Recording(in_pcm16(audio), hashlib.sha256(data).hexdigest())


def in_pcm16(audio: AudioChunk) -> AudioChunk:
    """The audio as it comes back from the cache, so that the same voice gives the same speech the first time, too."""
    return AudioChunk.from_pcm16(audio.to_pcm16(), audio.sample_rate)


def cut(audio: AudioChunk) -> AudioChunk:
    """What of a recording is transcribed: at most 12 s, to a pause."""
    return in_pcm16(cut_reference(audio))


def judged(audio: AudioChunk) -> Verdict:
    """What the recording is worth; VOICE_INVALID with all that is wrong. Computes for up to a second."""
    verdict = judge(audio, vad=LevelVad(audio), speakers=None, min_s=MIN_SECONDS, max_s=MAX_SECONDS)
    if not verdict.usable:
        raise invalid_voice([(p.code, p.message) for p in verdict.problems if p.severity == "error"])
    return verdict


def quality_of(verdict: Verdict) -> Quality:
    """The verdict as the voice's record keeps it."""
    return Quality(
        grade=verdict.grade,
        problems=[problem.code for problem in verdict.problems],
        snr_db=round(verdict.snr_db, 1),
        peak_db=round(verdict.peak_db, 1),
        speech_s=round(verdict.speech_s, 2),
    )


def invalid_voice(problems: Sequence[tuple[str, str]]) -> JobError:
    """The error for a recording with these problems, each a code and a sentence."""
    errors = [FieldError("voice", code, message) for code, message in problems]
    return JobError("VOICE_INVALID", "; ".join(message for _, message in problems), errors=errors)


def too_large() -> JobError:
    """The error for a file past the limit."""
    return invalid_voice([("too_large", f"the recording is larger than {MAX_BYTES / 1e6:g} MB")])


def exists() -> JobError:
    """The error for a name that is taken."""
    text = "there is a voice of this name: choose another, or set overwrite"
    return JobError("VOICE_EXISTS", text, errors=[FieldError("voice_name", "voice_exists", text)])
