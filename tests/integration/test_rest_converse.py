"""`POST /api/converse` and one's own sessions, with scripted engines."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from api.access.principal import USER_SCOPES, Principal
from api.rest.converse import MAX_TRANSCRIPT_HEADER
from pipeline.errors import EngineFailed
from tests.support.client import connected
from tests.support.live_server import Live
from tests.support.rest import BusyAsr, Rest, ToneTts, a_file, rest_server
from tests.support.scripted import SECONDS_PER_CHAR, TTS_RATE, ScriptedAsr, ScriptedLlm, ScriptedTts

LONG = "Once upon a time there was a small house by the sea. An old man lived there with his dog. " * 3


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with rest_server(asr=ScriptedAsr(delay_s=0.0), llm=ScriptedLlm(), tts=ToneTts()) as running:
        yield running


async def ask(rest: Rest, audio: bytes | None = None, **params: Any) -> httpx.Response:
    return await rest.client.post("/api/converse", content=audio or a_file(), params=params)


async def events_of(rest: Rest, **params: Any) -> list[dict[str, Any]]:
    answer = await ask(rest, stream_format="sse", **params)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]


async def until(happened: Any) -> None:
    async with asyncio.timeout(5):
        while not happened():
            await asyncio.sleep(0.01)


async def sessions_of(rest: Rest) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await rest.client.get("/api/sessions")).json()["data"]
    return listed


async def test_a_question_is_answered_aloud_and_faster_than_it_is_heard(rest: Rest) -> None:
    rest.live.asr.texts, rest.live.llm.replies = ["what is the capital of france"], ["It is Paris. " * 20]
    async with asyncio.timeout(12):  # the answer lasts 15 s: nothing is paced
        answer = await ask(rest, format="pcm")
    assert answer.status_code == 200
    assert unquote(answer.headers["voicepod-transcript"]) == "what is the capital of france"
    seconds = len(answer.content) / 2 / TTS_RATE
    assert seconds == pytest.approx(len("It is Paris.") * 20 * SECONDS_PER_CHAR, rel=0.1)
    assert rest.live.llm.asked[0][-1].content == "what is the capital of france"


async def test_the_turn_counts_like_that_of_a_socket(rest: Rest) -> None:
    await ask(rest)
    figures = (await rest.client.get("/api/metrics")).json()
    assert (figures["n_turns"], figures["error_rate"], figures["active_sessions"]) == (1, 0.0, 0)
    assert figures["average_response_time"] > 0


async def test_a_page_gets_words_and_sound_in_order(rest: Rest) -> None:
    rest.live.asr.texts, rest.live.llm.replies = ["hello"], ["Hello there. How can I help you today?"]
    events = await events_of(rest, format="pcm")
    kinds = [event["type"] for event in events]
    assert kinds[:4] == ["session", "transcript", "reply.text", "audio"]
    reply = "Hello there. How can I help you today?"
    deltas = [event["delta"] for event in events if event["type"] == "reply.text"]
    assert "".join(deltas) == reply
    assert events[-1] == {"type": "done", "transcript": "hello", "reply": reply}
    audio = b"".join(base64.b64decode(event["audio"]) for event in events if event["type"] == "audio")
    second = [event for event in events if event["type"] == "reply.text"][1]
    assert 0 < second["first_sample"] < len(audio) / 2


async def test_the_next_call_goes_on_with_the_talk(rest: Rest) -> None:
    rest.live.asr.texts = ["my name is anna", "what is my name"]
    first = await ask(rest)
    session = first.headers["voicepod-session"]
    second = await ask(rest, session=session)
    assert second.headers["voicepod-session"] == session
    assert [message.content for message in rest.live.llm.asked[1]][1:] == [
        "my name is anna",
        "This is reply number b.",
        "what is my name",
    ]
    (listed,) = await sessions_of(rest)
    assert (listed["id"], listed["connected"], listed["n_turns"], listed["n_items"]) == (session, False, 2, 4)


async def test_options_are_the_sessions(rest: Rest) -> None:
    answer = await ask(rest, voice="bruno", instructions="Be a pirate.\u202e", speed=1.5, language="de")
    assert answer.status_code == 200
    assert rest.live.llm.asked[0][0].content == "Be a pirate. Answer in German."


@pytest.mark.parametrize(
    ("params", "status", "param"),
    [
        ({"voice": "nobody"}, 400, "voice"),
        ({"format": "m4a"}, 400, "format"),
        ({"speed": "9"}, 400, "speed"),
        ({"language": "german"}, 400, "language"),
        ({"session": "sess_of_nobody"}, 404, "session"),
    ],
    ids=str,
)
async def test_a_wrong_option_is_named(rest: Rest, params: dict[str, Any], status: int, param: str) -> None:
    answer = await ask(rest, **params)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_what_is_no_question_is_refused(rest: Rest) -> None:
    assert (await ask(rest, b"not audio at all, not at all")).json()["error"]["code"] == "not_audio"
    assert (await ask(rest, a_file(61.0))).json()["error"]["code"] == "too_long"
    assert (await rest.client.post("/api/converse", json={})).status_code == 415
    rest.live.asr.texts = [""]
    nothing = await ask(rest)
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (400, "no_speech")


async def test_an_engine_that_fails_is_an_answer(rest: Rest) -> None:
    failure = EngineFailed("it failed", stage="asr")
    rest.live.asr.texts, rest.live.llm.replies = [failure, "hello", "hello"], [failure, failure]
    for _ in range(2):
        answer = await ask(rest)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")
    events = await events_of(rest)
    assert [event["type"] for event in events] == ["session", "transcript", "error"]
    assert events[-1]["error"]["code"] == "engine_failed"
    assert (await ask(rest)).status_code == 200


async def test_a_client_that_goes_away_stops_the_answer_and_can_go_on(rest: Rest) -> None:
    tts = rest.live.server.engines.tts
    assert isinstance(tts, ScriptedTts)
    tts.real_time_factor = 1.0
    rest.live.asr.texts, rest.live.llm.replies = ["tell me a story", "and then"], [LONG, "The end."]
    async with rest.client.stream("POST", "/api/converse", content=a_file(), params={"format": "pcm"}) as answer:
        parts = answer.aiter_bytes()
        n_bytes = 0
        while n_bytes < 2 * TTS_RATE * 2:  # two seconds
            n_bytes += len(await anext(parts))
        session = answer.headers["voicepod-session"]
    await until(lambda: not tts.open_streams and not rest.live.llm.open_streams)
    tts.real_time_factor = 0.0
    await until(lambda: rest.live.server.registry.n_active == 0)
    assert (await ask(rest, session=session)).status_code == 200
    story = rest.live.llm.asked[1][2].content
    assert story.endswith("—")  # cut where it was stopped
    assert len(story) < len(LONG)


async def test_a_client_that_goes_away_while_it_is_heard_leaves_nothing_behind() -> None:
    asr = BusyAsr(delay_s=60.0)
    async with rest_server(asr=asr) as rest:
        asking = asyncio.create_task(ask(rest))
        await until(lambda: asr.n_open == 1)
        asking.cancel()
        await until(lambda: asr.n_open == 0 and not rest.live.server.registry.sessions)


async def test_a_full_server_says_when_to_come_back(live_talk: Live) -> None:
    async with connected(live_talk.url) as client:
        await client.until("session.created")
        async with httpx.AsyncClient(base_url=live_talk.http) as http:
            answer = await http.post("/api/converse", content=a_file())
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_busy")
            assert int(answer.headers["retry-after"]) >= 1


@pytest.fixture
async def live_talk() -> AsyncIterator[Live]:
    async with rest_server(system={"max_concurrent_users": 1}) as running:
        yield running.live


async def test_a_session_that_answers_takes_no_second_question(rest: Rest) -> None:
    tts = rest.live.server.engines.tts
    assert isinstance(tts, ScriptedTts)
    session = (await ask(rest)).headers["voicepod-session"]
    tts.real_time_factor, rest.live.llm.replies = 1.0, [LONG]
    params = {"format": "pcm", "session": session}
    async with rest.client.stream("POST", "/api/converse", content=a_file(), params=params) as answer:
        parts = answer.aiter_bytes()
        await anext(parts)
        refused = await ask(rest, session=session)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "session_in_use")
        assert (await rest.client.delete(f"/api/sessions/{session}")).status_code == 204
        with pytest.raises(httpx.RemoteProtocolError):  # the talk was ended under it
            async for _ in parts:
                pass
    assert await sessions_of(rest) == []


async def test_a_typed_question_is_answered_aloud_in_the_same_talk(rest: Rest) -> None:
    rest.live.asr.texts, rest.live.llm.replies = ["hello"], ["Hi.", "It is big."]
    session = (await ask(rest)).headers["voicepod-session"]
    params = {"format": "pcm", "session": session, "stream_format": "sse"}
    text = {"content-type": "text/plain; charset=utf-8"}
    answer = await rest.client.post("/api/converse", content="How big is the sun?", params=params, headers=text)
    told = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert told[0] == {"type": "session", "session": session, "sample_rate": TTS_RATE}
    assert told[-1] == {"type": "done", "transcript": "How big is the sun?", "reply": "It is big."}
    assert len(base64.b64decode("".join(e["audio"] for e in told if e["type"] == "audio"))) > TTS_RATE // 10
    assert [message.content for message in rest.live.llm.asked[1]][1:] == ["hello", "Hi.", "How big is the sun?"]


async def test_a_talk_may_begin_with_a_typed_question(rest: Rest) -> None:
    rest.live.llm.replies = ["It is big."]
    answer = await rest.client.post("/api/converse", content="How big?", headers={"content-type": "text/plain"})
    assert answer.status_code == 200
    assert answer.content.startswith(b"RIFF")


@pytest.mark.parametrize(("typed", "status"), [("", 400), ("  \n", 400), ("\x00\x07", 400), ("x" * 2001, 413)])
async def test_a_typed_question_without_words_or_without_end_is_refused(rest: Rest, typed: str, status: int) -> None:
    answer = await rest.client.post("/api/converse", content=typed, headers={"content-type": "text/plain"})
    assert answer.status_code == status
    assert await sessions_of(rest) == []


async def test_sessions_belong_to_their_owner(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    session = (await ask(rest)).headers["voicepod-session"]

    async def another(connection: Any) -> Principal:
        return Principal("another", "key:another", USER_SCOPES)

    with monkeypatch.context() as patch:
        patch.setattr(rest.live.server.access, "principal", another)
        assert await sessions_of(rest) == []
        assert (await rest.client.delete(f"/api/sessions/{session}")).status_code == 404
        assert (await ask(rest, session=session)).status_code == 404
    assert [known["id"] for known in await sessions_of(rest)] == [session]


async def test_the_talk_of_a_socket_is_listed_left_to_it_and_can_be_ended(rest: Rest) -> None:
    async with connected(rest.live.url) as client:
        created = await client.until("session.created")
        session = created["session"]["id"]
        (listed,) = await sessions_of(rest)
        assert (listed["id"], listed["connected"]) == (session, True)
        assert (await ask(rest, session=session)).status_code == 404
        assert (await rest.client.delete(f"/api/sessions/{session}")).status_code == 204
        assert await client.closed() in (1000, 1001, 4409)


async def test_a_long_transcript_fits_the_header(rest: Rest) -> None:
    rest.live.asr.texts = ["日本語" * 400]
    header = (await ask(rest)).headers["voicepod-transcript"]
    assert len(header) <= MAX_TRANSCRIPT_HEADER
    assert unquote(header, errors="strict") == ("日本語" * 400)[: len(unquote(header))]
