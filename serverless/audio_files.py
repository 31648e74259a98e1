"""A finished speech as a file in memory, with a header that tells its true length."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Literal

import soundfile

from pipeline import encoding
from pipeline.audio import AudioChunk
from pipeline.errors import VoicepodError
from serverless.errors import JobError, invalid

OutputFormat = Literal["wav", "flac", "mp3", "opus"]

FORMATS: Final = ("wav", "flac", "mp3", "opus")
MIN_RATE, MAX_RATE = 8_000, 48_000


@dataclass(frozen=True, slots=True)
class EncodedAudio:
    """The bytes of a file; `suffix` has its dot."""

    data: bytes
    content_type: str
    suffix: str


def check_output(output_format: str, sample_rate: int) -> None:
    """`JobError` INVALID_INPUT for a format or a rate that `encode` does not write."""
    if output_format not in FORMATS:
        raise invalid("output_format", f"must be one of {', '.join(FORMATS)}")
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise invalid("sample_rate", f"must be from {MIN_RATE} to {MAX_RATE}")
    if output_format == "mp3" and sample_rate not in encoding.SAMPLE_RATES:
        raise invalid("sample_rate", f"for mp3 must be one of {', '.join(map(str, encoding.SAMPLE_RATES))}")


def encode(audio: AudioChunk, output_format: OutputFormat, sample_rate: int) -> EncodedAudio:
    """`audio` as a mono file that says it is AI-generated: wav and flac of 16 bits, mp3 of 64 kbit/s, opus of 32.

    Opus is 48 kHz inside whatever the rate, as its format asks. Call it in a thread without an event loop: mp3 and opus
    are made by ffmpeg. `JobError` INVALID_INPUT as in `check_output`, INTERNAL when the encoder fails.
    """
    check_output(output_format, sample_rate)
    if output_format == "opus":
        sample_rate = 48_000
    resampled = audio.resampled(sample_rate)
    if output_format in ("wav", "flac"):
        data = _written(resampled, output_format)
    else:
        try:
            data = asyncio.run(_encoded(resampled, output_format))
        except VoicepodError as error:
            raise JobError("INTERNAL", "the audio could not be encoded") from error
    return EncodedAudio(data, encoding.CONTENT_TYPES[output_format], f".{output_format}")


def _written(audio: AudioChunk, container: str) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", samplerate=audio.sample_rate, channels=1, format=container.upper(), subtype="PCM_16"
    ) as file:
        file.comment = encoding.AI_LABEL
        file.write(audio.samples)
    return buffer.getvalue()


async def _encoded(audio: AudioChunk, output_format: str) -> bytes:
    async def whole() -> AsyncIterator[AudioChunk]:
        yield audio

    async with aclosing(encoding.encode(whole(), output_format, audio.sample_rate)) as stream:
        return b"".join([block async for block in stream])
