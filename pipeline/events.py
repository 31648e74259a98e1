"""One vocabulary of what happens in a talk.

The same events feed the WebSocket, the page, the log, the metrics and the golden files of the tests. `at_s` is the
session's monotonic clock in seconds; `audio_s` counts the audio that came in, so it does not depend on how fast it
came. `turn_id` counts the turns of a session from 1; it is the `turn` of the wire protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.conversation import Item
from pipeline.engines.base import SpeechPiece, Transcript
from pipeline.errors import VoicepodError
from pipeline.options import ReplyLimit
from pipeline.records import TurnRecord

UserState = Literal["silent", "speaking"]
AgentState = Literal["idle", "thinking", "speaking"]
ReplyStatus = Literal["completed", "cancelled", "failed", "incomplete"]
DropReason = Literal["cleared", "no_speech", "echo"]
ReplyReason = Literal["turn_detected", "client_cancelled", "max_output_tokens", "error", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base: when, and of which turn."""

    at_s: float
    turn_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechStarted(Event):
    """The user speaks; `audio_s` is the onset, padding included. `item_id` will be the utterance's item."""

    audio_s: float
    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechStopped(Event):
    """The utterance ended; `audio_s` is the end of the last speech frame plus the wait."""

    audio_s: float
    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UtteranceCommitted(Event):
    """The buffered audio became the user item `item_id`, after `previous_item_id`."""

    item_id: str
    previous_item_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UtteranceDropped(Event):
    """The buffered audio was thrown away: cleared by the client, nothing said, or our own voice heard back."""

    item_id: str
    reason: DropReason


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptReady(Event):
    """What the user said in item `item_id`."""

    item_id: str
    transcript: Transcript


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptFailed(Event):
    """The ASR failed on item `item_id`."""

    item_id: str
    error: VoicepodError


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemAdded(Event):
    """An item entered the history, after `previous_item_id`."""

    item: Item
    previous_item_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemDone(Event):
    """An item has its final content."""

    item: Item
    previous_item_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTruncated(Event):
    """An assistant item was cut to what was heard, `audio_end_ms` of its audio."""

    item_id: str
    audio_end_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemDeleted(Event):
    """An item left the history."""

    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyStarted(Event):
    """A response began: `item_id` is the assistant item it writes."""

    response_id: str
    item_id: str
    spoken: bool
    metadata: Mapping[str, str] | None = None
    max_tokens: ReplyLimit = None  # of this response alone


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyText(Event):
    """Text of a response that is not spoken, as it is generated."""

    response_id: str
    item_id: str
    delta: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyCaption(Event):
    """Text of a spoken piece; leaves just before the piece's first sample, `first_sample` of the turn's audio."""

    response_id: str
    item_id: str
    piece: SpeechPiece
    text: str
    first_sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyFinished(Event):
    """No more text or audio of this response will be made; what was sent may still be playing."""

    response_id: str
    item_id: str
    spoken: bool
    status: ReplyStatus
    reason: ReplyReason
    text: str
    n_input_tokens: int = 0
    n_output_tokens: int = 0
    error: VoicepodError | None = None
    metadata: Mapping[str, str] | None = None
    max_tokens: ReplyLimit = None  # of this response alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Flushed(Event):
    """Audio of this and all earlier turns must not be played any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(Event):
    """User and agent state; what a page shows is derived from the two."""

    user: UserState
    agent: AgentState


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDone(Event):
    """The turn's audio was heard to its end, or cut, or the turn failed: the whole latency record."""

    record: TurnRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFailed(Event):
    """A stage failed; the session lives on. `by_response`: the end of the turn's response tells it as well."""

    error: VoicepodError
    by_response: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionsChanged(Event):
    """The session's options were updated."""
