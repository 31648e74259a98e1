"""The whole GPU profile on a CPU: its real engines on tiny random weights, in processes that are killed on the way.

What is asserted is the protocol; with random weights there is no sense to be had.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.support.client import Client, Json, connected
from tests.support.server_process import ServerProcess, server_processes
from tests.support.speech_clips import questions

pytestmark = pytest.mark.models  # the voice activity detector is the real one

OPTIONS = ["--profile", "gpu", "--random-tiny", "--device", "cpu", "--max-users", "2"]
GROUPS = ["asr+llm", "tts"]
WAIT_S = 150.0  # only a fault waits so long; the machine may be busy


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_processes() as servers:
        settings = [f"system.engine_processes={','.join(GROUPS)}", f"scaling_config.restart_wait_s={WAIT_S / 2}"]
        settings.append(f"turn.asr_timeout_s={WAIT_S}")
        settings += ["asr.threads=1", "tts.threads=1"]  # two would wait for each other: the matrices are tiny
        yield servers.start(*OPTIONS, *(word for pair in settings for word in ("--set", pair))).until_ready()


async def begin(client: Client, *, n_tokens: int, spoken: bool = True) -> None:
    session: Json = {"type": "realtime", "max_output_tokens": n_tokens}
    await client.send("session.update", session={**session, "output_modalities": ["audio" if spoken else "text"]})
    await client.until("session.updated", timeout_s=WAIT_S)


async def ask_aloud(client: Client) -> None:
    """A question of a person, and the silence behind it."""
    pcm = questions()[0].audio.resampled(24_000).to_pcm16()
    for start in range(0, len(pcm), 48_000):
        await client.socket.send(pcm[start : start + 48_000])
    await client.speak(1.2, binary=True, level=0.0)


async def ask_in_writing(client: Client) -> None:
    content = [{"type": "input_text", "text": "Tell me about the sea."}]
    await client.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
    await client.send("response.create")


async def answer(client: Client, n: int = 1) -> Json:
    response: Json = (await client.until("response.done", n, timeout_s=WAIT_S))["response"]
    return response


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():
            await asyncio.sleep(0.05)


def status(server: ServerProcess, path: str) -> int:
    response = server.ask(path)
    return 0 if response is None else response.status_code


async def test_a_turn_is_heard_answered_and_spoken(server: ServerProcess) -> None:
    async with connected(server.url) as client:
        await begin(client, n_tokens=3)
        await ask_aloud(client)
        heard = await client.until("conversation.item.input_audio_transcription.completed", timeout_s=WAIT_S)
        assert heard["transcript"] == "Please tell me something nice about the sea."
        response = await answer(client)
        assert response["status"] in ("completed", "incomplete")
        (item,) = response["output"]
        assert item["content"][0]["transcript"].strip()
        assert len(client.pcm) > 24_000
        assert client.all("error") == []


async def test_a_person_interrupts_and_the_talk_goes_on(server: ServerProcess) -> None:
    async with connected(server.url) as client:
        await begin(client, n_tokens=60)
        await ask_aloud(client)
        await client.until("response.output_audio.delta", timeout_s=WAIT_S)
        await ask_aloud(client)
        first = await answer(client)
        assert (first["status"], first["status_details"]["reason"]) == ("cancelled", "turn_detected")
        kinds = client.kinds()
        assert kinds.index("response.done") > [i for i, kind in enumerate(kinds) if kind.endswith("speech_started")][1]
        n_deltas = len(client.all("response.output_audio.delta"))
        second = await client.until("response.output_audio.delta", n_deltas + 1, timeout_s=WAIT_S)
        assert second["response_id"] != first["id"]
        assert client.all("error") == []


async def test_one_talk_too_many_is_refused_clearly_and_the_others_go_on(server: ServerProcess) -> None:
    async with connected(server.url) as first, connected(server.url) as second:
        for client in (first, second):
            await begin(client, n_tokens=8, spoken=False)
        async with connected(server.url) as third:
            error = (await third.until("error", timeout_s=WAIT_S))["error"]
            assert (error["code"], await third.closed()) == ("server_busy", 1013)
        for client in (first, second):
            await ask_in_writing(client)
        for client in (first, second):
            assert (await answer(client))["output"][0]["content"][0]["text"]


async def test_a_killed_voice_costs_its_turn_a_message_and_nobody_else_anything(server: ServerProcess) -> None:
    async with connected(server.url) as talking, connected(server.url) as writing:
        await begin(talking, n_tokens=60)
        await begin(writing, n_tokens=8, spoken=False)
        await ask_in_writing(talking)
        await talking.until("response.output_audio.delta", timeout_s=WAIT_S)
        pid = server.engine_process("tts")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        failed = await answer(talking)
        assert failed["status"] == "failed"
        error = failed["status_details"]["error"]
        assert error["code"] == "engine_failed"
        assert "restarted" in error["message"]
        await ask_in_writing(writing)
        assert (await answer(writing))["status"] in ("completed", "incomplete")

        await until(lambda: status(server, "/health/ready") == 503 or server.engine_process("tts") not in (None, pid))
        assert status(server, "/health/live") == 200
        await until(lambda: status(server, "/health/ready") == 200)
        assert server.engine_process("tts") not in (None, pid)
        n_deltas = len(talking.all("response.output_audio.delta"))
        await ask_in_writing(talking)
        await talking.until("response.output_audio.delta", n_deltas + 1, timeout_s=WAIT_S)
        assert talking.all("error") == []


async def test_a_recogniser_that_is_killed_while_it_hears_is_replaced_and_the_words_are_not_lost(
    server: ServerProcess,
) -> None:
    async with connected(server.url) as client:
        await begin(client, n_tokens=3, spoken=False)
        pid = server.engine_process("asr+llm")
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # it takes the utterance, and then is no more
        await ask_aloud(client)
        await client.until("input_audio_buffer.committed", timeout_s=WAIT_S)
        os.kill(pid, signal.SIGKILL)
        assert (await answer(client))["status"] in ("completed", "incomplete")
        assert client.all("error") == []
        assert server.engine_process("asr+llm") not in (None, pid)


async def test_when_it_ends_no_process_is_left(server: ServerProcess) -> None:
    engine_pids = [server.engine_process(name) for name in GROUPS]
    assert None not in engine_pids
    async with connected(server.url) as client:
        await begin(client, n_tokens=60)
        await ask_in_writing(client)
        await client.until("response.output_audio.delta", timeout_s=WAIT_S)
        server.process.send_signal(signal.SIGINT)
        assert await client.closed() == 1012
    assert server.process.wait(60) == 0, server.errors
    assert server.relatives() == []
    assert "Traceback" not in server.output + server.errors
