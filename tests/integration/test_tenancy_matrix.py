"""Every route and every event, asked by everybody: nobody learns anything of another owner's things.

The tables hold every door of the application, every route and event of the mounted Gradio page and every client event
of `/v1/realtime`. One that is missing from them fails the tests: whoever adds a door says here who may do what.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from api.access.rules import doors
from api.voices.consent import STATEMENT_VERSION
from api.wire_in import client_events
from tests.support.closed_server import closed_server
from tests.support.rest import a_file
from tests.support.tenants import EVERYBODY, KNOWN, STRANGERS, Json, Talk, Tenants, made_up, normalised

# Gradio's queue sets an option that its pandas calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'")


@pytest.fixture(scope="module")
def tenants() -> Iterator[Tenants]:
    with closed_server(security={"rate_limiting": False}, system={"max_concurrent_users": 40}) as server:
        tenants = Tenants(server)
        yield tenants
        tenants.close()


@pytest.fixture(scope="module")
def talk(tenants: Tenants) -> Talk:
    """A talk of Anna's, to be found in lists and figures."""
    return tenants.talk()


# --- the doors of the application


@dataclass(frozen=True)
class Row:
    """What a door answers. `a` owns the thing that the path names; `others` are Bert and the administrator."""

    method: str
    path: str
    a: int = 200
    b: int | None = None  # as `a` where nothing is said
    admin: int | None = None  # as `b`
    stranger: int = 401
    thing: Callable[[Tenants], str] | None = None  # of Anna's, in place of the path's {name}
    how: dict[str, Any] | Callable[[str], dict[str, Any]] = field(default_factory=dict)

    def expected(self, role: str) -> int:
        b = self.a if self.b is None else self.b
        known = {"a": self.a, "b": b, "admin": b if self.admin is None else self.admin}
        return known.get(role, self.stranger)

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


def open_to_all(path: str, *, status: int = 200) -> list[Row]:
    return [Row(method, path, status, stranger=status) for method in ("GET", "HEAD")]


WAV: dict[str, Any] = {"content": a_file(), "headers": {"Content-Type": "audio/wav"}}


def voice_of(sample_id: str) -> Json:
    consent = {"agreed": True, "statement": STATEMENT_VERSION, "name": "Somebody"}
    return {"sample_id": sample_id, "name": "Mine", "consent": consent}


OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}
FORM: dict[str, Any] = {"files": {"file": ("a.wav", a_file())}}
ROWS = [
    *open_to_all("/health/live"),
    *open_to_all("/health/ready"),
    *open_to_all("/health/startup"),
    *open_to_all("/api/health"),
    *open_to_all("/ping"),
    Row("GET", "/api/startup"),
    Row("GET", "/metrics", 403, admin=200),
    Row("GET", "/api/metrics", 403, admin=200),
    Row("GET", "/login", stranger=200),
    Row("POST", "/login", 401, how={"json": {"credential": "vp_000000000000_" + "A" * 43}, "headers": OWN_PAGE}),
    Row("POST", "/logout", 303, stranger=303, how={"headers": OWN_PAGE}),
    Row("POST", "/api/ticket"),
    Row("POST", "/v1/audio/speech", how={"json": {"model": "x", "input": "Good.", "voice": "anna"}}),
    Row("POST", "/api/tts", how={"json": {"text": "Good."}}),
    Row("POST", "/v1/audio/transcriptions", how=FORM),
    Row("POST", "/api/transcriptions", 202, how=FORM),
    Row("GET", "/v1/models"),
    Row("GET", "/v1/models/{model}", thing=lambda tenants: "voicepod"),
    Row("POST", "/api/converse", how=WAV),
    Row("GET", "/api/jobs/{job_id}", 200, 404, thing=Tenants.job),
    Row("DELETE", "/api/jobs/{job_id}", 204, 404, thing=Tenants.job),
    Row("GET", "/api/sessions"),
    Row("DELETE", "/api/sessions/{session_id}", 204, 404, thing=lambda tenants: tenants.talk().id),
    Row("GET", "/api/openapi.json"),
    Row("POST", "/api/watermark", how=FORM),
    Row("GET", "/api/clone"),
    Row("POST", "/api/clone/samples", 201, how=FORM),
    Row("DELETE", "/api/clone/samples/{sample_id}", 204, 404, thing=Tenants.recording),
    Row("POST", "/api/clone/phrase", 201),
    Row("POST", "/api/clone", 400, 404, thing=Tenants.recording, how=lambda sample: {"json": voice_of(sample)}),
    Row("GET", "/api/voices"),
    Row("GET", "/api/voices/{voice_id}", 200, 404, thing=Tenants.voice),
    Row("PATCH", "/api/voices/{voice_id}", 200, 404, thing=Tenants.voice, how={"json": {"name": "Hers"}}),
    Row("GET", "/api/voices/{voice_id}/sample", 200, 404, thing=Tenants.voice),
    Row("DELETE", "/api/voices/{voice_id}", 204, 404, thing=Tenants.voice),
    Row("GET", "/api/me"),
    Row("GET", "/api/me/data"),
    Row("DELETE", "/api/me/data", 400, how={"json": {"confirm": "no"}}),
    Row("GET", "/api/selftest", 403, admin=200),
    Row("POST", "/api/selftest", 403, admin=400, how={"json": {"turns": 0}}),
    Row("POST", "/api/notices", 403, admin=200, how={"json": {"kind": "restart", "message": "Soon."}}),
]
REFUSED = (401, 429)  # the second: the same wrong credential was shown a few times before
APART = {"/v1/realtime", "/vx", ""}  # the socket, the page's scripts without a secret, Gradio: further down


def test_every_door_is_in_the_table(tenants: Tenants) -> None:
    found = {f"{method} {door.path}" for door in doors(tenants.server.server.app) for method in door.methods}
    assert {row.name for row in ROWS} == found
    assert {door.path for door in doors(tenants.server.server.app) if not door.methods} == APART


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_everybody_gets_what_the_table_says_and_nothing_of_annas(tenants: Tenants, talk: Talk, row: Row) -> None:
    thing = row.thing(tenants) if row.thing is not None else ""
    for role in EVERYBODY:
        client, expected = tenants.http(role), row.expected(role)
        answer = asked(client, row, thing)
        assert answer.status_code in (REFUSED if expected == 401 else (expected,)), (role, answer.text[:300])
        if role != "a":
            assert tenants.leaks(answer.content + str(answer.headers).encode(), but=thing) == []
        if answer.status_code == 404:  # not even that it is there
            unknown = made_up(thing)
            other = asked(client, row, unknown)
            assert other.status_code == 404
            assert normalised(other.text, unknown) == normalised(answer.text, thing)
            assert set(other.headers) == set(answer.headers)


def asked(client: httpx.Client, row: Row, thing: str) -> httpx.Response:
    sent = row.how(thing) if callable(row.how) else row.how
    return client.request(row.method, re.sub(r"\{\w+\}", thing, row.path), **sent)


def test_a_list_holds_only_ones_own(tenants: Tenants, talk: Talk) -> None:
    for role in KNOWN:
        listed = tenants.http(role).get("/api/sessions").json()["data"]
        assert (talk.id in {session["id"] for session in listed}) == (role == "a")


def test_a_voice_speaks_for_nobody_else(tenants: Tenants) -> None:
    voice = tenants.voice()
    asks: list[tuple[str, Callable[[str], dict[str, Any]]]] = [
        ("/api/tts", lambda voice: {"json": {"text": "Good.", "voice": voice}}),
        ("/v1/audio/speech", lambda voice: {"json": {"model": "x", "input": "Good.", "voice": {"id": voice}}}),
        ("/api/converse", lambda voice: {**WAV, "params": {"voice": voice}}),
    ]
    for path, how in asks:
        for role, status in (("b", 400), ("admin", 400), ("a", 200)):
            client = tenants.http(role)
            answers = [client.post(path, **how(one)) for one in (voice, made_up(voice))]
            assert answers[0].status_code == status, (path, role, answers[0].text)
            assert answers[1].status_code == 400
            if role != "a":
                assert answers[0].content == answers[1].content
    listed = {role: tenants.http(role).get("/api/voices").text for role in KNOWN}
    assert [voice in listed[role] for role in KNOWN] == [False, False, True]


def test_a_talk_over_http_goes_on_for_nobody_else(tenants: Tenants) -> None:
    session = tenants.converse_session()
    for role, status in (("b", 404), ("admin", 404), ("a", 200)):
        client = tenants.http(role)
        answers = [client.post("/api/converse", params={"session": id_}, **WAV) for id_ in (session, made_up(session))]
        assert answers[0].status_code == status
        if role != "a":
            assert answers[0].content == answers[1].content
            assert tenants.leaks(answers[0].content) == []
    assert any(session == seat.session.id for seat in tenants.server.server.registry.of_owner(owner(tenants)))


def owner(tenants: Tenants) -> str:
    return next(word for word in tenants.secret if word.startswith("own_"))


# --- Gradio's own routes and events

# Nothing of it is open to strangers. Of what the page needs Bert gets, with the hash of Anna's page, what he gets with
# a made-up one; the rest is not there.
NEEDED = """
GET /  HEAD /  GET /config  GET /config/  GET /theme.css  GET /robots.txt  GET /favicon.ico  GET /static/{path:path}
GET /assets/{path:path}  GET /gradio_api/app_id  GET /gradio_api/app_id/  GET /gradio_api/heartbeat/{session_hash}
POST /gradio_api/run/{api_name}  POST /gradio_api/run/{api_name}/
"""
NOT_THERE = """
GET /manifest.json  GET /svelte/{path:path}  GET /pwa_icon  GET /pwa_icon/{size}  POST /login  POST /login/
GET /logout  GET /monitoring  GET /monitoring/summary  GET /monitoring/{key}  GET /gradio_api/deep_link
GET /gradio_api/user  GET /gradio_api/user/  GET /gradio_api/login_check  GET /gradio_api/login_check/
GET /gradio_api/token  GET /gradio_api/token/  GET /gradio_api/dev/reload  GET /gradio_api/runs  GET /gradio_api/runs/
GET /gradio_api/info  GET /gradio_api/info/  GET /gradio_api/openapi.json  GET /gradio_api/theme.css
GET /gradio_api/custom_component/{id}/{environment}/{type}/{file_name}  GET /gradio_api/proxy={url_path:path}
HEAD /gradio_api/proxy={url_path:path}  GET /gradio_api/file={path_or_url:path}
HEAD /gradio_api/file={path_or_url:path}  GET /gradio_api/file/{path:path}  POST /gradio_api/stream/{event_id}
POST /gradio_api/stream/{event_id}/close  GET /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8
GET /gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}
GET /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file  POST /gradio_api/reset
POST /gradio_api/reset/  POST /gradio_api/api/{api_name}  POST /gradio_api/api/{api_name}/
POST /gradio_api/call/{api_name}  POST /gradio_api/call/{api_name}/  POST /gradio_api/call/v2/{api_name}
POST /gradio_api/call/v2/{api_name}/  GET /gradio_api/call/{api_name}/{event_id}
GET /gradio_api/call/v2/{api_name}/{event_id}  POST /gradio_api/queue/join  GET /gradio_api/queue/data
GET /gradio_api/queue/status  POST /gradio_api/cancel  POST /gradio_api/component_server
POST /gradio_api/component_server/  GET /gradio_api/upload_progress  POST /gradio_api/upload
GET /gradio_api/startup-events  POST /gradio_api/process_recording  POST /gradio_api/vibe-edit
POST /gradio_api/vibe-edit/  POST /gradio_api/undo-vibe-edit  POST /gradio_api/undo-vibe-edit/
GET /gradio_api/vibe-code  GET /gradio_api/vibe-code/  POST /gradio_api/vibe-code  POST /gradio_api/vibe-code/
POST /gradio_api/vibe-starter-queries  POST /gradio_api/vibe-starter-queries/
"""
ROUTE = re.compile(r"(?:GET|HEAD|POST) \S+")
GRADIO_ROUTES = sorted(ROUTE.findall(NEEDED + NOT_THERE))
OURS = {"GET /login", "POST /login"}  # have the address of one of ours, which comes first and is open
GRADIO_EVENTS = {"tick", "session"}
ENDLESS = "GET /gradio_api/heartbeat/{session_hash}"  # until the page goes away: its head is enough


def gradio_app(tenants: Tenants) -> FastAPI:
    app: Any = tenants.server.server.app.routes[-1]
    while not isinstance(app, FastAPI):
        app = getattr(app, "app", None) or app._app
    return app


def test_every_route_and_event_of_gradio_is_in_the_table(tenants: Tenants) -> None:
    found = {
        f"{method} {route.path}"
        for route in iter_route_contexts(gradio_app(tenants).routes)
        for method in route.methods or ()
    }
    assert set(GRADIO_ROUTES) == found
    events = tenants.http("a").get("/config").json()["dependencies"]
    assert {target for event in events for _, target in event["targets"]} == GRADIO_EVENTS


def gradio_asked(client: httpx.Client, name: str, session_hash: str) -> tuple[int, bytes]:
    method, _, pattern = name.partition(" ")
    path = re.sub(r"\{session_hash\}", session_hash, pattern)
    path = re.sub(r"\{\w+(:path)?\}", "predict", path)
    body = {"fn_index": 0, "data": [None], "session_hash": session_hash, "event_id": session_hash}
    sent = {"json": body} if method == "POST" else {"params": {"session_hash": session_hash}}
    with client.stream(method, path, **sent) as answer:
        return answer.status_code, b"" if name == ENDLESS else answer.read()


def test_gradio_tells_strangers_nothing_and_nobody_anything_of_annas_page(tenants: Tenants, talk: Talk) -> None:
    page = tenants.gradio_hash(talk)
    unknown = made_up(page)
    for name in GRADIO_ROUTES:
        for role in STRANGERS:
            status, body = gradio_asked(tenants.http(role), name, page)
            assert status in REFUSED or name in OURS, (role, name, status)
            assert tenants.leaks(body) == []
        for role in ("b", "admin"):
            status, body = gradio_asked(tenants.http(role), name, page)
            other_status, other_body = gradio_asked(tenants.http(role), name, unknown)
            assert status == other_status, name
            assert status in (404, 405) or name in (*ROUTE.findall(NEEDED), *OURS), (name, status)
            assert tenants.leaks(body) == [], name
            if name not in CHANGING:
                assert normalised(body.decode("latin-1"), page) == normalised(other_body.decode("latin-1"), unknown), (
                    name
                )


# A nonce for each answer; the machine's figures of this second.
CHANGING = {"GET /", "POST /gradio_api/run/{api_name}", "POST /gradio_api/run/{api_name}/"}


@pytest.mark.parametrize("how", ["the hash of her page", "the id of her talk"])
def test_the_sidebar_shows_a_talk_to_its_owner_alone(tenants: Tenants, talk: Talk, how: str) -> None:
    seen = {role: sidebar(tenants, role, talk, how) for role in KNOWN}
    assert "Turns" in seen["a"]
    assert "Turns" not in seen["b"] + seen["admin"]


def sidebar(tenants: Tenants, role: str, talk: Talk, how: str) -> str:
    """What `role` is shown: on Anna's own page in Gradio, or on a page that claims her talk."""
    page = tenants.gradio_hash(talk)
    if how == "the id of her talk":
        page = made_up(page)
        assert tenants.gradio(role, "session", page, talk.id).status_code == 200
    return tenants.gradio(role, "tick", page).text


# --- the socket


@dataclass(frozen=True)
class Event:
    """A client event that names a thing of Anna's; `code` is what Bert is told, None: nothing goes wrong."""

    fields: Callable[[Talk], Json] = lambda talk: {}
    code: str | None = None
    then: str = ""  # the event that ends what it does


EVENTS = {
    "session.update": Event(lambda talk: {"session": {"type": "realtime", "id": talk.id}}, then="session.updated"),
    "input_audio_buffer.append": Event(lambda talk: {"audio": "AAAAAA=="}),
    "input_audio_buffer.commit": Event(code="input_audio_buffer_commit_empty"),
    "input_audio_buffer.clear": Event(),
    "conversation.item.create": Event(
        lambda talk: {
            "previous_item_id": talk.item,
            "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]},
        },
        "item_not_found",
    ),
    "conversation.item.retrieve": Event(lambda talk: {"item_id": talk.item}, "item_retrieve_invalid_item_id"),
    "conversation.item.delete": Event(lambda talk: {"item_id": talk.item}, "item_delete_invalid_item_id"),
    "conversation.item.truncate": Event(
        lambda talk: {"item_id": talk.item, "content_index": 0, "audio_end_ms": 0}, "item_truncate_invalid_item_id"
    ),
    "response.create": Event(lambda talk: {"response": {"output_modalities": ["text"]}}, then="response.done"),
    "response.cancel": Event(code="response_cancel_not_active"),
    "output_audio_buffer.clear": Event(code="response_cancel_not_active"),
    "voicepod.playback": Event(lambda talk: {"turn": 1, "played_samples": 1}),
    "voicepod.ping": Event(lambda talk: {"t": 1}),
    "voicepod.pong": Event(),
    "voicepod.resume": Event(lambda talk: {"token": talk.token, "turn": 1, "sample": 0}, "session_not_found"),
}


def test_every_event_of_the_socket_is_in_the_table() -> None:
    assert set(EVENTS) == client_events()


@pytest.mark.parametrize("role", STRANGERS)
async def test_no_stranger_gets_a_socket(tenants: Tenants, role: str) -> None:
    assert await tenants.handshake(role) in REFUSED


@pytest.mark.parametrize("role", ["b", "admin"])
async def test_no_event_reaches_another_owners_talk(tenants: Tenants, role: str) -> None:
    async with tenants.talking() as (anna, talk):
        n_before = len(anna.events)
        for kind, event in EVENTS.items():
            unknown = Talk(made_up(talk.id), made_up(talk.token), made_up(talk.item))
            told = [await answers(tenants, role, kind, event, named) for named in (talk, unknown)]
            names = [
                normalised(answer, *vars(named).values()) for answer, named in zip(told, (talk, unknown), strict=True)
            ]
            assert names[0] == names[1], kind
            assert tenants.leaks(told[0], but=talk.token) == [], kind
            assert (f'"{event.code}"' in told[0]) if event.code else ('"error"' not in told[0]), (kind, told[0])
        await anna.send("voicepod.ping", t="fence")
        await anna.until("voicepod.pong")
        # Nothing of all that happened to her; the end of her own turn may be told late.
        assert set(anna.kinds()[n_before:]) <= {"voicepod.pong", "voicepod.state"}


async def answers(tenants: Tenants, role: str, kind: str, event: Event, named: Talk) -> str:
    """What a new socket is told about one event, without the ids and times that are new each time."""
    tenants.server.inside(lambda: tenants.server.llm.replies.append("Good."))
    async with tenants.socket(role) as client:
        await client.until("session.created")
        await client.send(kind, **event.fields(named))
        if event.then:
            await client.until(event.then)
        await client.send("voicepod.ping", t="fence")
        await client.until("voicepod.pong", n=2 if kind == "voicepod.ping" else 1)
        told = [event for event in client.events if event["type"] != "voicepod.turn_metrics"]
    text = json.dumps(told)
    own = client.events[0]["session"]
    text = normalised(text, own["id"], own["voicepod"]["resume_token"])
    return re.sub(r'"(event|item|resp|conv)_[0-9a-f]+"', '"NEW"', text)


@pytest.mark.parametrize("role", ["b", "admin"])
async def test_a_token_at_the_handshake_gives_a_new_talk_to_anybody_else(tenants: Tenants, role: str) -> None:
    async with tenants.talking() as (_, talk):
        pass
    async with tenants.socket(role, f"voicepod.resume.{talk.token}") as client:
        created = (await client.until("session.created"))["session"]
        await client.send("voicepod.ping", t="fence")
        await client.until("voicepod.pong")
        assert created["id"] != talk.id
        assert not created["voicepod"]["resumed"]
        assert tenants.leaks(json.dumps(client.events)) == []


async def test_a_ticket_is_good_once_and_only_for_a_socket(tenants: Tenants) -> None:
    ticket = f"voicepod.token.{tenants.ticket()}"
    assert await tenants.handshake("anonymous", ticket, origin="https://evil.example") == 403
    ticket = f"voicepod.token.{tenants.ticket()}"
    assert [await tenants.handshake("anonymous", ticket, origin=tenants.server.url) for _ in range(2)] == [101, 403]
