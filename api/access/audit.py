"""The audit log: who did what to which thing, in a table that the database itself refuses to change or to shorten.

Each record carries a hash over itself and the hash before it: whoever edits the file by other means leaves a chain
that no longer fits. Ids only: no address, no secret, no name that a stranger could choose.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from typing import Final

_START: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that happened. `credential` is how the actor showed who they are; `object` is an id."""

    number: int
    at_s: float
    owner: str
    credential: str
    action: str
    object: str
    result: str


def append(
    connection: sqlite3.Connection, at_s: float, owner: str, credential: str, action: str, object_: str, result: str
) -> None:
    """Write one record, inside the transaction of what it tells of."""
    last = connection.execute("SELECT number, chain_sha256 FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    number, before = (1, _START) if last is None else (last["number"] + 1, last["chain_sha256"])
    record = Record(number, at_s, owner, credential, action, object_, result)
    connection.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*_fields(record), _link(before, record)))


def records(connection: sqlite3.Connection, *, limit: int = 1000) -> list[Record]:
    """The newest records, the newest last."""
    rows = connection.execute("SELECT * FROM audit ORDER BY number DESC LIMIT ?", (limit,)).fetchall()
    return [_record(row) for row in reversed(rows)]


def first_broken(connection: sqlite3.Connection) -> int | None:
    """The number of the first record that is not as it was written or that is missing; None when all fit."""
    before = _START
    for expected, row in enumerate(connection.execute("SELECT * FROM audit ORDER BY number"), start=1):
        if row["number"] != expected or _link(before, _record(row)) != row["chain_sha256"]:
            return expected
        before = row["chain_sha256"]
    return None


def _record(row: sqlite3.Row) -> Record:
    return Record(*(row[name] for name in ("number", "at_s", "owner", "credential", "action", "object", "result")))


def _fields(record: Record) -> tuple[int, float, str, str, str, str, str]:
    return (
        record.number,
        record.at_s,
        record.owner,
        record.credential,
        record.action,
        record.object,
        record.result,
    )


def _link(before: bytes, record: Record) -> bytes:
    return hashlib.sha256(before + json.dumps(_fields(record)).encode()).digest()
