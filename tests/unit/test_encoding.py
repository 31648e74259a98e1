from __future__ import annotations

import asyncio
import io
import subprocess
import wave
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline import encoding
from pipeline.audio import AudioChunk
from pipeline.audio_program import Slots
from pipeline.encoding import AI_LABEL, CONTENT_TYPES, FORMATS, SAMPLE_RATES, encode
from pipeline.errors import Busy, EngineFailed, InvalidInput, StorageError
from pipeline.untrusted_audio import decode
from tests.support.audio_children import audio_children, one_at_work
from tests.support.audio_corpus import HZ, loudest_hz, tone

ENCODED = ("mp3", "opus", "flac", "aac")
PADDING_S = 0.2  # what an MP3 or AAC encoder puts around the speech at 8 kHz, in frames of 128 ms


def spoken(seconds: float = 1.0, rate: int = 24000, start_s: float = 0.0) -> AudioChunk:
    return AudioChunk(tone(start_s + seconds, rate)[round(start_s * rate) :, 0], rate)


async def speech(seconds: float = 1.0, *, chunk_s: float = 0.25) -> AsyncGenerator[AudioChunk, None]:
    whole = spoken(seconds)
    for start in range(0, whole.n_samples, round(chunk_s * 24000)):
        yield whole.slice(start, start + round(chunk_s * 24000))


async def all_of(stream: AsyncGenerator[bytes, None]) -> bytes:
    async with aclosing(stream):
        return b"".join([block async for block in stream])


async def heard(data: bytes, format: str, sample_rate: int) -> AudioChunk:
    if format == "pcm":
        return AudioChunk.from_pcm16(data, sample_rate)
    return await decode(data, max_seconds=60, sample_rate=sample_rate)


@pytest.mark.parametrize("sample_rate", [8000, 22050, 48000])
@pytest.mark.parametrize("format", FORMATS)
async def test_what_was_encoded_is_heard_again(format: str, sample_rate: int) -> None:
    chunk = await heard(await all_of(encode(speech(), format, sample_rate)), format, sample_rate)
    padding_s = PADDING_S if format in ("mp3", "aac") else 0.0
    assert 0.995 <= chunk.seconds <= 1.005 + padding_s
    assert loudest_hz(chunk.samples, sample_rate) == pytest.approx(HZ, abs=3)
    middle = chunk.slice(sample_rate // 2, sample_rate * 3 // 4).samples
    assert np.max(np.abs(middle)) == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("format", FORMATS)
async def test_the_first_audio_leaves_before_there_is_a_second_chunk(format: str) -> None:
    more = asyncio.Event()

    async def slow() -> AsyncGenerator[AudioChunk, None]:
        yield spoken(1.0)
        await more.wait()
        yield spoken(1.0, start_s=1.0)

    first = b""
    async with aclosing(encode(slow(), format, 24000)) as stream:
        async for block in stream:
            first += block
            if len(first) > 1500:  # beyond any header, and less than a second of speech in any format
                break
    assert not more.is_set()
    beginning = await heard(first[: len(first) // 2 * 2], format, 24000)
    assert loudest_hz(beginning.samples, 24000) == pytest.approx(HZ, abs=30)
    assert audio_children() == []


@pytest.mark.parametrize("format", ["wav", "mp3", "opus", "flac"])
async def test_the_file_says_that_an_ai_speaks(format: str, tmp_path: Path) -> None:
    data = await all_of(encode(speech(0.3), format, 24000))
    assert AI_LABEL.encode() in data[:4096]
    (tmp_path / "speech").write_bytes(data)
    show = f"ffprobe -v error -show_entries format_tags:stream_tags -of json {tmp_path / 'speech'}"
    told = await asyncio.to_thread(subprocess.check_output, show.split())
    assert f'"comment": "{AI_LABEL}"' in told.decode()


async def test_libraries_read_the_label_of_a_wav_stream_and_all_of_the_speech() -> None:
    data = await all_of(encode(speech(), "wav", 24000))
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert file.comment == AI_LABEL
        assert len(file.read()) == 24000
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        assert len(file.readframes(10**6)) == 48000


async def test_a_wav_stream_is_read_to_its_end_by_others() -> None:
    data = await all_of(encode(speech(), "wav", 24000))
    samples, rate = soundfile.read(io.BytesIO(data))
    assert (len(samples), rate) == (24000, 24000)
    assert data[4:8] == b"\xff" * 4


@pytest.mark.parametrize("format", FORMATS)
async def test_no_speech_is_a_file_without_speech(format: str) -> None:
    async def silent() -> AsyncGenerator[AudioChunk, None]:
        return
        yield

    data = await all_of(encode(silent(), format, 24000))
    assert len(data) < 1000
    assert audio_children() == []


def test_every_format_has_a_content_type() -> None:
    assert tuple(CONTENT_TYPES) == FORMATS


@pytest.mark.parametrize(("format", "sample_rate"), [("wma", 24000), ("../wav", 24000), ("mp3", 0), ("wav", 96000)])
async def test_what_cannot_be_encoded_is_refused_before_the_first_byte(format: str, sample_rate: int) -> None:
    chunks = speech()
    with pytest.raises(InvalidInput):
        encode(chunks, format, sample_rate)
    await chunks.aclose()


@pytest.mark.parametrize("format", ENCODED)
async def test_every_rate_there_is_works(format: str) -> None:
    for sample_rate in SAMPLE_RATES[1:4:2]:
        assert len(await all_of(encode(speech(0.2), format, sample_rate))) > 200


async def test_a_long_answer_does_not_block_on_full_pipes() -> None:
    data = await all_of(encode(speech(60, chunk_s=60), "flac", 48000))
    assert len(data) > 10 * 65536


@pytest.mark.parametrize("format", FORMATS)
async def test_closing_early_ends_the_child_and_the_source(format: str) -> None:
    is_closed = False

    async def endless() -> AsyncGenerator[AudioChunk, None]:
        nonlocal is_closed
        try:
            while True:
                yield spoken(0.5)
                await asyncio.sleep(0)
        finally:
            is_closed = True

    async with aclosing(encode(endless(), format, 24000)) as stream:
        assert await anext(stream)
    assert is_closed
    assert audio_children() == []


@pytest.mark.timeout(30)
async def test_cancelling_the_reader_ends_the_child() -> None:
    never = asyncio.Event()

    async def stuck() -> AsyncGenerator[AudioChunk, None]:
        yield spoken(0.1)
        await never.wait()

    reading = asyncio.create_task(all_of(encode(stuck(), "mp3", 24000)))
    child = await one_at_work()
    while child.cpu_times().user < 0.02:  # past its start
        await asyncio.sleep(0.005)
    child.suspend()  # by itself it would never end
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert audio_children() == []


@pytest.mark.parametrize("format", FORMATS)
async def test_an_error_of_the_source_comes_out_behind_the_bytes_before_it(format: str) -> None:
    async def failing() -> AsyncGenerator[AudioChunk, None]:
        yield spoken(0.5)
        raise StorageError("the voice cannot be read")

    received = bytearray()

    async def read() -> None:
        async with aclosing(encode(failing(), format, 24000)) as stream:
            async for block in stream:
                received.extend(block)

    with pytest.raises(StorageError):
        await read()
    assert len(received) > 500
    assert audio_children() == []


async def test_an_encoder_that_dies_is_a_typed_error_even_while_the_source_waits() -> None:
    never = asyncio.Event()

    async def stuck() -> AsyncGenerator[AudioChunk, None]:
        yield spoken(0.5)
        await never.wait()

    reading = asyncio.create_task(all_of(encode(stuck(), "opus", 24000)))
    (await one_at_work()).kill()
    with pytest.raises(EngineFailed):
        await reading
    assert audio_children() == []


@pytest.mark.parametrize("seconds", [0.5, 30.0], ids=["at its end", "while it is fed"])
async def test_an_encoder_that_hangs_is_ended(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request would wait for it for ever, and hold its place among those that may use the voice."""
    monkeypatch.setattr(encoding, "HANGS_S", 0.1)

    async def halting() -> AsyncGenerator[AudioChunk, None]:
        (await one_at_work()).suspend()
        yield spoken(seconds)

    async with asyncio.timeout(20):
        with pytest.raises(EngineFailed):
            await all_of(encode(halting(), "mp3", 24000))
    assert audio_children() == []


async def test_too_many_encoders_at_once_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_slots", Slots(1))
    async with aclosing(encode(speech(), "mp3", 24000)) as first:
        assert await anext(first)
        with pytest.raises(Busy):
            await all_of(encode(speech(), "mp3", 24000))
    assert await all_of(encode(speech(0.1), "mp3", 24000))
