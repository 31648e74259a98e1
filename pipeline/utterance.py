"""What the user says in one turn, from its onset until its words stand in the history."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from pipeline.options import ReplyOptions
from pipeline.records import TurnRecord
from pipeline.response import Response


@dataclass(slots=True, eq=False)
class Utterance:
    """Speech that is heard, waits to be transcribed, or was. The session decides what becomes of it."""

    item_id: str
    record: TurnRecord
    onset_s: float = 0.0  # audio time
    onset_at_s: float = math.inf  # the same on the session clock; a committed buffer has no onset
    speech_s: float = math.inf  # from its onset to its end, where the listener found both
    wants_reply: bool = False
    followed: bool = False  # and had written a message behind it, which gets the reply whatever was said
    said: bool = False  # words were heard
    cancelled: bool = False  # the client wants no reply to it, and its turn was told to be over
    superseded: bool = False  # the user went on before its reply began: the later utterance answers both
    overtook: list[Utterance] = field(default_factory=list)  # those that it superseded
    cut: Response | None = None  # the response that it interrupted
    asked: ReplyOptions = field(default_factory=ReplyOptions)  # what the client asked of its reply
    transcribed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def requested(self) -> bool:
        """Whether the client asked for the reply itself."""
        return self.asked.requested

    def all_overtaken(self) -> list[Utterance]:
        """What the user said before, that waits for the answer to this one; newest first."""
        found: list[Utterance] = []
        for other in reversed(self.overtook):
            found += [other, *other.all_overtaken()]
        return found
