"""What every language model must do."""

import asyncio
import os
from contextlib import aclosing

import psutil
import pytest

from pipeline.engines.base import Llm, Message
from pipeline.errors import InvalidInput
from settings import Settings
from tests.contract.conftest import WAIT_S, idle, says

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

SYSTEM = Message("system", Settings().llm.system_prompt)


def asked(question: str) -> list[Message]:
    return [SYSTEM, Message("user", question)]


async def deltas(llm: Llm, messages: list[Message], max_tokens: int | None = None) -> list[str]:
    async with asyncio.timeout(WAIT_S), aclosing(llm.reply(messages, max_tokens=max_tokens)) as reply:  # type: ignore[type-var]
        return [delta async for delta in reply]


async def test_a_question_is_answered_in_a_stream(llm: Llm) -> None:
    parts = await deltas(llm, asked("What is the capital of France?"))
    assert says(llm, "".join(parts), "Paris")
    assert len(parts) > 1


async def test_the_history_is_read(llm: Llm) -> None:
    talk = [
        *asked("My name is Beatrice."),
        Message("assistant", "Nice to meet you, Beatrice."),
        Message("user", "What is my name?"),
    ]
    assert says(llm, "".join(await deltas(llm, talk)), "Beatrice")


async def test_max_tokens_is_kept(llm: Llm) -> None:
    text = "".join(await deltas(llm, asked("Tell me a long story about a ship."), max_tokens=8))
    assert 0 < await llm.count_tokens(text) <= 9  # cut text may need a token more than it had


async def test_tokens_are_counted(llm: Llm) -> None:
    short, long = await llm.count_tokens("Hello"), await llm.count_tokens("Hello there, how are you today? " * 20)
    assert 0 < short < 5
    assert 100 < long < 400
    assert await llm.count_tokens("") == 0


async def test_closing_the_stream_stops_the_model(llm: Llm) -> None:
    async with aclosing(llm.reply(asked("Count from one to one hundred."), max_tokens=400)) as reply:  # type: ignore[type-var]
        first = await anext(reply)
    assert first
    await idle(llm)
    assert says(llm, "".join(await deltas(llm, asked("What is the capital of France?"))), "Paris")


async def test_cancelling_while_a_long_prompt_is_read_frees_the_caller_and_soon_the_model(llm: Llm) -> None:
    filler = "The sea is blue. " * (llm.info.context_tokens // 10)  # reading all of it takes half a minute
    caller = asyncio.create_task(deltas(llm, asked(filler)))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    async with asyncio.timeout(WAIT_S / 6):
        await idle(llm)


async def test_as_many_talks_as_the_capacity_run_at_once_and_do_not_mix(llm: Llm) -> None:
    facts = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid"}
    countries = list(facts)[: llm.info.capacity]
    streams = [llm.reply(asked(f"What is the capital of {country}?")) for country in countries]
    async with asyncio.timeout(WAIT_S):
        texts = list(await asyncio.gather(*(anext(stream) for stream in streams)))  # all have begun, none has ended
        for i, stream in enumerate(streams):
            async for delta in stream:
                texts[i] += delta
    for country, text in zip(countries, texts, strict=True):
        assert says(llm, text, facts[country])


async def test_a_talk_too_long_for_the_window_is_refused_and_the_next_one_works(llm: Llm) -> None:
    with pytest.raises(InvalidInput):
        await deltas(llm, asked("word " * (llm.info.context_tokens + 100)))
    assert says(llm, "".join(await deltas(llm, asked("What is the capital of France?"))), "Paris")


async def test_no_network_port_is_open(llm: Llm) -> None:
    listening = [c for c in psutil.Process(os.getpid()).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listening == []
