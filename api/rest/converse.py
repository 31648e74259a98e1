"""`POST /api/converse`: one question in, spoken or typed, the spoken answer out, without a socket.

The turn is a session's turn, in a seat of the registry like that of a socket; only the way in and out differs. What
the client takes counts as heard, so nothing is paced. The session is kept for a while, so that the next call can go on
with the talk.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from api.access.access import require
from api.access.principal import Principal
from api.rest.backend import Backend
from api.rest.bodies import Asked, content_type, query, text_body
from api.rest.exchange import PAD_S, Exchange, Talks
from api.rest.openapi import AUDIO_ANSWER, audio_body, errors, parameters_of
from api.rest.speech import Format, encoded
from api.rest.streaming import EVENT_STREAM, Streamed, audio_event, event, events_with_errors, unless_gone
from api.uploads import read_body
from pipeline.audio import AudioChunk
from pipeline.encoding import CONTENT_TYPES, encode
from pipeline.errors import InvalidInput
from pipeline.options import SessionOptions
from pipeline.untrusted_audio import decode
from pipeline.untrusted_text import clean_user_text

SESSION_HEADER, TRANSCRIPT_HEADER = "Voicepod-Session", "Voicepod-Transcript"
# Proxies take headers of 4 to 8 kB in all; the event stream has the whole transcript.
MAX_TRANSCRIPT_HEADER: Final = 2000
INPUT_RATE: Final = 16_000
MAX_TYPED_CHARS: Final = 2000  # as in the page's text box
EXAMPLE_QUESTION: Final = "How big is the sun?"
MAX_INSTRUCTIONS_CHARS: Final = 4000


class ConverseOptions(Asked):
    """The query of a request. What is absent is as the session has it."""

    session: Annotated[str, Field(max_length=128)] | None = None
    voice: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] | None = None
    speed: Annotated[float, Field(ge=0.25, le=4.0)] | None = None
    instructions: Annotated[str, Field(max_length=MAX_INSTRUCTIONS_CHARS)] | None = None
    format: Format = "wav"
    stream_format: Literal["audio", "sse"] = "audio"


def converse_router(backend: Backend) -> APIRouter:
    """The one route."""
    router = APIRouter(tags=["talk"])
    talks = Talks(backend.registry)

    @router.post(
        "/api/converse",
        response_class=Response,
        responses={200: AUDIO_ANSWER, **errors(400, 404, 413, 415, 429, 503)},
        openapi_extra={**audio_body(plain=EXAMPLE_QUESTION), **parameters_of(ConverseOptions)},
    )
    async def converse(request: Request, principal: Annotated[Principal, Depends(require("speech"))]) -> Response:
        """Ask, and hear the answer. The body is the recording itself, in any container, or the text of the question."""
        if content_type(request) in ("application/json", "multipart/form-data"):
            raise HTTPException(415)
        asked = query(request, ConverseOptions)
        backend.check_ready()
        if asked.voice is not None:
            backend.voice_id(principal.owner, asked.voice)
        question = await (_typed(request) if content_type(request) == "text/plain" else _spoken(request, backend))
        if isinstance(question, str):
            await backend.limiter.spend(principal, "characters", len(question))
        else:
            await backend.limiter.spend(principal, "audio_s", question.seconds)
        await backend.limiter.spend(principal, "generation")
        return _Turn(backend, talks, principal, asked, question).answer()

    return router


async def _typed(request: Request) -> str:
    text = clean_user_text(await text_body(request), max_characters=MAX_TYPED_CHARS, allow_newlines=True).strip()
    if not text:
        raise InvalidInput("the question holds no words", code="text_empty")
    return text


async def _spoken(request: Request, backend: Backend) -> AudioChunk:
    data = await read_body(request, max_bytes=backend.max_upload_bytes)
    max_s = backend.settings.turn.max_utterance_s - 2 * PAD_S
    return await unless_gone(request.receive, decode(data, max_seconds=max_s, sample_rate=INPUT_RATE))


class _Turn:
    """One request on its way through a session."""

    def __init__(
        self, backend: Backend, talks: Talks, principal: Principal, asked: ConverseOptions, question: AudioChunk | str
    ) -> None:
        self._backend, self._talks = backend, talks
        self._principal, self._asked, self._question = principal, asked, question
        self._exchange: Exchange | None = None

    def answer(self) -> Streamed:
        """The answer as audio, or as events."""
        if self._asked.stream_format == "sse":
            return Streamed(events_with_errors(self._events()), media_type=EVENT_STREAM, headers=self._headers)
        return Streamed(self._file(), media_type=CONTENT_TYPES[self._asked.format], headers=self._headers)

    @property
    def _rate(self) -> int:
        return self._backend.settings.audio.sample_rate

    def _headers(self) -> dict[str, str]:
        exchange = self._exchange
        if exchange is None:
            return {}
        headers = {SESSION_HEADER: exchange.session.id}
        if exchange.transcript:
            headers[TRANSCRIPT_HEADER] = _percent_encoded(exchange.transcript, MAX_TRANSCRIPT_HEADER)
        return headers

    async def _file(self) -> AsyncGenerator[bytes, None]:
        sound = _sound(self._spoken())
        async with aclosing(sound), aclosing(encoded(sound, self._asked.format, self._rate)) as data:
            async for part in data:
                yield part

    async def _events(self) -> AsyncGenerator[bytes, None]:
        """The transcript as soon as it is there, text before the audio that speaks it, and at the end both texts."""
        async with aclosing(self._spoken()) as spoken:
            first = None
            async for chunk in spoken:
                for item in self._news():
                    yield item
                if chunk.n_samples:
                    first = chunk
                    break
            if first is not None:
                async with aclosing(encode(_sound(spoken, first), self._asked.format, self._rate)) as data:
                    async for part in data:
                        for item in self._news():
                            yield item
                        yield audio_event("audio", part)
        for item in self._news():
            yield item
        assert self._exchange is not None
        yield event({"type": "done", "transcript": self._exchange.transcript, "reply": self._exchange.reply})

    def _news(self) -> Iterator[bytes]:
        while self._exchange is not None and self._exchange.news:
            yield event(self._exchange.news.popleft())

    async def _spoken(self) -> AsyncGenerator[AudioChunk, None]:
        """The answer, made by a session. A client that goes away stops it; words that were understood are kept."""
        with self._talks.seat(self._principal.owner, self._asked.session) as seat:
            session = seat.session
            exchange = self._exchange = Exchange(session, seat.taken_over, self._rate)
            try:
                session.update(self._options(session.options))
                async with aclosing(exchange.audio(self._question)) as audio:
                    async for chunk in audio:
                        yield chunk
            finally:
                if not exchange.is_complete:
                    session.cancel_replies()
                    if not exchange.transcript:
                        self._backend.registry.end(seat)

    def _options(self, options: SessionOptions) -> SessionOptions:
        asked = self._asked
        instructions = options.instructions
        if asked.instructions is not None:
            instructions = clean_user_text(
                asked.instructions, max_characters=MAX_INSTRUCTIONS_CHARS, allow_newlines=True
            )
        return replace(
            options,
            turn_detection=None,
            modality="audio",
            instructions=instructions,
            voice=options.voice if asked.voice is None else self._backend.voice_id(self._principal.owner, asked.voice),
            language=asked.language or options.language,
            speed=asked.speed or options.speed,
            input_sample_rate=INPUT_RATE,
            output_sample_rate=self._rate,
        )


async def _sound(
    spoken: AsyncGenerator[AudioChunk, None], first: AudioChunk | None = None
) -> AsyncGenerator[AudioChunk, None]:
    """The chunks that hold samples, after `first`."""
    async with aclosing(spoken):
        if first is not None:
            yield first
        async for chunk in spoken:
            if chunk.n_samples:
                yield chunk


def _percent_encoded(text: str, max_length: int) -> str:
    """As encodeURIComponent; cut behind a whole character."""
    encoded_text = ""
    for character in text:
        part = quote(character, safe="")
        if len(encoded_text) + len(part) > max_length:
            break
        encoded_text += part
    return encoded_text
