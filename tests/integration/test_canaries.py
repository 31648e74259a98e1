"""Planted secrets get out nowhere: not in logs at DEBUG, errors, figures, descriptions, audit or another owner's data.

One real server with all its logs; Anna uses every kind of credential and says, types and sends things, strangers and
Bert do their worst. Then everything that anybody but Anna could have seen is searched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

import scripts.keys
from api.access import keys, sessions
from api.access.principal import SCOPES, USER_SCOPES, Scope
from api.store import Database
from tests.support.client import connected
from tests.support.rest import a_file

ROOT = Path(__file__).resolve().parents[2]
FORGED = '2027-01-01 [info] forged.line owner=admin\n{"event": "forged.line"}\r\n\x1b[2K\u202eforged.line'
SETTINGS = ("canary-llm-key", "canary-webhook")
WORDS = ("canary-heard", "canary-reply", "canary-typed", "canary-voice", "canary-text", "canary-instructions")


@dataclass
class Planted:
    """A server, what is planted in it, and everything that others than Anna were told."""

    directory: Path
    port: int
    secrets: dict[str, str] = field(default_factory=dict)
    told: dict[str, bytes] = field(default_factory=dict)
    log: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def key(self, owner: str, scopes: frozenset[Scope]) -> str:
        with contextlib.closing(Database(self.directory)) as database, database.transaction() as connection:
            identifier = keys.owner_named(connection, owner, now_s=0.0, create=True)
            return keys.create(connection, owner=identifier, name=owner, scopes=scopes, now_s=0.0)[1]

    def link(self, owner: str) -> str:
        with contextlib.closing(Database(self.directory)) as database, database.transaction() as connection:
            identifier = keys.owner_named(connection, owner, now_s=0.0, create=True)
            return sessions.make_link(connection, owner=identifier, scopes=USER_SCOPES, now_s=4_000_000_000.0)

    def http(self, key: str = "", **options: Any) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"} if key else {"Origin": self.url}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30, verify=False, **options)


@contextlib.asynccontextmanager
async def planted(folder: Path) -> AsyncIterator[Planted]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found, output = Planted(folder / "data", port), folder / "output"
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.canary_server", str(found.directory), str(port)]
    with output.open("wb") as file:
        process = await asyncio.to_thread(subprocess.Popen, command, cwd=ROOT, stdout=file, stderr=file)
    try:
        async with asyncio.timeout(120), found.http() as http:
            while True:
                assert process.poll() is None, output.read_text()
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get("/health/ready")).status_code == 200:
                        break
                await asyncio.sleep(0.1)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)
        found.log = output.read_text()


async def test_no_planted_secret_gets_out_and_no_line_is_forged(tmp_path: Path) -> None:
    async with planted(tmp_path) as server:
        await anna_lives(server)
        await others_try(server)
    hidden = {
        **server.secrets,
        **{
            f"{name}, the part that counts": secret[-20:]  # not from its last "_" on: that may be its last character
            for name, secret in server.secrets.items()
        },
        **{word: word for word in (*SETTINGS, *WORDS)},
    }
    seen = {"the log": server.log.encode(), **server.told}
    assert len(server.log.splitlines()) > 50
    assert "turn.done" in server.log
    leaks = [
        (name, where) for name, secret in hidden.items() for where, text in seen.items() if secret.encode() in text
    ]
    assert leaks == []
    entries = [json.loads(line) for line in server.log.splitlines()]
    assert not [entry for entry in entries if entry["event"].startswith("forged.line")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", server.log)
    assert {"auth.failed", "conversation.started"} <= {entry["event"] for entry in entries}
    figures = server.told["GET /metrics"].decode()
    for reason in ("invalid_api_key", "invalid_link", "no_ticket", "not_logged_in"):
        assert f'voicepod_auth_failures_total{{reason="{reason}"}}' in figures
    assert figures.count("voicepod_auth_failures_total{") < 10


async def anna_lives(server: Planted) -> None:
    """Anna with a key, a login, a ticket, a resume token, spoken and typed words, a job and a recording."""
    secrets = server.secrets
    secrets["key"], secrets["link"] = server.key("anna", USER_SCOPES), server.link("anna")
    secrets["operator's token"] = (server.directory / "operator.token").read_text().strip()
    async with server.http() as browser:
        assert (await browser.post("/login", json={"credential": secrets["link"]})).status_code == 200
        secrets["cookie"] = browser.cookies["voicepod"]
        ticket = secrets["ticket"] = (await browser.post("/api/ticket")).json()["ticket"]
        protocols = ["voicepod.v1", f"voicepod.token.{ticket}"]
        url = f"ws://127.0.0.1:{server.port}/v1/realtime?model=voicepod"
        async with connected(url, protocols=protocols, origin=server.url) as client:
            secrets["resume token"] = (await client.until("session.created"))["session"]["voicepod"]["resume_token"]
            await client.send("session.update", session={"type": "realtime", "instructions": "canary-instructions"})
            text = {"type": "input_text", "text": "canary-typed"}
            await client.send("conversation.item.create", item={"type": "message", "role": "user", "content": [text]})
            await client.say(binary=True)
            await client.until("response.done")
        protocols.append(f"voicepod.resume.{secrets['resume token']}")
        protocols[1] = f"voicepod.token.{(await browser.post('/api/ticket')).json()['ticket']}"
        async with connected(url, protocols=protocols, origin=server.url) as client:
            assert (await client.until("session.created"))["session"]["voicepod"]["resumed"]
            assert "canary-heard" in str(client.events) or await client.until("conversation.item.added")
    async with server.http(secrets["key"]) as program:
        answer = await program.post("/api/converse", content=a_file())
        assert "canary-heard" in answer.headers["Voicepod-Transcript"]
        assert (await program.post("/api/tts", json={"text": "canary-text"})).status_code == 200
        assert (
            await program.post("/api/transcriptions", files={"file": ("canary-voice.wav", a_file())})
        ).status_code == 202
        recording = await program.post("/api/clone/samples", files={"file": ("canary-voice.wav", a_file(4.0))})
        assert recording.status_code == 201
        for wrong in (
            {"text": "canary-text", "speed": "canary-text"},
            {"text": "canary-text", "voice": "canary-voice"},
        ):
            refused = await program.post("/api/tts", json=wrong)
            assert refused.status_code == 400
            server.told[f"an error about {sorted(wrong)}"] = refused.content


async def others_try(server: Planted) -> None:
    """Wrong credentials, right ones in wrong places, forged names; and what Bert and the operator may see."""
    key, bert = server.secrets["key"], server.key("bert", USER_SCOPES)
    told = server.told
    async with server.http() as stranger:
        for name, secret in server.secrets.items():
            asks = {
                "as a login": stranger.post("/login", json={"credential": secret[:-2] + "zz"}),
                "as a cookie": stranger.get("/api/me", headers={"Cookie": f"voicepod={secret[:-2]}zz"}),
                "in a query": stranger.get("/api/health", params={"key": secret, "token": secret}),
                "as another scheme": stranger.get("/v1/models", headers={"Authorization": f"Basic {secret}"}),
                "as broken JSON": stranger.post(
                    "/login", content=f'{{"credential": "{secret}', headers={"Content-Type": "application/json"}
                ),
            }
            for how, ask in asks.items():
                told[f"{name} {how}"] = (await ask).content
        cookie = server.secrets["cookie"]
        wrong_cookie = {"Cookie": f"voicepod={cookie[:15]}_{'A' * 43}"}
        told["a wrong cookie"] = (await stranger.get("/api/me", headers=wrong_cookie)).content
        for shown in (key[:-1] + ("A" if key[-1] != "A" else "B"), "vo_" + "x" * 43):
            told[f"a wrong bearer {shown[:2]}"] = (
                await stranger.get("/v1/models", headers={"Authorization": f"Bearer {shown}"})
            ).content
    with contextlib.suppress(Exception):
        async with connected(
            f"ws://127.0.0.1:{server.port}/v1/realtime",
            protocols=["voicepod.v1", "voicepod.token.x"],
            origin=server.url,
        ):
            pass
    await forge(server, bert)
    admin = server.key("chris", frozenset(SCOPES))
    async with server.http(bert) as program:
        for path in (
            "/api/me",
            "/api/me/data",
            "/api/sessions",
            "/api/voices",
            "/api/clone",
            "/api/openapi.json",
            "/config",
        ):
            told[f"Bert's {path}"] = (await program.get(path)).content
    async with server.http(admin) as program:
        for path in ("/metrics", "/api/metrics", "/api/startup"):
            told[f"GET {path}"] = (await program.get(path)).content
    command = [sys.executable, "-m", "scripts.keys", "--data", str(server.directory), "audit"]
    told["the audit log"] = await asyncio.to_thread(subprocess.check_output, command, cwd=ROOT)
    assert b"auth.failed" in told["the audit log"]
    listed = [sys.executable, "-m", "scripts.keys", "--data", str(server.directory), "list"]
    told["the list of keys"] = await asyncio.to_thread(subprocess.check_output, listed, cwd=ROOT)


async def forge(server: Planted, key: str) -> None:
    """Line breaks, escape sequences and direction marks wherever a caller may put a name."""
    raw = FORGED.replace("\n", "").replace("\r", "")
    async with server.http(key) as program:
        quoted = "".join(f"%{byte:02x}" for byte in FORGED.encode())
        for path in (
            f"/v1/models/{quoted}",
            f"/api/jobs/{quoted}",
            f"/api/voices/{quoted}",
            f"/{quoted}",
            f"/vx/{quoted}",
        ):
            answer = await program.get(path)
            assert answer.status_code in (400, 404), path
        for header in ("User-Agent", "X-Request-Id", "X-Forwarded-For", "Referer", "Origin"):
            with contextlib.suppress(httpx.TransportError):
                await program.get("/v1/models", headers=[(header.encode(), raw.encode())])
        named = {"file": (FORGED, a_file(), "audio/wav")}
        await program.post("/v1/audio/transcriptions", files=named, data={"language": FORGED})
        await program.post("/api/tts", json={"text": "Good.", "voice": FORGED})
    async with connected(
        f"ws://127.0.0.1:{server.port}/v1/realtime", additional_headers={"Authorization": f"Bearer {key}"}
    ) as client:
        await client.send(FORGED)
        await client.until("error")
    for line in (
        f"GET /{raw} HTTP/1.1",
        "GET / HTTP/1.1\r\nUser-Agent: x\r\n\x1b[2Kforged.line: y",
        "\x1b[2Kforged.line",
    ):
        await asyncio.to_thread(send_raw, server.port, f"{line}\r\nHost: x\r\n\r\n".encode())


def send_raw(port: int, data: bytes) -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65_536):
            pass


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2K", "a\u202eb", " a", "a\u2028b", ""])
def test_no_name_of_a_key_can_forge_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert scripts.keys.main(["--data", str(tmp_path / "data"), "create", "--name", name]) == 1
    assert "printable" in capsys.readouterr().err
