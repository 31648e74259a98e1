"""Text to speech: OpenAI's `POST /v1/audio/speech` and the administration guide's `POST /api/tts`.

Both read a text aloud through the engine's lane, in the pieces of a turn, and send the first audio at once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BeforeValidator, Field, WithJsonSchema

from api.access.access import require
from api.access.principal import Principal
from api.rest.backend import Backend
from api.rest.bodies import Asked, checked, content_type, json_body, query, refuse_unless, text_body
from api.rest.openapi import AUDIO_ANSWER, EXAMPLE_TEXT, body_of, errors, parameters_of
from api.rest.streaming import EVENT_STREAM, Streamed, after_first, audio_event, event, events_with_errors
from pipeline.audio import AudioChunk
from pipeline.encoding import CONTENT_TYPES, encode
from pipeline.engines.base import Voice
from pipeline.reading import read_aloud
from pipeline.untrusted_text import clean_user_text

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]

OPENAI_MAX_CHARS: Final = 4096
GUIDE_MAX_CHARS: Final = 5000
# OpenAI's raw samples have this rate, and nothing in them says so.
OPENAI_RATE: Final = 24_000
MAX_SEED: Final = 2**32 - 1  # what torch takes


def _voice_id(value: object) -> object:
    """OpenAI's clients send a name, or an object with the id of a voice of one's own."""
    return value.get("id") if isinstance(value, dict) else value


VoiceId = Annotated[
    str,
    BeforeValidator(_voice_id),
    Field(min_length=1, max_length=128),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 128},
                {
                    "type": "object",
                    "properties": {"id": {"type": "string", "minLength": 1, "maxLength": 128}},
                    "required": ["id"],
                },
            ]
        }
    ),
]
Speed = Annotated[float, Field(ge=0.25, le=4.0)]


class SpeechRequest(Asked):
    """Body of `/v1/audio/speech`. `model` and `instructions` are accepted and not looked at."""

    model: str = Field(max_length=256)
    input: str = Field(min_length=1, max_length=OPENAI_MAX_CHARS)
    voice: VoiceId
    response_format: Format = "mp3"
    speed: Speed = 1.0
    instructions: str | None = Field(None, max_length=OPENAI_MAX_CHARS)
    stream_format: Literal["audio", "sse"] = "audio"


class TtsOptions(Asked):
    """How `/api/tts` speaks: the query of a plain text request."""

    voice: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    format: Format | None = None
    speed: Speed = 1.0
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None


class TtsRequest(TtsOptions):
    """JSON body of `/api/tts`."""

    text: str = Field(min_length=1, max_length=GUIDE_MAX_CHARS)


def speech_router(backend: Backend) -> APIRouter:
    """The two routes."""
    router = APIRouter(tags=["speech"])

    @router.post(
        "/v1/audio/speech",
        response_class=Response,
        responses={200: AUDIO_ANSWER, **errors(400, 413, 415, 429, 503)},
        openapi_extra=body_of(
            SpeechRequest,
            {"model": "voicepod", "input": EXAMPLE_TEXT, "voice": "alloy", "response_format": "wav"},
        ),
    )
    async def speech(request: Request, principal: Annotated[Principal, Depends(require("speech"))]) -> Response:
        """Read a text aloud, as OpenAI's clients ask for it."""
        asked = await json_body(request, SpeechRequest)
        voice = backend.voice(principal.owner, asked.voice, speed=asked.speed)
        text = clean_user_text(asked.input, max_characters=OPENAI_MAX_CHARS, allow_newlines=True)
        audio = await _reading(backend, principal, text, voice, OPENAI_RATE, param="input")
        if asked.stream_format == "sse":
            return Streamed(_events(audio, asked.response_format), media_type=EVENT_STREAM)
        return _answer(audio, asked.response_format, OPENAI_RATE)

    @router.post(
        "/api/tts",
        response_class=Response,
        responses={200: AUDIO_ANSWER, **errors(400, 413, 415, 429, 503)},
        openapi_extra={
            **body_of(TtsRequest, {"text": EXAMPLE_TEXT, "format": "wav"}, plain=EXAMPLE_TEXT),
            **parameters_of(TtsOptions),
        },
    )
    async def tts(request: Request, principal: Annotated[Principal, Depends(require("speech"))]) -> Response:
        """Read a text aloud: JSON, or the text itself with the options in the query."""
        asked = await _tts_request(request)
        kind = asked.format or backend.settings.audio.format
        rate = backend.settings.audio.sample_rate
        voice = backend.voice(principal.owner, asked.voice, speed=asked.speed, seed=asked.seed)
        text = clean_user_text(asked.text, max_characters=GUIDE_MAX_CHARS, allow_newlines=True)
        return _answer(await _reading(backend, principal, text, voice, rate, param="text"), kind, rate)

    return router


async def _tts_request(request: Request) -> TtsRequest:
    refuse_unless(request, ("application/json", "text/plain"))
    if content_type(request) == "application/json":
        return await json_body(request, TtsRequest)
    options = query(request, TtsOptions)
    return checked(TtsRequest, {**options.model_dump(), "text": await text_body(request)})


async def _reading(
    backend: Backend, principal: Principal, text: str, voice: Voice, sample_rate: int, *, param: str
) -> AsyncGenerator[AudioChunk, None]:
    """The text as audio, once the caller's limits allow it; its slot is held until the stream is closed."""
    backend.check_ready()
    await backend.limiter.spend(principal, "generation")
    await backend.limiter.spend(principal, "characters", len(text))
    chunks = read_aloud(
        text,
        tts=backend.engines.tts,
        voice=voice,
        splitter=backend.splitter(voice),
        sample_rate=sample_rate,
        waits=backend.waits,
        param=param,
    )
    return backend.slots.held(chunks)


def _answer(audio: AsyncGenerator[AudioChunk, None], kind: Format, sample_rate: int) -> Streamed:
    return Streamed(encoded(audio, kind, sample_rate), media_type=CONTENT_TYPES[kind])


async def encoded(
    audio: AsyncGenerator[AudioChunk, None], kind: Format, sample_rate: int
) -> AsyncGenerator[bytes, None]:
    """The audio as a file in the making. Nothing is given before the first chunk is there: not even a header."""
    async with aclosing(audio), aclosing(encode(await after_first(audio), kind, sample_rate)) as data:
        async for part in data:
            yield part


async def _events(audio: AsyncGenerator[AudioChunk, None], kind: Format) -> AsyncGenerator[bytes, None]:
    """The same as OpenAI's server-sent events."""

    async def events() -> AsyncGenerator[bytes, None]:
        async with aclosing(encoded(audio, kind, OPENAI_RATE)) as data:
            async for part in data:
                yield audio_event("speech.audio.delta", part)
        yield event({"type": "speech.audio.done"})

    async with aclosing(events_with_errors(events())) as told:
        async for item in told:
            yield item
