"""Whose address and whose https are believed."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import HTTPConnection

from api.access.forwarded import Client, Forwarded
from settings import AccessSettings

PROXY, INNER, CLIENT, FAKE = "10.0.0.1", "10.0.0.2", "203.0.113.7", "198.51.100.66"


def told(settings: dict[str, Any], peer: str, scheme: str = "http", **headers: str) -> Client:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "scheme": scheme, "client": (peer, 1), "headers": raw, "path": "/"}
    return Forwarded(AccessSettings.model_validate(settings)).client(HTTPConnection(scope))


NOTHING: dict[str, Any] = {}
ONE, TWO = {"trusted_hops": 1}, {"trusted_hops": 2}
NAMED = {"trusted_proxies": ["10.0.0.0/8"]}
BOTH = {"trusted_hops": 1, "trusted_proxies": ["10.0.0.0/8"]}


@pytest.mark.parametrize(
    ("settings", "peer", "forwarded_for", "expected"),
    [
        # nobody is trusted: the peer, whatever it says
        (NOTHING, CLIENT, None, CLIENT),
        (NOTHING, CLIENT, FAKE, CLIENT),
        (NOTHING, PROXY, f"{FAKE}, {CLIENT}", PROXY),
        # one proxy: the last entry, which it wrote itself
        (ONE, PROXY, CLIENT, CLIENT),
        (ONE, PROXY, f"{FAKE}, {CLIENT}", CLIENT),
        (ONE, PROXY, f"{FAKE},{FAKE},{CLIENT}", CLIENT),
        (ONE, PROXY, None, PROXY),
        # two proxies
        (TWO, INNER, f"{CLIENT}, {PROXY}", CLIENT),
        (TWO, INNER, f"{FAKE}, {CLIENT}, {PROXY}", CLIENT),
        (TWO, INNER, CLIENT, CLIENT),
        # proxies by name: as far as they go, and not one entry farther
        (NAMED, INNER, f"{CLIENT}, {PROXY}", CLIENT),
        (NAMED, INNER, f"{FAKE}, {CLIENT}, {PROXY}", CLIENT),
        (NAMED, CLIENT, FAKE, CLIENT),  # direct, past the proxy
        (NAMED, PROXY, f"{FAKE}, {CLIENT}", CLIENT),
        (BOTH, CLIENT, FAKE, CLIENT),
        (BOTH, PROXY, f"{FAKE}, {CLIENT}", CLIENT),
        # what is no address is believed by nobody
        (ONE, PROXY, "unknown", PROXY),
        (ONE, PROXY, "203.0.113.7\nX: y", PROXY),
        (TWO, INNER, f"<script>, {PROXY}", PROXY),
    ],
)
def test_a_forwarded_address_counts_only_as_far_as_proxies_are_trusted(
    settings: dict[str, Any], peer: str, forwarded_for: str | None, expected: str
) -> None:
    headers = {} if forwarded_for is None else {"x_forwarded_for": forwarded_for}
    assert told(settings, peer, **headers).address == expected


@pytest.mark.parametrize(
    ("settings", "scheme", "forwarded", "expected"),
    [
        (NOTHING, "https", None, True),
        (NOTHING, "wss", None, True),
        (NOTHING, "http", "https", False),
        (ONE, "http", "https", True),
        (ONE, "http", "http", False),
        (ONE, "http", "https, http", False),  # the one proxy says http; the rest was sent by the client
        (TWO, "http", "https, http", True),
        (ONE, "http", None, False),
        (NAMED, "http", "https", True),
    ],
)
def test_a_forwarded_https_counts_the_same_way(
    settings: dict[str, Any], scheme: str, forwarded: str | None, expected: bool
) -> None:
    headers = {"x_forwarded_for": f"{CLIENT}, {PROXY}", **({"x_forwarded_proto": forwarded} if forwarded else {})}
    assert told(settings, PROXY, scheme, **headers).is_https is expected


def test_one_subscriber_of_ipv6_is_one_client() -> None:
    addresses = {told(NOTHING, f"2001:db8:1:2::{number:x}").address for number in range(100)}
    assert addresses == {"2001:db8:1:2::/64"}
    assert told(NOTHING, "::ffff:203.0.113.7").address == CLIENT


def test_an_address_that_many_may_share_is_marked() -> None:
    assert told(NOTHING, CLIENT).is_known
    assert not told(NOTHING, PROXY, x_forwarded_for=CLIENT).is_known
    assert told(ONE, PROXY, x_forwarded_for=CLIENT).is_known
