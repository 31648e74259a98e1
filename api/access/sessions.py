"""Browser sessions and the one-time links that begin them: plain functions over a connection.

A session lies in the database, the browser holds a random cookie. It ends when it was idle for long, at the latest
after its absolute life, when its owner logs out, or together with the API key that it was begun with.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from api.access import audit, credentials, keys
from api.access.credentials import COOKIE, LINK, Minted, Shown
from api.access.principal import SCOPES, Principal, Scope
from pipeline.errors import Unauthorized

LINK_LIFE_S: Final = 24 * 3600.0  # time enough to find it in a pod's log; the next start or `login-link` makes another
SEEN_STEP_S: Final = 60.0  # a page asks several times a second; the idle time needs no finer record
FIRST_OWNER: Final = "owner"


@dataclass(frozen=True, slots=True)
class Life:
    """How long a session lives."""

    idle_s: float
    absolute_s: float


def make_link(
    connection: sqlite3.Connection, *, owner: str, scopes: Collection[Scope], now_s: float, is_setup: bool = False
) -> str:
    """A one-time login for the owner with this id. A set-up link replaces the set-up links before it."""
    token = credentials.mint_token(LINK)
    connection.execute("DELETE FROM login_links WHERE expires_s <= ? OR (is_setup AND ?)", (now_s, is_setup))
    connection.execute(
        "INSERT INTO login_links VALUES (?, ?, ?, ?, ?)",
        (credentials.sha256(token), owner, keys.pack(scopes), now_s + LINK_LIFE_S, is_setup),
    )
    audit.append(connection, now_s, owner, "operator", "link.created", "setup" if is_setup else "login", "ok")
    return token


def make_setup_link(connection: sqlite3.Connection, *, now_s: float) -> str | None:
    """The link for the first login of a server that nobody was ever let in to; None afterwards."""
    if is_set_up(connection):
        return None
    owner = keys.owner_named(connection, FIRST_OWNER, now_s=now_s, create=True)
    return make_link(connection, owner=owner, scopes=SCOPES, now_s=now_s, is_setup=True)


def is_set_up(connection: sqlite3.Connection) -> bool:
    """Whether somebody has a key, or has logged in once."""
    used = connection.execute("SELECT 1 FROM audit WHERE action IN ('key.created', 'login.done') LIMIT 1").fetchone()
    return used is not None


def use_link(connection: sqlite3.Connection, token: str, *, now_s: float) -> tuple[Minted, Principal, bool]:
    """Spend a one-time link: the new session's cookie, its principal, and whether it was the set-up link."""
    row = connection.execute(
        "DELETE FROM login_links WHERE token_sha256 = ? AND expires_s > ? RETURNING owner, scopes, is_setup",
        (credentials.sha256(token), now_s),
    ).fetchone()
    if row is None:
        raise Unauthorized("this link was used already or is too old; ask for a new one", code="invalid_link")
    cookie, principal = begin(connection, owner=row["owner"], scopes=keys.unpack(row["scopes"]), now_s=now_s)
    return cookie, principal, bool(row["is_setup"])


def begin(
    connection: sqlite3.Connection, *, owner: str, scopes: Collection[Scope], now_s: float, key: str | None = None
) -> tuple[Minted, Principal]:
    """A new session, always with a new id: one that a browser brought along is never taken over."""
    minted = credentials.mint(COOKIE)
    connection.execute(
        "INSERT INTO browser_sessions VALUES (?, ?, ?, ?, ?, ?, ?)",
        (minted.id, minted.secret_sha256, owner, key, keys.pack(scopes), now_s, now_s),
    )
    audit.append(connection, now_s, owner, f"key:{key}" if key else "link", "login.done", minted.id, "ok")
    return minted, Principal(owner, f"browser:{minted.id}", frozenset(scopes))


def verify(connection: sqlite3.Connection, shown: Shown, life: Life, *, now_s: float, is_use: bool) -> Principal:
    """Who shows this cookie. `is_use` starts the idle time anew."""
    row = connection.execute("SELECT * FROM browser_sessions WHERE id = ?", (shown.id,)).fetchone()
    if not shown.matches(bytes(32) if row is None else row["secret_sha256"]) or row is None:
        raise Unauthorized("you are not logged in", code="not_logged_in")
    if not _lives(connection, row, life, now_s):
        raise Unauthorized("your login has ended; please log in again", code="login_ended")
    if is_use:
        touch(connection, shown.id, now_s=now_s)
    return Principal(row["owner"], f"browser:{shown.id}", keys.unpack(row["scopes"]))


def touch(connection: sqlite3.Connection, identifier: str, *, now_s: float) -> None:
    """The session is in use."""
    connection.execute(
        "UPDATE browser_sessions SET last_seen_s = ? WHERE id = ? AND last_seen_s <= ?",
        (now_s, identifier, now_s - SEEN_STEP_S),
    )


def is_active(connection: sqlite3.Connection, identifier: str, life: Life, *, now_s: float) -> bool:
    """Whether the session still opens something."""
    row = connection.execute("SELECT * FROM browser_sessions WHERE id = ?", (identifier,)).fetchone()
    return row is not None and _lives(connection, row, life, now_s)


def end(connection: sqlite3.Connection, identifier: str, *, now_s: float, why: str) -> None:
    """The session is over."""
    row = connection.execute("DELETE FROM browser_sessions WHERE id = ? RETURNING owner", (identifier,)).fetchone()
    if row is not None:
        audit.append(connection, now_s, row["owner"], f"browser:{identifier}", "login.ended", identifier, why)


def sweep(connection: sqlite3.Connection, life: Life, *, now_s: float) -> None:
    """Forget sessions and links that are over."""
    connection.execute(
        "DELETE FROM browser_sessions WHERE last_seen_s <= ? OR created_s <= ?",
        (now_s - life.idle_s, now_s - life.absolute_s),
    )
    connection.execute("DELETE FROM login_links WHERE expires_s <= ?", (now_s,))


def _lives(connection: sqlite3.Connection, row: sqlite3.Row, life: Life, now_s: float) -> bool:
    if now_s - row["last_seen_s"] >= life.idle_s or now_s - row["created_s"] >= life.absolute_s:
        return False
    return row["key"] is None or keys.is_active(connection, row["key"], now_s=now_s)
