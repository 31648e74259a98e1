"""Debian's `ffmpeg` as a child that can do little: read its standard input, write its standard output, and end.

The child has hard limits on memory, processor time and files written, no environment, a session of its own (so that it
is killed whole), and only the protocol `pipe`: no name of a file and no address that its input holds can be opened.
It is a program beside the server and never linked, as its Debian build is under the GPL.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import IO, Final
from weakref import WeakKeyDictionary

from pipeline.errors import ConfigError

# Debian's build maps 260 MB of shared libraries before it does anything; the largest good file needs 80 MB more.
MAX_ADDRESS_SPACE_BYTES: Final = 512 * 2**20
MAX_OPEN_FILES: Final = 16  # the three pipes, and one at a time for the libraries that it loads
READ_BYTES: Final = 65536  # what a Linux pipe holds

_COMMON: Final = ("-hide_banner", "-nostdin", "-nostats", "-threads", "1", "-protocol_whitelist", "pipe")


class Slots:
    """So many children at once. Counted for each event loop, as a semaphore belongs to the loop that waited on it."""

    def __init__(self, n_children: int) -> None:
        self._n_children = n_children
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    def here(self) -> asyncio.Semaphore:
        """The running loop's semaphore."""
        return self._by_loop.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._n_children))


def require_programs() -> None:
    """`ConfigError` with the command to run when a program is missing; for the start of the server."""
    for program in ("ffmpeg", "prlimit"):
        _found(program)


@cache
def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ConfigError(f"the program {program} is missing; on Debian: apt-get install ffmpeg util-linux")
    return path


def _limits(cpu_s: int) -> list[str]:
    """`prlimit` sets the limits and then becomes the program: nothing of the program runs without them."""
    return [
        _found("prlimit"),
        f"--as={MAX_ADDRESS_SPACE_BYTES}",
        f"--cpu={cpu_s}",
        "--fsize=0",
        "--core=0",
        f"--nofile={MAX_OPEN_FILES}",
        "--",
    ]


@asynccontextmanager
async def ffmpeg(
    *arguments: str, cpu_s: int, stdin: int | IO[bytes], stderr: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The child while the block runs; however the block ends, the child is then gone.

    `cpu_s` is the processor time after which the kernel ends it.
    """
    process = await asyncio.create_subprocess_exec(
        *_limits(cpu_s),
        _found("ffmpeg"),
        *_COMMON,
        *arguments,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        env={},
        cwd="/",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdout, process.stderr):  # a reader paused on a full buffer would never see the pipe's end
        while stream is not None and await stream.read(READ_BYTES):
            pass
    if process.stdin is not None:
        process.stdin.close()
        with suppress(BrokenPipeError, ConnectionResetError):
            await process.stdin.wait_closed()
    await process.wait()
