"""Who is at the other end, and did they come by https: forwarded headers count only as far as proxies are trusted.

Anyone can write `X-Forwarded-For`. Each proxy adds the address that it saw to the right end, so the list is read from
the right, one entry for each proxy that the operator named (`access.trusted_proxies`) or counted
(`access.trusted_hops`). By default none is.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from settings import AccessSettings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request comes from. `is_known`: the address is the client's own as far as anybody can tell."""

    address: str
    is_https: bool
    is_known: bool


class Forwarded:
    """Reads the forwarded headers as the settings allow."""

    def __init__(self, access: AccessSettings) -> None:
        self._hops = access.trusted_hops
        self._proxies = tuple(ipaddress.ip_network(network) for network in access.trusted_proxies)

    def client(self, connection: HTTPConnection) -> Client:
        """The client of a request or a socket."""
        peer = connection.client.host if connection.client else ""
        chain = [part.strip() for part in ",".join(connection.headers.getlist("x-forwarded-for")).split(",")]
        address, n_passed = _address(peer), 0
        while chain and self._passes(address, n_passed):
            n_passed += 1
            told = _address(chain.pop())
            if told is None:  # a proxy that writes no address: the nearest one that is known stays
                break
            address = told
        is_https = connection.scope["scheme"] in ("https", "wss")
        if n_passed:
            protocols = [part.strip().lower() for part in connection.headers.get("x-forwarded-proto", "").split(",")]
            is_https = is_https or protocols[-min(n_passed, len(protocols))] in ("https", "wss")
        # A list that nobody vouches for: the peer is a proxy, and the address is shared by all who come through it.
        is_known = bool(n_passed) or not connection.headers.get("x-forwarded-for")
        return Client(_network(address) if address is not None else peer, is_https, is_known)

    def _passes(self, address: Address | None, n_passed: int) -> bool:
        if address is None or not (self._hops or self._proxies):
            return False
        if self._hops and n_passed >= self._hops:
            return False
        return not self._proxies or any(address in network for network in self._proxies)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(address: Address) -> str:
    """One name for everything that one subscriber can send from: IPv6 gives each of them a whole /64."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
