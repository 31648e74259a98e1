"""What only the voice in a process of its own promises."""

import asyncio
import threading

import psutil
import pytest

from pipeline.engines.base import Tts
from pipeline.engines.tts_piper import VOICE
from pipeline.errors import EngineFailed
from tests.contract.conftest import WAIT_S, load_engine
from tests.support.speech_clips import spoken

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]


async def test_a_killed_process_costs_one_piece_at_most_and_no_process_is_left() -> None:
    known = {child.pid for child in psutil.Process().children(recursive=True)}
    tts: Tts = await load_engine("tts", "piper")
    (pid,) = {child.pid for child in psutil.Process().children(recursive=True)} - known
    child = psutil.Process(pid)
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
    await tts.close()
    assert {child.pid for child in psutil.Process().children(recursive=True)} == known
