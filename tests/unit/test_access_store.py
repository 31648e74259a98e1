"""The database and the audit log in it: private, migrated, never half written, and told when it was tampered with."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from api import store as store_module
from api.access import audit
from api.store import FILE, Database, Store
from pipeline.errors import ConfigError, StorageError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_directory_and_every_file_in_it_are_the_owners_alone(directory: Path) -> None:
    mask = os.umask(0)
    try:
        database = Database(directory)
        with database.transaction() as connection:
            audit.append(connection, 1.0, "a", "b", "c", "d", "e")
        assert mode(directory) == 0o700
        assert {path.name for path in directory.iterdir()} == {FILE, f"{FILE}-wal", f"{FILE}-shm"}
        assert {mode(path) for path in directory.iterdir()} == {0o600}
        database.close()
    finally:
        os.umask(mask)


def test_a_database_that_others_could_read_is_closed_to_them(directory: Path) -> None:
    Database(directory).close()
    (directory / FILE).chmod(0o644)
    Database(directory).close()
    assert mode(directory / FILE) == 0o600


def test_a_link_in_place_of_the_database_is_refused(directory: Path, tmp_path: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"storage\.dir"):
        Database(directory)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_is_no_database_stops_the_start(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / FILE).write_bytes(b"this is no database, and long enough to be seen as none" * 100)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Database(directory)


def test_an_old_database_is_brought_up_and_a_newer_one_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(directory)
    with database.transaction() as connection:
        audit.append(connection, 1.0, "a", "b", "c", "d", "e")
    database.close()
    more = (*store_module.MIGRATIONS, "CREATE TABLE later (x TEXT) STRICT; INSERT INTO later VALUES ('here');")
    monkeypatch.setattr(store_module, "MIGRATIONS", more)
    for _ in range(2):
        database = Database(directory)
        assert [row[0] for row in database.read().execute("SELECT x FROM later")] == ["here"]
        assert len(audit.records(database.read())) == 1
        database.close()
    monkeypatch.setattr(store_module, "MIGRATIONS", more[:-1])
    with pytest.raises(ConfigError, match="newer version"):
        Database(directory)


def test_a_migration_that_fails_leaves_nothing_behind(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = store_module.MIGRATIONS
    Database(directory).close()
    monkeypatch.setattr(store_module, "MIGRATIONS", (*good, "CREATE TABLE half (x TEXT) STRICT; SELECT broken;"))
    with pytest.raises(ConfigError):
        Database(directory)
    monkeypatch.setattr(store_module, "MIGRATIONS", good)
    tables = Database(directory).read().execute("SELECT name FROM sqlite_master WHERE name = 'half'")
    assert tables.fetchone() is None


async def test_a_change_that_fails_half_way_never_happened(directory: Path) -> None:
    store = Store(directory)

    def fails(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO owners VALUES ('own_1', 'anna', 0)")
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        await store.write(fails)
    assert await store.read(lambda db: db.execute("SELECT count(*) FROM owners").fetchone()[0]) == 0
    await store.aclose()


async def test_the_disk_is_touched_in_a_thread_of_its_own(directory: Path) -> None:
    store = Store(directory)
    names = [await store.read(lambda db: threading.current_thread().name) for _ in range(3)]
    names.append(await store.write(lambda db: threading.current_thread().name))
    assert len(set(names)) == 1
    assert names[0].startswith("store")
    await store.aclose()


@pytest.mark.parametrize("what", ["a read", "the log's folding", "a look at the counter"])
async def test_a_change_in_another_thread_waits_for_what_uses_the_connection(
    directory: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    store = Store(directory)
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> int:
        begun.set()
        assert go_on.wait(10)
        return 0

    monkeypatch.setattr(Database, "fold", slow)
    monkeypatch.setattr(Database, "change_counter", slow)
    calls = {"a read": lambda: store.read(slow), "the log's folding": store.fold}
    using = asyncio.ensure_future(calls.get(what, store.changed_outside)())
    assert await asyncio.to_thread(begun.wait, 10)
    change = asyncio.create_task(asyncio.to_thread(store.now, lambda connection: connection.in_transaction))
    done, _ = await asyncio.wait([change], timeout=0.2)
    go_on.set()
    await using
    assert await change
    assert not done, "SQLite refuses to commit while another thread's statement is under way"
    await store.aclose()


async def test_changes_of_other_processes_are_seen_and_own_ones_are_not_news(directory: Path) -> None:
    store, other = Store(directory), Database(directory)
    assert not await store.changed_outside()
    await store.write(lambda db: db.execute("INSERT INTO owners VALUES ('own_1', 'anna', 0)"))
    assert not await store.changed_outside()
    with other.transaction() as connection:
        connection.execute("INSERT INTO owners VALUES ('own_2', 'bert', 0)")
    assert await store.changed_outside()
    assert not await store.changed_outside()
    other.close()
    await store.aclose()


async def test_a_database_that_cannot_be_used_is_a_storage_error_without_a_path(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_S", 0.01)
    store, other = Store(directory), Database(directory)
    with other.transaction():
        with pytest.raises(StorageError) as failed:
            await store.write(lambda db: None)
    assert str(directory) not in failed.value.message
    assert isinstance(failed.value.__cause__, sqlite3.OperationalError)
    other.close()
    await asyncio.gather(*(store.write(lambda db: None) for _ in range(10)))
    await store.aclose()


async def test_a_disk_that_hangs_holds_no_request_for_ever(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ANSWER_S", 0.05)
    store, answers = Store(directory), threading.Event()
    for _ in range(2):  # the second one waits behind the first
        with pytest.raises(StorageError):
            await store.read(lambda db: answers.wait(20))
    answers.set()
    await store.aclose()


# --- the audit log


@pytest.fixture
def database(directory: Path) -> Database:
    database = Database(directory)
    with database.transaction() as connection:
        for number in range(5):
            audit.append(connection, float(number), "own_1", "operator", "key.created", f"id{number}", "ok")
    return database


def test_a_whole_log_is_whole_and_newest_records_come_last(database: Database) -> None:
    assert audit.first_broken(database.read()) is None
    assert [record.object for record in audit.records(database.read(), limit=2)] == ["id3", "id4"]


@pytest.mark.parametrize("change", ["UPDATE audit SET result = 'x' WHERE number = 2", "DELETE FROM audit"])
def test_records_are_neither_changed_nor_deleted(database: Database, change: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="audit records are not"):
        database.read().execute(change)
    assert audit.first_broken(database.read()) is None


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ("UPDATE audit SET object = 'other' WHERE number = 2", 2),
        ("UPDATE audit SET at_s = 99 WHERE number = 5", 5),
        ("UPDATE audit SET chain_sha256 = zeroblob(32) WHERE number = 3", 3),
        ("DELETE FROM audit WHERE number = 3", 3),
        ("DELETE FROM audit WHERE number = 1", 1),
        ("UPDATE audit SET owner = 'own_2', chain_sha256 = chain_sha256 WHERE number = 1", 1),
    ],
)
def test_whoever_edits_the_file_by_other_means_is_found(database: Database, change: str, number: int) -> None:
    connection = database.read()
    connection.execute("DROP TRIGGER audit_is_not_changed")
    connection.execute("DROP TRIGGER audit_is_not_deleted")
    connection.execute(change)
    assert audit.first_broken(connection) == number


def test_a_record_that_was_rewritten_with_a_hash_of_its_own_breaks_the_chain_behind_it(database: Database) -> None:
    connection = database.read()
    connection.execute("DROP TRIGGER audit_is_not_changed")
    connection.execute("UPDATE audit SET result = 'never happened' WHERE number = 2")
    (first, second) = audit.records(connection)[:2]
    (before,) = connection.execute("SELECT chain_sha256 FROM audit WHERE number = ?", (first.number,)).fetchone()
    forged = audit._link(before, second)
    connection.execute("UPDATE audit SET chain_sha256 = ? WHERE number = 2", (forged,))
    assert audit.first_broken(connection) == 3
