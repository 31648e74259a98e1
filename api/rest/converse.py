"""`POST /api/converse`: one spoken question in, the spoken answer out, without a socket.

The turn is a session's turn, in a seat of the registry like that of a socket; only the way in and out differs. What
the client takes counts as heard, so nothing is paced. The session is kept for a while, so that the next call can go on
with the talk.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from api.access.access import require
from api.access.principal import Principal
from api.registry import Registry, Seat
from api.rest.backend import Backend
from api.rest.bodies import Asked, content_type, query
from api.rest.openapi import AUDIO_ANSWER, audio_body, errors, parameters_of
from api.rest.speech import Format, encoded
from api.rest.streaming import EVENT_STREAM, Streamed, audio_event, event, events_with_errors, unless_gone
from api.uploads import read_body
from pipeline import events
from pipeline.audio import AudioChunk
from pipeline.encoding import CONTENT_TYPES, encode
from pipeline.errors import InvalidInput, NotFound, VoicepodError
from pipeline.options import SessionOptions
from pipeline.outbox import AudioEntry, Entry
from pipeline.session import Session
from pipeline.untrusted_audio import decode
from pipeline.untrusted_text import clean_user_text

SESSION_HEADER, TRANSCRIPT_HEADER = "Voicepod-Session", "Voicepod-Transcript"
# Proxies take headers of 4 to 8 kB in all; the event stream has the whole transcript.
MAX_TRANSCRIPT_HEADER: Final = 2000
INPUT_RATE: Final = 16_000
FEED_S: Final = 0.5  # what a session takes at once
# The listener cuts into frames and drops what is left over: this makes it silence.
PAD_S: Final = 0.1
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


class Exchange:
    """A question to a session and the session's answer. `news` is what else there is to tell, in order."""

    def __init__(self, session: Session, over: asyncio.Event) -> None:
        self.session = session
        self.transcript = self.reply = ""
        self.news: deque[Mapping[str, Any]] = deque([{"type": "session", "session": session.id}])
        self._is_replying = self._is_done = False
        self._over = over
        self._error: VoicepodError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all was told: the end of a reply stands behind its audio, the end of the turn does not."""
        return self._is_done and not self._is_replying

    async def audio(self, question: AudioChunk) -> AsyncGenerator[AudioChunk, None]:
        """Ask, and give the answer's audio as it is made; an empty chunk tells that there is news."""
        session = self.session
        await self._feed(question)
        session.commit()
        turn_id = session.n_turns
        session.respond()
        while not self.is_complete:
            entry = await self._next()
            if isinstance(entry, AudioEntry):
                n_samples = entry.first_sample + entry.audio.n_samples
                session.played(entry.playout.turn_id, n_samples)
                if entry.caption is not None:
                    self._caption(entry.caption)
                yield entry.audio
            elif entry.event.turn_id == turn_id:
                self._take(entry.event)
                if self.news:
                    yield AudioChunk.silence(0, session.options.output_sample_rate)
        if self._error is not None:
            raise self._error

    async def _feed(self, question: AudioChunk) -> None:
        self.session.clear()
        step = round(FEED_S * question.sample_rate)
        for start in range(0, question.n_samples, step):
            self.session.feed(question.slice(start, start + step))
            await asyncio.sleep(0)
        self.session.feed(AudioChunk.silence(PAD_S, question.sample_rate))

    async def _next(self) -> Entry:
        """The session's next entry; `NotFound` when the session was ended meanwhile."""
        getting = asyncio.ensure_future(self.session.outbox.get())
        ending = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({getting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                raise _ended()
            return getting.result()
        finally:
            getting.cancel()
            ending.cancel()
            await asyncio.gather(getting, ending, return_exceptions=True)

    def _take(self, happened: events.Event) -> None:
        if isinstance(happened, events.TranscriptReady):
            self.transcript = happened.transcript.text
            self.news.append({"type": "transcript", "text": self.transcript, "language": happened.transcript.language})
        elif isinstance(happened, events.ReplyCaption):
            self._caption(happened)
        elif isinstance(happened, events.ReplyStarted):
            self._is_replying = True
        elif isinstance(happened, events.ReplyFinished):
            self._is_replying, self.reply = False, happened.text
        elif isinstance(happened, events.TurnFailed):
            self._error = happened.error
        elif isinstance(happened, events.TurnDone):
            if happened.record.outcome == "interrupted":  # half an answer must not look like a whole one
                raise _ended()
            self._is_done = True

    def _caption(self, caption: events.ReplyCaption) -> None:
        self.news.append({"type": "reply.text", "delta": caption.text, "first_sample": caption.first_sample})


def _ended() -> NotFound:
    return NotFound("the session was ended", code="session_not_found")


class Talks:
    """The sessions that were begun here. One that a socket began is left to its socket."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._session_ids: set[str] = set()

    @contextmanager
    def seat(self, owner: str, session_id: str | None) -> Iterator[Seat]:
        """A seat with a new session, or with the owner's session of this id; given up at the end of the block."""
        connection = object()
        if session_id is None:
            seat = self._registry.open(connection, owner)
            self._session_ids &= {session.id for session in self._registry.sessions}  # the others are over
            self._session_ids.add(seat.session.id)
        else:
            seat = self._known(owner, session_id)
            self._registry.attach(seat, connection)
        try:
            yield seat
        finally:
            self._registry.detach(seat, connection, goodbye=True)

    def _known(self, owner: str, session_id: str) -> Seat:
        for seat in self._registry.of_owner(owner):
            if seat.session.id == session_id and session_id in self._session_ids:
                if seat.connection is not None:
                    raise InvalidInput("this session is answering already", code="session_in_use", param="session")
                return seat
        raise NotFound("there is no such session of yours", code="session_not_found", param="session")


def converse_router(backend: Backend) -> APIRouter:
    """The one route."""
    router = APIRouter(tags=["talk"])
    talks = Talks(backend.registry)

    @router.post(
        "/api/converse",
        response_class=Response,
        responses={200: AUDIO_ANSWER, **errors(400, 404, 413, 415, 429, 503)},
        openapi_extra={**audio_body(), **parameters_of(ConverseOptions)},
    )
    async def converse(request: Request, principal: Annotated[Principal, Depends(require("speech"))]) -> Response:
        """Ask aloud, hear the answer. The body is the recording itself, in any container."""
        if content_type(request) in ("application/json", "multipart/form-data"):
            raise HTTPException(415)
        asked = query(request, ConverseOptions)
        backend.check_ready()
        if asked.voice is not None:
            backend.voice(asked.voice)
        data = await read_body(request, max_bytes=backend.max_upload_bytes)
        max_s = backend.settings.turn.max_utterance_s - 2 * PAD_S
        question = await unless_gone(request.receive, decode(data, max_seconds=max_s, sample_rate=INPUT_RATE))
        await backend.limiter.spend(principal, "audio_s", question.seconds)
        await backend.limiter.spend(principal, "generation")
        return _Turn(backend, talks, principal, asked, question).answer()

    return router


class _Turn:
    """One request on its way through a session."""

    def __init__(
        self, backend: Backend, talks: Talks, principal: Principal, asked: ConverseOptions, question: AudioChunk
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
            exchange = self._exchange = Exchange(session, seat.taken_over)
            try:
                session.update(self._options(session.options))
                async with aclosing(exchange.audio(self._question)) as audio:
                    async for chunk in audio:
                        yield chunk
            finally:
                if not exchange.is_complete:
                    session.barge_in()
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
            voice=options.voice if asked.voice is None else self._backend.voice(asked.voice).id,
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
