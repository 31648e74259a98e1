"""What comes in: each client event of the OpenAI Realtime protocol becomes a call of the session.

`Reader.text` never raises for what a client sends: a wrong event is a typed `error` message and changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field

from api.session_json import Part, parse, updated
from api.wire_out import Json, error_json, item_json
from pipeline.audio import AudioChunk
from pipeline.conversation import Item
from pipeline.errors import InvalidInput, NotFound, VoicepodError
from pipeline.options import ReplyOptions, TurnDetection
from pipeline.session import Session

SLICE_S = 0.5  # a chunk is fed in slices of at most this length, with a yield between
MAX_TEXT_CHARS = 20_000
U32 = 2**32 - 1
ItemId = Annotated[str, Field(min_length=1, max_length=200)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class Append(Part):
    """input_audio_buffer.append."""

    audio: str


class Content(Part):
    """One part of a message's content."""

    type: Literal["input_text", "output_text", "text"]
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARS)]


class NewItem(Part):
    """The `item` of conversation.item.create."""

    id: ItemId | None = None
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Content], Field(min_length=1, max_length=32)]


class CreateItem(Part):
    """conversation.item.create."""

    item: NewItem
    previous_item_id: ItemId | None = None


class OfItem(Part):
    """conversation.item.delete and .retrieve."""

    item_id: ItemId


class Truncate(Part):
    """conversation.item.truncate."""

    item_id: ItemId
    content_index: int = 0
    audio_end_ms: Annotated[int, Field(ge=0, le=24 * 3600 * 1000)]


class ResponseParts(Part):
    """The `response` of response.create."""

    instructions: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | None = None
    output_modalities: Annotated[list[Literal["audio", "text"]], Field(min_length=1, max_length=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=4096)] | Literal["inf"] | None = None
    conversation: Literal["auto"] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None


class CreateResponse(Part):
    """response.create."""

    response: ResponseParts | None = None


class CancelResponse(Part):
    """response.cancel."""

    response_id: str | None = None


class Playback(Part):
    """voicepod.playback."""

    turn: Annotated[int, Field(ge=0, le=U32)]
    played_samples: Annotated[int, Field(ge=0, le=U32)]
    started_ago_ms: Annotated[float, Field(ge=0, le=3_600_000)] | None = None
    underruns: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class Ping(Part):
    """voicepod.ping."""

    t: float | Annotated[str, Field(max_length=200)] | None = None


class Reader:
    """One connection's events. `send` queues a message for this client; `default` is turn detection after null."""

    def __init__(
        self,
        session: Session,
        *,
        send: Callable[[Json], None],
        voices: Callable[[], Collection[str]],
        own_voice: str,
        default: TurnDetection,
        on_underruns: Callable[[int], None],
        pause: Callable[[], Awaitable[None]],
        new_id: Callable[[str], str],
    ) -> None:
        self.session = session
        self.n_malformed = 0
        self._send, self._voices, self._own_voice, self._default = send, voices, own_voice, default
        self._on_underruns, self._pause, self._new_id = on_underruns, pause, new_id

    async def audio(self, data: bytes | memoryview) -> None:
        """Raw PCM16 of the session's input rate."""
        try:
            await self._feed(data)
        except VoicepodError as error:
            self._send(error_json(error))

    async def text(self, text: str) -> None:
        """One JSON event."""
        event: Any = None
        try:
            event = _decoded(text)
            kind = event["type"]
            handle = _HANDLERS.get(kind) if isinstance(kind, str) else None
            if handle is None:
                shown = kind[:60] if isinstance(kind, str) else type(kind).__name__
                raise InvalidInput(f"there is no client event '{shown}'", code="unknown_event", param="type")
            await handle(self, event)
        except VoicepodError as error:
            if event is None:
                self.n_malformed += 1
            cause = event.get("event_id") if isinstance(event, dict) else None
            self._send(error_json(error, event_id=cause if isinstance(cause, str) else None))

    async def _feed(self, data: bytes | memoryview) -> None:
        chunk = AudioChunk.from_pcm16(data, self.session.options.input_sample_rate)
        slice_samples = int(SLICE_S * chunk.sample_rate)
        for start in range(0, chunk.n_samples, slice_samples):
            if start:
                await self._pause()
            self.session.feed(chunk.slice(start, start + slice_samples))

    # --- one method per event

    async def _session_update(self, event: Json) -> None:
        if not isinstance(event.get("session"), dict):
            raise InvalidInput("session is missing", code="invalid_value", param="session")
        self.session.update(
            updated(
                self.session.options,
                event["session"],
                voices=self._voices(),
                own_voice=self._own_voice,
                default=self._default,
            )
        )

    async def _append(self, event: Json) -> None:
        audio = parse(Append, event, "event").audio
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidInput("audio is not base64", code="invalid_audio", param="audio") from None
        await self._feed(data)

    async def _commit(self, event: Json) -> None:
        self.session.commit()

    async def _clear(self, event: Json) -> None:
        self.session.clear()
        self._send({"type": "input_audio_buffer.cleared"})

    async def _create_item(self, event: Json) -> None:
        create: CreateItem = parse(CreateItem, event, "event")
        text = "".join(part.text for part in create.item.content)
        item = Item(create.item.id or self._new_id("item"), create.item.role, text)
        self.session.add_item(item, after=create.previous_item_id)

    async def _retrieve_item(self, event: Json) -> None:
        with _missing_item(code="item_retrieve_invalid_item_id"):
            item = self.session.conversation.get(parse(OfItem, event, "event").item_id)
        self._send({"type": "conversation.item.retrieved", "item": item_json(item)})

    async def _delete_item(self, event: Json) -> None:
        with _missing_item(code="item_delete_invalid_item_id"):
            self.session.delete_item(parse(OfItem, event, "event").item_id)

    async def _truncate_item(self, event: Json) -> None:
        truncate: Truncate = parse(Truncate, event, "event")
        if truncate.content_index:
            raise InvalidInput("an item has one part: content_index must be 0", param="content_index")
        with _missing_item(code="item_truncate_invalid_item_id"):
            self.session.truncate(truncate.item_id, truncate.audio_end_ms)

    async def _create_response(self, event: Json) -> None:
        create: CreateResponse = parse(CreateResponse, event, "event")
        how = create.response or ResponseParts()
        self.session.respond(
            ReplyOptions(
                instructions=how.instructions,
                spoken=None if how.output_modalities is None else how.output_modalities[0] == "audio",
                max_tokens=how.max_output_tokens,
                metadata=how.metadata,
            )
        )

    async def _cancel_response(self, event: Json) -> None:
        cancel: CancelResponse = parse(CancelResponse, event, "event")
        if not self.session.cancel_replies(response_id=cancel.response_id):
            # OpenAI's first words: LiveKit goes by them, and takes every other error for one.
            raise InvalidInput("Cancellation failed: there is no response", code="response_cancel_not_active")

    async def _playback(self, event: Json) -> None:
        played: Playback = parse(Playback, event, "event")
        ago_s = None if played.started_ago_ms is None else played.started_ago_ms / 1000
        self.session.played(played.turn, played.played_samples, started_ago_s=ago_s)
        self._on_underruns(played.underruns)

    async def _ping(self, event: Json) -> None:
        self._send({"type": "voicepod.pong", "t": parse(Ping, event, "event").t})

    async def _pong(self, event: Json) -> None:
        return


@contextlib.contextmanager
def _missing_item(*, code: str) -> Iterator[None]:
    """Tells of a missing item by OpenAI's own code for the event: clients that wait for an answer go by it."""
    try:
        yield
    except NotFound as error:
        raise NotFound(error.message, code=code, param="item_id") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _decoded(text: str) -> Json:
    try:
        event = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidInput("this is not JSON", code="invalid_json") from None
    if not isinstance(event, dict) or "type" not in event:
        raise InvalidInput("an event is a JSON object with a type", code="invalid_event", param="type")
    return event


_HANDLERS: dict[str, Callable[[Reader, Json], Awaitable[None]]] = {
    "session.update": Reader._session_update,
    "input_audio_buffer.append": Reader._append,
    "input_audio_buffer.commit": Reader._commit,
    "input_audio_buffer.clear": Reader._clear,
    "conversation.item.create": Reader._create_item,
    "conversation.item.retrieve": Reader._retrieve_item,
    "conversation.item.delete": Reader._delete_item,
    "conversation.item.truncate": Reader._truncate_item,
    "response.create": Reader._create_response,
    "response.cancel": Reader._cancel_response,
    "output_audio_buffer.clear": Reader._cancel_response,
    "voicepod.playback": Reader._playback,
    "voicepod.ping": Reader._ping,
    "voicepod.pong": Reader._pong,
}


def client_events() -> set[str]:
    """All events that a client may send."""
    return {*_HANDLERS, "voicepod.resume"}
