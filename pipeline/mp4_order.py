"""MP4 files put in an order that can be read from start to end.

Phones write the index (`moov`) last. The decoder reads a pipe, which has no way back; so the index is moved to the
front, with the places it names moved along (ISO/IEC 14496-12, 8.7.5). What is not well formed stays as it is: saying
so is the decoder's part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_INSIDE: Final = {b"moov": b"trak", b"trak": b"mdia", b"mdia": b"minf", b"minf": b"stbl"}
_OFFSET_TYPES: Final = {b"stco": ">u4", b"co64": ">u8"}
MAX_BOXES: Final = 10_000  # in all; a phone's file has tens, a hostile one is millions of empty boxes
MAX_INDEX_BYTES: Final = 16 * 2**20  # ten hours of AAC; the copy is made in the event loop


class _Box(NamedTuple):
    kind: bytes
    start: int
    body: int
    end: int


def _boxes(data: bytes | bytearray, start: int, end: int, budget: Iterator[int]) -> Iterator[_Box]:
    """The boxes of one level, as far as they are well formed; each costs one of the budget that all levels share."""
    for _ in budget:
        if start + 8 > end:
            return
        size, kind, header = int.from_bytes(data[start : start + 4], "big"), bytes(data[start + 4 : start + 8]), 8
        if size == 1:  # the size stands behind, in 64 bits
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        elif size == 0:  # to the end of the file
            size = end - start
        if size < header or start + size > end:
            return
        yield _Box(kind, start, start + header, start + size)
        start += size


def index_first(data: bytes) -> list[memoryview]:
    """The file as pieces to be written one after another; only the index is copied."""
    whole, budget = memoryview(data), iter(range(MAX_BOXES))
    seen: dict[bytes, _Box] = {}
    for box in _boxes(data, 0, len(data), budget):
        seen.setdefault(box.kind, box)
    index, samples = seen.get(b"moov"), seen.get(b"mdat")
    if index is None or samples is None or index.start < samples.start or index.end - index.start > MAX_INDEX_BYTES:
        return [whole]
    moved = bytearray(whole[index.start : index.end])
    head = seen[b"ftyp"].end if b"ftyp" in seen and seen[b"ftyp"].start == 0 else 0
    for offsets in _offset_tables(moved, _Box(b"moov", 0, index.body - index.start, len(moved)), budget):
        offsets[(offsets >= head) & (offsets < index.start)] += len(moved)
    return [whole[:head], memoryview(moved), whole[head : index.start], whole[index.end :]]


def _offset_tables(index: bytearray, parent: _Box, budget: Iterator[int]) -> Iterator[NDArray[np.unsignedinteger]]:
    """Views of the tables of chunk offsets below a box of the index; writing to one changes `index`."""
    for box in _boxes(index, parent.body, parent.end, budget):
        if box.kind == _INSIDE.get(parent.kind):
            yield from _offset_tables(index, box, budget)
        elif parent.kind == b"stbl" and box.kind in _OFFSET_TYPES and box.end >= box.body + 8:
            dtype = np.dtype(_OFFSET_TYPES[box.kind])
            n_fit = (box.end - box.body - 8) // dtype.itemsize
            n_offsets = min(int.from_bytes(index[box.body + 4 : box.body + 8], "big"), n_fit)
            yield np.frombuffer(index, dtype, n_offsets, box.body + 8)
