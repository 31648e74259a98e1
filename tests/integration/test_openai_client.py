"""The real `openai` client against the HTTP routes, as a developer would use it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from pipeline.untrusted_audio import decode
from tests.support.rest import Rest, TimedAsr, ToneTts, a_file, rest_server
from tests.support.scripted import SECONDS_PER_CHAR

TEXT = "The capital of France is Paris."
SECONDS = len(TEXT) * SECONDS_PER_CHAR


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with rest_server(asr=TimedAsr(delay_s=0.0), tts=ToneTts()) as running:
        yield running


@pytest.fixture
async def client(rest: Rest) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="none", base_url=f"{rest.live.http}/v1", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("kind", ["mp3", "opus", "aac", "flac", "wav"])
async def test_speech_is_streamed_to_a_file(client: AsyncOpenAI, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"speech.{kind}"
    async with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts",
        voice="alloy",
        input=TEXT,
        instructions="Speak in a cheerful tone.",
        response_format=kind,  # type: ignore[arg-type]
    ) as answer:
        await answer.stream_to_file(path)
    assert (await decode(path.read_bytes(), max_seconds=60)).seconds == pytest.approx(SECONDS, abs=0.15)


async def test_speech_comes_as_raw_samples_at_openais_rate(client: AsyncOpenAI) -> None:
    answer = await client.audio.speech.create(model="tts-1", voice={"id": "anna"}, input=TEXT, response_format="pcm")
    assert len(answer.content) / 2 / 24_000 == pytest.approx(SECONDS, abs=0.05)


async def test_speech_comes_as_events(client: AsyncOpenAI) -> None:
    answer = await client.audio.speech.create(model="tts-1", voice="anna", input=TEXT, stream_format="sse", speed=1.5)
    assert '"type":"speech.audio.done"' in answer.text


async def test_a_transcription_in_every_form(rest: Rest, client: AsyncOpenAI) -> None:
    rest.live.asr.texts = ["Hello there. General."] * 5
    transcriptions, file = client.audio.transcriptions, ("speech.wav", a_file())
    assert (await transcriptions.create(model="whisper-1", file=file)).text == "Hello there. General."
    assert (
        await transcriptions.create(model="whisper-1", file=file, response_format="text") == "Hello there. General.\n"
    )
    assert (await transcriptions.create(model="whisper-1", file=file, response_format="srt")).startswith("1\n00:00:00")
    assert (await transcriptions.create(model="whisper-1", file=file, response_format="vtt")).startswith("WEBVTT\n")
    verbose = await transcriptions.create(
        model="whisper-1",
        file=file,
        language="en",
        prompt="Names: Kenobi.",
        temperature=0,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert (verbose.text, verbose.language, verbose.duration) == ("Hello there. General.", "en", 1.0)
    assert verbose.words is not None
    assert [(word.word, word.start) for word in verbose.words] == [("Hello", 0.0), ("there.", 0.5), ("General.", 1.0)]
    assert verbose.segments is not None
    assert [segment.text for segment in verbose.segments] == ["Hello there.", "General."]


async def test_a_transcription_is_streamed(rest: Rest, client: AsyncOpenAI) -> None:
    rest.live.asr.texts = ["One.", "Two."]
    events = await client.audio.transcriptions.create(
        model="gpt-4o-transcribe", file=("long.wav", a_file(40.0)), stream=True
    )
    told = [event async for event in events]
    assert [event.type for event in told] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    last = told[-1]
    assert last.type == "transcript.text.done"
    assert last.text == "One. Two."


async def test_the_models_are_listed(client: AsyncOpenAI) -> None:
    models = [model.id async for model in client.models.list()]
    assert models[0] == "voicepod"
    for model in models:
        assert (await client.models.retrieve(model)).id == model
    with pytest.raises(openai.NotFoundError) as raised:
        await client.models.retrieve("gpt-5")
    assert raised.value.code == "model_not_found"


async def test_errors_are_the_clients_own_classes(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.audio.speech.create(model="tts-1", voice="nobody", input=TEXT)
    assert (raised.value.code, raised.value.param, raised.value.type) == (
        "voice_not_found",
        "voice",
        "invalid_request_error",
    )
    with pytest.raises(openai.BadRequestError) as raised:
        await client.audio.speech.create(model="tts-1", voice="anna", input="x" * 4097)
    assert raised.value.param == "input"
    with pytest.raises(openai.BadRequestError) as raised:
        await client.audio.transcriptions.create(model="whisper-1", file=("x.wav", b"no sound at all"))
    assert raised.value.code == "not_audio"


async def test_without_a_key_the_client_is_told_so() -> None:
    async with rest_server(access={"mode": "keys"}) as rest:
        async with AsyncOpenAI(api_key="none", base_url=f"{rest.live.http}/v1", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()


async def test_too_many_requests_say_when_to_come_back() -> None:
    async with rest_server(tts=ToneTts(), security={"max_requests_per_minute": 1}) as rest:
        async with AsyncOpenAI(api_key="none", base_url=f"{rest.live.http}/v1", max_retries=0) as client:
            await client.models.list()
            with pytest.raises(openai.RateLimitError) as raised:
                await client.models.list()
            assert int(raised.value.response.headers["retry-after"]) >= 1
