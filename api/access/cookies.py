"""The cookie of a browser session.

Behind https it is a `__Host-` cookie: the browser takes it only from this very host, so that a neighbour under the same
domain (another pod's URL, say) cannot plant one. On plain http, which a loopback page and a tunnel use, browsers know
no such promise and the cookie has another name.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import Response

from api.access.credentials import COOKIE, Shown, parse
from api.access.forwarded import Forwarded

SECURE_NAME: Final = "__Host-voicepod"
PLAIN_NAME: Final = "voicepod"


def is_https(connection: HTTPConnection, forwarded: Forwarded) -> bool:
    """Whether the browser came by https. Its own Origin may say so: who lies there gets a stricter cookie."""
    origin = connection.headers.get("origin", "")
    return forwarded.client(connection).is_https or urlsplit(origin).scheme == "https"


def set_cookie(response: Response, text: str, *, secure: bool, life_s: float) -> None:
    """Hand the cookie to the browser.

    `lax`: no form or script of another site brings it along, a link from the pod's console does.
    """
    response.set_cookie(
        SECURE_NAME if secure else PLAIN_NAME,
        text,
        max_age=int(life_s),
        path="/",
        secure=secure,
        httponly=True,
        samesite="lax",
    )


def drop_cookie(response: Response, *, secure: bool) -> None:
    """Ask the browser to forget both."""
    response.delete_cookie(PLAIN_NAME, path="/", httponly=True, samesite="lax")
    if secure:
        response.delete_cookie(SECURE_NAME, path="/", secure=True, httponly=True, samesite="lax")


def cookie_of(connection: HTTPConnection) -> Shown | None:
    """The session that the browser names, if any."""
    text = connection.cookies.get(SECURE_NAME) or connection.cookies.get(PLAIN_NAME) or ""
    return parse(COOKIE, text)
