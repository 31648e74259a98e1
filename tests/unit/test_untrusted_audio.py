from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import audio_program, mp4_order, untrusted_audio
from pipeline.audio import AudioChunk
from pipeline.audio_containers import recognise, wav_seconds
from pipeline.errors import Busy, ConfigError, InvalidInput
from pipeline.mp4_order import index_first
from pipeline.untrusted_audio import decode
from tests.support.audio_bombs import flac_bomb, opus_bomb
from tests.support.audio_children import audio_children, one_at_work
from tests.support.audio_corpus import HZ, file_of, loudest_hz, phone_memo, tone, with_box

REASONS = {"not_audio", "unsupported_format", "broken", "too_short", "too_long", "silent", "clipped"}
GOOD = [file_of(tone(), container=kind) for kind in ("WAV", "FLAC", "OGG", "MP3")]


async def outcome(data: bytes) -> AudioChunk | InvalidInput:
    try:
        return await decode(data, max_seconds=30)
    except InvalidInput as error:
        return error


async def code_of(data: bytes, **options: Any) -> str:
    with pytest.raises(InvalidInput) as refused:
        await decode(data, **{"max_seconds": 30.0} | options)
    return refused.value.code


@pytest.mark.parametrize("sample_rate", [8000, 16000, 24000])
async def test_a_file_comes_out_at_the_rate_that_is_asked_for(sample_rate: int) -> None:
    chunk = await decode(file_of(tone(1.0, 44100), 44100), max_seconds=2, sample_rate=sample_rate)
    assert chunk.sample_rate == sample_rate
    assert chunk.seconds == pytest.approx(1.0, abs=0.01)
    assert loudest_hz(chunk.samples, sample_rate) == pytest.approx(HZ, abs=2)


async def test_the_mean_of_two_equal_channels_is_as_loud_as_one() -> None:
    chunk = await decode(file_of(tone(channels=2, level=0.9)), max_seconds=2)
    assert np.max(np.abs(chunk.samples)) == pytest.approx(0.9, abs=0.01)


async def test_what_is_too_long_is_refused_or_cut_as_the_caller_says() -> None:
    file = file_of(tone(3.0))
    assert await code_of(file, max_seconds=2) == "too_long"
    chunk = await decode(file, max_seconds=2, when_too_long="cut")
    assert chunk.seconds == 2.0


async def test_exactly_as_long_as_allowed_is_not_too_long() -> None:
    assert (await decode(file_of(tone(2.0)), max_seconds=2)).seconds == 2.0


async def test_the_caller_may_ask_for_more_than_a_word() -> None:
    assert await code_of(file_of(tone(1.0)), min_seconds=3) == "too_short"


async def test_a_refusal_says_what_to_do_and_nothing_of_the_inside() -> None:
    with pytest.raises(InvalidInput) as refused:
        await decode(b"#!AMR\n", max_seconds=2)
    assert str(refused.value) == "AMR files are not supported; send WAV, MP3, FLAC, OGG, WebM, M4A or AAC"


async def test_the_child_can_do_little() -> None:
    decoding = asyncio.create_task(decode(flac_bomb(), max_seconds=500))
    child = await one_at_work()
    limits = {
        resource.RLIMIT_CPU: untrusted_audio.CPU_S,
        resource.RLIMIT_AS: audio_program.MAX_ADDRESS_SPACE_BYTES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: audio_program.MAX_OPEN_FILES,
    }
    assert {name: resource.prlimit(child.pid, name) for name in limits} == {
        name: (limit, limit) for name, limit in limits.items()
    }
    assert child.environ() == {}
    assert os.getsid(child.pid) == child.pid
    assert {os.readlink(f"/proc/{child.pid}/fd/{fd}").split(":")[0] for fd in range(3)} == {
        "/memfd",
        "pipe",
    }
    while sorted(os.listdir(f"/proc/{child.pid}/fd")) != ["0", "1", "2"]:  # a library may just be loading
        await asyncio.sleep(0.005)
    arguments = child.cmdline()
    assert arguments[arguments.index("-protocol_whitelist") + 1] == "pipe"
    assert arguments[arguments.index("-format_whitelist") + 1] == "flac"
    decoding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await decoding
    assert audio_children() == []


@pytest.mark.timeout(30)
async def test_a_cancelled_decode_ends_its_child() -> None:
    decoding = asyncio.create_task(decode(flac_bomb(), max_seconds=500))
    child = await one_at_work()
    while child.cpu_times().user < 0.3:  # well past its start: this is decoding
        await asyncio.sleep(0.005)
    child.suspend()  # by itself it would never end
    decoding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await decoding
    assert not child.is_running()


async def test_a_file_that_takes_too_much_processor_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted_audio, "CPU_S", 1)
    assert await code_of(flac_bomb(), max_seconds=500) == "broken"
    assert audio_children() == []


async def test_a_machine_that_is_too_busy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted_audio, "WALL_CLOCK_S", 0.3)
    with pytest.raises(Busy):
        await decode(flac_bomb(), max_seconds=500)
    assert audio_children() == []


async def test_a_machine_without_the_program_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    audio_program.require_programs()
    audio_program._found.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="apt-get install ffmpeg"):
        audio_program.require_programs()
    with pytest.raises(ConfigError, match="ffmpeg"):
        await decode(GOOD[0], max_seconds=2)


async def test_no_more_children_work_at_once_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work = [0]
    real = audio_program.ffmpeg

    @asynccontextmanager
    async def counted(*arguments: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
        at_work.append(at_work[-1] + 1)
        async with real(*arguments, **options) as child:
            yield child
        at_work.append(at_work[-1] - 1)

    monkeypatch.setattr(untrusted_audio, "ffmpeg", counted)
    chunks = await asyncio.gather(*(decode(GOOD[0], max_seconds=2) for _ in range(5)))
    assert len(chunks) == 5
    assert max(at_work) == untrusted_audio.MAX_CHILDREN


async def test_a_cancelled_wait_leaves_its_place_to_others() -> None:
    long = [asyncio.create_task(decode(flac_bomb(), max_seconds=500)) for _ in range(3)]
    await one_at_work()
    for task in long:
        task.cancel()
    await asyncio.wait(long)
    assert (await decode(GOOD[0], max_seconds=2)).seconds == 1.0
    assert audio_children() == []


async def test_bombs_cost_what_is_kept_of_them() -> None:
    assert await code_of(flac_bomb(), max_seconds=1) == "too_long"
    assert await code_of(opus_bomb(), max_seconds=1) == "too_long"


# --- the kind of a file


@given(st.binary(max_size=200), st.sampled_from([b"", b"ID3", b"RIFF\0\0\0\0WAVE", b"\xff\xfb", b"\xff\xf1", b"fLaC"]))
def test_any_bytes_are_a_kind_of_file_or_refused(data: bytes, start: bytes) -> None:
    try:
        kind: str = recognise(start + data)
    except InvalidInput as error:
        kind = error.code
    assert kind in ("wav", "mp3", "flac", "ogg", "matroska", "mov", "aac", "not_audio", "unsupported_format")
    wav_seconds(start + data)


def test_a_wav_header_tells_its_duration_unless_it_is_a_streams() -> None:
    wav = file_of(tone(1.5))
    assert wav_seconds(wav) == 1.5
    at = wav.index(b"data") + 4
    assert wav_seconds(wav[:at] + b"\xff" * 4 + wav[at + 4 :]) is None


# --- MP4 with its index at the end


def test_a_phones_memo_gets_its_index_in_front_and_keeps_every_byte() -> None:
    memo = phone_memo()
    ordered = b"".join(index_first(memo))
    assert ordered.index(b"moov") < ordered.index(b"mdat") < len(ordered) == len(memo)
    assert b"".join(index_first(ordered)) == ordered


def test_an_index_larger_than_any_real_one_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mp4_order, "MAX_INDEX_BYTES", 100)
    assert len(index_first(phone_memo())) == 1


async def test_places_of_64_bits_move_along_too() -> None:
    wide = with_box(
        phone_memo(), b"stco", lambda body: body[:8] + np.frombuffer(body[8:], ">u4").astype(">u8").tobytes()
    )
    chunk = await decode(wide.replace(b"stco", b"co64"), max_seconds=30)
    assert chunk.seconds == pytest.approx(5.0, abs=0.05)
    assert loudest_hz(chunk.samples, 16000) == pytest.approx(HZ, abs=2)


BOXES = st.recursive(
    st.binary(max_size=12),
    lambda inner: st.lists(
        st.tuples(
            st.sampled_from([b"ftyp", b"mdat", b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stco", b"co64", b"free"]),
            st.sampled_from([-9, -1, 0, 0, 0, 0, 8, 2**31]),
            inner,
        ),
        max_size=4,
    ).map(
        lambda boxes: b"".join(
            ((len(body) + 8 + lie) % 2**32).to_bytes(4, "big") + kind + body for kind, lie, body in boxes
        )
    ),
    max_leaves=12,
)


@given(BOXES)
def test_boxes_of_any_shape_are_put_in_order_or_left_alone(data: bytes) -> None:
    assert len(b"".join(index_first(data))) == len(data)


# --- damaged files


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.one_of(st.integers(0, 120), st.integers(0, len(data) - 1)))
        change = draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
        if change == "set":
            data[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
        elif change == "cut":
            del data[at : at + draw(st.integers(1, 400))]
        elif change == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=40))
        else:
            data[at:at] = data[at : at + 200] * 3
        data = data or bytearray(b"\0")
    return bytes(data)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(files=st.lists(damaged(), min_size=3, max_size=3))
def test_a_damaged_file_gives_audio_or_a_reason(files: list[bytes]) -> None:
    async def decode_all() -> list[AudioChunk | InvalidInput]:
        return await asyncio.gather(*(outcome(file) for file in files))

    for result in asyncio.run(decode_all()):
        if isinstance(result, InvalidInput):
            assert result.code in REASONS
        else:
            assert np.isfinite(result.samples).all()
            assert np.max(np.abs(result.samples)) <= 1.0
            assert result.seconds <= 30
    assert audio_children() == []
