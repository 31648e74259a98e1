"""Whoever asks, once it is known who that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

# talk: the page and /v1/realtime. speech: text to speech, transcription, one-shot talk. voices: clone, list, delete own
# voices. metrics: figures of the whole server. admin: everything, and other owners' things where a route says so.
Scope = Literal["talk", "speech", "voices", "metrics", "admin"]
# What a route may ask for; any: whoever is known.
Reach = Literal["talk", "speech", "voices", "metrics", "admin", "any"]
SCOPES: Final[tuple[Scope, ...]] = ("talk", "speech", "voices", "metrics", "admin")
USER_SCOPES: Final[frozenset[Scope]] = frozenset(("talk", "speech", "voices"))


# Where a connection's scope keeps who was found to be asking.
PRINCIPAL: Final = "voicepod.principal"


@dataclass(frozen=True, slots=True)
class Principal:
    """An owner of things, with what this credential lets them do.

    `owner` is the stable id that voices, sessions and data belong to; several keys and browsers may share it.
    `credential` names the key, browser session or token that was shown, never its secret.
    """

    owner: str
    credential: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether this credential reaches so far; admin reaches everywhere."""
        return scope in self.scopes or "admin" in self.scopes
