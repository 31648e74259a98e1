"""What only the llama.cpp engine promises."""

import os
import stat
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from pipeline.engines.base import Message
from pipeline.engines.llm_llamacpp import LlamaCppLlm
from pipeline.errors import ConfigError, InvalidInput
from settings import Settings

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]


def unix_sockets() -> set[str]:
    return {str(c.laddr) for c in psutil.Process(os.getpid()).net_connections("unix") if c.laddr}


async def test_its_server_listens_on_a_private_unix_socket_only_and_takes_it_away() -> None:
    process = psutil.Process(os.getpid())
    before, ports_before = unix_sockets(), process.net_connections("inet")
    llm = LlamaCppLlm(models_dir=Settings().models.dir, threads=1, context_tokens=256, capacity=4)
    try:
        await llm.load()
    except ConfigError as error:
        pytest.skip(error.message)
    socket = Path(*(unix_sockets() - before))
    assert process.net_connections("inet") == ports_before
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700

    # Each of the four talks has the whole window that was asked for: llama.cpp divides its own among them.
    prompt = "The sea is blue. " * 14
    assert 64 < await llm.count_tokens(prompt) < 80
    async with aclosing(llm.reply([Message("user", prompt)], max_tokens=2)) as reply:
        assert [delta async for delta in reply]
    with pytest.raises(InvalidInput):
        await anext(llm.reply([Message("user", prompt * 4)]))

    await llm.close()
    assert unix_sockets() == before
    assert not socket.parent.exists()
