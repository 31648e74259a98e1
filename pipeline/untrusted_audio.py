"""The one decoder for audio that comes from outside: bytes of any file in, a checked mono chunk or a typed refusal out.

    bytes -> kind by its first bytes -> ffmpeg in a child, one demuxer, few codecs -> float32 in blocks, cut at the cap
          -> as long as its header says? long enough? numbers? loud enough? not clipped? -> AudioChunk

The bytes reach the child as a file that lives in memory only. Nothing of the file's own name is used.
Refusals are `InvalidInput` with one of the codes not_audio, unsupported_format, broken, too_short, too_long, silent,
clipped, and a message that says what to do.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, Final, Literal

import numpy as np

from pipeline.audio import AudioChunk, Samples
from pipeline.audio_containers import ACCEPTED, Container, recognise, wav_seconds
from pipeline.audio_program import READ_BYTES, Slots, ffmpeg
from pipeline.errors import Busy, InvalidInput
from pipeline.mp4_order import index_first

MAX_CHILDREN: Final = 2  # each takes a core while it works; talks need the rest
CPU_S: Final = 5  # ten minutes of speech in any of the formats take under 2 s
WALL_CLOCK_S: Final = 20.0  # of waiting for a child and of its work; well past CPU_S, so only a busy machine meets it
RETRY_AFTER_S: Final = 5.0

# Decoders by ffmpeg's names. Pictures on a cover and the film of a video stay closed.
CODECS: Final = (
    "aac,alac,flac,mp3,mp3float,opus,libopus,vorbis,"
    "pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,"
    "pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be,pcm_alaw,pcm_mulaw"
)

MIN_SECONDS: Final = 0.1  # below this there is no word
PROMISE_KEPT: Final = 0.9  # of the header's duration; encoder padding and rounding take a little
PROMISE_SLACK_S: Final = 0.1
WINDOW_S: Final = 0.05
SILENCE_DB: Final = -60.0  # the loudest window of a quiet room is near this, of a whisper 20 dB above
FULL_SCALE: Final = 0.98  # resampling moves the samples of a flat top by some hundredths
MAX_FULL_SCALE_SHARE: Final = 0.15  # a sine at full scale has 0.13 and speech far less; beyond, tops were cut off

_MESSAGE_BYTES: Final = 32768  # of what ffmpeg says, more than the dump of one file's streams
_DURATION: Final = re.compile(rb"^  Duration: (\d{2,}):(\d\d):(\d\d\.\d\d)", re.MULTILINE)
_slots: Final = Slots(MAX_CHILDREN)

TooLong = Literal["refuse", "cut"]


@dataclass(slots=True)
class _Decoded:
    """What the child gave. `exit_code` is None where it was stopped because there was enough."""

    pcm: bytearray
    exit_code: int | None
    messages: bytes

    def promised_s(self, data: bytes, container: Container) -> float | None:
        """The duration that the file's header names, if any."""
        if container == "wav":
            return wav_seconds(data)
        if (found := _DURATION.search(self.messages)) is None:
            return None
        hours, minutes, seconds = found.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


async def decode(
    data: bytes,
    *,
    max_seconds: float,
    sample_rate: int = 16000,
    min_seconds: float = MIN_SECONDS,
    when_too_long: TooLong = "refuse",
) -> AudioChunk:
    """The audio of a file as a mono chunk at `sample_rate`, or `InvalidInput` with the reason.

    Decoding stops at `max_seconds`: then the file is refused (too_long), or its beginning is given with
    `when_too_long="cut"`. Waits while `MAX_CHILDREN` decode already; cancelling ends the child. `Busy` when the
    machine could not do it in time.
    """
    container = recognise(data)
    limit = round(max_seconds * sample_rate) * 4
    try:
        async with asyncio.timeout(WALL_CLOCK_S), _slots.here():
            decoded = await _decode(data, container, limit, sample_rate)
    except TimeoutError as error:
        raise Busy("the server is too busy to read this audio now", retry_after_s=RETRY_AFTER_S) from error
    if len(decoded.pcm) > limit:
        if when_too_long == "refuse":
            raise InvalidInput(f"the audio is longer than {max_seconds:g} s: send a shorter part", code="too_long")
        del decoded.pcm[limit:]
    else:
        _check_file(decoded, decoded.promised_s(data, container), sample_rate)
    return await asyncio.to_thread(_checked, decoded.pcm, sample_rate, min_seconds)


async def _decode(data: bytes, container: Container, limit: int, sample_rate: int) -> _Decoded:
    arguments = (
        *("-codec_whitelist", CODECS, "-format_whitelist", _demuxer(container), "-f", _demuxer(container)),
        *("-i", "pipe:0", "-map", "0:a:0", "-map_metadata", "-1", "-map_chapters", "-1", "-filter_threads", "1"),
        # Without rematrix_maxval the sum of two equal channels would leave full scale.
        *("-af", f"aresample=osr={sample_rate}:ochl=mono:osf=flt:rematrix_maxval=1.0", "-f", "f32le", "pipe:1"),
    )
    async with (
        _memory_file(data, container) as file,
        ffmpeg(*arguments, cpu_s=CPU_S, stdin=file, stderr=asyncio.subprocess.PIPE) as child,
        asyncio.TaskGroup() as readers,
    ):
        assert child.stdout is not None
        assert child.stderr is not None
        messages = readers.create_task(_first_bytes(child.stderr, _MESSAGE_BYTES))
        pcm = bytearray()
        while block := await child.stdout.read(READ_BYTES):
            pcm += block
            if len(pcm) > limit:
                messages.cancel()
                return _Decoded(pcm, None, b"")
        return _Decoded(pcm, await child.wait(), await messages)


def _demuxer(container: Container) -> str:
    """The name as ffmpeg's lists have it."""
    return {"matroska": "matroska,webm", "mov": "mov,mp4,m4a,3gp,3g2,mj2"}.get(container, container)


@asynccontextmanager
async def _memory_file(data: bytes, container: Container) -> AsyncIterator[IO[bytes]]:
    """The bytes as a file without a name, at its start. A child can read at once what a pipe would give in pieces."""
    with os.fdopen(os.memfd_create("audio", os.MFD_CLOEXEC), "r+b", buffering=0) as file:
        for piece in index_first(data) if container == "mov" else [memoryview(data)]:
            for start in range(0, len(piece), 2**22):
                file.write(piece[start : start + 2**22])
                await asyncio.sleep(0)  # 50 MB at once would hold up everybody's audio
        file.seek(0)
        yield file


async def _first_bytes(stream: asyncio.StreamReader, limit: int) -> bytes:
    """Reads to the end, so that the writer never blocks, and keeps the beginning."""
    kept = b""
    while block := await stream.read(READ_BYTES):
        kept += block[: max(limit - len(kept), 0)]
    return kept


def _check_file(decoded: _Decoded, promised_s: float | None, sample_rate: int) -> None:
    if not decoded.pcm:
        if b"matches no streams" in decoded.messages:
            raise InvalidInput(f"there is no sound in this file; send {ACCEPTED}", code="not_audio")
        if b"Decoder (codec" in decoded.messages or b"not on whitelist" in decoded.messages:
            raise InvalidInput(f"this kind of sound is not supported; send {ACCEPTED}", code="unsupported_format")
        raise InvalidInput("the file cannot be decoded: it is damaged or incomplete", code="broken")
    if decoded.exit_code != 0:
        raise InvalidInput("the file cannot be decoded to its end: it is damaged", code="broken")
    seconds = len(decoded.pcm) / 4 / sample_rate
    if promised_s is not None and seconds < promised_s * PROMISE_KEPT - PROMISE_SLACK_S:
        raise InvalidInput(
            f"the file is incomplete: it promises {promised_s:.1f} s and holds {seconds:.1f} s", code="broken"
        )


def _checked(pcm: bytearray, sample_rate: int, min_seconds: float) -> AudioChunk:
    samples: Samples = np.frombuffer(pcm, "<f4", len(pcm) // 4)
    seconds = samples.size / sample_rate
    if seconds < min_seconds:
        raise InvalidInput(f"the audio lasts {seconds:.2f} s; at least {min_seconds:g} s are needed", code="too_short")
    if not np.isfinite(samples).all():
        raise InvalidInput("the audio holds values that are not numbers", code="broken")
    if _loudest_db(samples, round(WINDOW_S * sample_rate)) < SILENCE_DB:
        raise InvalidInput("the audio is silent: check the microphone and record again", code="silent")
    if np.count_nonzero(np.abs(samples) >= FULL_SCALE) > MAX_FULL_SCALE_SHARE * samples.size:
        raise InvalidInput("the audio is clipped: record again with a lower input level", code="clipped")
    return AudioChunk(np.clip(samples, -1.0, 1.0), sample_rate)


def _loudest_db(samples: Samples, n_window: int) -> float:
    """The level of the loudest window without its mean (a constant is silence), in dB below full scale."""
    whole = samples[: samples.size // n_window * n_window].reshape(-1, n_window)
    return float(20 * np.log10(np.max(np.std(whole, axis=1, dtype=np.float64), initial=1e-9)))
