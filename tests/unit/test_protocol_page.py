"""docs/protocol.md against the code that speaks the protocol, and against OpenAI's own types."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent
from pydantic import TypeAdapter

from api.readiness import Readiness
from api.sockets import notice
from api.wire_in import Reader, client_events
from api.wire_out import Json, Writer, error_json, item_json
from pipeline import errors, events
from pipeline.audio import AudioChunk
from pipeline.conversation import Conversation, Item
from pipeline.engines.base import SpeechPiece, Transcript
from pipeline.errors import Busy, ConfigError, EngineFailed, VoicepodError
from pipeline.options import SessionOptions, TurnDetection
from pipeline.outbox import AudioEntry
from pipeline.playout import Playout
from pipeline.records import MARKS, TurnRecord
from pipeline.session import Session

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
STOCK_SERVER_EVENT = TypeAdapter[Any](RealtimeServerEvent)
STOCK_CLIENT_EVENT = TypeAdapter[Any](RealtimeClientEvent)
CLIENT_EVENTS = client_events()
# Their errors are those of HTTP routes, and of handshakes that HTTP answers.
HTTP_ONLY = tuple(
    f"api/{name}"
    for name in ("errors.py", "origins.py", "access/", "rest/", "voices/", "selftest/", "uploads.py", "store.py")
)
OF_FILES = tuple(
    f"pipeline/{name}"
    for name in (
        *("untrusted_", "audio_containers.py", "encoding.py", "reading.py", "matching.py"),
        "engines/f5_reference.py",
    )
)
# No file comes over the socket, and no voice is made there.
FILES_ONLY = {"audio_empty", "audio_not_finite", "audio_too_long", "audio_unreadable"}
FILES_ONLY |= {"voice_not_clonable", "voice_not_usable"}
DETECTION = TurnDetection(threshold=0.5, prefix_ms=300, silence_ms=600)
FACTS = {
    "asr_model": "whisper-base",
    "voicepod": {
        "resume_s": 300.0,
        "languages": ["auto", "en"],
        "voices": [{"id": "af_heart", "name": "Heart", "language": "en"}],
        "engines": {"vad": "", "asr": "", "llm": "", "tts": ""},
    },
}


def _examples() -> Iterator[Json]:
    """Every JSON value of the page, in order; a block may hold several."""
    decoder = json.JSONDecoder()
    for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        rest = block.strip()
        while rest:
            value, end = decoder.raw_decode(rest)
            yield value
            rest = rest[end:].strip()


EXAMPLES = list(_examples())
FROM_SERVER = [example for example in EXAMPLES if str(example.get("event_id")).startswith("event_")]
FROM_CLIENT = [example for example in EXAMPLES if "type" in example and example not in FROM_SERVER]


def _kind(example: Json) -> str:
    return str(example["type"])


def _trees(*folders: str) -> Iterator[ast.Module]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.relative_to(ROOT).as_posix().startswith((*HTTP_ONLY, *OF_FILES)):
                yield ast.parse(path.read_text(encoding="utf-8"))


def _server_types() -> set[str]:
    """Every event type that is written in api/: the constants that stand as `type` in a dictionary."""
    found = set()
    for node in (node for tree in _trees("api") for node in ast.walk(tree) if isinstance(node, ast.Dict)):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "type" and isinstance(value, ast.Constant):
                found.add(str(value.value))
    return {kind for kind in found if re.fullmatch(r"error|[a-z_]+(\.[a-z_]+)+", kind)}


def _error_codes() -> set[str]:
    """Every code that an error is raised with in api/ and pipeline/, and the own code of each class used there."""
    codes = {VoicepodError.code}
    for node in (node for tree in _trees("api", "pipeline") for node in ast.walk(tree) if isinstance(node, ast.Call)):
        named = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        codes |= {str(value.value) for value in named if isinstance(value, ast.Constant)}
        kind = getattr(errors, node.func.id, None) if isinstance(node.func, ast.Name) else None
        if not named and isinstance(kind, type) and issubclass(kind, VoicepodError) and kind is not ConfigError:
            codes.add(kind.code)
    return codes - FILES_ONLY


class _Talk:
    """Takes every call of a session, so that only the reading of the events can fail."""

    id = "sess_5f0c"
    state = ("silent", "idle")

    def __init__(self) -> None:
        self.options = SessionOptions("Be brief.", "af_heart", DETECTION, max_output_tokens=160)
        self.conversation = Conversation()
        self.conversation.add(Item("item_1c9e", "user", "What is the capital of France?"))

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: True


def _written() -> list[Json]:
    """One message of every kind and form that the code writes."""
    talk = _Talk()
    session = cast(Session, talk)
    written: list[str] = []
    user = Item("item_1c9e", "user", "Hello.", spoken=True)
    reply = Item("item_77b0", "assistant", "", status="in_progress", spoken=True)
    now: dict[str, Any] = {"at_s": 0.0, "turn_id": 1}
    of: dict[str, Any] = {**now, "response_id": "resp_90aa", "item_id": reply.id}
    failure = EngineFailed("the voice failed", stage="tts")
    record = TurnRecord(1, marks={name: float(i) for i, (name, _) in enumerate(MARKS)})
    caption = events.ReplyCaption(**of, piece=SpeechPiece(0, "Hi.", 0, 3), text="Hi.", first_sample=0)
    happened: list[events.Event] = [
        events.OptionsChanged(**now),
        events.SpeechStarted(**now, audio_s=1.0, item_id=user.id),
        events.SpeechStopped(**now, audio_s=2.0, item_id=user.id),
        events.UtteranceCommitted(**now, item_id=user.id, previous_item_id=None),
        events.ItemAdded(**now, item=user, previous_item_id=None),
        events.TranscriptReady(**now, item_id=user.id, transcript=Transcript("Hello.", "en")),
        events.TranscriptFailed(**now, item_id=user.id, error=failure),
        events.ItemDone(**now, item=user, previous_item_id=None),
        events.ReplyStarted(**of, spoken=True),
        events.ItemAdded(**now, item=reply, previous_item_id=user.id),
        caption,
        events.ReplyText(**of, delta="Hi"),
        events.ReplyFinished(**of, spoken=True, status="completed", reason="", text="Hi."),
        events.ReplyFinished(**of, spoken=False, status="completed", reason="", text="Hi."),
        events.ItemTruncated(**now, item_id=reply.id, audio_end_ms=10),
        events.ItemDeleted(**now, item_id=user.id),
        events.Flushed(**now),
        events.StateChanged(**now, user="silent", agent="idle"),
        events.UtteranceDropped(**now, item_id=user.id, reason="echo"),
        events.TurnDone(**now, record=record),
        events.TurnFailed(**now, error=failure),
    ]
    writer = Writer(session, lambda: FACTS)
    writer.extended = True
    written.append(writer.created(resumed=False, resume_token="kJx0", received_samples=0))
    talk.conversation.add(reply)
    for event in happened:
        written += writer.of_event(event)
    talk.options = replace(talk.options, turn_detection=None)
    written += writer.of_event(events.OptionsChanged(**now))
    writer.extended = False
    written += [str(m) for m in writer.messages(AudioEntry(Playout(1, 24000), 0, AudioChunk.silence(0.08, 24000)))]
    direct: list[Json] = [
        {"type": "input_audio_buffer.cleared"},
        {"type": "conversation.item.retrieved", "item": item_json(Item("item_2d10", "user", "And?"))},
        {"type": "voicepod.pong", "t": 1},
        notice("maintenance", "Soon."),
        error_json(Busy("taken", retry_after_s=1.0)),
        error_json(errors.InvalidInput("no"), event_id="mine"),
    ]
    return [json.loads(text) for text in written + [writer.text(message) for message in direct]]


WRITTEN = _written()


def _shape(value: Any) -> Any:
    """Names without values, so that an example and a message can be compared."""
    if isinstance(value, dict):
        return {name: _shape(of) for name, of in value.items()}
    if isinstance(value, list):
        return [_shape(of) for of in value[:1]]
    return None


@pytest.mark.parametrize("kind", sorted(CLIENT_EVENTS))
def test_every_client_event_stands_in_a_table_and_has_an_example(kind: str) -> None:
    assert re.search(rf"^\|[^|]*`{re.escape(kind)}`", PAGE, re.MULTILINE)
    assert kind in {_kind(example) for example in FROM_CLIENT}


def test_every_server_event_stands_in_a_table_and_has_an_example() -> None:
    types = _server_types()
    assert "response.done" in types
    assert [kind for kind in types if not re.search(rf"^\|[^|]*`{re.escape(kind)}`", PAGE, re.MULTILINE)] == []
    assert types - {_kind(example) for example in FROM_SERVER} == set()


def test_the_error_codes_that_are_explained_are_those_that_are_raised() -> None:
    table = PAGE[PAGE.index("## Errors") : PAGE.index("## Close codes")]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)) == _error_codes()


@pytest.mark.parametrize("example", FROM_SERVER, ids=_kind)
def test_a_server_example_has_the_form_that_the_code_writes(example: Json) -> None:
    forms = [_shape(message) for message in WRITTEN if message["type"] == example["type"]]
    assert _shape(example) in forms


@pytest.mark.parametrize("example", [e for e in FROM_SERVER if not _kind(e).startswith("voicepod.")], ids=_kind)
def test_a_server_example_is_what_a_stock_client_expects(example: Json) -> None:
    parsed = STOCK_SERVER_EVENT.validate_python(example)
    assert parsed.type == example["type"]


@pytest.mark.parametrize("message", [m for m in WRITTEN if not _kind(m).startswith("voicepod.")], ids=_kind)
def test_what_the_code_writes_is_what_a_stock_client_expects(message: Json) -> None:
    parsed = STOCK_SERVER_EVENT.validate_python(message)
    assert parsed.type == message["type"]


@pytest.mark.parametrize("example", [e for e in FROM_CLIENT if not _kind(e).startswith("voicepod.")], ids=_kind)
def test_a_client_example_is_what_a_stock_client_sends(example: Json) -> None:
    parsed = STOCK_CLIENT_EVENT.validate_python(example)
    assert parsed.type == example["type"]


@pytest.mark.parametrize(
    "example", [e for e in FROM_CLIENT if _kind(e) in CLIENT_EVENTS - {"voicepod.resume"}], ids=_kind
)
async def test_a_client_example_is_taken(example: Json) -> None:
    async def pause() -> None:
        return

    answers: list[Json] = []
    reader = Reader(
        cast(Session, _Talk()),
        send=answers.append,
        voices=lambda: {"af_heart"},
        own_voice="af_heart",
        default=DETECTION,
        on_underruns=lambda n: None,
        pause=pause,
        new_id=lambda kind: f"{kind}_1",
    )
    await reader.text(json.dumps(example))
    assert "error" not in {answer["type"] for answer in answers}


def test_the_example_of_the_start_has_the_form_that_the_health_route_gives() -> None:
    readiness = Readiness()
    readiness.expect("vad", "silero")
    assert _shape(readiness.startup()) in [_shape(example) for example in EXAMPLES]


def test_links_within_the_page_lead_somewhere() -> None:
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings


def test_a_caption_that_is_told_again_is_no_second_delta_and_no_more_text() -> None:
    writer = Writer(cast(Session, _Talk()), lambda: FACTS)
    writer.extended = True
    of: dict[str, Any] = {"at_s": 0.0, "turn_id": 1, "response_id": "resp_90aa", "item_id": "item_77b0"}
    caption = events.ReplyCaption(**of, piece=SpeechPiece(0, "Hi.", 0, 3), text="Hi.", first_sample=0)
    told = [json.loads(str(text))["type"] for _ in range(2) for text in writer.of_event(caption)]
    assert told == ["response.output_audio_transcript.delta", "voicepod.caption", "voicepod.caption"]
    finished = events.ReplyFinished(**of, status="cancelled", reason="turn_detected", text="Hi. Bye.", spoken=True)
    ends = [json.loads(str(text)) for text in writer.of_event(finished)]
    assert next(end["transcript"] for end in ends if "transcript" in end) == "Hi."
