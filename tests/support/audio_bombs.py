"""Small files that unpack to gigabytes, written frame by frame: an encoder would need minutes for them."""

from __future__ import annotations

import struct


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    """The checksum of FLAC and of Ogg: most significant bit first, from zero."""
    value, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ polynomial if value & top else value << 1) & mask
    return value


def flac_bomb(seconds: int = 600) -> bytes:
    """Silence in 8 channels at 192 kHz, 16 bits: 3.7 GB as float32 from 0.1 MB (RFC 9639, sections 8.2 and 9)."""
    block, rate = 65535, 192000
    n_samples = seconds * rate
    shape = rate << 44 | (8 - 1) << 41 | (16 - 1) << 36 | n_samples
    info = struct.pack(">HH", block, block) + b"\0" * 6 + shape.to_bytes(8, "big") + b"\0" * 16
    frames = []
    for number in range(n_samples // block):
        head = b"\xff\xf8\x73\x78" + chr(number).encode() + struct.pack(">H", block - 1)
        frame = head + bytes([_crc(head, 0x07, 8)]) + b"\0\0\0" * 8  # eight subframes that hold one constant
        frames.append(frame + _crc(frame, 0x8005, 16).to_bytes(2, "big"))
    return b"fLaC" + b"\x80" + len(info).to_bytes(3, "big") + info + b"".join(frames)


def opus_bomb(seconds: int = 3600) -> bytes:
    """Silence in Ogg Opus, 60 ms a packet of one byte, 255 packets a page (RFC 3533, section 6; RFC 7845)."""
    serial, per_page, packet_samples = 1, 255, 2880

    def page(number: int, kind: int, granule: int, sizes: bytes, body: bytes) -> bytes:
        parts = (b"OggS\0", kind, granule, serial, number)
        head = struct.pack("<5sBQII", *parts)
        unsigned = head + b"\0\0\0\0" + bytes([len(sizes)]) + sizes + body
        return head + struct.pack("<I", _crc(unsigned, 0x04C11DB7, 32)) + unsigned[26:]

    start = b"OpusHead" + struct.pack("<BBHIHB", 1, 1, 0, 48000, 0, 0)
    tags = b"OpusTags" + struct.pack("<II", 0, 0)
    pages = [page(0, 2, 0, bytes([len(start)]), start), page(1, 0, 0, bytes([len(tags)]), tags)]
    silent = b"\x18"  # SILK, narrow band, 60 ms, mono, and nothing in it
    for i in range(seconds * 48000 // packet_samples // per_page):
        granule = (i + 1) * per_page * packet_samples
        pages.append(page(i + 2, 0, granule, b"\1" * per_page, silent * per_page))
    return b"".join(pages)
