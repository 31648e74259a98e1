"""Which web pages may use this server."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

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
        if origin in self._allowed:
            return True
        # A browser cannot set X-Forwarded-Host on a socket, a proxy that rewrites Host does.
        asked = {headers.get("host", ""), headers.get("x-forwarded-host", "").split(",")[0].strip()} - {""}
        scheme, _, host = origin.partition("://")
        return scheme in ("http", "https") and host in asked and self.host_allowed(headers)

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
