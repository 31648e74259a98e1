"""The way in to a server that knows nobody yet: a link that works once, in the terminal and in a private file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from api.access import sessions
from api.store import Store
from private_files import write_private
from settings import Settings

FILE: Final = "setup-link.txt"
_EVERYWHERE: Final = ("0.0.0.0", "::", "127.0.0.1", "::1")  # noqa: S104 - names compared, nothing is bound


def page_url(settings: Settings) -> str:
    """The page as a browser reaches it, as far as the settings say."""
    if settings.access.public_url is not None:
        return settings.access.public_url.rstrip("/")
    network = settings.network
    host = "localhost" if network.host in _EVERYWHERE else network.host
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if network.tls_cert else 'http'}://{shown}:{network.port}"


def login_link(settings: Settings, token: str) -> str:
    """The link for a token. It stands behind the #, which browsers send to no server and no log."""
    return f"{page_url(settings)}/login#{token}"


def words(settings: Settings, store: Store, *, now_s: float) -> str:
    """What the terminal says at start. Nothing in it is secret once somebody has been let in."""
    if settings.access.mode == "open":
        return f"Open {page_url(settings)} in your browser. Everyone who can reach it may use it (access.mode open)."
    token = store.now(lambda db: sessions.make_setup_link(db, now_s=now_s))
    if token is None:
        forget_link(store.directory)
        return f"Open {page_url(settings)} in your browser. To log in anew: python -m scripts.keys login-link"
    link = login_link(settings, token)
    write_private(store.directory / FILE, f"{link}\n".encode())
    return (
        f"Open this link in your browser to set the server up. It works once, within 24 hours:\n\n    {link}\n\n"
        f"(On another machine, put its address in place of localhost. The link is also in {store.directory / FILE}.)"
    )


def forget_link(directory: Path) -> None:
    """The link was used."""
    with contextlib.suppress(FileNotFoundError):
        (directory / FILE).unlink()
