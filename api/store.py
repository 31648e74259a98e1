"""What must outlive the process, in one SQLite database inside one private directory.

`Store` runs every statement in a thread of its own, one after the other, so that a slow disk never holds the event
loop. Programs beside the server (`scripts.keys`) open the same file: SQLite's write-ahead log lets them write while
the server reads, and `changed_outside` tells the server that they did.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import structlog

from pipeline.errors import ConfigError, StorageError
from private_files import make_private_directory

log = structlog.get_logger()

T = TypeVar("T")

FILE: Final = "voicepod.sqlite3"
DAY_S: Final = 86_400.0  # settings give retention in days
BUSY_S: Final = 5.0  # another process writes for milliseconds; only a dead disk takes longer
ANSWER_S: Final = 10.0  # statements take microseconds; a network volume that hangs must not hang every request

# One script for each `PRAGMA user_version`. Append only: a database that ran one never runs it again.
MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE owners (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_s REAL NOT NULL
    ) STRICT;
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL REFERENCES owners (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        secret_sha256 BLOB NOT NULL,
        scopes TEXT NOT NULL,
        created_s REAL NOT NULL,
        expires_s REAL,
        last_used_s REAL,
        revoked_s REAL
    ) STRICT;
    CREATE TABLE login_links (
        token_sha256 BLOB PRIMARY KEY,
        owner TEXT NOT NULL REFERENCES owners (id) ON DELETE CASCADE,
        scopes TEXT NOT NULL,
        expires_s REAL NOT NULL,
        is_setup INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE browser_sessions (
        id TEXT PRIMARY KEY,
        secret_sha256 BLOB NOT NULL,
        owner TEXT NOT NULL REFERENCES owners (id) ON DELETE CASCADE,
        key TEXT REFERENCES keys (id) ON DELETE CASCADE,
        scopes TEXT NOT NULL,
        created_s REAL NOT NULL,
        last_seen_s REAL NOT NULL
    ) STRICT;
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY,
        at_s REAL NOT NULL,
        owner TEXT NOT NULL,
        credential TEXT NOT NULL,
        action TEXT NOT NULL,
        object TEXT NOT NULL,
        result TEXT NOT NULL,
        chain_sha256 BLOB NOT NULL
    ) STRICT;
    CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'audit records are not changed'); END;
    CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
        BEGIN SELECT RAISE(ABORT, 'audit records are not deleted'); END;
    """,
    # A consent is the proof that a voice was made rightly, so it does not go with its voice or its owner.
    """
    CREATE TABLE consents (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        voice TEXT NOT NULL UNIQUE,
        statement TEXT NOT NULL,
        statement_text TEXT NOT NULL,
        typed_name TEXT NOT NULL,
        sample_sha256 BLOB NOT NULL,
        phrase TEXT,
        phrase_similarity REAL,
        agreed_s REAL NOT NULL,
        voice_deleted_s REAL
    ) STRICT;
    CREATE TABLE voices (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL REFERENCES owners (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('clone', 'match')),
        engine TEXT NOT NULL,
        model TEXT NOT NULL,
        language TEXT NOT NULL,
        transcript TEXT NOT NULL,
        seconds REAL NOT NULL,
        match_voice TEXT,
        match_similarity REAL,
        created_s REAL NOT NULL,
        UNIQUE (owner, name)
    ) STRICT;
    """,
    # Talks. `heard` and `said` are words, kept only where the settings ask for it.
    """
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL REFERENCES owners (id) ON DELETE CASCADE,
        began_s REAL NOT NULL,
        ended_s REAL
    ) STRICT;
    CREATE INDEX sessions_by_owner ON sessions (owner, began_s);
    CREATE INDEX sessions_by_time ON sessions (began_s);
    CREATE TABLE turns (
        session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        turn INTEGER NOT NULL,
        at_s REAL NOT NULL,
        outcome TEXT NOT NULL,
        error_code TEXT,
        total_ms REAL,
        parts_ms TEXT NOT NULL,
        utterance_s REAL NOT NULL,
        spoken_s REAL NOT NULL,
        heard_s REAL NOT NULL,
        heard TEXT,
        said TEXT,
        PRIMARY KEY (session, turn)
    ) STRICT;
    CREATE INDEX turns_by_time ON turns (at_s);
    """,
)


class Database:
    """One connection to the database in `directory`, made where it is missing. Not for two threads at once."""

    def __init__(self, directory: Path) -> None:
        make_private_directory(directory, "storage.dir")
        path = directory / FILE
        try:
            # SQLite would make the file readable for everyone; its log files take their mode from this one.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
            path.chmod(0o600)
            self._connection = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            self._connection.row_factory = sqlite3.Row
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"storage.dir {directory}: the database cannot be opened: {error}") from None

    def _prepare(self) -> None:
        connection = self._connection
        _choose_journal(connection)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")  # a revoked key must not come back after a power cut
        connection.execute("PRAGMA secure_delete = ON")
        with self.transaction():
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise ConfigError("storage.dir: the database was written by a newer version of this program")
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing of it; writers of other processes wait."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()

    def read(self) -> sqlite3.Connection:
        """The connection, for single statements that only read."""
        return self._connection

    def change_counter(self) -> int:
        """A number that is another one after any other connection wrote."""
        (counter,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(counter)

    def fold(self) -> None:
        """Fold the log into the file: only then is what was deleted overwritten everywhere."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def close(self) -> None:
        """Close the file; the log is folded into it when nobody else has it open."""
        self._connection.close()


def _choose_journal(connection: sqlite3.Connection) -> None:
    """The write-ahead log; where it cannot be (some network volumes) the older journal: slower, and still right."""
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    except sqlite3.OperationalError:
        (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    if mode != "wal":
        log.warning("store.no_write_ahead_log", mode=mode)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would end the transaction that they belong to."""
    pending = ""
    for part in script.split(";")[:-1]:
        pending += f"{part};"
        if sqlite3.complete_statement(pending):  # not inside a trigger or a text
            yield pending
            pending = ""


class Store:
    """The database for the event loop. `StorageError` when it cannot be read or written.

    `on_write` is told whether each change could be made, but not of those that change nothing, which need no room.
    """

    def __init__(self, directory: Path, *, on_write: Callable[[bool], None] = lambda works: None) -> None:
        self.directory, self._on_write = directory, on_write
        self._works = True  # the last change could be made
        self._database = Database(directory)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._lock = threading.Lock()  # of the connection: `now` uses it in another thread than the rest
        self._counter = self._database.change_counter()

    async def read(self, statement: Callable[[sqlite3.Connection], T]) -> T:
        """What `statement` reads. It runs in the store's thread."""
        return await self._run(lambda: self._alone(lambda: statement(self._database.read())))

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run `change` in a transaction, in the store's thread."""

        def counted(connection: sqlite3.Connection) -> tuple[T, bool]:
            before = connection.total_changes
            return change(connection), connection.total_changes > before

        try:
            written, has_changed = await self._run(lambda: self.now(counted))
        except StorageError:
            self._works = False
            self._on_write(False)
            raise
        if has_changed:
            self._works = True
            self._on_write(True)
        return written

    async def try_again(self) -> None:
        """After a change that could not be made: one that needs room and leaves everything as it is."""
        if not self._works:
            await self.write(lambda db: db.execute("UPDATE owners SET created_s = created_s"))

    def now(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """As `write`, in the caller's thread: before the event loop runs."""
        with _told(), self._lock, self._database.transaction() as connection:
            return change(connection)

    async def changed_outside(self) -> bool:
        """Whether another process wrote since the last call."""
        counter = await self._run(lambda: self._alone(self._database.change_counter))
        changed, self._counter = counter != self._counter, counter
        return changed

    async def fold(self) -> None:
        """Leave nothing of what was deleted in the write-ahead log; a reader elsewhere may put that off."""
        await self._run(lambda: self._alone(self._database.fold))

    async def call(self, work: Callable[[], T]) -> T:
        """Run `work` on the store's files in the store's thread."""
        return await self._run(work)

    async def aclose(self) -> None:
        """Wait for what was begun, and close."""
        await asyncio.to_thread(self._thread.shutdown)
        self._database.close()

    def _alone(self, use: Callable[[], T]) -> T:
        """SQLite refuses to commit while a statement of another thread is under way on the same connection."""
        with self._lock:
            return use()

    async def _run(self, work: Callable[[], T]) -> T:
        with _told():
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:  # a timeout is an OSError too
        log.error("store.failed", error=type(error).__name__, reason=str(error))
        raise StorageError("the server's storage cannot be reached") from error
