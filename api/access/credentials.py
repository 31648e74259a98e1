"""How secrets look: API keys, browser cookies, one-time links and the operator's token.

Every secret is 32 random bytes, so that it can be stored as a plain SHA-256: there is nothing to guess, and nothing
that a slow hash would make safer (argon2 is for words that people think up).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

SECRET_BYTES: Final = 32
ID_BYTES: Final = 6
KEY, COOKIE, LINK, OPERATOR = "vp", "vs", "vl", "vo"  # what each text begins with: leak scanners can look for it
MAX_CHARS: Final = 128

_WITH_ID: Final = re.compile(r"(v[ps])_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Shown:
    """A key or cookie as somebody showed it; nothing is known yet about whether it is good."""

    id: str
    secret: str

    def matches(self, secret_sha256: bytes) -> bool:
        """Whether the secret is the one that was stored; takes the same time whatever is wrong with it."""
        return hmac.compare_digest(sha256(self.secret), secret_sha256)


@dataclass(frozen=True, slots=True)
class Minted:
    """A new key or cookie. `text` is told once and stored nowhere."""

    id: str
    text: str
    secret_sha256: bytes


def mint(kind: str) -> Minted:
    """A new key (`KEY`) or cookie (`COOKIE`)."""
    identifier, secret = secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
    return Minted(identifier, f"{kind}_{identifier}_{secret}", sha256(secret))


def mint_token(kind: str) -> str:
    """A new secret without an id: a one-time link (`LINK`) or the operator's token (`OPERATOR`)."""
    return f"{kind}_{secrets.token_urlsafe(SECRET_BYTES)}"


def parse(kind: str, text: str) -> Shown | None:
    """The parts of a text of this kind, None when it has another form."""
    found = _WITH_ID.fullmatch(text) if len(text) <= MAX_CHARS else None
    return Shown(found[2], found[3]) if found is not None and found[1] == kind else None


def sha256(text: str) -> bytes:
    """What is stored of a secret."""
    return hashlib.sha256(text.encode()).digest()
