"""Users' voices and the consents to them in the database: plain functions over a connection."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields, replace
from typing import Literal

from api.access import audit
from api.store import DAY_S
from pipeline.errors import InvalidInput

Kind = Literal["clone", "match"]


@dataclass(frozen=True, slots=True)
class OwnVoice:
    """A voice that a user made. `engine` and `model` made it; `language` and `transcript` are its recording's.

    A match stands for the stock voice `match_voice` and has no sound of its own.
    """

    id: str
    owner: str
    name: str
    kind: Kind
    engine: str
    model: str
    language: str
    transcript: str
    seconds: float
    match_voice: str | None
    match_similarity: float | None
    created_s: float


@dataclass(frozen=True, slots=True)
class Consent:
    """Who agreed to what, for which recording. It outlives the voice, without the recording."""

    id: str
    owner: str
    voice: str
    statement: str
    statement_text: str
    typed_name: str
    sample_sha256: bytes
    phrase: str | None
    phrase_similarity: float | None
    agreed_s: float
    voice_deleted_s: float | None = None


def all_voices(connection: sqlite3.Connection) -> list[OwnVoice]:
    """Everybody's, the oldest first."""
    return [OwnVoice(*row) for row in connection.execute("SELECT * FROM voices ORDER BY created_s, id")]


def consents_of(connection: sqlite3.Connection, owner: str) -> list[Consent]:
    """The owner's, the oldest first."""
    rows = connection.execute("SELECT * FROM consents WHERE owner = ? ORDER BY agreed_s, id", (owner,))
    return [Consent(*row) for row in rows]


def add(connection: sqlite3.Connection, voice: OwnVoice, consent: Consent, *, credential: str, max_voices: int) -> None:
    """A new voice with its consent. `InvalidInput` when the owner has as many as one may have, or one of that name."""
    check_room(connection, voice.owner, voice.name, max_voices=max_voices)
    _insert(connection, "consents", consent)
    _insert(connection, "voices", voice)
    for action, thing in (("consent.given", consent.id), (f"voice.{voice.kind}", voice.id)):
        audit.append(connection, voice.created_s, voice.owner, credential, action, thing, "ok")


def check_room(connection: sqlite3.Connection, owner: str, name: str, *, max_voices: int) -> None:
    """Whether the owner may have one more voice, of that name."""
    names = _names(connection, owner)
    if len(names) >= max_voices:
        raise InvalidInput(f"you have {len(names)} voices, the most one may have: delete one", code="too_many_voices")
    if name.casefold() in names.values():
        raise _name_taken()


def rename(connection: sqlite3.Connection, voice: OwnVoice, name: str) -> OwnVoice:
    """The voice under another name."""
    others = _names(connection, voice.owner)
    others.pop(voice.id, None)
    if name.casefold() in others.values():
        raise _name_taken()
    connection.execute("UPDATE voices SET name = ? WHERE id = ?", (name, voice.id))
    return replace(voice, name=name)


def remove(connection: sqlite3.Connection, voice: OwnVoice, *, credential: str, now_s: float) -> None:
    """The voice is gone; from now on the days of its consent are counted."""
    if connection.execute("DELETE FROM voices WHERE id = ?", (voice.id,)).rowcount:
        connection.execute("UPDATE consents SET voice_deleted_s = ? WHERE voice = ?", (now_s, voice.id))
        audit.append(connection, now_s, voice.owner, credential, "voice.deleted", voice.id, "ok")


def take_back(connection: sqlite3.Connection, voice: OwnVoice) -> None:
    """As if it had never been added; what the audit log says stays."""
    connection.execute("DELETE FROM voices WHERE id = ?", (voice.id,))
    connection.execute("DELETE FROM consents WHERE voice = ?", (voice.id,))


def sweep(connection: sqlite3.Connection, *, keep_days: float, now_s: float) -> None:
    """Forget consents whose voice was deleted long ago. A voice may have gone together with its owner."""
    connection.execute(
        "UPDATE consents SET voice_deleted_s = ? "
        "WHERE voice_deleted_s IS NULL AND voice NOT IN (SELECT id FROM voices)",
        (now_s,),
    )
    connection.execute("DELETE FROM consents WHERE voice_deleted_s <= ?", (now_s - keep_days * DAY_S,))


def _names(connection: sqlite3.Connection, owner: str) -> dict[str, str]:
    """The owner's names by id, as they are compared."""
    rows = connection.execute("SELECT id, name FROM voices WHERE owner = ?", (owner,))
    return {row["id"]: row["name"].casefold() for row in rows}


def _insert(connection: sqlite3.Connection, table: Literal["voices", "consents"], record: OwnVoice | Consent) -> None:
    names = [field.name for field in fields(record)]
    marks = ", ".join("?" * len(names))
    connection.execute(
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})",  # noqa: S608 - names of our own fields
        [getattr(record, name) for name in names],
    )


def _name_taken() -> InvalidInput:
    return InvalidInput("you have a voice of this name already", code="name_taken", param="name")
