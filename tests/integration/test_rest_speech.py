"""`POST /v1/audio/speech` and `POST /api/tts` over a real socket, with a scripted voice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from pipeline.engines.base import SpeechPiece, Voice
from pipeline.errors import EngineFailed
from pipeline.untrusted_audio import decode
from tests.support.rest import BriefTts, Rest, ToneTts, rest_server
from tests.support.scripted import SECONDS_PER_CHAR, TTS_RATE, ScriptedTts

TEXT = "The first sentence is short. The second one is a little longer than the first."
FORMATS = ["mp3", "opus", "aac", "flac", "wav", "pcm"]


class HeldTts(ScriptedTts):
    """Speaks the first piece and then waits until it may go on."""

    def __init__(self) -> None:
        super().__init__(first_audio_s=0.0, real_time_factor=0.0)
        self.may_go_on = asyncio.Event()
        self.voices: list[Voice] = []

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[Any]:
        self.voices.append(voice)

        async def held() -> AsyncIterator[SpeechPiece]:
            async for piece in pieces:
                if piece.index:
                    await self.may_go_on.wait()
                yield piece

        async for chunk in super().synthesize(held(), voice=voice):
            yield chunk


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with rest_server(tts=ToneTts()) as running:
        yield running


@pytest.fixture
async def held() -> AsyncIterator[Rest]:
    async with rest_server(tts=HeldTts()) as running:
        yield running


def speech(**fields: Any) -> dict[str, Any]:
    return {"model": "tts-1", "input": TEXT, "voice": "anna", **fields}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """OpenAI's error object."""
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "code", "param"} <= error.keys()
    return error


@pytest.mark.parametrize("kind", FORMATS)
async def test_every_format_holds_the_whole_text_and_says_what_it_is(rest: Rest, kind: str) -> None:
    answer = await rest.client.post("/v1/audio/speech", json=speech(response_format=kind))
    assert answer.status_code == 200
    kinds = {"mp3": "mpeg", "opus": "ogg", "pcm": "pcm"}
    assert answer.headers["content-type"] == f"audio/{kinds.get(kind, kind)}"
    expected_s = len(TEXT.replace(". ", ".")) * SECONDS_PER_CHAR
    if kind == "pcm":
        seconds = len(answer.content) / 2 / TTS_RATE
    else:
        seconds = (await decode(answer.content, max_seconds=60)).seconds
    assert seconds == pytest.approx(expected_s, abs=0.15)


async def test_the_first_audio_leaves_before_the_rest_is_spoken(held: Rest) -> None:
    tts = held.live.tts
    assert isinstance(tts, HeldTts)
    for kind in FORMATS:
        tts.may_go_on.clear()
        async with held.client.stream("POST", "/v1/audio/speech", json=speech(response_format=kind)) as answer:
            parts = answer.aiter_bytes()
            assert await anext(parts)
            assert tts.open_streams == 1, kind
            tts.may_go_on.set()
            assert [part async for part in parts]


async def test_a_client_that_goes_away_stops_the_voice_and_frees_its_slot(held: Rest) -> None:
    tts = held.live.tts
    for _ in range(6):  # more often than there are slots
        async with held.client.stream("POST", "/v1/audio/speech", json=speech(response_format="pcm")) as answer:
            parts = answer.aiter_bytes()
            await anext(parts)
            assert tts.open_streams == 1
        async with asyncio.timeout(5):
            while tts.open_streams:
                await asyncio.sleep(0.01)


async def test_a_client_that_goes_away_before_the_first_audio_stops_the_voice() -> None:
    async with rest_server(tts=ScriptedTts(first_audio_s=60.0)) as rest:
        asking = asyncio.create_task(rest.client.post("/v1/audio/speech", json=speech()))
        async with asyncio.timeout(5):
            while not rest.live.tts.open_streams:
                await asyncio.sleep(0.01)
            asking.cancel()
            while rest.live.tts.open_streams:
                await asyncio.sleep(0.01)


async def test_more_at_once_than_there_are_slots_is_told_to_come_back() -> None:
    async with rest_server(tts=HeldTts(), system={"max_concurrent_users": 1}) as rest:
        async with rest.client.stream("POST", "/v1/audio/speech", json=speech(response_format="pcm")) as first:
            parts = first.aiter_bytes()
            await anext(parts)
            refused = await rest.client.post("/v1/audio/speech", json=speech())
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert error_of(refused)["code"] == "server_busy"


async def test_a_server_that_still_loads_says_when_to_come_back() -> None:
    class Slow(ScriptedTts):
        async def load(self) -> None:
            await asyncio.Event().wait()

    async with rest_server(tts=Slow(), until_ready=False) as rest:
        refused = await rest.client.post("/v1/audio/speech", json=speech())
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "tts" in error_of(refused)["message"]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": "a" * 4097}, "input"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"input": "\ud83d"}, "input"),
        ({"input": "🎉 ... !"}, "input"),
        ({"voice": "nobody"}, "voice"),
        ({"voice": {"name": "anna"}}, "voice"),
        ({"response_format": "m4a"}, "response_format"),
        ({"speed": 4.5}, "speed"),
        ({"speed": "fast"}, "speed"),
        ({"stream_format": "json"}, "stream_format"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
async def test_a_wrong_parameter_is_named(rest: Rest, wrong: dict[str, Any], param: str | None) -> None:
    body = json.dumps(speech(**wrong))  # with escapes, so that lone surrogates travel
    answer = await rest.client.post("/v1/audio/speech", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_what_is_not_known_is_left_alone_and_openai_voices_are_the_servers_own(held: Rest) -> None:
    tts = held.live.tts
    assert isinstance(tts, HeldTts)
    tts.may_go_on.set()
    for voice in ("alloy", {"id": "bruno"}, "anna"):
        body = speech(voice=voice, speed=2, instructions="Whisper.", unheard_of=[1], response_format="pcm")
        assert (await held.client.post("/v1/audio/speech", json=body)).status_code == 200
    assert [(voice.id, voice.speed) for voice in tts.voices] == [("anna", 2), ("bruno", 2), ("anna", 2)]


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"[" * 90_000, "application/json", 400),
        (b"hello", "text/plain", 415),
        (b"input=hello", "application/x-www-form-urlencoded", 415),
        (b"{" + b" " * 200_000, "application/json", 413),
    ],
    ids=["cut", "list", "deep", "text", "form", "large"],
)
async def test_a_body_of_another_form_is_refused(rest: Rest, content: bytes, content_type: str, status: int) -> None:
    answer = await rest.client.post("/v1/audio/speech", content=content, headers={"content-type": content_type})
    assert answer.status_code == status
    error_of(answer)


async def test_events_bring_the_same_audio(rest: Rest) -> None:
    events = []
    async with rest.client.stream(
        "POST", "/v1/audio/speech", json=speech(stream_format="sse", response_format="pcm")
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line:
                events.append(json.loads(line.removeprefix("data: ")))
    assert [event["type"] for event in events[-2:]] == ["speech.audio.delta", "speech.audio.done"]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}


async def test_a_voice_that_fails_at_once_is_an_answer_and_later_cuts_the_connection() -> None:
    def fails_on(index: int) -> ScriptedTts:
        failure = EngineFailed("the voice failed", stage="tts")
        return ScriptedTts(0.0, 0.0, fail_on=lambda piece: failure if piece.index == index else None)

    async with rest_server(tts=fails_on(0)) as rest:
        answer = await rest.client.post("/v1/audio/speech", json=speech())
        assert (answer.status_code, error_of(answer)["code"]) == (500, "engine_failed")
    async with rest_server(tts=fails_on(1)) as rest:
        with pytest.raises(httpx.RemoteProtocolError):  # half a file must not look like a whole one
            await rest.client.post("/v1/audio/speech", json=speech(response_format="wav"))
        answer = await rest.client.post("/v1/audio/speech", json=speech(stream_format="sse"))
        assert '"code":"engine_failed"' in answer.text.splitlines()[-2]


async def test_the_guides_route_takes_json_or_plain_text(held: Rest) -> None:
    tts = held.live.tts
    assert isinstance(tts, HeldTts)
    tts.may_go_on.set()
    options: dict[str, Any] = {"voice": "bruno", "format": "flac", "speed": 1.5, "seed": 7}
    as_json = await held.client.post("/api/tts", json={"text": TEXT, **options})
    as_text = await held.client.post("/api/tts", content=TEXT, params=options, headers={"content-type": "text/plain"})
    for answer in (as_json, as_text):
        assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/flac")
    assert as_json.content == as_text.content
    assert [(voice.id, voice.speed, voice.seed) for voice in tts.voices] == [("bruno", 1.5, 7)] * 2


async def test_the_guides_route_makes_files_as_the_settings_say() -> None:
    audio = {"sample_rate": 8000, "format": "flac"}
    async with rest_server(audio=audio) as rest:
        answer = await rest.client.post("/api/tts", json={"text": "Hello there."})
        assert answer.headers["content-type"] == "audio/flac"
        assert answer.content[18:21] == bytes([0x01, 0xF4, 0x00])  # 8000 in the 20 bits of STREAMINFO, then mono


@pytest.mark.parametrize("n_chars", [5000, 5001])
async def test_the_guides_route_takes_five_thousand_characters(n_chars: int) -> None:
    text = ("Hello there. " * 400)[: n_chars - 1] + "."
    async with rest_server(tts=BriefTts()) as rest:
        answer = await rest.client.post("/api/tts", json={"text": text, "format": "pcm"})
        assert answer.status_code == (200 if n_chars == 5000 else 400)


@pytest.mark.parametrize(("text", "n_allowed"), [("Hi.", 30), ("Hello there. " * 380, 6)], ids=["texts", "characters"])
async def test_what_is_spoken_counts_against_the_limits(text: str, n_allowed: int) -> None:
    async with rest_server(tts=BriefTts(), security={"max_requests_per_minute": 1000}) as rest:
        body = {"text": text, "format": "pcm"}
        for _ in range(n_allowed):
            assert (await rest.client.post("/api/tts", json=body)).status_code == 200
        refused = await rest.client.post("/api/tts", json=body)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1


async def test_control_characters_and_markdown_are_not_read(rest: Rest) -> None:
    plain = await rest.client.post("/api/tts", json={"text": "Hello there.", "format": "pcm"})
    marked = await rest.client.post("/api/tts", json={"text": "**Hel\u202elo\x00** `there`.", "format": "pcm"})
    assert len(plain.content) == len(marked.content)
