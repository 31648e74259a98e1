"""Which web pages may use this server."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from pipeline.errors import Forbidden

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Origins:
    """The page's own origin, and foreign ones that the operator allowed.

    A server that listens on loopback answers only to loopback names: a foreign site whose name was made to point at
    127.0.0.1 would otherwise count as the page's own origin (DNS rebinding).
    """

    def __init__(self, host: str, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(allowed)
        self._loopback_only = _is_loopback(host)

    def allowed(self, origin: str, headers: Headers) -> bool:
        """Whether a browser page of `origin` may open a socket to the host that it asked for."""
        return origin in self._allowed or self._is_own(origin, headers)

    def _is_own(self, origin: str, headers: Headers) -> bool:
        # A browser cannot set X-Forwarded-Host on a socket, a proxy that rewrites Host does.
        asked = {headers.get("host", ""), headers.get("x-forwarded-host", "").split(",")[0].strip()} - {""}
        scheme, _, host = origin.partition("://")
        return scheme in ("http", "https") and host in asked and self.host_allowed(headers)

    def check(self, headers: Headers, method: str, *, is_cookie: bool) -> None:
        """`Forbidden` where another site's page may have made the browser send this with what it adds by itself.

        A browser names the page in `Origin` on every unsafe request, or says in `Sec-Fetch-Site` how near it is. A
        neighbour under the same domain counts as foreign. With a cookie nobody but the page itself is meant; without
        one (open mode) the origins that the operator allowed and programs, which say neither, are let through.
        """
        if method in SAFE_METHODS:
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None:
            may = self._is_own(origin, headers) or (not is_cookie and origin in self._allowed)
        else:
            may = site in ("same-origin", "none") if site is not None else not is_cookie
        if not may:
            raise Forbidden("this request came from another page", code="foreign_origin")

    def host_allowed(self, headers: Headers) -> bool:
        """Whether the Host header is one that this server may be called by."""
        return not self._loopback_only or _hostname(headers.get("host", "")) in LOOPBACK_NAMES


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # an IPv6 address that is none
        return None


def _is_loopback(host: str) -> bool:
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
