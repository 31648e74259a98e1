"""A file from a URL that a caller wrote, without letting that caller reach what only this machine can reach.

    URL -> https, no credentials, port 443 -> every address of the name is public -> connect to one of exactly those
        -> redirect? the same again, three times at most -> plain bytes, counted while they come

The name is looked up once and the connection goes to the address that was checked, so a name that changes between the
look and the connection gains nothing. Proxies of the environment are not used, because they would look it up again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit

import httpx

from serverless.errors import FieldError, JobError

MAX_BYTES: Final = 25_000_000
MAX_REDIRECTS: Final = 3
MAX_URL: Final = 2048
CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 15.0
USER_AGENT: Final = "voicepod-serverless"

_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", re.ASCII)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # how an IPv6-only network reaches IPv4
_UNICAST: Final = ipaddress.ip_network("2000::/3")  # all that is given out of IPv6; sites use some of the rest
_NEVER: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # of carriers and clouds; one of them keeps its metadata there
        "192.0.0.0/24",  # of protocols; another one keeps its metadata there
        "168.63.129.16/32",  # of one cloud's own agent
        "192.88.99.0/24",
        "2001::/32",  # tunnels, whose far end the sender chooses
        "2002::/16",
        "3fff::/20",  # of documentation
    )
)

# At INFO httpx writes every URL into the log, with the signature that it may hold.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class _Target:
    """One hop: the URL, what the server is called, and the port."""

    url: httpx.URL
    host: str
    port: int


async def fetch(
    url: str, *, max_bytes: int = MAX_BYTES, timeout_s: float, allow_private: bool = False, field: str = "local_voice"
) -> bytes:
    """The bytes behind `url`, at most `max_bytes` within `timeout_s` altogether.

    `allow_private` is for tests and closed networks: it permits http, any port and any address. What the bytes are is
    for the decoder to find out. `JobError`: URL_BLOCKED when the URL may not be fetched, DOWNLOAD_FAILED when it could
    not be.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _follow(url, max_bytes, timeout_s, allow_private)
    except TimeoutError:
        raise JobError("DOWNLOAD_FAILED", "the server behind the URL took too long") from None
    except _Blocked as blocked:
        message = f"the URL may not be fetched: {blocked}"
        raise JobError("URL_BLOCKED", message, errors=[FieldError(field, "url_blocked", message)]) from None


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, an IPv4 address inside an IPv6 one included."""
    try:
        ip: Address = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _UNICAST:
            return False
    if any(ip in network for network in _NEVER) or ip.is_multicast or ip.is_reserved:
        return False
    return ip.is_global and not (ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_unspecified)


class _Blocked(Exception):
    """Why a URL may not be fetched; the text says nothing of what an address resolved to."""


async def _follow(url: str, max_bytes: int, timeout_s: float, allow_private: bool) -> bytes:
    timeout = httpx.Timeout(min(READ_TIMEOUT_S, timeout_s), connect=min(CONNECT_TIMEOUT_S, timeout_s))
    limits = httpx.Limits(max_keepalive_connections=0)  # a connection is checked for one name, and serves that alone
    # Without trust_env=False a proxy or a .netrc of the environment would be used.
    async with httpx.AsyncClient(
        trust_env=False, follow_redirects=False, timeout=timeout, limits=limits, verify=_tls()
    ) as client:
        for _ in range(MAX_REDIRECTS + 1):
            target = _target(url, allow_private)
            addresses = await _addresses(target, allow_private)
            found = await _get(client, target, addresses, max_bytes)
            if isinstance(found, bytes):
                return found
            client.cookies.clear()
            try:
                url = urljoin(str(target.url), found.location)
            except ValueError:
                raise _Blocked("it leads to what is no URL") from None
    raise JobError("DOWNLOAD_FAILED", f"the URL leads on more than {MAX_REDIRECTS} times", retryable=False)


@dataclass(frozen=True, slots=True)
class _Redirect:
    location: str


def _target(url: str, allow_private: bool) -> _Target:
    """The parts of a URL, or `_Blocked`. Two parsers must agree on them: differences are a way around a guard."""
    if len(url) > MAX_URL or not re.fullmatch(r"[!-~]+", url, re.ASCII) or "\\" in url:
        raise _Blocked("it is no plain URL")
    try:
        parts, parsed = urlsplit(url), httpx.URL(url)
        port = parts.port
    except (ValueError, httpx.InvalidURL):
        raise _Blocked("it is no plain URL") from None
    if parts.scheme not in (("http", "https") if allow_private else ("https",)):
        raise _Blocked("only https is allowed")
    if "@" in parts.netloc:
        raise _Blocked("it holds a name and a password")
    host = (parts.hostname or "").lower()
    bracketed = f"[{host}]" if ":" in host else host
    if not _HOST.fullmatch(bracketed) or parsed.raw_host != host.encode() or parsed.scheme != parts.scheme:
        raise _Blocked("it names no plain server")
    if not allow_private and port not in (None, _PORTS[parts.scheme]):
        raise _Blocked("only the usual port is allowed")
    return _Target(parsed.copy_with(fragment=None), host, port or _PORTS[parts.scheme])


async def _addresses(target: _Target, allow_private: bool) -> list[str]:
    """The addresses of the server, all of them public; one that is not makes the name suspect."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise JobError("DOWNLOAD_FAILED", "the server that the URL names is not known") from None
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    if not allow_private and not all(is_public(address) for address in addresses):
        raise _Blocked("it leads to an address that is not public")
    return addresses


async def _get(client: httpx.AsyncClient, target: _Target, addresses: list[str], max_bytes: int) -> bytes | _Redirect:
    """The body, or where it is instead, from the first address that takes the connection."""
    for address in addresses:
        request = client.build_request(
            "GET",
            target.url.copy_with(host=address, port=target.port),
            headers={
                "Host": target.url.netloc.decode("ascii"),
                "User-Agent": USER_AGENT,
                "Accept": "audio/*, application/octet-stream;q=0.9, */*;q=0.5",
                "Accept-Encoding": "identity",  # a small body must not unpack to a large one
            },
            extensions={"sni_hostname": target.host},  # what the certificate has to be for
        )
        try:
            response = await client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            continue
        except httpx.TransportError:
            raise JobError("DOWNLOAD_FAILED", "the server behind the URL does not answer properly") from None
        except (httpx.InvalidURL, UnicodeError):  # httpx reads every redirect, followed or not
            raise _Blocked("it leads to what is no URL") from None
        try:
            return await _read(response, max_bytes)
        except httpx.TransportError:
            raise JobError("DOWNLOAD_FAILED", "the download broke off") from None
        finally:
            await response.aclose()
    raise JobError("DOWNLOAD_FAILED", "the server that the URL names cannot be reached")


async def _read(response: httpx.Response, max_bytes: int) -> bytes | _Redirect:
    status, headers = response.status_code, response.headers
    if status in (301, 302, 303, 307, 308) and headers.get("location"):
        return _Redirect(headers["location"])
    if status != 200:
        passing = status in (408, 429) or status >= 500
        raise JobError("DOWNLOAD_FAILED", f"the server behind the URL answered {status}", retryable=passing)
    if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise JobError("DOWNLOAD_FAILED", "the server behind the URL packs what it sends", retryable=False)
    too_large = JobError(
        "DOWNLOAD_FAILED", f"the file behind the URL is larger than {max_bytes / 1e6:g} MB", retryable=False
    )
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 15 or int(length) > max_bytes):
        raise too_large
    body = bytearray()
    async for block in response.aiter_raw():
        body += block
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


_contexts: list[ssl.SSLContext] = []


def _tls() -> ssl.SSLContext:
    """One context for all: reading the certificates takes 30 ms."""
    if not _contexts:
        _contexts.append(httpx.create_ssl_context(trust_env=False))
    return _contexts[0]
