"""What leaves: the session's events as OpenAI Realtime messages, and audio as base64 JSON or binary frames.

Formats: docs/protocol.md. One `Writer` per session, so that a response that goes on over a new socket keeps its shape.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

from api.errors import error_object
from api.session_json import session_json
from pipeline import events
from pipeline.conversation import Item, ItemStatus
from pipeline.errors import NotFound
from pipeline.events import Event
from pipeline.outbox import AudioEntry, Entry
from pipeline.session import Session

Json = dict[str, Any]
AUDIO_HEADER = struct.Struct("<II")  # turn, first sample


class Writer:
    """Turns outbox entries into messages. `extended` adds voicepod.* events and sends audio as binary frames."""

    def __init__(self, session: Session, facts: Callable[[], Json]) -> None:
        self.extended = False
        self._session, self._facts = session, facts
        self._n_events = itertools.count(1)
        self._captions: dict[str, list[events.ReplyCaption]] = {}  # response id -> what of it was told
        self._responses: dict[int, tuple[str, str]] = {}  # turn id -> (response id, item id)

    def messages(self, entry: Entry) -> Iterator[str | bytes]:
        """The messages of one entry, in order."""
        if isinstance(entry, AudioEntry):
            if entry.caption is not None:
                yield from self.of_event(entry.caption)
            yield self._audio(entry)
        else:
            yield from self.of_event(entry.event)

    def of_event(self, event: Event) -> Iterator[str]:
        """The messages of one event."""
        for message in _WRITERS[type(event)](self, event):
            if self.extended or not message["type"].startswith("voicepod."):
                yield self.text(message)

    def text(self, message: Json) -> str:
        """One message with its event id."""
        return json.dumps({"event_id": f"event_{next(self._n_events)}", **message})

    def created(self, *, resumed: bool, resume_token: str, received_samples: int) -> str:
        """The first message of a connection. The token is told here only, never with `session.updated`."""
        session = self._session_json()
        session["voicepod"] |= {
            "resumed": resumed,
            "resume_token": resume_token,
            "received_samples": received_samples,
        }
        return self.text({"type": "session.created", "session": session})

    def history(self) -> Iterator[str]:
        """All items, for a client that resumes."""
        before = None
        for item in self._session.conversation:
            shown = {"previous_item_id": before, "item": item_json(item)}
            yield self.text({"type": "conversation.item.added", **shown})
            if item.status != "in_progress":
                yield self.text({"type": "conversation.item.done", **shown})
            before = item.id

    def state(self) -> str:
        """The present state, for a client that resumes."""
        user, agent = self._session.state
        return self.text({"type": "voicepod.state", "user": user, "agent": agent})

    # --- audio

    def _audio(self, entry: AudioEntry) -> str | bytes:
        pcm = entry.audio.to_pcm16()
        turn_id = entry.playout.turn_id
        if self.extended:
            return AUDIO_HEADER.pack(turn_id & 0xFFFFFFFF, entry.first_sample & 0xFFFFFFFF) + pcm
        response_id, item_id = self._responses.get(turn_id, ("", ""))
        delta = base64.b64encode(pcm).decode("ascii")
        return self.text({"type": "response.output_audio.delta", **_part_of(response_id, item_id), "delta": delta})

    # --- one method per event

    def _session_json(self) -> Json:
        return session_json(self._session.id, self._session.options, self._facts())

    def _options_changed(self, event: events.OptionsChanged) -> Iterator[Json]:
        yield {"type": "session.updated", "session": self._session_json()}

    def _speech_started(self, event: events.SpeechStarted) -> Iterator[Json]:
        prefix_ms = self._session.options.turn_detection.prefix_ms if self._session.options.turn_detection else 0
        start_ms = max(round(event.audio_s * 1000) - prefix_ms, 0)
        yield {
            "type": "input_audio_buffer.speech_started",
            "audio_start_ms": start_ms,
            "item_id": event.item_id,
        }

    def _speech_stopped(self, event: events.SpeechStopped) -> Iterator[Json]:
        yield {
            "type": "input_audio_buffer.speech_stopped",
            "audio_end_ms": round(event.audio_s * 1000),
            "item_id": event.item_id,
        }

    def _committed(self, event: events.UtteranceCommitted) -> Iterator[Json]:
        yield {
            "type": "input_audio_buffer.committed",
            "item_id": event.item_id,
            "previous_item_id": event.previous_item_id,
        }

    def _dropped(self, event: events.UtteranceDropped) -> Iterator[Json]:
        yield {"type": "voicepod.utterance_dropped", "item_id": event.item_id, "reason": event.reason}

    def _transcript(self, event: events.TranscriptReady) -> Iterator[Json]:
        yield {
            "type": "conversation.item.input_audio_transcription.delta",
            "item_id": event.item_id,
            "content_index": 0,
            "delta": event.transcript.text,
        }
        yield {
            "type": "conversation.item.input_audio_transcription.completed",
            "item_id": event.item_id,
            "content_index": 0,
            "transcript": event.transcript.text,
            "language": event.transcript.language,
            "usage": {"type": "duration", "seconds": round(event.transcript.audio_seconds, 3)},
        }

    def _transcript_failed(self, event: events.TranscriptFailed) -> Iterator[Json]:
        yield {
            "type": "conversation.item.input_audio_transcription.failed",
            "item_id": event.item_id,
            "content_index": 0,
            "error": error_object(event.error),
        }

    def _item_added(self, event: events.ItemAdded) -> Iterator[Json]:
        item = item_json(event.item)
        response = self._responses.get(event.turn_id)
        of_response = response is not None and response[1] == event.item.id
        if response is not None and of_response:
            yield {
                "type": "response.output_item.added",
                "response_id": response[0],
                "output_index": 0,
                "item": {**item, "content": []},
            }
            item = {**item, "content": []}
        yield {"type": "conversation.item.added", "previous_item_id": event.previous_item_id, "item": item}
        if response is not None and of_response:
            kind = "audio" if event.item.spoken else "text"
            part = {"type": kind, "transcript" if event.item.spoken else "text": ""}
            yield {"type": "response.content_part.added", **_part_of(*response), "part": part}

    def _item_done(self, event: events.ItemDone) -> Iterator[Json]:
        if event.item.id not in {item.id for item in self._session.conversation}:
            return  # deleted while this stood behind audio
        yield {
            "type": "conversation.item.done",
            "previous_item_id": event.previous_item_id,
            "item": item_json(event.item),
        }

    def _item_truncated(self, event: events.ItemTruncated) -> Iterator[Json]:
        message: Json = {
            "type": "conversation.item.truncated",
            "item_id": event.item_id,
            "content_index": 0,
            "audio_end_ms": event.audio_end_ms,
        }
        if self.extended:
            with contextlib.suppress(NotFound):  # deleted since
                heard = self._session.conversation.get(event.item_id).heard
                message["voicepod"] = {"text": heard or ""}
        yield message

    def _item_deleted(self, event: events.ItemDeleted) -> Iterator[Json]:
        yield {"type": "conversation.item.deleted", "item_id": event.item_id}

    def _reply_started(self, event: events.ReplyStarted) -> Iterator[Json]:
        self._responses[event.turn_id] = (event.response_id, event.item_id)
        self._captions[event.response_id] = []
        for turn_id in [turn for turn in self._responses if turn < event.turn_id - 32]:
            self._captions.pop(self._responses.pop(turn_id)[0], None)
        response = self._response_json(event, "in_progress", output=[])
        yield {"type": "response.created", "response": response}

    def _reply_text(self, event: events.ReplyText) -> Iterator[Json]:
        part = _part_of(event.response_id, event.item_id)
        yield {"type": "response.output_text.delta", **part, "delta": event.delta}

    def _reply_caption(self, event: events.ReplyCaption) -> Iterator[Json]:
        told = self._captions.setdefault(event.response_id, [])
        if event not in told:  # a new socket gets the captions of the audio that is sent again, but no delta twice
            told.append(event)
            part = _part_of(event.response_id, event.item_id)
            yield {"type": "response.output_audio_transcript.delta", **part, "delta": event.text}
        yield {
            "type": "voicepod.caption",
            "turn": event.turn_id,
            "response_id": event.response_id,
            "item_id": event.item_id,
            "text": event.text,
            "first_sample": event.first_sample,
        }

    def _reply_finished(self, event: events.ReplyFinished) -> Iterator[Json]:
        part = _part_of(event.response_id, event.item_id)
        if event.spoken:
            told = "".join(caption.text for caption in self._captions.get(event.response_id, []))
            text = told if event.status == "cancelled" else event.text
            yield {"type": "response.output_audio.done", **part}
            yield {"type": "response.output_audio_transcript.done", **part, "transcript": text}
            content: Json = {"type": "audio", "transcript": text}
        else:
            text = event.text
            yield {"type": "response.output_text.done", **part, "text": text}
            content = {"type": "text", "text": text}
        yield {"type": "response.content_part.done", **part, "part": content}
        done: ItemStatus = "completed" if event.status == "completed" else "incomplete"
        item = item_json(Item(event.item_id, "assistant", text, status=done, spoken=event.spoken))
        yield {
            "type": "response.output_item.done",
            "response_id": event.response_id,
            "output_index": 0,
            "item": item,
        }
        details: Json = {"type": event.status}
        if event.status in ("cancelled", "incomplete"):
            details["reason"] = event.reason
        if event.error is not None:
            error = error_object(event.error)
            details["error"] = {"type": error["type"], "code": error["code"], "message": error["message"]}
        usage = {
            "input_tokens": event.n_input_tokens,
            "output_tokens": event.n_output_tokens,
            "total_tokens": event.n_input_tokens + event.n_output_tokens,
        }
        response = self._response_json(event, event.status, output=[item])
        yield {"type": "response.done", "response": {**response, "status_details": details, "usage": usage}}

    def _response_json(
        self, event: events.ReplyStarted | events.ReplyFinished, status: str, *, output: list[Json]
    ) -> Json:
        options = self._session.options
        audio_format = {"type": "audio/pcm", "rate": options.output_sample_rate}
        return {
            "object": "realtime.response",
            "id": event.response_id,
            "status": status,
            "status_details": None,
            "output": output,
            "conversation_id": self._session.id.replace("sess_", "conv_"),
            "output_modalities": ["audio" if event.spoken else "text"],
            "max_output_tokens": event.max_tokens or options.max_output_tokens or "inf",
            "audio": {"output": {"format": audio_format, "voice": options.voice}},
            "usage": None,
            "metadata": None if event.metadata is None else dict(event.metadata),
        }

    def _flushed(self, event: events.Flushed) -> Iterator[Json]:
        yield {"type": "voicepod.flush", "turn": event.turn_id}

    def _state_changed(self, event: events.StateChanged) -> Iterator[Json]:
        yield {"type": "voicepod.state", "user": event.user, "agent": event.agent}

    def _turn_done(self, event: events.TurnDone) -> Iterator[Json]:
        record = event.record
        yield {
            "type": "voicepod.turn_metrics",
            "turn": record.turn_id,
            "outcome": record.outcome,
            "total_ms": record.total_ms,
            "parts_ms": record.parts_ms,
            "utterance_s": round(record.utterance_s, 3),
            "spoken_s": round(record.spoken_s, 3),
            "heard_s": round(record.heard_s, 3),
            "n_output_tokens": record.n_output_tokens,
            "error_code": record.error_code,
        }

    def _turn_failed(self, event: events.TurnFailed) -> Iterator[Json]:
        # To a stock client an `error` says that an event of its own was wrong: Pipecat stops reading at one.
        if self.extended or not event.by_response:
            yield {"type": "error", "error": error_object(event.error)}


def item_json(item: Item) -> Json:
    """An item as the protocol shows it; a cut item shows what was heard."""
    text = item.content if item.heard is None else item.heard
    content: Json
    if item.role == "assistant":
        content = {"type": "output_audio", "transcript": text} if item.spoken else {"type": "output_text", "text": text}
    elif item.spoken:
        content = {"type": "input_audio", "transcript": text or None}
    else:
        content = {"type": "input_text", "text": text}
    return {
        "id": item.id,
        "object": "realtime.item",
        "type": "message",
        "status": item.status,
        "role": item.role,
        "content": [content],
    }


def error_json(error: Exception, *, event_id: str | None = None) -> Json:
    """An `error` event; `event_id` is the client's event that caused it."""
    return {"type": "error", "error": {**error_object(error), "event_id": event_id}}


def _part_of(response_id: str, item_id: str) -> Json:
    return {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}


_WRITERS: dict[type[Event], Callable[[Writer, Any], Iterator[Json]]] = {
    events.OptionsChanged: Writer._options_changed,
    events.SpeechStarted: Writer._speech_started,
    events.SpeechStopped: Writer._speech_stopped,
    events.UtteranceCommitted: Writer._committed,
    events.UtteranceDropped: Writer._dropped,
    events.TranscriptReady: Writer._transcript,
    events.TranscriptFailed: Writer._transcript_failed,
    events.ItemAdded: Writer._item_added,
    events.ItemDone: Writer._item_done,
    events.ItemTruncated: Writer._item_truncated,
    events.ItemDeleted: Writer._item_deleted,
    events.ReplyStarted: Writer._reply_started,
    events.ReplyText: Writer._reply_text,
    events.ReplyCaption: Writer._reply_caption,
    events.ReplyFinished: Writer._reply_finished,
    events.Flushed: Writer._flushed,
    events.StateChanged: Writer._state_changed,
    events.TurnDone: Writer._turn_done,
    events.TurnFailed: Writer._turn_failed,
}
