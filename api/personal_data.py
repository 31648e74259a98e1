"""Everything that the server holds about one owner: counted, handed out as one archive, deleted.

Keys and the audit log are not deleted: without them nobody could prove who had done what, and the owner could not get
in any more. Consents stay for as long as `voices.consent_days` says.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import zipfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

from api.history import History
from api.registry import Registry
from api.rest.jobs import Jobs, shown
from api.store import Store
from api.voices.workshop import Workshop
from pipeline.errors import NotFound
from pipeline.session import Session

PART_BYTES: Final = 65_536
_WHAT: Final = {
    "keys.json": "your API keys, without their secrets",
    "logins.json": "browsers that are logged in",
    "sessions.json": "talks and their turns, with words only where the server was set to keep them",
    "talks.json": "what was said in the talks that run, or wait to be resumed, now",
    "jobs.json": "jobs and their results",
    "voices.json": "voices that you made; voices/ID.wav is the recording of each",
    "recordings.json": "recordings that you sent and that are no voice yet; recordings/ID.wav is the sound",
    "consents.json": "what you agreed to when you made voices",
    "audit.json": "what the audit log says of you",
}


@dataclass(frozen=True, slots=True)
class PersonalData:
    """Where the data of owners lie."""

    store: Store
    registry: Registry
    jobs: Jobs
    workshop: Workshop
    history: History

    async def counts(self, owner: str) -> dict[str, int]:
        """How many things of each kind there are."""
        n_sessions, n_turns = await self.history.counts(owner)
        rows = await self.store.read(lambda db: {name: _n_rows(db, query, owner) for name, query in _TABLES.items()})
        return {
            **rows,
            "sessions": n_sessions,
            "turns": n_turns,
            "talks": len(self.registry.of_owner(owner)),
            "jobs": len(self.jobs.of_owner(owner)),
            "voices": len(self.workshop.book.own(owner)),
            "recordings": len(self.workshop.recordings.of_owner(owner)),
        }

    async def name(self, owner: str) -> str:
        """What the owner is called."""
        found = await self.store.read(lambda db: _rows(db, "SELECT name FROM owners WHERE id = ?", owner))
        return str(found[0]["name"]) if found else owner

    # --- hand out

    async def archive(self, owner: str) -> AsyncGenerator[bytes, None]:
        """A zip of it all, made while it is sent. Times are seconds since 1970."""
        sink = _Sink()
        with zipfile.ZipFile(sink, "w") as archive:  # stored: deflating would hold the event loop for too long
            async with aclosing(self._files(owner)) as files:
                async for name, data in files:
                    archive.writestr(name, data)
                    for part in sink.taken():
                        yield part
        for part in sink.taken():  # the list of files, which stands at the end
            yield part

    async def _files(self, owner: str) -> AsyncGenerator[tuple[str, bytes], None]:
        yield "about.json", await _json({"owner": owner, "name": await self.name(owner), "files": _WHAT})
        for name, query in _TABLES.items():
            yield f"{name}.json", await _json(await self.store.read(partial(_rows, query=query, owner=owner)))
        yield "sessions.json", await _json(await self.history.of_owner(owner))
        yield "talks.json", await _json([_talk(seat.session) for seat in self.registry.of_owner(owner)])
        yield "jobs.json", await _json([shown(job).model_dump() for job in self.jobs.of_owner(owner)])
        async with aclosing(self._voices(owner)) as files:
            async for file in files:
                yield file

    async def _voices(self, owner: str) -> AsyncGenerator[tuple[str, bytes], None]:
        book, recordings = self.workshop.book, self.workshop.recordings.of_owner(owner)
        consents = [{**asdict(one), "sample_sha256": one.sample_sha256.hex()} for one in await book.consents(owner)]
        yield "consents.json", await _json(consents)
        voices = book.own(owner)
        yield "voices.json", await _json([asdict(voice) for voice in voices])
        for voice in voices:
            try:
                yield f"voices/{voice.id}.wav", await book.recording(owner, voice.id)
            except NotFound:  # lost, or deleted meanwhile
                continue
        kept = [{"id": one.id, "transcript": one.transcript, "expires_s": one.expires_s} for one in recordings]
        yield "recordings.json", await _json(kept)
        for one in recordings:
            if one.wav is not None:
                yield f"recordings/{one.id}.wav", one.wav

    # --- delete

    async def forget(self, owner: str, *, credential: str) -> dict[str, int]:
        """Delete all but keys, logins, consents and audit log; gives how many things of each kind that were."""
        seats, jobs = self.registry.of_owner(owner), self.jobs.of_owner(owner)
        for seat in seats:
            self.registry.end(seat)
        for job in jobs:
            await self.jobs.delete(job.id, owner)
        n_voices = len(self.workshop.book.own(owner))
        await self.workshop.book.delete_all(owner, credential=credential)
        n_recordings = len(self.workshop.recordings.of_owner(owner))
        self.workshop.recordings.drop_all(owner)
        self.workshop.phrases.drop_all(owner)
        n_sessions, n_turns = await self.history.forget(owner)
        return {
            "talks": len(seats),
            "jobs": len(jobs),
            "voices": n_voices,
            "recordings": n_recordings,
            "sessions": n_sessions,
            "turns": n_turns,
        }


# What of the tables is told; secrets, even hashed, are not.
_TABLES: Final = {
    "keys": (
        "SELECT id, name, scopes, created_s, expires_s, last_used_s, revoked_s FROM keys WHERE owner = ? ORDER BY rowid"
    ),
    "logins": "SELECT id, key, scopes, created_s, last_seen_s FROM browser_sessions WHERE owner = ? ORDER BY rowid",
    "audit": ("SELECT number, at_s, credential, action, object, result FROM audit WHERE owner = ? ORDER BY number"),
}


def _rows(connection: sqlite3.Connection, query: str, owner: str) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(query, (owner,))]


def _n_rows(connection: sqlite3.Connection, query: str, owner: str) -> int:
    (n_rows,) = connection.execute(f"SELECT COUNT(*) FROM ({query})", (owner,)).fetchone()  # noqa: S608 - our own texts
    return int(n_rows)


def _talk(session: Session) -> dict[str, Any]:
    items = [{"id": item.id, "role": item.role, "content": item.content} for item in session.conversation]
    return {"id": session.id, "items": items}


async def _json(value: Any) -> bytes:
    """In a thread: a long history takes a while."""
    return await asyncio.to_thread(lambda: json.dumps(value, ensure_ascii=False, indent=1).encode())


class _Sink:
    """A file that is only written to, and given away in parts."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes, /) -> int:
        self._data += data
        return len(data)

    def flush(self) -> None:
        return

    def close(self) -> None:
        return

    def taken(self) -> list[bytes]:
        """What was written since the last time."""
        data, self._data = bytes(self._data), bytearray()
        return [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
