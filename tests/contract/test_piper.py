"""What only the voice in a process of its own promises."""

import asyncio
import threading

import psutil
import pytest

from pipeline.engines.tts_piper import VOICE, PiperTts
from pipeline.errors import EngineFailed
from tests.contract.conftest import WAIT_S, Kept
from tests.support.speech_clips import spoken

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]


async def test_a_killed_process_costs_one_piece_at_most(kept: Kept) -> None:
    tts: PiperTts = await kept("tts", "piper")
    assert tts._program is not None
    assert tts._program._process is not None
    child = psutil.Process(tts._program._process.pid)
    assert "API" not in " ".join(child.environ())

    child.suspend()  # so that it cannot answer before it is killed
    speaking = asyncio.create_task(spoken(tts, VOICE, "This piece is lost."))
    async with asyncio.timeout(WAIT_S):
        while not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()):
            await asyncio.sleep(0)  # the watchdog starts once the process was found alive, and no event says so
    child.kill()
    with pytest.raises(EngineFailed):
        await speaking
    assert (await spoken(tts, VOICE, "This one is heard.")).seconds > 0.5
    assert not psutil.pid_exists(child.pid)
