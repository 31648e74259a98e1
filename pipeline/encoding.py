"""Speech as a stream of file bytes in six formats; the first bytes leave with the first audio.

wav and pcm are written here, the others by ffmpeg in a child. Every format with a place for it says that the speech is
AI-generated: wav in LIST/INFO, mp3 in ID3, opus and flac in their comments. pcm has no such place, nor has an AAC
stream (ADTS).

A wav stream cannot know its length, so both sizes in its header are 0xFFFFFFFF, which players read as "to the end".
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from types import MappingProxyType
from typing import Final, cast

from pipeline.audio import AudioChunk, Resampler
from pipeline.audio_program import READ_BYTES, Slots, ffmpeg
from pipeline.errors import Busy, EngineFailed, InvalidInput

FORMATS: Final = ("wav", "pcm", "mp3", "opus", "flac", "aac")
CONTENT_TYPES: Final = MappingProxyType(
    {
        "wav": "audio/wav",
        "pcm": "audio/pcm",
        "mp3": "audio/mpeg",
        "opus": "audio/ogg",
        "flac": "audio/flac",
        "aac": "audio/aac",
    }
)
SAMPLE_RATES: Final = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # what MP3 and AAC both have

AI_LABEL: Final = "AI-generated speech by Voicepod"
MAX_CHILDREN: Final = 32  # each takes 60 MB; beyond, a request is told to come back
RETRY_AFTER_S: Final = 5.0
CPU_S: Final = 120  # an hour of speech in the dearest format
HANGS_S: Final = 120.0  # without taking or giving anything; who does not read what it gives is dropped sooner
OPEN_SIZE: Final = 0xFFFFFFFF

# One frame a packet and one packet a write, so that nothing waits for a page or a block to fill: Ogg pages of 20 ms,
# MP3 without a bit reservoir, FLAC blocks of 1152 samples and not of 4096.
_ENCODERS: Final = MappingProxyType(
    {
        "mp3": "-c:a libmp3lame -b:a 64k -reservoir 0 -write_xing 0 -f mp3",
        "opus": "-c:a libopus -b:a 32k -application voip -frame_duration 20 -ar 48000 -page_duration 20000 -f ogg",
        "flac": "-c:a flac -sample_fmt s16 -frame_size 1152 -metadata_header_padding 0 -f flac",
        "aac": "-c:a aac -b:a 64k -f adts",
    }
)


def encode(chunks: AsyncIterator[AudioChunk], format: str, sample_rate: int) -> AsyncGenerator[bytes, None]:
    """`chunks` of any one rate as a file of `format` at `sample_rate` (opus: always 48 kHz inside), piece by piece.

    The caller closes the stream with `contextlib.aclosing`; closing it early ends the encoder and closes `chunks`.
    An unknown format or rate is `InvalidInput` at once; an error of `chunks` comes out after the bytes before it;
    `EngineFailed` when the encoder dies and `Busy` when too many are at work.
    """
    if format not in FORMATS:
        raise InvalidInput(f"unknown format; there are {', '.join(FORMATS)}", code="unsupported_format")
    if sample_rate not in SAMPLE_RATES:
        raise InvalidInput(
            f"unknown sample rate; there are {', '.join(map(str, SAMPLE_RATES))}", code="unsupported_sample_rate"
        )
    pcm = _pcm16(chunks, sample_rate)
    if format == "pcm":
        return pcm
    return _wav(pcm, sample_rate) if format == "wav" else _encoded(pcm, format, sample_rate)


async def _pcm16(chunks: AsyncIterator[AudioChunk], sample_rate: int) -> AsyncGenerator[bytes, None]:
    resampler: Resampler | None = None
    async with aclosing(cast(AsyncGenerator[AudioChunk, None], chunks)) as incoming:
        async for chunk in incoming:
            resampler = resampler or Resampler(chunk.sample_rate, sample_rate)
            if pcm := resampler.feed(chunk).to_pcm16():
                yield pcm
    if resampler is not None:
        tail = resampler.feed(AudioChunk.silence(0, resampler.from_rate), last=True)
        if tail.n_samples:
            yield tail.to_pcm16()


def wav_start(sample_rate: int) -> bytes:
    """The header of a mono 16-bit WAV stream of unknown length, with the label."""
    label = AI_LABEL.encode() + b"\0" * (2 - len(AI_LABEL) % 2)
    info = b"INFO" + struct.pack("<4sI", b"ICMT", len(label)) + label
    shape = struct.pack("<HHIIHH", 1, 1, sample_rate, sample_rate * 2, 2, 16)
    return b"".join(
        (
            struct.pack("<4sI4s", b"RIFF", OPEN_SIZE, b"WAVE"),
            struct.pack("<4sI", b"fmt ", len(shape)) + shape,
            struct.pack("<4sI", b"LIST", len(info)) + info,
            struct.pack("<4sI", b"data", OPEN_SIZE),
        )
    )


async def _wav(pcm: AsyncGenerator[bytes, None], sample_rate: int) -> AsyncGenerator[bytes, None]:
    start = wav_start(sample_rate)
    async with aclosing(pcm):
        async for block in pcm:
            yield start + block
            start = b""
    if start:
        yield start


_slots: Final = Slots(MAX_CHILDREN)


async def _encoded(pcm: AsyncGenerator[bytes, None], format: str, sample_rate: int) -> AsyncGenerator[bytes, None]:
    arguments = (
        *("-loglevel", "quiet", "-probesize", "32", "-analyzeduration", "0"),
        *("-f", "s16le", "-ar", str(sample_rate), "-ac", "1", "-i", "pipe:0"),
        *("-metadata", f"comment={AI_LABEL}", "-flush_packets", "1", *_ENCODERS[format].split(), "pipe:1"),
    )
    async with aclosing(pcm):
        if (slots := _slots.here()).locked():
            raise Busy("too many answers are being encoded", retry_after_s=RETRY_AFTER_S)
        async with (
            slots,
            ffmpeg(*arguments, cpu_s=CPU_S, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL) as child,
        ):
            assert child.stdout is not None
            feeder = asyncio.create_task(_feed(child, pcm))
            try:
                while block := await child.stdout.read(READ_BYTES):
                    yield block
                if await child.wait():
                    raise EngineFailed("the encoder stopped before the end", stage="tts")
                await feeder
            finally:
                feeder.cancel()
                await asyncio.wait([feeder])


async def _feed(child: asyncio.subprocess.Process, pcm: AsyncGenerator[bytes, None]) -> None:
    """Writes while the other side is read: with one of them alone both pipes would fill and stop."""
    assert child.stdin is not None
    try:
        async for block in pcm:
            child.stdin.write(block)
            await _unless_it_hangs(child, child.stdin.drain())
    except (BrokenPipeError, ConnectionResetError):
        return  # the child died: its exit code tells
    finally:
        child.stdin.close()
    await _unless_it_hangs(child, child.wait())


async def _unless_it_hangs(child: asyncio.subprocess.Process, work: Awaitable[object]) -> None:
    try:
        async with asyncio.timeout(HANGS_S):
            await work
    except TimeoutError:
        child.kill()
