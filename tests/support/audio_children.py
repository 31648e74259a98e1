"""The ffmpeg children of this process, as tests look for them."""

from __future__ import annotations

import asyncio

import psutil


def audio_children() -> list[psutil.Process]:
    """Those that live; `prlimit` is what a child is for the moment before it becomes ffmpeg."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.name() in ("ffmpeg", "prlimit") and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


async def one_at_work() -> psutil.Process:
    """The first child, once it is ffmpeg."""
    while not (ready := [child for child in audio_children() if child.name() == "ffmpeg"]):
        await asyncio.sleep(0.005)
    return ready[0]
