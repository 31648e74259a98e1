"""Owners and their API keys: plain functions over a connection, for the server and for `scripts.keys` alike."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from api.access import audit, credentials
from api.access.credentials import KEY, Shown
from api.access.principal import SCOPES, Principal, Scope
from pipeline.errors import InvalidInput, NotFound, Unauthorized

MAX_NAME_CHARS: Final = 64
LAST_USED_STEP_S: Final = 60.0  # "last used" is for people: one write a minute and key is enough


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is listed; the secret is not in it."""

    id: str
    owner: str
    owner_name: str
    name: str
    scopes: frozenset[Scope]
    created_s: float
    expires_s: float | None
    last_used_s: float | None
    revoked_s: float | None

    def state(self, now_s: float) -> str:
        """active, revoked or expired."""
        if self.revoked_s is not None and self.revoked_s <= now_s:
            return "revoked"
        return "expired" if self.expires_s is not None and self.expires_s <= now_s else "active"

    def principal(self) -> Principal:
        """Who shows this key."""
        return Principal(self.owner, f"key:{self.id}", self.scopes)


def check_name(name: str) -> str:
    """A name that may stand in a list or a log: one line, nothing that moves a cursor."""
    if not name or len(name) > MAX_NAME_CHARS or not name.isprintable() or name != name.strip():
        raise InvalidInput(f"a name has 1 to {MAX_NAME_CHARS} printable characters and no space around them")
    return name


def pack(scopes: Collection[Scope]) -> str:
    """Scopes as they are stored."""
    return " ".join(scope for scope in SCOPES if scope in scopes)


def unpack(text: str) -> frozenset[Scope]:
    """Stored scopes; one that a later version knew gives nothing here."""
    words = text.split()
    return frozenset(scope for scope in SCOPES if scope in words)


def owner_named(connection: sqlite3.Connection, name: str, *, now_s: float, create: bool = False) -> str:
    """The id of the owner with this name; `create` makes one where there is none."""
    row = connection.execute("SELECT id FROM owners WHERE name = ?", (check_name(name),)).fetchone()
    if row is not None:
        return str(row["id"])
    if not create:
        raise NotFound(f"there is no owner called {name}")
    identifier = f"own_{secrets.token_hex(6)}"
    connection.execute("INSERT INTO owners VALUES (?, ?, ?)", (identifier, name, now_s))
    return identifier


def create(
    connection: sqlite3.Connection,
    *,
    owner: str,
    name: str,
    scopes: Collection[Scope],
    now_s: float,
    expires_s: float | None = None,
) -> tuple[Key, str]:
    """A new key and its text, which is shown to nobody again. `owner` is an owner's id."""
    if not scopes:
        raise InvalidInput("a key without scopes opens nothing")
    minted = credentials.mint(KEY)
    connection.execute(
        "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
        (minted.id, owner, check_name(name), minted.secret_sha256, pack(scopes), now_s, expires_s),
    )
    audit.append(connection, now_s, owner, "operator", "key.created", minted.id, pack(scopes))
    return get(connection, minted.id), minted.text


def get(connection: sqlite3.Connection, identifier: str) -> Key:
    """The key with this id; `NotFound` when there is none."""
    found = [key for key in listed(connection) if key.id == identifier]
    if not found:
        raise NotFound(f"there is no key {identifier}")
    return found[0]


def listed(connection: sqlite3.Connection) -> list[Key]:
    """All keys, the newest last."""
    rows = connection.execute(
        "SELECT keys.*, owners.name AS owner_name FROM keys JOIN owners ON owners.id = keys.owner ORDER BY keys.rowid"
    )
    return [_key(row) for row in rows]


def revoke(connection: sqlite3.Connection, identifier: str, *, now_s: float, after_s: float = 0.0) -> None:
    """The key ends now, or in `after_s`: until then an old and a new key work side by side."""
    key = get(connection, identifier)
    ends_s = min(now_s + after_s, key.revoked_s if key.revoked_s is not None else now_s + after_s)
    connection.execute("UPDATE keys SET revoked_s = ? WHERE id = ?", (ends_s, identifier))
    if after_s <= 0:
        connection.execute("DELETE FROM browser_sessions WHERE key = ?", (identifier,))
    audit.append(connection, now_s, key.owner, "operator", "key.revoked", identifier, f"in {after_s:.0f} s")


def rotate(connection: sqlite3.Connection, identifier: str, *, now_s: float, overlap_s: float) -> tuple[Key, str]:
    """A new key with the old one's owner, name, scopes and remaining life; the old one ends after `overlap_s`."""
    old = get(connection, identifier)
    if old.state(now_s) != "active":
        raise InvalidInput(f"key {identifier} is {old.state(now_s)}; create a new one")
    made = create(connection, owner=old.owner, name=old.name, scopes=old.scopes, now_s=now_s, expires_s=old.expires_s)
    revoke(connection, identifier, now_s=now_s, after_s=overlap_s)
    return made


def verify(connection: sqlite3.Connection, shown: Shown, *, now_s: float) -> Principal:
    """Who shows this key. `Unauthorized` says nothing of whether the id exists unless the secret was right."""
    row = connection.execute("SELECT keys.*, '' AS owner_name FROM keys WHERE keys.id = ?", (shown.id,)).fetchone()
    if not shown.matches(bytes(32) if row is None else row["secret_sha256"]) or row is None:
        raise Unauthorized("this API key is not known", code="invalid_api_key")
    key = _key(row)
    if (state := key.state(now_s)) != "active":
        raise Unauthorized(f"this API key is {state}", code="invalid_api_key")
    if key.last_used_s is None or now_s - key.last_used_s >= LAST_USED_STEP_S:
        connection.execute("UPDATE keys SET last_used_s = ? WHERE id = ?", (now_s, key.id))
    return key.principal()


def is_active(connection: sqlite3.Connection, identifier: str, *, now_s: float) -> bool:
    """Whether the key still opens something."""
    row = connection.execute("SELECT keys.*, '' AS owner_name FROM keys WHERE id = ?", (identifier,)).fetchone()
    return row is not None and _key(row).state(now_s) == "active"


def _key(row: sqlite3.Row) -> Key:
    return Key(
        id=row["id"],
        owner=row["owner"],
        owner_name=row["owner_name"],
        name=row["name"],
        scopes=unpack(row["scopes"]),
        created_s=row["created_s"],
        expires_s=row["expires_s"],
        last_used_s=row["last_used_s"],
        revoked_s=row["revoked_s"],
    )
