"""Audio files, good and hostile, made on the spot; and a process that decodes them all and says what it cost.

`python -m tests.support.audio_corpus FOLDER` decodes every file of FOLDER with the product's decoder, two at a time,
and prints one JSON object. A process of its own, so that its memory and its children's are this work's alone.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import soundfile

from pipeline.audio import Samples
from pipeline.errors import VoicepodError
from pipeline.untrusted_audio import decode
from tests.support.audio_bombs import flac_bomb, opus_bomb

HZ = 440.0
VICTIM_HZ = 3000.0
MAX_SECONDS = 30.0


@dataclass(frozen=True)
class Good:
    """A file to be accepted: its sound is a tone of `HZ` that lasts so long."""

    data: bytes
    seconds: float = 1.0


@dataclass(frozen=True)
class Bad:
    """A file to be refused with one of these codes."""

    data: bytes
    codes: frozenset[str] = field(default=frozenset({"not_audio"}))


Case = Good | Bad


def bad(data: bytes, *codes: str) -> Bad:
    return Bad(data, frozenset(codes or {"not_audio"}))


def tone(seconds: float = 1.0, rate: int = 16000, channels: int = 1, *, hz: float = HZ, level: float = 0.3) -> Samples:
    wave = level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def file_of(samples: Samples, rate: int = 16000, container: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


@cache
def ffmpeg_made(*arguments: str, suffix: str, wav: bytes | None = None) -> bytes:
    """What the ffmpeg program makes of a tone; into a file, so that formats which go back at the end can."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "tone.wav"), Path(folder, f"out.{suffix}")
        source.write_bytes(wav if wav is not None else file_of(tone(1.0, 48000), 48000))
        command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(source), *arguments, str(out)]
        subprocess.run(command, check=True, timeout=60)
        return out.read_bytes()


def wav_header(
    *, tag: int = 1, channels: int = 1, rate: int = 16000, bits: int = 16, data_bytes: int, align: int | None = None
) -> bytes:
    align = channels * bits // 8 if align is None else align
    shape = struct.pack("<HHIIHH", tag, channels % 65536, rate, (rate * align) % 2**32, align % 65536, bits)
    return (
        struct.pack("<4sI4s", b"RIFF", (36 + data_bytes) % 2**32, b"WAVE")
        + struct.pack("<4sI", b"fmt ", 16)
        + shape
        + struct.pack("<4sI", b"data", data_bytes % 2**32)
    )


def pcm16(samples: Samples) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def box(kind: bytes, *bodies: bytes) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">I4s", len(body) + 8, kind) + body


MP4_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl")


def with_box(data: bytes, kind: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """An MP4 file with the body of each box of a kind changed; the sizes around it follow."""
    out, position = b"", 0
    while position + 8 <= len(data):
        size, found = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + size]
        if found == kind:
            body = change(body)
        elif found in MP4_PARENTS:
            body = with_box(body, kind, change)
        out += box(found, body)
        position += size
    return out


def alias_record(path: str) -> bytes:
    """A QuickTime data reference by path: the form that ffmpeg's mov demuxer follows when asked to."""
    name, where = Path(path).name.encode(), b"v:" + path.strip("/").replace("/", ":").encode()
    where += b"\0" * (len(where) % 2)
    record = b"\0" * 10 + b"\x01" + b"v".ljust(27, b"\0") + b"\0" * 12 + bytes([len(name)]) + name.ljust(63, b"\0")
    record += b"\0" * 16 + struct.pack(">HH", 0, 0) + b"\0" * 16  # no steps up and down: by absolute path
    return record + struct.pack(">HH", 2, len(where)) + where + struct.pack(">HH", 0xFFFF, 0)


def elsewhere(m4a: bytes, kind: bytes, record: bytes) -> bytes:
    """The file with its samples declared to lie in another file."""
    return with_box(m4a, b"dref", lambda _: struct.pack(">II", 0, 1) + box(kind, b"\0" * 4, record))


def thief(victim: Path) -> bytes:
    """A QuickTime file that declares a WAV file's samples its own."""
    own = ("-c:a", "pcm_s16le", "-ar", "16000", "-movflags", "+faststart", "-chunk_duration", "60000000")
    index = with_box(ffmpeg_made(*own, suffix="mov"), b"stco", lambda body: body[:8] + struct.pack(">I", 44))
    return elsewhere(index, b"alis", alias_record(str(victim)))


def phone_memo(seconds: float = 5.0) -> bytes:
    """M4A as phones write it: AAC, the index at the end, larger than any read buffer."""
    wav = file_of(tone(seconds, 44100), 44100)
    memo = ffmpeg_made("-c:a", "aac", "-b:a", "192k", "-f", "ipod", suffix="m4a", wav=wav)
    assert memo.index(b"moov") > 65536
    return memo


def png() -> bytes:
    return base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )


def good_files() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"):
        cases[f"wav_{subtype.lower()}"] = Good(file_of(tone(), subtype=subtype))
    for rate in (8000, 11025, 22050, 44100, 48000, 96000, 192000):
        cases[f"wav_{rate}"] = Good(file_of(tone(1.0, rate), rate))
    cases["wav_stereo"] = Good(file_of(tone(1.0, 44100, 2), 44100))
    cases["wav_5_1"] = Good(file_of(tone(1.0, 48000, 6), 48000, "WAVEX"))
    body = pcm16(tone())
    cases["wav_stream_header"] = Good(wav_header(data_bytes=0xFFFFFFFF) + body)
    cases["wav_rf64"] = Good(file_of(tone(), container="RF64"))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a", "b")
    cases["wav_and_zip_at_once"] = Good(wav_header(data_bytes=len(body)) + body + archive.getvalue())
    cases["flac"] = Good(file_of(tone(), container="FLAC"))
    cases["flac_24"] = Good(file_of(tone(), container="FLAC", subtype="PCM_24"))
    cases["ogg_vorbis"] = Good(file_of(tone(1.0, 44100), 44100, "OGG", "VORBIS"))
    cases["ogg_opus"] = Good(file_of(tone(1.0, 48000), 48000, "OGG", "OPUS"))
    cases["mp3"] = Good(file_of(tone(1.0, 44100), 44100, "MP3"))
    cases["mp3_behind_a_tag_of_256_mb"] = Good(b"ID3\4\0\0\x7f\x7f\x7f\x7f" + file_of(tone(), container="MP3"))
    cases["mp3_stereo_tagged"] = Good(
        ffmpeg_made("-c:a", "libmp3lame", "-ac", "2", "-metadata", "title=Duration: 99:00:00.00", suffix="mp3")
    )
    cases["webm_opus_of_a_browser"] = Good(
        ffmpeg_made("-c:a", "libopus", "-b:a", "64k", "-live", "1", "-f", "webm", suffix="webm")
    )
    cases["m4a_phone"] = Good(phone_memo(), 5.0)
    cases["m4a_index_first"] = Good(ffmpeg_made("-c:a", "aac", "-movflags", "+faststart", suffix="m4a"))
    cases["m4a_fragments"] = Good(
        ffmpeg_made("-c:a", "aac", "-movflags", "frag_keyframe+empty_moov+default_base_moof", suffix="mp4")
    )
    cases["m4a_alac"] = Good(ffmpeg_made("-c:a", "alac", suffix="m4a"))
    cases["aac_adts"] = Good(ffmpeg_made("-c:a", "aac", "-f", "adts", suffix="aac"))
    with tempfile.TemporaryDirectory() as folder:
        cover = Path(folder, "cover.png")
        cover.write_bytes(png())
        picture = ("-i", str(cover), "-map", "0:a", "-map", "1:v", "-c:v", "copy", "-disposition:v", "attached_pic")
        cases["mp3_with_cover"] = Good(ffmpeg_made(*picture, "-c:a", "libmp3lame", suffix="mp3"))
        cases["m4a_with_cover"] = Good(ffmpeg_made(*picture, "-c:a", "aac", suffix="m4a"))
    film = ("-f", "lavfi", "-i", "color=size=32x32:rate=5:duration=1", "-map", "0:a", "-map", "1:v")
    cases["webm_film_with_sound"] = Good(ffmpeg_made(*film, "-c:v", "libvpx", "-c:a", "libopus", suffix="webm"))
    cases["mp4_film_with_sound"] = Good(ffmpeg_made(*film, "-c:v", "libx264", "-c:a", "aac", suffix="mp4"))
    return cases


def refused_sounds() -> dict[str, Case]:
    nan, inf, huge = tone(), tone(), tone()
    nan[8000] = np.nan
    inf[8000:8100] = np.inf
    huge[::2] = 1e30
    noise = np.random.default_rng(1).normal(0, 1e-4, (16000, 1)).astype(np.float32)
    return {
        "nan": bad(file_of(nan, subtype="FLOAT"), "broken"),
        "infinite": bad(file_of(inf, subtype="FLOAT"), "broken"),
        "huge_numbers": bad(file_of(huge, subtype="FLOAT"), "clipped", "broken"),
        "silence": bad(file_of(np.zeros((16000, 1), np.float32)), "silent"),
        "constant": bad(file_of(np.full((16000, 1), 0.5, np.float32)), "silent"),
        "noise_of_a_closed_microphone": bad(file_of(noise), "silent"),
        "clipped": bad(file_of(np.clip(tone(level=5.0), -1, 1)), "clipped"),
        "clipped_48k": bad(file_of(np.clip(tone(1.0, 48000, level=5.0), -1, 1), 48000), "clipped"),
        "too_short": bad(file_of(tone(0.05)), "too_short"),
        "too_long": bad(file_of(tone(31.0, 8000), 8000), "too_long"),
        "flac_bomb": bad(flac_bomb(), "too_long"),
        "opus_bomb": bad(opus_bomb(), "too_long"),
        "adpcm": bad(file_of(tone(), subtype="MS_ADPCM"), "unsupported_format"),
        "gsm": bad(wav_header(tag=49, align=65, bits=0, data_bytes=650) + b"\0" * 650, "unsupported_format", "broken"),
        "aiff": bad(file_of(tone(), container="AIFF"), "unsupported_format"),
        "caf": bad(file_of(tone(), container="CAF"), "unsupported_format"),
        "au": bad(file_of(tone(), container="AU"), "unsupported_format"),
        "big_endian_wav": bad(b"RIFX" + file_of(tone())[4:], "unsupported_format"),
        "amr": bad(b"#!AMR\n" + b"\x3c" * 320, "unsupported_format"),
        "wma": bad(bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + b"\0" * 64, "unsupported_format"),
        "midi": bad(b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0", "unsupported_format"),
        "film_without_sound": bad(
            ffmpeg_made("-f", "lavfi", "-i", "color=size=32x32:duration=1", "-map", "1", suffix="webm")
        ),
    }


def broken_files() -> dict[str, Case]:
    wav, body = file_of(tone()), pcm16(tone())
    flac, ogg = file_of(tone(), container="FLAC"), file_of(tone(), container="OGG")
    m4a = ffmpeg_made("-c:a", "aac", "-movflags", "+faststart", suffix="m4a", wav=file_of(tone(5.0)))
    webm = ffmpeg_made("-c:a", "libopus", suffix="webm")
    rubbish = np.random.default_rng(2).bytes(4000)
    return {
        "nothing": bad(b""),
        "one_byte": bad(b"R"),
        "zeros": bad(b"\0" * 1_000_000),
        "rubbish": bad(b"\1" + rubbish),
        "wav_start_only": bad(wav[:12], "broken"),
        "wav_header_cut": bad(wav[:30], "broken"),
        "wav_header_only": bad(wav[:44], "broken"),
        "wav_half": bad(wav[: len(wav) // 2], "broken"),
        "wav_ten_hours_promised": bad(wav_header(data_bytes=36000 * 32000) + body[:3200], "broken"),
        "wav_rate_0": bad(wav_header(rate=0, data_bytes=len(body)) + body, "broken"),
        "wav_rate_4_billion": bad(wav_header(rate=2**32 - 1, data_bytes=len(body)) + body, "broken", "too_short"),
        "wav_channels_0": bad(wav_header(channels=0, data_bytes=len(body)) + body, "broken"),
        "wav_channels_6000": bad(wav_header(channels=6000, data_bytes=len(body)) + body, "broken"),
        "wav_bits_0": bad(wav_header(bits=0, data_bytes=len(body)) + body, "broken", "unsupported_format"),
        "wav_bits_65535": bad(wav_header(bits=65535, data_bytes=len(body)) + body, "broken", "unsupported_format"),
        "wav_align_0": bad(wav_header(align=0, data_bytes=0) + b"", "broken"),
        "wav_of_empty_chunks": bad(b"RIFF\xff\xff\xff\xffWAVE" + b"junk\0\0\0\0" * 500_000, "broken"),
        "wav_then_html": bad(b"RIFF\0\0\0\0WAVE<html><script>alert(1)</script>", "broken"),
        "wav_rubbish": bad(b"RIFF\xff\xff\xff\xffWAVE" + rubbish, "broken"),
        "flac_start_only": bad(flac[:4], "broken"),
        "flac_half": bad(flac[: len(flac) // 2], "broken"),
        "flac_rubbish": bad(flac[:42] + rubbish, "broken"),
        "mp3_rubbish": bad(b"ID3\4\0\0\0\0\0\0" + rubbish, "broken", "too_short"),
        "id3_a_million_times": bad(b"ID3\4\0\0\0\0\0\0" * 1_000_000, "broken"),
        "ogg_start_only": bad(ogg[:28], "broken"),
        "ogg_rubbish": bad(b"OggS" + rubbish, "broken"),
        "matroska_start_only": bad(webm[:40], "broken"),
        "matroska_rubbish": bad(webm[:4] + rubbish, "broken"),
        "mp4_half": bad(m4a[: len(m4a) // 2], "broken"),
        "mp4_index_only": bad(m4a[: m4a.index(b"mdat") - 4], "broken"),
        "mp4_samples_only": bad(box(b"ftyp", b"M4A \0\0\0\0") + box(b"mdat", b"\0" * 100_000), "broken"),
        "mp4_of_empty_boxes": bad(box(b"mdat") + box(b"free") * 100_000 + box(b"moov"), "broken", "not_audio"),
        "mp4_of_nested_boxes": bad(box(b"mdat") + nested(400), "broken", "not_audio"),
        "mp4_size_of_16_exabytes": bad(struct.pack(">I4sQ", 1, b"moov", 2**64 - 1) + rubbish, "broken"),
        "mp4_table_of_4_billion": bad(
            with_box(m4a, b"stsz", lambda _: struct.pack(">III", 0, 0, 2**32 - 1)), "broken", "too_short"
        ),
        "mp4_places_beyond_the_end": bad(
            with_box(m4a, b"stco", lambda body: body[:8] + b"\x7f" * (len(body) - 8)), "broken"
        ),
        "aac_rubbish": bad(b"\xff\xf1" + rubbish, "broken", "clipped", "too_short"),
    }


def nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = box(b"moov", inner)
    return inner


def thieves(victim: Path, canary: str) -> dict[str, Case]:
    """Files that name other files or addresses. `canary` is the http:// address of a server that counts visits."""
    memo = phone_memo()
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"><Period>'
        '<AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1">'
        "<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    texts = {
        "ffconcat_file": f"ffconcat version 1.0\nfile {victim}\n",
        "ffconcat_relative": f"ffconcat version 1.0\nfile {victim.name}\n",
        "ffconcat_http": f"ffconcat version 1.0\nfile {canary}/a.wav\n",
        "hls_file": hls.format(victim),
        "hls_http": hls.format(f"{canary}/a.ts"),
        "hls_concat": hls.format(f"concat:{canary}/a.m3u8|file://{victim}"),
        "dash_http": dash.format(f"{canary}/a.m4a"),
        "dash_file": dash.format(victim),
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "subfile": f"subfile,,start,0,end,0,,:{victim}",
        "data_address": "data:audio/wav;base64,UklGRiQAAABXQVZF",
        "pls": f"[playlist]\nNumberOfEntries=1\nFile1={canary}/a.mp3\n",
        "m3u": f"{canary}/a.mp3\n{victim}\n",
        "path": str(victim),
        "smil": f'<smil><body><audio src="{canary}/a.wav"/></body></smil>',
        "redirect_page": f'<html><meta http-equiv="refresh" content="0;url={canary}"></html>',
    }
    cases: dict[str, Case] = {name: bad(text.encode()) for name, text in texts.items()}
    reference = box(b"rmra", box(b"rmda", box(b"rdrf", b"\0\0\0\0url ", struct.pack(">I", 40), canary.encode())))
    wave = wav_header(data_bytes=100)
    return (
        cases
        | {
            "mov_samples_in_a_file": bad(thief(victim), "broken"),
            "mov_samples_at_an_address": Good(
                elsewhere(memo, b"url ", canary.encode() + b"\0"), 5.0
            ),  # it plays its own
            "mov_that_refers_on": bad(box(b"ftyp", b"qt  \0\0\0\0") + box(b"moov", reference), "broken", "not_audio"),
            "id3_then_ffconcat": bad(b"ID3\4\0\0\0\0\0\0" + texts["ffconcat_file"].encode(), "broken"),
            "wav_then_ffconcat": bad(wave[:12] + texts["ffconcat_file"].encode(), "broken"),
            "wav_then_hls": bad(wave[:12] + texts["hls_http"].encode(), "broken"),
        }
    )


def not_audio() -> dict[str, Case]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.wav", file_of(tone()))
    return {
        "png": bad(png()),
        "jpeg": bad(bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffd9")),
        "gif": bad(b"GIF89a\1\0\1\0\0\0\0;"),
        "pdf": bad(b"%PDF-1.7\n%%EOF"),
        "zip": bad(archive.getvalue()),
        "gzipped_wav": bad(gzip.compress(file_of(tone()))),
        "program": bad(b"\x7fELF\2\1\1" + b"\0" * 57),
        "html": bad(b"<!doctype html><title>a</title>"),
        "json": bad(b'{"audio": "UklGRg=="}'),
        "text_utf16": bad("voice".encode("utf-16")),
        "avi": bad(b"RIFF\x10\0\0\0AVI LIST\4\0\0\0hdrl"),
    }


def corpus(victim: Path, canary: str) -> dict[str, Case]:
    return good_files() | refused_sounds() | broken_files() | thieves(victim, canary) | not_audio()


def loudest_hz(samples: Samples, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(samples.size)))
    return float(np.argmax(spectrum) * rate / samples.size)


def peak_bytes() -> int:
    """This process's peak; `ru_maxrss` would also count the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def _decoded(read: Callable[[], bytes], turn: asyncio.Semaphore) -> dict[str, object]:
    async with turn:
        data, begin = read(), time.perf_counter()
        try:
            chunk = await decode(data, max_seconds=MAX_SECONDS)
        except VoicepodError as error:
            result: dict[str, object] = {"error": type(error).__name__, "code": error.code, "message": error.message}
        except Exception as error:
            result = {"error": type(error).__name__, "code": "", "message": repr(error)}
        else:
            result = {"seconds": chunk.seconds, "hz": loudest_hz(chunk.samples, chunk.sample_rate)}
        return result | {"wall_s": time.perf_counter() - begin}


async def _decode_all(paths: list[Path]) -> dict[str, object]:
    process, turn = psutil.Process(), asyncio.Semaphore(2)
    await decode(file_of(tone()), max_seconds=1)  # what the first call loads is no growth
    before, files_before = process.memory_info().rss, process.num_fds()
    results = await asyncio.gather(*(_decoded(path.read_bytes, turn) for path in paths))
    return {
        "results": {path.name: result for path, result in zip(paths, results, strict=True)},
        "growth_bytes": peak_bytes() - before,
        "child_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "children_left": len(process.children(recursive=True)),
        "files_left": process.num_fds() - files_before,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_decode_all(sorted(Path(sys.argv[1]).iterdir())))))
