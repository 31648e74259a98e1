"""A question to a session and its answer, and the sessions that were begun so: what `/api/converse` is made of."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from api.registry import Registry, Seat
from pipeline import events
from pipeline.audio import AudioChunk
from pipeline.conversation import Item
from pipeline.errors import InvalidInput, NotFound, VoicepodError
from pipeline.outbox import AudioEntry, Entry
from pipeline.session import Session, new_id

FEED_S: Final = 0.5  # what a session takes at once
# The listener cuts into frames and drops what is left over: this makes it silence.
PAD_S: Final = 0.1


class Exchange:
    """A question to a session and the session's answer. `news` is what else there is to tell, in order."""

    def __init__(self, session: Session, over: asyncio.Event, sample_rate: int) -> None:
        self.session = session
        self.transcript = self.reply = ""
        begun = {"type": "session", "session": session.id, "sample_rate": sample_rate}
        self.news: deque[Mapping[str, Any]] = deque([begun])
        self._is_replying = self._is_done = False
        self._over = over
        self._error: VoicepodError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all was told: the end of a reply stands behind its audio, the end of the turn does not."""
        return self._is_done and not self._is_replying

    async def audio(self, question: AudioChunk | str) -> AsyncGenerator[AudioChunk, None]:
        """Ask, and give the answer's audio as it is made; an empty chunk tells that there is news."""
        session = self.session
        turn_id = await (self._type(question) if isinstance(question, str) else self._say(question))
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

    async def _type(self, question: str) -> int:
        session = self.session
        await asyncio.sleep(0)  # the task of a new session begins
        session.add_item(Item(new_id("item"), "user", question))
        self.transcript = question
        session.respond()
        return session.n_turns

    async def _say(self, question: AudioChunk) -> int:
        session = self.session
        await self._feed(question)
        session.commit()
        turn_id = session.n_turns
        session.respond()
        return turn_id

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
