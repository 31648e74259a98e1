"""Keys and logins of this server: `python -m scripts.keys COMMAND`, beside a running server or without one.

    create --name NAME [--owner NAME] [--scopes "talk speech voices"] [--days N]
    list
    revoke ID
    rotate ID [--overlap-hours N]      a new key; the old one works on for a day
    login-link [--owner NAME] [--scopes ...]
    audit                              what was done with keys and logins, and whether the record is whole

Settings come from the same places as the server's (`--config FILE`, environment, config.json); `--data DIR` names the
directory itself. A running server follows within a second.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from api.access import audit, first_start, keys, sessions
from api.access.principal import SCOPES, USER_SCOPES, Scope
from api.store import Database
from pipeline.errors import InvalidInput, VoicepodError
from settings import Settings
from settings_sources import load_settings

DAY_S: Final = 86_400.0
HOUR_S: Final = 3600.0


def main(argv: Sequence[str]) -> int:
    """Run one command; gives the exit status."""
    options = _parser().parse_args(argv)
    try:
        settings = load_settings(["--config", options.config] if options.config else [], os.environ).settings
        database = Database(Path(options.data) if options.data else settings.storage.dir)
    except VoicepodError as error:
        print(error.message, file=sys.stderr)
        return 1
    command: Callable[[argparse.Namespace, Settings, Database], int] = options.run
    try:
        return command(options, settings, database)
    except VoicepodError as error:
        print(error.message, file=sys.stderr)
        return 1
    finally:
        database.close()


def create(options: argparse.Namespace, settings: Settings, database: Database) -> int:
    """Make a key and show it, once."""
    now_s = time.time()
    with database.transaction() as connection:
        owner = keys.owner_named(connection, options.owner, now_s=now_s, create=True)
        key, text = keys.create(
            connection,
            owner=owner,
            name=options.name,
            scopes=_scopes(options.scopes),
            now_s=now_s,
            expires_s=now_s + options.days * DAY_S if options.days else None,
        )
    _show_new(key, text, settings)
    return 0


def rotate(options: argparse.Namespace, settings: Settings, database: Database) -> int:
    """Replace a key."""
    now_s = time.time()
    with database.transaction() as connection:
        key, text = keys.rotate(connection, options.id, now_s=now_s, overlap_s=options.overlap_hours * HOUR_S)
    _show_new(key, text, settings)
    print(f"The old key {options.id} works until {_when(now_s + options.overlap_hours * HOUR_S)}.")
    return 0


def revoke(options: argparse.Namespace, settings: Settings, database: Database) -> int:
    """End a key now."""
    with database.transaction() as connection:
        keys.revoke(connection, options.id, now_s=time.time())
    print(f"Key {options.id} is revoked; a running server closes its connections within seconds.")
    return 0


def show(options: argparse.Namespace, settings: Settings, database: Database) -> int:
    """List all keys, without their secrets."""
    now_s = time.time()
    rows = [("id", "owner", "name", "scopes", "state", "created", "expires", "last used")]
    rows += [
        (
            key.id,
            key.owner_name,
            key.name,
            keys.pack(key.scopes),
            key.state(now_s),
            _when(key.created_s),
            _when(key.expires_s),
            _when(key.last_used_s),
        )
        for key in keys.listed(database.read())
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def login_link(options: argparse.Namespace, settings: Settings, database: Database) -> int:
    """Make a link that logs one browser in, once."""
    now_s = time.time()
    with database.transaction() as connection:
        is_first = options.owner == sessions.FIRST_OWNER
        owner = keys.owner_named(connection, options.owner, now_s=now_s, create=True)
        scopes = _scopes(options.scopes) if options.scopes else SCOPES if is_first else tuple(USER_SCOPES)
        token = sessions.make_link(connection, owner=owner, scopes=scopes, now_s=now_s)
    print(first_start.login_link(settings, token))
    print("It works once, within 24 hours.", file=sys.stderr)
    return 0


def show_audit(options: argparse.Namespace, settings: Settings, database: Database) -> int:
    """Print the audit log; status 1 when a record was changed or is missing."""
    connection = database.read()
    for record in audit.records(connection):
        parts = (record.owner, record.credential, record.action, record.object, record.result)
        print(record.number, _when(record.at_s), *(part or "-" for part in parts))
    broken = audit.first_broken(connection)
    if broken is not None:
        print(f"record {broken} is not as it was written", file=sys.stderr)
    return int(broken is not None)


def _show_new(key: keys.Key, text: str, settings: Settings) -> None:
    print(text)
    print(
        f"\nThis is the only time that the key is shown. Id {key.id}, scopes: {keys.pack(key.scopes)}, "
        f"expires: {_when(key.expires_s)}.\n"
        f'Use it as:  curl -H "Authorization: Bearer $VOICEPOD_KEY" {first_start.page_url(settings)}/v1/models',
        file=sys.stderr,
    )


def _scopes(text: str) -> tuple[Scope, ...]:
    words = text.replace(",", " ").split()
    unknown = sorted(set(words) - set(SCOPES))
    if unknown:
        raise InvalidInput(f"there is no scope {', '.join(unknown)}; choose from: {' '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in words)


def _when(at_s: float | None) -> str:
    return "-" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.keys", description="Keys and logins of this server.")
    parser.add_argument("--config", metavar="FILE", help="configuration file of the server")
    parser.add_argument("--data", metavar="DIR", help="the server's storage.dir")
    commands = parser.add_subparsers(required=True, metavar="create|list|revoke|rotate|login-link|audit")
    user_scopes = keys.pack(USER_SCOPES)

    made = commands.add_parser("create", help="make an API key and show it once")
    made.add_argument("--name", required=True, help="what the key is for")
    made.add_argument("--owner", default=sessions.FIRST_OWNER, help="whose voices and talks it reaches")
    made.add_argument("--scopes", default=user_scopes, help=f"of: {' '.join(SCOPES)} (default: {user_scopes})")
    made.add_argument("--days", type=float, default=0.0, help="days until it expires (default: never)")
    made.set_defaults(run=create)

    commands.add_parser("list", help="all keys, without their secrets").set_defaults(run=show)

    revoked = commands.add_parser("revoke", help="end a key now")
    revoked.add_argument("id")
    revoked.set_defaults(run=revoke)

    rotated = commands.add_parser("rotate", help="replace a key; the old one works on for a while")
    rotated.add_argument("id")
    rotated.add_argument("--overlap-hours", type=float, default=24.0)
    rotated.set_defaults(run=rotate)

    link = commands.add_parser("login-link", help="a link that logs one browser in, once")
    link.add_argument("--owner", default=sessions.FIRST_OWNER)
    link.add_argument("--scopes", help="default: all for the first owner, else " + user_scopes)
    link.set_defaults(run=login_link)

    commands.add_parser("audit", help="what was done with keys and logins").set_defaults(run=show_audit)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
