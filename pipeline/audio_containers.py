"""Which kind of file some bytes are, by how they begin; a name or a MIME label says nothing.

The kind decides which single demuxer the decoder may use, so nothing is left to guessing on hostile input.
"""

from __future__ import annotations

import struct
from typing import Final, Literal

from pipeline.errors import InvalidInput

Container = Literal["wav", "mp3", "flac", "ogg", "matroska", "mov", "aac"]  # by the names of ffmpeg's demuxers

ACCEPTED: Final = "WAV, MP3, FLAC, OGG, WebM, M4A or AAC"

_STARTS: Final[tuple[tuple[bytes, Container], ...]] = (
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"\x1a\x45\xdf\xa3", "matroska"),
)
_MOV_BOXES: Final = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_RIFF_KINDS: Final = (b"RIFF", b"RF64", b"BW64")

# Audio that a person may well send and that the demuxer list leaves out.
_OTHER_AUDIO: Final[tuple[tuple[bytes, str], ...]] = (
    (b"FORM", "AIFF"),
    (b"caff", "CAF"),
    (b"#!AMR", "AMR"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (b".snd", "AU"),
    (b"MThd", "MIDI"),
    (b"MAC ", "Monkey's Audio"),
    (b"wvpk", "WavPack"),
    (b"RIFX", "big-endian WAV"),
)

_ID3_HEADER_BYTES: Final = 10
_MAX_ID3_TAGS: Final = 4
_MAX_WAV_CHUNKS: Final = 1000  # a real file has a handful; a hostile one is millions of empty chunks


def recognise(data: bytes) -> Container:
    """The file's kind; `InvalidInput` (not_audio or unsupported_format) when it is none of those accepted."""
    if not data:
        raise InvalidInput(f"the file is empty; send {ACCEPTED}", code="not_audio")
    if data[:4] in _RIFF_KINDS and data[8:12] == b"WAVE":
        return "wav"
    if data[4:8] in _MOV_BOXES:
        return "mov"
    for start, container in _STARTS:
        if data.startswith(start):
            return container
    if (mpeg := _mpeg_kind(data)) is not None:
        return mpeg
    for start, name in _OTHER_AUDIO:
        if data.startswith(start):
            raise InvalidInput(f"{name} files are not supported; send {ACCEPTED}", code="unsupported_format")
    raise InvalidInput(f"this is not an audio file; send {ACCEPTED}", code="not_audio")


def _mpeg_kind(data: bytes) -> Container | None:
    """MP3, ADTS AAC, or FLAC behind an ID3 tag: the formats that may begin with a tag or with a bare frame."""
    start = _after_id3(data)
    if data.startswith(b"fLaC", start):
        return "flac"
    sync = data[start : start + 2]
    if len(sync) == 2 and sync[0] == 0xFF and sync[1] & 0xE0 == 0xE0:
        layer = sync[1] & 0b110  # 01 is layer III; 00, reserved there, is ADTS (ISO/IEC 13818-7, 6.2.1)
        return "mp3" if layer == 0b010 else "aac" if layer == 0 and sync[1] & 0xF0 == 0xF0 else None
    return "mp3" if start else None  # an ID3 tag, then padding


def _after_id3(data: bytes) -> int:
    """Where the ID3v2 tags end; 0 without one. A tag's size is four bytes of seven bits."""
    start = 0
    for _ in range(_MAX_ID3_TAGS):
        if not data.startswith(b"ID3", start) or len(data) < start + _ID3_HEADER_BYTES:
            break
        a, b, c, d = (byte & 0x7F for byte in data[start + 6 : start + 10])
        start += _ID3_HEADER_BYTES + (a << 21 | b << 14 | c << 7 | d)
    return min(start, len(data))


def wav_seconds(data: bytes) -> float | None:
    """The duration that a WAV header promises, or None where it leaves that open, as a stream's header does.

    ffmpeg says nothing on this when it reads from a pipe.
    """
    position, bytes_per_s = 12, 0
    for _ in range(_MAX_WAV_CHUNKS):
        if position + 8 > len(data):
            return None
        kind, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if kind == b"fmt " and position + 20 <= len(data):
            (bytes_per_s,) = struct.unpack_from("<I", data, position + 16)
        if kind == b"data":
            is_open = size in (0, 0xFFFFFFFF) or size == 0x7FFFFFFF or not data.startswith(b"RIFF")
            return None if is_open or not bytes_per_s else size / bytes_per_s
        position += 8 + size + size % 2
    return None
