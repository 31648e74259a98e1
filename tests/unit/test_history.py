"""The record of talks: what is kept of them, for how long, and what a disk that fails costs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from api import history as module
from api.access import keys
from api.history import History
from api.store import DAY_S, Store
from pipeline import events
from pipeline.engines.base import Transcript
from pipeline.errors import StorageError
from pipeline.events import Event
from pipeline.records import TurnRecord
from settings import StorageSettings

START_S = 1_800_000_000.0


SESSION: Any = SimpleNamespace(id="sess_1")


def words(turn_id: int, text: str) -> Event:
    return events.TranscriptReady(at_s=0.0, turn_id=turn_id, item_id="item_1", transcript=Transcript(text, "en"))


def finished(turn_id: int, text: str) -> Event:
    return events.ReplyFinished(
        at_s=0.0,
        turn_id=turn_id,
        response_id="",
        item_id="",
        spoken=True,
        status="completed",
        reason="",
        text=text,
    )


def done(turn_id: int) -> Event:
    record = TurnRecord(turn_id, marks={"speech_ended": 1.0, "first_audio": 2.5})
    return events.TurnDone(at_s=0.0, turn_id=turn_id, record=record)


class Kept:
    """A history in a store of its own, with a clock that a test sets."""

    def __init__(self, store: Store, **settings: int) -> None:
        self.store, self.now_s = store, START_S
        chosen = StorageSettings.model_validate({"dir": store.directory, **settings})
        self.history = History(store, chosen, now=lambda: self.now_s)
        self.owners = {
            name: store.now(partial(keys.owner_named, name=name, now_s=0.0, create=True)) for name in ("anna", "bert")
        }

    def turn(self, session_id: str, turn_id: int, heard: str = "hello", said: str = "Good day.") -> None:
        """One turn, as a session tells it."""
        session: Any = SimpleNamespace(id=session_id)
        for event in (words(turn_id, heard), finished(turn_id, said), done(turn_id)):
            self.history.observe(session, event)

    async def of(self, name: str) -> list[dict[str, Any]]:
        return await self.history.of_owner(self.owners[name])

    async def sizes(self) -> tuple[int, int]:
        def count(db: sqlite3.Connection) -> tuple[int, int]:
            n_sessions, n_turns = (
                db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("sessions", "turns")
            )
            return n_sessions, n_turns

        return await self.store.read(count)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with aclosing(Store(tmp_path / "data")) as store:
        yield store


async def test_a_talk_is_kept_with_its_times_and_without_a_word(store: Store) -> None:
    kept = Kept(store)
    kept.history.began("sess_1", kept.owners["anna"])
    kept.turn("sess_1", 1, "my pomegranate", "your pomegranate")
    kept.now_s += 60
    kept.history.ended("sess_1")
    (session,) = await kept.of("anna")
    (turn,) = session["turns"]
    assert (session["began_s"], session["ended_s"]) == (START_S, START_S + 60)
    assert (turn["turn"], turn["outcome"], turn["total_ms"]) == (1, "completed", 1500.0)
    assert (turn["heard"], turn["said"]) == (None, None)
    assert await kept.of("bert") == []
    assert not [path for path in store.directory.iterdir() if b"pomegranate" in path.read_bytes()]


async def test_words_are_kept_where_the_settings_ask_for_them_and_go_before_the_rest(store: Store) -> None:
    kept = Kept(store, words_days=2, history_days=10)
    kept.history.began("sess_1", kept.owners["anna"])
    kept.turn("sess_1", 1, "how big is the sun", "Very big.")
    kept.turn("sess_1", 2, "x" * 9000, "y" * 9000)
    kept.history.ended("sess_1")
    turns = (await kept.of("anna"))[0]["turns"]
    assert (turns[0]["heard"], turns[0]["said"]) == ("how big is the sun", "Very big.")
    assert (len(turns[1]["heard"]), len(turns[1]["said"])) == (module.MAX_WORDS, module.MAX_WORDS)
    kept.now_s += 2 * DAY_S
    await kept.history.sweep()
    assert {turn["heard"] for turn in (await kept.of("anna"))[0]["turns"]} == {None}
    kept.now_s += 8 * DAY_S
    await kept.history.sweep()
    assert await kept.sizes() == (0, 0)


async def test_words_stand_with_the_turn_in_which_they_were_said(store: Store) -> None:
    """Also where the turn was over before they were known, or the turn before it was still heard."""
    kept = Kept(store, words_days=2)
    kept.history.began("sess_1", kept.owners["anna"])
    for event in (
        done(1),  # taken back
        words(1, "never mind"),
        words(2, "tell me"),  # went on, and both got one answer
        words(3, "a story"),
        finished(3, "Once upon a time"),
        words(4, "and then"),  # did not interrupt
        done(3),
        finished(4, "The end."),
        done(4),
    ):
        kept.history.observe(SESSION, event)
    turns = (await kept.of("anna"))[0]["turns"]
    assert [(turn["turn"], turn["heard"], turn["said"]) for turn in turns] == [
        (1, "never mind", ""),
        (3, "tell me a story", "Once upon a time"),
        (4, "and then", "The end."),
    ]


async def test_words_that_come_late_stand_behind_those_that_the_turn_had(store: Store) -> None:
    kept = Kept(store, words_days=2)
    kept.history.began("sess_1", kept.owners["anna"])
    for event in (words(1, "tell me"), done(2), words(2, "a story")):  # went on, and took it back
        kept.history.observe(SESSION, event)
    turns = (await kept.of("anna"))[0]["turns"]
    assert [(turn["turn"], turn["heard"]) for turn in turns] == [(2, "tell me a story")]


async def test_nothing_is_kept_for_no_days(store: Store) -> None:
    kept = Kept(store, history_days=0, words_days=5)
    kept.history.began("sess_1", kept.owners["anna"])
    kept.turn("sess_1", 1)
    kept.history.ended("sess_1")
    assert await kept.of("anna") == []


async def test_old_talks_are_swept_in_small_batches_and_one_that_lasts_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 10)
    kept = Kept(store, history_days=1)
    for number in range(7):
        kept.history.began(f"sess_{number}", kept.owners["anna"])
        for turn in range(1, 6):
            kept.turn(f"sess_{number}", turn)
    for number in range(6):
        kept.history.ended(f"sess_{number}")
    await kept.history.write()
    kept.now_s += DAY_S
    kept.turn("sess_6", 9)
    await kept.history.write()
    n_writes = 0
    write = store.write

    async def counted(change: Any) -> Any:
        nonlocal n_writes
        n_writes += 1
        changed = await write(change)
        assert changed <= 10
        return changed

    monkeypatch.setattr(store, "write", counted)
    await kept.history.sweep()
    assert n_writes > 4
    assert await kept.sizes() == (1, 1)


async def test_a_disk_that_fails_for_a_while_loses_nothing_and_a_dead_one_fills_no_memory(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(store)
    write = store.write

    async def failing(change: Any) -> Any:
        raise StorageError("the server's storage cannot be reached")

    kept.history.began("sess_1", kept.owners["anna"])
    kept.turn("sess_1", 1)
    monkeypatch.setattr(store, "write", failing)
    with pytest.raises(StorageError):
        await kept.history.write()
    monkeypatch.setattr(store, "write", write)
    assert len((await kept.of("anna"))[0]["turns"]) == 1
    monkeypatch.setattr(module, "MAX_WAITING", 20)
    for turn in range(2, 100):
        kept.turn("sess_1", turn)
    assert len((await kept.of("anna"))[0]["turns"]) == 21  # the newest ones


async def test_two_who_write_at_once_write_each_row_once(store: Store) -> None:
    kept = Kept(store)
    kept.history.began("sess_1", kept.owners["anna"])
    for turn in range(1, 50):
        kept.turn("sess_1", turn)
    await asyncio.gather(*(kept.history.write() for _ in range(5)))
    assert await kept.sizes() == (1, 49)


async def test_an_owner_is_forgotten_and_a_talk_that_still_runs_writes_nothing_more(store: Store) -> None:
    kept = Kept(store)
    for owner in ("anna", "bert"):
        kept.history.began(f"sess_{owner}", kept.owners[owner])
        kept.turn(f"sess_{owner}", 1)
    await kept.history.write()
    assert found_on_disk(store, "sess_anna")
    assert await kept.history.forget(kept.owners["anna"]) == (1, 1)
    assert not found_on_disk(store, "sess_anna")  # neither in the file nor in the log that it is written by
    kept.turn("sess_anna", 2)
    kept.history.ended("sess_anna")
    assert await kept.of("anna") == []
    assert len((await kept.of("bert"))[0]["turns"]) == 1


def found_on_disk(store: Store, text: str) -> list[str]:
    return [path.name for path in store.directory.iterdir() if text.encode() in path.read_bytes()]


async def test_halves_of_characters_are_kept_as_question_marks(store: Store) -> None:
    kept = Kept(store, words_days=1)
    kept.history.began("sess_1", kept.owners["anna"])
    kept.turn("sess_1", 1, "half \ud83d", "\udc00 the other")
    (turn,) = (await kept.of("anna"))[0]["turns"]
    assert (turn["heard"], turn["said"]) == ("half ?", "? the other")


async def test_what_waits_is_written_at_the_end_and_a_killed_servers_talks_are_closed_at_the_next_start(
    store: Store,
) -> None:
    kept = Kept(store)
    async with kept.history.running():
        kept.history.began("sess_1", kept.owners["anna"])
        kept.turn("sess_1", 1)
    assert await kept.sizes() == (1, 1)
    again = Kept(store)
    async with again.history.running():
        (session,) = await again.of("anna")
    assert session["ended_s"] == session["turns"][0]["at_s"]
