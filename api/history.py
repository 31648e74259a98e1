"""The record of talks: who talked when and for how long, and how each turn went. No words, unless they are asked for.

Sessions tell their events on the event loop; rows are gathered there and written by a task of their own, all that have
come by then at once, so that no talk ever waits for a disk. What is too old is swept in small batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import structlog

from api.store import DAY_S, Store
from pipeline import events
from pipeline.errors import StorageError
from pipeline.records import TurnRecord
from pipeline.session import Session
from settings import StorageSettings

log = structlog.get_logger()

SWEEP_S: Final = 3600.0
BATCH: Final = 500  # rows that go in one transaction: some milliseconds
RETRY_S: Final = 5.0
MAX_WAITING: Final = 5000  # rows that wait for a disk, about 5 MB; the oldest are given up
MAX_TURNS: Final = 32  # of a talk, whose words wait for the end of the turn or may come after it
MAX_WORDS: Final = 4000  # characters of one side of a turn

Row = tuple[str, tuple[Any, ...]]  # a statement and what it takes
_BEGAN: Final = "INSERT OR IGNORE INTO sessions SELECT ?, id, ?, NULL FROM owners WHERE id = ?"
_LATE_WORDS: Final = "UPDATE turns SET heard = ? WHERE session = ? AND turn = ?"
_ENDED: Final = "UPDATE sessions SET ended_s = ? WHERE id = ?"
# A session whose data was deleted meanwhile is not written of again.
_TURN: Final = (
    "INSERT OR IGNORE INTO turns SELECT id, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM sessions WHERE id = ? AND owner = ?"
)


@dataclass(slots=True)
class _Talk:
    """What is noted of a session that runs."""

    owner: str
    heard: dict[int, str] = field(default_factory=dict)  # by turn, of those that have not ended
    said: dict[int, str] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)  # what was heard in turns that have, the last ones

    def words(self, turn_id: int) -> tuple[str, str]:
        """Both sides of a turn: what was said before it, and had no answer of its own, belongs to it."""
        heard = [self.heard.pop(turn) for turn in sorted(self.heard) if turn <= turn_id]
        return _storable(" ".join(heard)), _storable(self.said.pop(turn_id, ""))


def _storable(text: str) -> str:
    """Without halves of characters, which a model may give and the database refuses."""
    return text[:MAX_WORDS].encode("utf-8", "replace").decode()


class History:
    """Of one server. `began`, `observe` and `ended` are plain calls of the event loop."""

    def __init__(self, store: Store, settings: StorageSettings, *, now: Callable[[], float] = time.time) -> None:
        self._store, self._settings, self._now = store, settings, now
        self._talks: dict[str, _Talk] = {}
        self._waiting: list[Row] = []
        self._wake, self._writing = asyncio.Event(), asyncio.Lock()
        store.now(_close_open_ones)

    # --- what happens in talks

    def began(self, session_id: str, owner: str) -> None:
        """A session began."""
        if self._settings.history_days:
            self._talks[session_id] = _Talk(owner)
            self._note(_BEGAN, session_id, self._now(), owner)

    def observe(self, session: Session, event: events.Event) -> None:
        """A session's observer."""
        talk = self._talks.get(session.id)
        if talk is None:
            return
        if isinstance(event, events.TurnDone):
            self._turn_done(session.id, talk, event.record)
        elif self._settings.words_days and isinstance(event, events.TranscriptReady):
            talk.heard[event.turn_id] = event.transcript.text
            if event.turn_id in talk.ended:  # it was taken back before its words were known
                talk.heard[event.turn_id] = f"{talk.ended[event.turn_id]} {event.transcript.text}".lstrip()
                self._note(_LATE_WORDS, talk.words(event.turn_id)[0], session.id, event.turn_id)
            elif len(talk.heard) > MAX_TURNS:  # a client that asks for no answers
                del talk.heard[min(talk.heard)]
        elif self._settings.words_days and isinstance(event, events.ReplyFinished):
            talk.said[event.turn_id] = event.text

    def ended(self, session_id: str) -> None:
        """The session is over."""
        if self._talks.pop(session_id, None) is not None:
            self._note(_ENDED, self._now(), session_id)

    def _turn_done(self, session_id: str, talk: _Talk, record: TurnRecord) -> None:
        heard, said = talk.words(record.turn_id)
        talk.ended[record.turn_id] = heard
        if len(talk.ended) > MAX_TURNS:
            del talk.ended[min(talk.ended)]
        has_words = bool(self._settings.words_days)
        self._note(
            _TURN,
            record.turn_id,
            self._now(),
            record.outcome,
            record.error_code,
            record.total_ms,
            json.dumps(record.parts_ms),
            round(record.utterance_s, 3),
            round(record.spoken_s, 3),
            round(record.heard_s, 3),
            heard if has_words else None,
            said if has_words else None,
            session_id,
            talk.owner,
        )

    def _note(self, statement: str, *values: Any) -> None:
        self._waiting.append((statement, values))
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[0]
        self._wake.set()

    # --- in the background

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write and sweep while the block runs; what is still waiting is written at its end."""
        tasks = [asyncio.create_task(self._write_on(), name="history"), asyncio.create_task(self._sweep_on())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(StorageError):
                await self.write()

    async def write(self) -> None:
        """Write all that waits."""
        async with self._writing:
            self._wake.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                try:
                    await self._store.write(partial(_apply, batch))
                except (StorageError, asyncio.CancelledError):
                    self._waiting[:0] = batch  # written twice does no harm
                    self._wake.set()
                    raise

    async def _write_on(self) -> None:
        while True:
            await self._wake.wait()
            try:
                await self.write()
            except StorageError:  # told by the store; the rows wait
                await asyncio.sleep(RETRY_S)
            except Exception:  # boundary: rows that cannot be written must not keep the later ones from the disk
                log.exception("history.rows_lost")

    async def _sweep_on(self) -> None:
        while True:
            with contextlib.suppress(StorageError):
                await self.sweep()
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Forget what is older than the settings say."""
        now_s, settings = self._now(), self._settings
        too_old_s = now_s - settings.history_days * DAY_S
        words_s = now_s - min(settings.words_days, settings.history_days) * DAY_S
        for statement, before_s in ((_OLD_WORDS, words_s), (_OLD_TURNS, too_old_s), (_OLD_SESSIONS, too_old_s)):
            await self._in_batches(statement, before_s)
        await self._store.fold()

    async def _in_batches(self, statement: str, value: float | str) -> None:
        """Run it until nothing is left to change: others of the store have their turn in between."""
        n_changed = BATCH
        while n_changed:
            n_changed = await self._store.write(partial(_n_changed, statement, (value, BATCH)))

    # --- of one owner

    async def of_owner(self, owner: str) -> list[dict[str, Any]]:
        """The owner's sessions with their turns, the oldest first."""
        await self.write()
        return await self._store.read(lambda db: _of_owner(db, owner))

    async def counts(self, owner: str) -> tuple[int, int]:
        """How many sessions and turns are known of the owner."""
        await self.write()
        return await self._store.read(lambda db: _counts(db, owner))

    async def forget(self, owner: str) -> tuple[int, int]:
        """Delete all of it; gives how many sessions and turns that were. A talk that runs is not noted any more."""
        for session_id in [key for key, talk in self._talks.items() if talk.owner == owner]:
            del self._talks[session_id]
        n_sessions, n_turns = await self.counts(owner)
        await self._in_batches(_OWN_TURNS, owner)
        await self._store.write(partial(_n_changed, "DELETE FROM sessions WHERE owner = ?", (owner,)))
        await self._store.fold()
        return n_sessions, n_turns


_OLD_WORDS: Final = (
    "UPDATE turns SET heard = NULL, said = NULL WHERE rowid IN "
    "(SELECT rowid FROM turns WHERE at_s <= ? AND (heard IS NOT NULL OR said IS NOT NULL) LIMIT ?)"
)
_OLD_TURNS: Final = "DELETE FROM turns WHERE rowid IN (SELECT rowid FROM turns WHERE at_s <= ? LIMIT ?)"
# One that is still talked in stays until it has ended.
_OLD_SESSIONS: Final = (
    "DELETE FROM sessions WHERE rowid IN (SELECT rowid FROM sessions WHERE began_s <= ? AND ended_s IS NOT NULL "
    "AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.session = sessions.id) LIMIT ?)"
)
_OWN_TURNS: Final = (
    "DELETE FROM turns WHERE rowid IN (SELECT turns.rowid FROM turns "
    "JOIN sessions ON sessions.id = turns.session WHERE sessions.owner = ? LIMIT ?)"
)


def _apply(batch: list[Row], connection: sqlite3.Connection) -> None:
    for statement, values in batch:
        connection.execute(statement, values)


def _n_changed(statement: str, values: tuple[Any, ...], connection: sqlite3.Connection) -> int:
    return connection.execute(statement, values).rowcount


def _close_open_ones(connection: sqlite3.Connection) -> None:
    """Sessions of a server that was killed ended with their last turn."""
    connection.execute(
        "UPDATE sessions SET ended_s = COALESCE((SELECT MAX(at_s) FROM turns WHERE session = id), began_s) "
        "WHERE ended_s IS NULL"
    )


def _counts(connection: sqlite3.Connection, owner: str) -> tuple[int, int]:
    (n_sessions,) = connection.execute("SELECT COUNT(*) FROM sessions WHERE owner = ?", (owner,)).fetchone()
    (n_turns,) = connection.execute(
        "SELECT COUNT(*) FROM turns JOIN sessions ON sessions.id = turns.session WHERE owner = ?", (owner,)
    ).fetchone()
    return n_sessions, n_turns


def _of_owner(connection: sqlite3.Connection, owner: str) -> list[dict[str, Any]]:
    found = connection.execute("SELECT * FROM sessions WHERE owner = ? ORDER BY began_s, id", (owner,)).fetchall()
    sessions = {row["id"]: {**dict(row), "turns": []} for row in found}
    turns = connection.execute(
        "SELECT turns.* FROM turns JOIN sessions ON sessions.id = turns.session WHERE owner = ? ORDER BY at_s, turn",
        (owner,),
    )
    for row in turns:
        turn = dict(row)
        sessions[turn.pop("session")]["turns"].append({**turn, "parts_ms": json.loads(turn["parts_ms"])})
    return list(sessions.values())
