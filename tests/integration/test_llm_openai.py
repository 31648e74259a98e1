"""The engine for OpenAI-compatible servers, against a server that misbehaves in every way that real ones do."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from pipeline.engines.base import Message
from pipeline.engines.lanes import Waited, work_told
from pipeline.engines.llm_openai import OpenAiLlm, estimated_tokens
from pipeline.errors import (
    Busy,
    ConfigError,
    EngineFailed,
    EngineNotReady,
    EngineTimeout,
    InvalidInput,
    VoicepodError,
)
from settings import Settings
from settings_sources import load_settings
from tests.support.chat_server import (
    CUT,
    DONE,
    END,
    HANG,
    ChatServer,
    chat_server,
    chunk,
    event,
    head,
    refuses,
    says,
    stream,
)
from tests.support.tiny_model import closed_port

KEY = "sk-canary-4711"
WAIT_S = 20.0  # only a fault waits so long
ASKED = [Message("system", "Be brief."), Message("user", "My secret is plum.")]


def settings(server: ChatServer | None, llm: dict[str, Any] | None = None, **sections: Any) -> Settings:
    address = {"base_url": server.url, "api_key": KEY} if server else {}
    return Settings.model_validate({"llm": {**address, **(llm or {})}, **sections})


@asynccontextmanager
async def engine(server: ChatServer, llm: dict[str, Any] | None = None, **sections: Any) -> AsyncIterator[OpenAiLlm]:
    """Loaded; what it asked for that is forgotten."""
    loaded = OpenAiLlm.from_settings(settings(server, llm, **sections))
    try:
        async with asyncio.timeout(WAIT_S):
            await loaded.load()
        server.asked.clear()
        yield loaded
    finally:
        await loaded.close()


async def deltas(llm: OpenAiLlm, max_tokens: int | None = None) -> list[str]:
    async with asyncio.timeout(WAIT_S), aclosing(llm.reply(ASKED, max_tokens=max_tokens)) as reply:
        return [delta async for delta in reply]


async def failure(llm: OpenAiLlm) -> VoicepodError:
    with pytest.raises(VoicepodError) as caught:
        await deltas(llm)
    assert KEY not in str(caught.value)
    assert "plum" not in str(caught.value)
    return caught.value


async def load_failure(server: ChatServer | None, **llm: Any) -> str:
    unloaded = OpenAiLlm.from_settings(settings(server, llm))
    with pytest.raises(ConfigError) as caught:
        async with asyncio.timeout(WAIT_S):
            await unloaded.load()
    assert KEY not in caught.value.message
    return caught.value.message


async def test_a_reply_comes_delta_by_delta_and_the_request_says_all_that_the_settings_say() -> None:
    async with chat_server() as server, engine(server, {"temperature": 0.3, "max_tokens": 99}) as llm:
        server.chats.append(says("Good ", "morning."))
        assert await deltas(llm) == ["Good ", "morning."]
        (asked,) = server.chats_asked
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        assert asked.body == {
            "model": "parrot",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "My secret is plum."},
            ],
            "max_tokens": 99,
            "temperature": 0.3,
            "stream": True,
        }
        await deltas(llm, max_tokens=5)
        assert server.chats_asked[1].body["max_tokens"] == 5


async def test_the_connection_of_one_turn_serves_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engines.chat_server.LAST_BYTES_S", WAIT_S)  # a busy machine may stop for a while
    async with chat_server() as server, engine(server) as llm:
        for _ in range(3):
            await deltas(llm)
        assert server.n_connections == 1


async def test_a_server_that_closed_the_connection_between_two_turns_is_asked_anew() -> None:
    async with chat_server() as server, engine(server, {"retries": 1}) as llm:
        server.chats.append([*says("One."), CUT])
        assert await deltas(llm) == ["One."]
        assert await deltas(llm) == ["Hi."]


async def test_closing_the_stream_closes_the_connection_at_once() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(event("Good "), HANG))
        async with aclosing(llm.reply(ASKED)) as reply:
            assert await anext(reply) == "Good "
        async with asyncio.timeout(WAIT_S):
            await server.gone.wait()
            await llm.idle()


async def test_cancelling_before_the_first_byte_closes_the_connection() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append([HANG])
        caller = asyncio.create_task(deltas(llm))
        async with asyncio.timeout(WAIT_S):
            while not server.chats_asked:
                await asyncio.sleep(0.001)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            await server.gone.wait()
            await llm.idle()


@pytest.mark.parametrize("fault", [refuses(502), refuses(503), refuses(504), refuses(429, Retry_After="0"), [CUT]])
async def test_a_fault_that_may_pass_is_tried_again(fault: list[Any]) -> None:
    async with chat_server() as server, engine(server, {"retries": 1}) as llm:
        server.chats.append(fault)
        assert await deltas(llm) == ["Hi."]
        assert len(server.chats_asked) == 2


async def test_a_stream_that_breaks_before_its_first_text_is_tried_again() -> None:
    async with chat_server() as server, engine(server, {"retries": 1}) as llm:
        server.chats.append(stream(event(""), CUT))
        assert await deltas(llm) == ["Hi."]


@pytest.mark.parametrize(
    "end", [[CUT], [END], [chunk(b": nothing more\n"), END]], ids=["cut", "ended", "ended in a comment"]
)
async def test_after_text_nothing_is_tried_again(end: list[Any]) -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append([*stream(event("Good "), end=False), *end])
        async with aclosing(llm.reply(ASKED)) as reply:
            assert await anext(reply) == "Good "
            with pytest.raises(EngineFailed, match="went away"):
                await anext(reply)
        assert len(server.chats_asked) == 1


@pytest.mark.parametrize("retries", [0, 1])
async def test_retries_are_bounded_by_the_setting(retries: int) -> None:
    async with chat_server() as server, engine(server, {"retries": retries}) as llm:
        server.otherwise = refuses(503)
        error = await failure(llm)
        assert isinstance(error, EngineFailed)
        assert "503" in error.message
        assert len(server.chats_asked) == retries + 1


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_server_that_is_busy_for_long_is_not_waited_for(form: str) -> None:
    async with chat_server() as server, engine(server) as llm:
        after = "3600" if form == "seconds" else email.utils.formatdate(time.time() + 3600, usegmt=True)
        server.otherwise = refuses(429, Retry_After=after)
        error = await failure(llm)
        assert isinstance(error, Busy)
        assert error.retry_after_s == pytest.approx(3600, abs=60)
        assert len(server.chats_asked) == 1


async def test_a_wait_without_end_that_a_server_asks_for_is_not_passed_on() -> None:
    async with chat_server() as server, engine(server, {"retries": 0}) as llm:
        server.chats.append(refuses(429, Retry_After="9" * 400))
        error = await failure(llm)
        assert isinstance(error, Busy)
        assert math.isfinite(error.retry_after_s)


async def test_an_account_without_money_is_not_asked_twice() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.otherwise = refuses(429, {"error": {"code": "insufficient_quota"}})
        error = await failure(llm)
        assert "nothing left to spend" in error.message
        assert not error.retryable
        assert len(server.chats_asked) == 1


async def test_a_server_that_is_gone_is_told_clearly() -> None:
    async with chat_server() as server, engine(server, {"retries": 0}) as llm:
        llm._server._base_url = f"http://127.0.0.1:{closed_port()}/v1"  # type: ignore[union-attr]
        assert "cannot be reached" in (await failure(llm)).message


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_answered_with_the_variable_that_holds_it(status: int) -> None:
    async with chat_server() as server, engine(server) as llm:
        server.otherwise = refuses(status, {"error": {"message": f"Incorrect key {KEY} for plum"}})
        error = await failure(llm)
        assert "VOICEPOD__LLM__API_KEY" in error.message
        assert not error.retryable


async def test_an_unknown_model_is_answered_with_those_that_there_are() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.otherwise = refuses(404, {"error": {"message": "model parrot not found"}})
        server.offer("macaw", "lory")
        error = await failure(llm)
        assert "macaw, lory" in error.message
        assert not error.retryable


WORDINGS = [
    (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."),  # vLLM
    (400, {"error": {"code": "context_length_exceeded"}}),  # OpenAI
    (400, {"error": {"type": "exceed_context_size_error"}}),  # llama.cpp
    (500, "the request exceeds the available context size, try increasing it"),  # llama.cpp, earlier
    (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),  # SGLang
    (400, "input length exceeds maximum context length"),  # Ollama
    (422, "`inputs` tokens + `max_new_tokens` must be <= 4096"),  # text-generation-inference
    (400, "Trying to keep the first 900 tokens when context the overflows."),  # LM Studio
    (413, "prompt is too long: 5000 tokens > 4096 maximum"),
]


@pytest.mark.parametrize(("status", "body"), WORDINGS)
async def test_a_talk_that_is_too_long_is_told_in_every_servers_words(status: int, body: Any) -> None:
    async with chat_server() as server, engine(server) as llm:
        server.otherwise = refuses(status, body)
        error = await failure(llm)
        assert isinstance(error, InvalidInput)
        assert error.code == "context_exceeded"
        assert len(server.chats_asked) == 1


@pytest.mark.parametrize("name", ["data", "error"])
async def test_an_error_inside_the_stream_is_read_in_both_forms(name: str) -> None:
    detail = {"type": "exceed_context_size_error", "code": 400}
    line = {"data": {"error": detail}, "error": detail}[name]
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(f"{name}: {json.dumps(line)}\n\n".encode()))
        assert (await failure(llm)).code == "context_exceeded"


MALFORMED = {
    "no JSON": b"data: hello\n\n",
    "no object": b"data: [1]\n\n",
    "no list of choices": b'data: {"choices": 3}\n\n',
    "no choice": b'data: {"choices": ["a"]}\n\n',
    "no text": b'data: {"choices": [{"delta": {"content": ["a"]}}]}\n\n',
    "no UTF-8": b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n',
    "nested without end": b"data: " + b"[" * 200_000 + b"\n\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_no_stream_of_text_fails_the_turn_and_not_the_engine(data: bytes) -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(data, HANG))
        error = await failure(llm)
        assert isinstance(error, EngineFailed)
        assert "no stream of text" in error.message
        assert await deltas(llm) == ["Hi."]


@pytest.mark.parametrize(
    ("kind", "body"),
    [("text/html; charset=utf-8", b"<html>Log in</html>"), ("application/json", b'{"choices": []}')],
    ids=["page", "whole answer"],
)
async def test_a_page_or_a_whole_answer_in_place_of_a_stream_is_named_and_not_asked_for_again(
    kind: str, body: bytes
) -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append([head(Content_Type=kind), chunk(body), END])
        assert "no stream of text" in (await failure(llm)).message
        assert len(server.chats_asked) == 1


@pytest.mark.parametrize("line", [b"x" * 65_536, b"data: " + b"x" * 65_000 + b"\n"], ids=["line", "event"])
async def test_an_endless_line_or_event_is_cut_off_before_it_fills_the_memory(line: bytes) -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(*[line] * 40, HANG))
        assert "no stream of text" in (await failure(llm)).message


async def test_a_huge_delta_or_a_server_without_a_limit_ends_at_what_the_limit_may_hold() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(event("a" * 500_000), HANG))
        assert [len(delta) for delta in await deltas(llm, max_tokens=10)] == [320]
        server.chats.append(stream(*(event(f"word{n} ") for n in range(1000)), HANG))
        assert sum(map(len, await deltas(llm, max_tokens=10))) == 320


async def test_a_loop_of_words_is_cut_off() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(*[event("round and round we go ")] * 50, HANG))
        assert len(await deltas(llm)) < 10
        async with asyncio.timeout(WAIT_S):
            await server.gone.wait()


async def test_an_answer_without_done_ends_with_its_last_delta() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(event("Good."), event("", finish_reason="stop"), HANG))
        assert await deltas(llm) == ["Good."]
        server.chats.append(stream(event("Day."), DONE, HANG))
        assert await deltas(llm) == ["Day."]


async def test_lines_may_end_in_crlf_and_come_in_pieces() -> None:
    body = b": ping\r\n\r\n" + event("Gr\u00fc\u00dfe").replace(b"\n", b"\r\n") + b"data: [DONE]"
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(*(bytes([byte]) for byte in body)))
        assert await deltas(llm) == ["Grüße"]


async def test_a_byte_order_mark_before_the_first_event_costs_no_word() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(b"\xef\xbb", b"\xbf" + event("Good "), event("day."), DONE))
        assert await deltas(llm) == ["Good ", "day."]


async def test_an_empty_finish_reason_ends_no_answer() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(event("Good ", finish_reason=""), event("day.", finish_reason="stop"), HANG))
        assert await deltas(llm) == ["Good ", "day."]


async def test_half_a_character_of_a_server_that_cuts_in_utf_16_is_left_out() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(event("Sun \ud83d"), event("\ude00 day."), DONE))
        assert await deltas(llm) == ["Sun ", " day."]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_thoughts_are_not_spoken(name: str) -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(event("", delta={name: "Hmm, plum."}), event("Hello."), DONE))
        assert await deltas(llm) == ["Hello."]


@pytest.mark.parametrize(
    ("turn", "parts"),
    [
        ({"first_token_timeout_s": 0.1}, [event(""), b": still busy\n\n", HANG]),
        ({"token_timeout_s": 0.1}, [event("Good "), HANG]),
    ],
    ids=["first", "next"],
)
async def test_the_waits_of_a_turn_hold_here_too(turn: dict[str, float], parts: list[Any]) -> None:
    async with chat_server() as server, engine(server) as loaded:
        llm = OpenAiLlm.from_settings(settings(server, turn=turn))
        llm._server, llm._model = loaded._server, loaded.info.model  # loading has to take longer on a busy machine
        server.chats.append(stream(*parts))
        assert isinstance(await failure(llm), EngineTimeout)
        async with asyncio.timeout(WAIT_S):
            await server.gone.wait()


async def test_a_redirect_is_not_followed_to_another_server() -> None:
    async with chat_server() as elsewhere, chat_server() as server, engine(server) as llm:
        server.otherwise = refuses(307, Location=f"{elsewhere.url}/chat/completions")
        assert "has moved" in (await failure(llm)).message
        assert elsewhere.asked == []


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    async with chat_server() as server, engine(server) as llm:
        assert await deltas(llm) == ["Hi."]


async def test_no_more_answers_than_seats_are_under_way_at_once() -> None:
    async with chat_server() as server, engine(server, system={"max_concurrent_users": 1}) as llm:
        server.chats.append(stream(event("Good "), HANG))
        first = llm.reply(ASKED)
        await anext(first)
        told: list[object] = []
        work_told.set(told.append)
        second = asyncio.create_task(deltas(llm))
        async with asyncio.timeout(WAIT_S):
            while llm.n_waiting == 0:
                await asyncio.sleep(0)
        assert len(server.chats_asked) == 1
        await first.aclose()
        assert await second == ["Hi."]
        assert llm.n_waiting == 0
        (waited,) = told
        assert isinstance(waited, Waited)


async def test_closing_the_engine_ends_a_running_answer() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(stream(event("Good "), HANG))
        reply = llm.reply(ASKED)
        await anext(reply)
        next_delta = asyncio.ensure_future(anext(reply))
        await asyncio.sleep(0)
        await llm.close()
        with pytest.raises(EngineNotReady):
            await next_delta


async def test_closing_the_engine_before_the_first_word_is_no_reason_to_try_again() -> None:
    async with chat_server() as server, engine(server) as llm:
        server.chats.append([HANG])
        caller = asyncio.create_task(deltas(llm))
        async with asyncio.timeout(WAIT_S):
            while not server.chats_asked:
                await asyncio.sleep(0.001)
        await llm.close()
        with pytest.raises(EngineNotReady):
            await caller


async def test_the_only_model_of_a_server_is_taken() -> None:
    async with chat_server() as server, engine(server) as llm:
        assert (llm.info.model, llm.info.device, llm.info.capacity) == ("parrot", "remote", 4)


async def test_a_model_of_ollama_is_found_without_its_tag() -> None:
    async with chat_server() as server:
        server.offer("llama3:latest", "parrot")
        async with engine(server, {"remote_model": "llama3"}) as llm:
            assert llm.info.model == "llama3:latest"


async def test_a_server_that_lists_nothing_is_asked_by_the_models_name() -> None:
    async with chat_server() as server:
        del server.pages["/v1/models"]
        async with engine(server, {"remote_model": "org/parrot:7b"}) as llm:
            assert llm.info.model == "org/parrot:7b"
            assert await deltas(llm) == ["Hi."]


async def test_a_start_without_a_fitting_model_lists_those_that_there_are() -> None:
    async with chat_server() as server:
        server.offer("macaw", "lory")
        assert "macaw, lory" in await load_failure(server)
        assert "macaw, lory" in await load_failure(server, remote_model="parrot")


async def test_a_start_without_a_server_says_what_to_do() -> None:
    assert "Run: python app.py" in await load_failure(None)
    nowhere = f"http://127.0.0.1:{closed_port()}/v1"
    message = await load_failure(None, base_url=nowhere, retries=0)
    assert "cannot be reached" in message
    assert f"Run: curl {nowhere}/models" in message


async def test_a_start_with_a_wrong_key_names_the_variable() -> None:
    async with chat_server() as server:
        server.pages["/v1/models"] = lambda asked: refuses(401)
        assert "OPENAI_API_KEY" in await load_failure(server)


async def test_a_start_before_something_else_than_a_chat_server_says_so() -> None:
    async with chat_server() as server:
        server.pages["/v1/models"] = lambda asked: [head(), chunk(b"<html>"), END]
        assert "no language model server" in await load_failure(server)


async def test_a_window_that_holds_less_than_the_settings_promise_stops_the_start() -> None:
    async with chat_server() as server:
        server.offer("parrot", max_model_len=1024)
        assert "1024" in await load_failure(server)
        async with engine(server, {"history_tokens": 512}) as llm:
            assert llm.info.context_tokens == 1024


@pytest.mark.parametrize("key", ["sk-\u00fc", "sk-\nX"])
async def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    async with chat_server() as server:
        assert key not in await load_failure(server, api_key=key)
        assert server.asked == []


async def test_the_key_is_in_no_log_and_no_representation(caplog: pytest.LogCaptureFixture) -> None:
    for logger in ("", "httpx", "httpcore"):  # whatever else in this process made them quiet
        caplog.set_level(logging.DEBUG, logger=logger)
    async with chat_server() as server, engine(server) as llm:
        server.chats.append(refuses(503, {"error": KEY}))
        await deltas(llm)
        assert KEY not in repr(llm) + repr(llm._server) + repr(vars(llm._server))
    assert "chat/completions" in caplog.text  # the library's own records are there
    assert KEY not in caplog.text
    assert "plum" not in caplog.text


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_completion_tokens", 160),
        ("Unsupported value: 'temperature' does not support 0.7.", "temperature", None),
    ],
)
async def test_what_a_newer_model_refuses_is_learnt_at_the_start(words: str, field: str, value: object) -> None:
    async with chat_server() as server:
        server.chats.append(refuses(400, {"error": {"message": words}}))
        async with engine(server) as llm:
            assert await deltas(llm) == ["Hi."]
            assert server.chats_asked[0].body.get(field) == value


async def test_tokens_are_counted_by_vllm_and_by_llama_cpp() -> None:
    def as_vllm(asked: Any) -> list[Any]:
        n = len(asked.body["prompt"].split())
        assert (asked.body["model"], asked.body["add_special_tokens"]) == ("parrot", False)
        return refuses(200, {"count": n, "tokens": [0] * n})

    def as_llamacpp(asked: Any) -> list[Any]:
        return refuses(200, {"tokens": [0] * len(asked.body.get("content", "").split())})

    for page in (as_vllm, as_llamacpp):
        async with chat_server() as server:
            server.pages["/tokenize"] = page
            async with engine(server) as llm:
                assert await llm.count_tokens("one two three") == 3
                server.pages["/tokenize"] = lambda asked: refuses(500)
                assert await llm.count_tokens("one two three") == estimated_tokens("one two three")


async def test_tokens_are_estimated_where_the_server_does_not_count() -> None:
    async with chat_server() as server, engine(server) as llm:
        assert await llm.count_tokens("") == 0
        assert await llm.count_tokens("Hello there, how are you today?") == estimated_tokens(
            "Hello there, how are you today?"
        )
        assert server.asked == []


@pytest.mark.parametrize(
    ("text", "n_tokens"),  # as Qwen2.5 counts
    [
        ("Hello there, how are you today?", 8),
        ("The quick brown fox jumps over the lazy dog, and nobody minds very much about it.", 18),
        ("Fährt der Zug heute pünktlich nach München?", 13),
        ("Donaudampfschifffahrtsgesellschaftskapitän", 17),
        ("Call 0171 2345678 at 10:30.", 22),
        ("def f(x): return x**2 + 3", 11),
        ("今天天气怎么样？", 4),
        ("Привет, как у тебя дела сегодня?", 10),
        ("สวัสดีครับ วันนี้อากาศดีมาก", 15),
    ],
)
def test_the_estimate_is_between_a_little_below_and_twice_a_tokenisers_count(text: str, n_tokens: int) -> None:
    assert 0.85 * n_tokens < estimated_tokens(text) <= 2.1 * n_tokens


def test_the_key_comes_from_the_environment_the_own_variable_first() -> None:
    key = load_settings([], {"OPENAI_API_KEY": "sk-a"}).settings.llm.api_key
    assert key is not None
    assert key.get_secret_value() == "sk-a"
    key = load_settings([], {"OPENAI_API_KEY": "sk-a", "VOICEPOD__LLM__API_KEY": "sk-b"}).settings.llm.api_key
    assert key is not None
    assert key.get_secret_value() == "sk-b"
    with pytest.raises(ConfigError, match="secret"):
        load_settings(["--set", "llm.api_key=sk-c"], {})


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "http://me:word@host/v1", "http://host/v1?key=1", "http:///v1", "host:8000"]
)
def test_an_address_that_is_no_plain_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"llm\.base_url"):
        load_settings(["--set", f"llm.base_url={url}"], {})


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:8000/v1", []),
        ("https://api.example/v1", ["sent to api.example"]),
        ("http://10.0.0.7/v1", ["sent to 10.0.0.7", "the key and every word"]),
    ],
)
def test_a_server_that_is_another_machine_is_told_at_the_start(url: str, told: list[str]) -> None:
    options = ["--set", "llm.engine=openai", "--set", f"llm.base_url={url}"]
    notices = load_settings(options, {"OPENAI_API_KEY": KEY}).notices
    assert len(notices) == len(told)
    assert all(words in notice for words, notice in zip(told, notices, strict=True))
