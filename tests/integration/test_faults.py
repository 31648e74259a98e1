"""What breaks while the real server talks, and how it stops."""

from __future__ import annotations

import signal

import pytest

from tests.support.client import Client, Json, connected
from tests.support.server_process import ServerProcess, ServerProcesses

pytestmark = pytest.mark.models

PAGE = ["voicepod.v1"]
STOP_S = 30.0
WAIT_S = 150.0  # only a fault waits so long; the machine may be busy


async def ask(client: Client, text: str) -> None:
    """A typed turn with a short answer: the tests wait for it."""
    brief = {"instructions": "Answer in one short sentence.", "max_output_tokens": 48}
    await client.send("session.update", session={"type": "realtime", **brief})
    content = [{"type": "input_text", "text": text}]
    await client.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
    await client.send("response.create")


async def answer(client: Client, text: str, *, n: int = 1) -> Json:
    """The nth response of this client, to its end."""
    await ask(client, text)
    response: Json = (await client.until("response.done", n, timeout_s=WAIT_S))["response"]
    return response


def assert_stopped(server: ServerProcess) -> None:
    """The server ended in good order and left nothing behind."""
    assert server.process.wait(STOP_S) == 0, server.errors
    assert server.relatives() == []
    assert server.private_directories == []
    assert "Traceback" not in server.output
    assert server.errors == ""  # no warnings, and no library that counts what it still holds


async def test_a_killed_pronunciation_program_fails_its_turn_and_the_next_one_works(servers: ServerProcesses) -> None:
    server = servers.ready()
    async with connected(server.url) as client:
        server.espeak_dies.touch()
        failed = await answer(client, "Say hello to me.")
        assert failed["status"] == "failed"
        error = failed["status_details"]["error"]
        assert (error["code"], error["type"]) == ("engine_failed", "server_error")
        server.espeak_dies.unlink()
        assert (await answer(client, "Say hello to me.", n=2))["status"] == "completed"
        assert client.pcm


async def test_a_client_that_vanishes_in_mid_reply_leaves_a_server_that_talks(servers: ServerProcesses) -> None:
    server = servers.ready()
    async with connected(server.url) as vanishing:
        await ask(vanishing, "Count from one to twenty.")
        await vanishing.until("response.output_audio.delta", timeout_s=WAIT_S)
        vanishing.socket.transport.abort()
        assert await vanishing.closed() == 1006
    async with connected(server.url) as client:
        assert (await answer(client, "Say hello to me."))["status"] == "completed"
    ready = server.ask("/health/ready")
    assert ready is not None
    assert ready.status_code == 200


async def test_a_termination_during_a_reply_ends_the_server_in_good_order(servers: ServerProcesses) -> None:
    server = servers.ready()
    assert len(server.private_directories) == 1
    async with connected(server.url, protocols=PAGE) as client:
        rate = {"format": {"type": "audio/pcm", "rate": 48000}}  # microphone and voice are resampled on the way
        await client.send("session.update", session={"type": "realtime", "audio": {"input": rate, "output": rate}})
        await client.speak(0.5, rate=48000, binary=True, level=0.0)
        await ask(client, "Count from one to twenty.")
        await client.until("voicepod.caption", timeout_s=WAIT_S)
        assert server.process.pid in server.relatives()
        server.process.send_signal(signal.SIGTERM)
        assert await client.closed() == 1012
    assert_stopped(server)


async def test_ctrl_c_while_the_models_load_ends_the_server_in_good_order(servers: ServerProcesses) -> None:
    server = servers.start().until_loading("llm")
    server.process.send_signal(signal.SIGINT)
    assert_stopped(server)
