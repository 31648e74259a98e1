"""Anna, Bert and an administrator at one closed server, with things of Anna's that nobody else may learn of."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

import httpx
import websockets

from api.access import keys
from api.access.principal import SCOPES, USER_SCOPES, Scope
from api.store import Database
from api.voices.book import VoiceBook
from api.voices.records import Consent, OwnVoice
from tests.support.client import Client, connected
from tests.support.closed_server import Closed
from tests.support.rest import a_file
from tests.support.scripted import ScriptedAsr

Json = dict[str, Any]

PAGE: Final = "voicepod.v1"
# What Anna says and types. It stands in no answer to anybody else.
WORDS: Final = "quinceharvest"
STRANGERS: Final = ("anonymous", "revoked", "expired")
KNOWN: Final = ("b", "admin", "a")  # Anna last: what she may do to her things, she does after the others tried
EVERYBODY: Final = (*STRANGERS, *KNOWN)


async def own_voice(book: VoiceBook, owner: str, name: str) -> str:
    """The id of a new voice of this owner that stands for a stock voice."""
    voice_id, now_s = f"voice_{secrets.token_hex(12)}", 1_800_000_000.0
    voice = OwnVoice(voice_id, owner, name, "match", "scripted", "ramp", "en", name, 1.0, "anna", 0.9, now_s)
    consent = Consent(f"cons_{secrets.token_hex(6)}", owner, voice_id, "1", name, name, bytes(32), None, None, now_s)
    await book.add(voice, consent, a_file(), None, credential="key:test")
    return voice_id


def made_up(like: str) -> str:
    """A name of the same form that nothing has."""
    kind, _, rest = like.rpartition("_")
    return f"{kind}_{secrets.token_hex(len(rest))[: len(rest)]}" if kind else secrets.token_hex(len(like))[: len(like)]


@dataclass
class Talk:
    """A talk of Anna's that waits to be resumed."""

    id: str
    token: str
    item: str


@dataclass
class Tenants:
    """The server and everybody's credentials. `secret` collects what must not be told to others."""

    server: Closed
    keys: dict[str, str] = field(default_factory=dict)
    secret: set[str] = field(default_factory=lambda: {WORDS})
    _clients: dict[str, httpx.Client] = field(default_factory=dict)
    _events: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        far, day = 4_000_000_000.0, 86_400.0
        self.keys = {
            "a": self._key("anna", USER_SCOPES, far),
            "b": self._key("bert", USER_SCOPES, far),
            "admin": self._key("chris", frozenset(SCOPES), far),
            "revoked": self._key("anna", frozenset(SCOPES), far),
            "expired": self._key("anna", frozenset(SCOPES), day),
        }
        with self._database() as connection:
            keys.revoke(connection, self.keys["revoked"].split("_")[1], now_s=day)
            self.secret.add(keys.owner_named(connection, "anna", now_s=day))

    @contextlib.contextmanager
    def _database(self) -> Any:
        with contextlib.closing(Database(self.server.directory)) as database, database.transaction() as connection:
            yield connection

    def _key(self, owner: str, scopes: frozenset[Scope], expires_s: float) -> str:
        with self._database() as connection:
            identifier = keys.owner_named(connection, owner, now_s=0.0, create=True)
            key, text = keys.create(
                connection, owner=identifier, name=f"{owner}'s", scopes=scopes, now_s=0.0, expires_s=expires_s
            )
            if owner == "anna":
                self.secret |= {key.id, key.name}
            return text

    def bearer(self, role: str) -> dict[str, str]:
        """The header that shows who asks; nothing for a stranger."""
        return {"Authorization": f"Bearer {self.keys[role]}"} if role in self.keys else {}

    def http(self, role: str) -> httpx.Client:
        """A program of this person's, which keeps no cookies from one call to the next."""
        if role not in self._clients:
            self._clients[role] = httpx.Client(
                base_url=self.server.url, headers=self.bearer(role), timeout=20, verify=False
            )
        self._clients[role].cookies.clear()
        return self._clients[role]

    def close(self) -> None:
        """Let go of all connections."""
        for client in self._clients.values():
            client.close()

    def socket(self, role: str, *protocols: str, **options: Any) -> Any:
        """A socket of this person's."""
        url = f"ws://127.0.0.1:{self.server.port}/v1/realtime?model=voicepod"
        return connected(url, protocols=[PAGE, *protocols], additional_headers=self.bearer(role), **options)

    async def handshake(self, role: str, *protocols: str, **options: Any) -> int:
        """The status of a handshake: 101, or what it was refused with."""
        try:
            async with self.socket(role, *protocols, **options):
                return 101
        except websockets.InvalidStatus as refused:
            return refused.response.status_code

    def hears(self, words: str) -> None:
        """What is recognised next."""
        asr = cast(ScriptedAsr, self.server.server.engines.asr)
        self.server.inside(lambda: asr.texts.append(words))

    # --- things of Anna's

    @contextlib.asynccontextmanager
    async def talking(self) -> AsyncIterator[tuple[Client, Talk]]:
        """Anna says something, in a talk that is open while the block runs."""
        async with self.socket("a") as client:
            session = (await client.until("session.created"))["session"]
            text = {"type": "input_text", "text": f"My secret is {WORDS}."}
            await client.send("conversation.item.create", item={"type": "message", "role": "user", "content": [text]})
            item = (await client.until("conversation.item.done"))["item"]["id"]
            await client.send("response.create", response={"output_modalities": ["text"]})
            await client.until("response.done")
            await client.until("voicepod.turn_metrics")
            talk = Talk(session["id"], session["voicepod"]["resume_token"], item)
            self.secret.add(talk.token)
            yield client, talk

    def talk(self) -> Talk:
        """The same, left so that it can be resumed and holds no seat."""

        async def had() -> Talk:
            async with self.talking() as (_, talk):
                return talk

        return asyncio.run(had())

    def job(self) -> str:
        """A job that has heard Anna's words."""
        self.hears(f"My secret is {WORDS}.")
        anna = self.http("a")
        job = anna.post("/api/transcriptions", files={"file": ("a.wav", a_file())}).json()
        while job["status"] in ("queued", "running"):
            job = anna.get(f"/api/jobs/{job['id']}").json()
        assert WORDS in str(job["result"])
        return str(job["id"])

    def converse_session(self) -> str:
        """A talk over HTTP in which Anna said her words."""
        self.hears(f"My secret is {WORDS}.")
        answer = self.http("a").post("/api/converse", content=a_file(), headers={"Content-Type": "audio/wav"})
        assert WORDS in answer.headers["Voicepod-Transcript"]
        return answer.headers["Voicepod-Session"]

    def owner(self, role: str = "a") -> str:
        """The id of the owner that this person is."""
        return str(self.http(role).get("/api/me").json()["id"])

    def voice(self) -> str:
        """A voice of Anna's, with her recording."""
        owner = self.owner()
        made = self.server.run(own_voice(self.server.server.voices, owner, f"{WORDS} {secrets.token_hex(3)}"))
        self.secret.add(made)
        return made

    def recording(self) -> str:
        """A recording of Anna's that is no voice yet."""
        sent = self.http("a").post("/api/clone/samples", files={"file": ("a.wav", a_file(4.0))})
        assert sent.status_code == 201, sent.text
        return str(sent.json()["id"])

    def ticket(self) -> str:
        """A ticket of Anna's that was not used."""
        ticket = str(self.http("a").post("/api/ticket").json()["ticket"])
        self.secret.add(ticket)
        return ticket

    def gradio_hash(self, talk: Talk) -> str:
        """Anna's page in Gradio, which knows her talk."""
        page = secrets.token_hex(6)
        assert self.gradio("a", "session", page, talk.id).status_code == 200
        return page

    def gradio(self, role: str, event: str, page: str, talk_id: str = "") -> httpx.Response:
        """What Gradio answers to one of the page's events."""
        client = self.http(role)
        if not self._events:
            found = client.get("/config").json()["dependencies"]
            self._events = {one["targets"][0][1]: one for one in found}
        asked = self._events[event]
        body = {
            "fn_index": asked["id"],
            "trigger_id": asked["targets"][0][0],
            "data": [None] * len(asked["inputs"]),
            "event_data": {"id": talk_id},
            "session_hash": page,
        }
        return client.post("/gradio_api/run/predict", json=body)

    def leaks(self, told: str | bytes, *, but: str = "") -> list[str]:
        """Which of Anna's things stand in an answer to somebody else; `but` is what they asked with."""
        text = told.decode("latin-1") if isinstance(told, bytes) else told
        return sorted(word for word in self.secret if word in text.replace(but, "") and word != but)


def normalised(text: str, *names: str) -> str:
    """An answer without the name that was asked for."""
    for name in names:
        text = text.replace(name, "NAME")
    return text
