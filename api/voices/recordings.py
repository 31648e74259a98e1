"""Recordings that were sent and judged and are no voice yet, and phrases to read aloud: in memory, for a while."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from pipeline.audio import Samples
from pipeline.errors import Busy, NotFound
from pipeline.sample_quality import Verdict

KEEP_S: Final = 900.0  # time to read the statement, correct the transcript and choose a name
# Half a minute of 24 kHz is 1.4 MB, and no recording is longer than a minute: 46 MB as the settings are, 92 at most. An
# owner may try a recording and the reading of a phrase a few times without losing the first one.
MAX_OF_OWNER, MAX_IN_ALL = 6, 32
MAX_PHRASES_OF_OWNER, MAX_PHRASES_IN_ALL = 4, 1000
RETRY_FULL_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that an owner is to read aloud."""

    id: str
    owner: str
    text: str
    expires_s: float


@dataclass(frozen=True, slots=True)
class PhraseHeard:
    """What was heard when a phrase was to be read."""

    text: str
    heard: str
    matches: bool


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A judged recording. `wav` is None where no voice may be made of it; `embedding` without a speaker encoder."""

    id: str
    owner: str
    wav: bytes | None
    seconds: float
    transcript: str
    language: str
    verdict: Verdict
    phrase: PhraseHeard | None
    embedding: Samples | None
    expires_s: float


class _Kept(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def owner(self) -> str: ...

    @property
    def expires_s(self) -> float: ...


KeptT = TypeVar("KeptT", bound=_Kept)


class Shelf(Generic[KeptT]):
    """Things of owners that are forgotten after `KEEP_S`: so many of each owner, the oldest goes, and so many in all.

    Everything is on the event loop. `now` is the wall clock: clients are told when a thing goes.
    """

    def __init__(self, prefix: str, of_owner: int, in_all: int, *, now: Callable[[], float] = time.time) -> None:
        self._prefix, self._of_owner, self._in_all, self._now = prefix, of_owner, in_all, now
        self._things: dict[str, KeptT] = {}

    def new_id(self) -> str:
        """An id for a thing to put."""
        return f"{self._prefix}_{secrets.token_hex(12)}"

    def expiry(self) -> float:
        """When what is put now will go."""
        return self._now() + KEEP_S

    def check_room(self, owner: str) -> None:
        """`Busy` when the server holds all that it may and this owner has nothing that could make room."""
        self.sweep()
        if len(self._things) >= self._in_all and not self._of(owner):
            raise Busy("too many recordings wait for their voices", retry_after_s=RETRY_FULL_S)

    def put(self, thing: KeptT) -> None:
        """Keep it. `Busy` as `check_room`."""
        self.check_room(thing.owner)
        own = self._of(thing.owner)
        if len(own) >= self._of_owner or len(self._things) >= self._in_all:
            del self._things[own[0].id]
        self._things[thing.id] = thing

    def get(self, thing_id: str, owner: str) -> KeptT:
        """The owner's thing, or `NotFound`."""
        self.sweep()
        thing = self._things.get(thing_id)
        if thing is None or thing.owner != owner:
            code = {"smp": "sample_not_found", "phr": "phrase_not_found"}[self._prefix]
            raise NotFound("there is no such recording or phrase of yours, or it is too old", code=code)
        return thing

    def of_owner(self, owner: str) -> list[KeptT]:
        """The owner's things, the oldest first."""
        self.sweep()
        return self._of(owner)

    def drop(self, thing_id: str, owner: str) -> None:
        """Forget the owner's thing, or `NotFound`."""
        del self._things[self.get(thing_id, owner).id]

    def drop_all(self, owner: str) -> None:
        """Forget everything of an owner."""
        for thing in self._of(owner):
            del self._things[thing.id]

    def sweep(self) -> None:
        """Forget what is too old."""
        now_s = self._now()
        for thing in [thing for thing in self._things.values() if thing.expires_s <= now_s]:
            del self._things[thing.id]

    def _of(self, owner: str) -> list[KeptT]:
        return [thing for thing in self._things.values() if thing.owner == owner]
