"""A closed server on real sockets: who gets in through which door, and who is thrown out when."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import structlog
import websockets
from openai import AsyncOpenAI, AuthenticationError

from api.access import first_start, keys, sessions
from api.access.headers import HEADERS
from api.access.principal import USER_SCOPES, Scope
from api.access.rules import doors
from api.store import Database
from scripts.keys import main as keys_program
from tests.support.client import Client, connected
from tests.support.closed_server import Closed, closed_server
from tests.support.live_server import Live, live_server, scripted_settings

PAGE = "voicepod.v1"
ROOT = Path(__file__).resolve().parents[2]
# Gradio's queue sets an option that its pandas calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'")


def new_key(
    directory: Path, owner: str = "anna", scopes: frozenset[Scope] = USER_SCOPES, **life: float
) -> tuple[keys.Key, str]:
    """A key made by another connection, as `scripts.keys` makes them beside the server."""
    database = Database(directory)
    with contextlib.closing(database), database.transaction() as connection:
        identifier = keys.owner_named(connection, owner, now_s=0.0, create=True)
        return keys.create(connection, owner=identifier, name="test", scopes=scopes, now_s=0.0, **life)


def run_keys(directory: Path, *arguments: str) -> str:
    """`python -m scripts.keys`, a process of its own."""
    command = [sys.executable, "-m", "scripts.keys", "--data", str(directory), *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@contextlib.asynccontextmanager
async def closed(**sections: dict[str, Any]) -> AsyncIterator[Live]:
    """A server that needs keys, in the test's event loop and without the page."""
    async with live_server(scripted_settings(**{"access": {"mode": "keys"}, **sections})) as live:
        yield live


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def refusal(url: str, **options: Any) -> int:
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with connected(url, **options):
            pass
    return refused.value.response.status_code


@pytest.fixture(scope="module")
def server() -> Iterator[Closed]:
    with closed_server() as running:
        yield running


# --- every door


def test_every_route_declares_its_rule(server: Closed) -> None:
    found = list(doors(server.server.app))
    assert [door.path for door in found if door.rule is None] == ["/vx"]  # the page's own files, without a secret
    opened = {door.path for door in found if door.rule == "open"}
    assert opened == {
        "/health/live",
        "/health/ready",
        "/health/startup",
        "/api/health",
        "/ping",
        "/login",
        "/logout",
    }
    assert found[-1].path == ""  # Gradio, which answers everything else
    assert found[-1].rule == "talk"


def test_a_stranger_gets_through_no_door_that_declares_a_scope(server: Closed) -> None:
    with server.browser() as stranger:
        for door in doors(server.server.app):
            if door.rule not in (None, "open"):
                for method in door.methods or ("GET", "POST"):
                    path = door.path.replace("{", "").replace("}", "") or "/config"
                    answer = stranger.request(method, path)
                    assert answer.status_code in (401, 404 if door.path == "/v1/realtime" else 401), (method, path)
                    assert "vs_" not in answer.text


def test_on_another_address_of_this_machine_a_stranger_gets_401() -> None:
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not found:
        pytest.skip("this machine has no address beyond loopback")
    with closed_server("0.0.0.0") as server:
        url = f"http://{found[0]}:{server.port}"
        for path in ("/config", "/metrics", "/api/metrics", "/v1/models", "/gradio_api/file=/etc/passwd"):
            assert httpx.get(url + path, trust_env=False).status_code == 401
        assert httpx.post(url + "/api/ticket", trust_env=False).status_code == 401
        assert httpx.get(url + "/ping", trust_env=False).status_code == 200
        _, key = new_key(server.directory, scopes=frozenset(("metrics",)))
        assert httpx.get(url + "/metrics", headers=bearer(key), trust_env=False).status_code == 200


def test_health_shows_only_a_state(server: Closed) -> None:
    with server.browser() as stranger:
        assert stranger.get("/ping").content == b""
        assert stranger.get("/health/live").json() == {"state": "live"}
        for path in ("/health/ready", "/health/startup", "/api/health"):
            assert stranger.get(path).json() == {"state": "ready"}


def test_the_operators_token_reads_figures_and_is_new_at_each_start(server: Closed) -> None:
    path = server.directory / "operator.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = path.read_text().strip()
    with server.browser() as local:
        assert local.get("/metrics", headers=bearer(token)).status_code == 200
        assert local.get("/api/metrics", headers=bearer(token)).status_code == 200
        assert local.get("/metrics", headers=bearer(token + "x")).status_code == 401
        path.write_text("vo_another\n")
        assert local.get("/metrics", headers=bearer(token)).status_code == 401
        path.write_text(token)


# --- the first start, and logging in with a browser


def test_the_setup_link_makes_the_owner_and_later_starts_print_nothing_secret() -> None:
    with closed_server() as server:
        kept = server.directory / "setup-link.txt"
        assert kept.read_text().strip() == server.link
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        with server.browser() as owner, server.browser() as late:
            page = {"Accept": "text/html"}
            assert owner.get("/", headers=page).headers["location"] == "login"
            assert owner.post("/login", json={"credential": server.token}).json() == {"set_up": True}
            assert owner.get("/", headers=page).status_code == 200
            assert owner.get("/metrics").status_code == 200  # the first owner may everything
            assert late.post("/login", json={"credential": server.token}).status_code == 401
        assert not kept.exists()
        said = first_start.words(server.server.settings, server.server.store, now_s=server.server.access.now())
        assert "login-link" in said
        assert "#" not in said
        link = run_keys(server.directory, "login-link").strip()
        with server.browser() as owner:
            assert owner.post("/login", json={"credential": link.partition("#")[2]}).json() == {"set_up": False}
            assert owner.get("/config").status_code == 200


def test_a_setup_link_that_was_not_used_is_replaced_at_the_next_start() -> None:
    with closed_server() as server:
        now_s, store = server.server.access.now(), server.server.store
        again = server.inside(lambda: store.now(lambda db: sessions.make_setup_link(db, now_s=now_s)))
        with server.browser() as client:
            assert client.post("/login", json={"credential": server.token}).status_code == 401
            assert client.post("/login", json={"credential": again}).status_code == 200


def test_the_page_with_its_queue_config_and_files_is_behind_the_login(server: Closed) -> None:
    _, key = new_key(server.directory)
    paths = ["/", "/config", "/theme.css", "/x"]
    paths += [f"/gradio_api/{name}" for name in ("info", "heartbeat/x", "queue/data", "file=/etc/passwd")]
    with server.browser() as client:
        for path in paths:
            assert client.get(path).status_code == 401
            assert client.post(path).status_code == 401
        client.post("/login", json={"credential": key})
        assert client.get("/config").status_code == 200
        assert client.get("/theme.css").status_code == 200
        event = client.get("/config").json()["dependencies"][0]["id"]
        body = {"fn_index": event, "data": [""], "session_hash": "abc"}
        assert client.post("/gradio_api/run/predict", json=body).status_code == 200
        for route in ("run/predict", "queue/join", "component_server", "reset"):
            for origin in ("https://evil.example", "null"):
                answer = client.post(f"/gradio_api/{route}", json=body, headers={"Origin": origin})
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
        client.post("/logout")
        assert client.get("/config").status_code == 401


def test_the_page_of_a_key_that_may_not_talk_stays_closed(server: Closed) -> None:
    _, key = new_key(server.directory, scopes=frozenset(("metrics",)))
    with server.browser() as client:
        client.post("/login", json={"credential": key})
        assert (client.get("/config").status_code, client.get("/metrics").status_code) == (403, 200)


# --- programs


async def test_the_openai_client_talks_and_asks_with_a_key() -> None:
    async with closed() as live:
        _, key = new_key(live.server.store.directory)

        def openai(api_key: str) -> AsyncOpenAI:
            sockets = f"ws://127.0.0.1:{live.port}/v1"
            return AsyncOpenAI(api_key=api_key, base_url=f"{live.http}/v1", websocket_base_url=sockets, max_retries=0)

        async with openai(key) as client:
            assert [model.id async for model in await client.models.list()]
            async with client.realtime.connect(model="voicepod") as connection, asyncio.timeout(20):
                await connection.conversation.item.create(
                    item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
                )
                await connection.response.create()
                async for event in connection:
                    assert event.type != "error", event
                    if event.type == "response.done":
                        break
        async with openai("sk-none") as stranger:
            with pytest.raises(AuthenticationError):
                await stranger.models.list()
            with pytest.raises(websockets.InvalidStatus, match="401"):
                async with stranger.realtime.connect(model="voicepod"):
                    pass


async def test_a_socket_needs_a_key_or_a_ticket_and_the_scope() -> None:
    async with closed() as live:
        directory = live.server.store.directory
        _, key = new_key(directory)
        _, deaf = new_key(directory, scopes=frozenset(("speech", "metrics")))
        assert await refusal(live.url) == 401
        assert await refusal(live.url, additional_headers=bearer(deaf)) == 403
        async with connected(live.url, additional_headers=bearer(key)) as client:
            await client.until("session.created")
        async with httpx.AsyncClient(base_url=live.http) as browser:
            own = {"Origin": live.http}
            assert (await browser.post("/login", json={"credential": key}, headers=own)).status_code == 200
            cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items())}
            # A cookie alone opens no socket: any page can make a browser try that (cross-site hijacking).
            assert await refusal(live.url, additional_headers=cookie) == 401
            assert await refusal(live.url, additional_headers=cookie, origin=live.http) == 403
            assert await refusal(live.url, additional_headers=cookie, origin="https://evil.example") == 403

            async def protocols() -> list[str]:
                answer = await browser.post("/api/ticket", headers=own)
                return [PAGE, f"voicepod.token.{answer.json()['ticket']}"]

            assert await refusal(live.url, protocols=await protocols(), origin="https://evil.example") == 403
            ticket = await protocols()
            async with connected(live.url, protocols=ticket, origin=live.http) as client:
                await client.until("session.created")
            assert await refusal(live.url, protocols=ticket, origin=live.http) == 403
            late = await protocols()
            await browser.post("/logout", headers=own)  # a ticket of a login that has ended opens nothing
            assert await refusal(live.url, protocols=late, origin=live.http) == 403


async def test_a_client_that_can_set_no_header_brings_its_key_as_a_subprotocol() -> None:
    desk = "https://desk.example"
    async with closed(network={"cors_enabled": True, "allowed_origins": [desk]}) as live:
        directory = live.server.store.directory
        (_, key), (_, deaf) = new_key(directory), new_key(directory, scopes=frozenset(("speech",)))

        def offer(secret: str) -> list[str]:
            return ["realtime", f"openai-insecure-api-key.{secret}", "openai-agents-sdk.0.1"]

        for origin in (None, live.http, desk):
            async with connected(live.url, protocols=offer(key), origin=origin) as client:
                await client.until("session.created")
                assert client.socket.subprotocol == "realtime"
            assert await refusal(live.url, protocols=offer(deaf), origin=origin) == 403
            assert await refusal(live.url, protocols=offer("vp_no_key"), origin=origin) == 401
        assert await refusal(live.url, protocols=offer(key), origin="https://evil.example") == 403
        assert await refusal(live.url, protocols=offer(key), additional_headers=bearer("vp_no_key")) == 401


async def test_a_key_revoked_by_another_process_ends_open_sockets_and_their_talk() -> None:
    async with closed() as live:
        directory = live.server.store.directory
        (gone, gone_key), (_, kept_key) = new_key(directory), new_key(directory)
        async with (
            connected(live.url, additional_headers=bearer(gone_key)) as gone_client,
            connected(live.url, additional_headers=bearer(kept_key)) as kept_client,
        ):
            await gone_client.until("session.created")
            await kept_client.until("session.created")
            await asyncio.to_thread(run_keys, directory, "revoke", gone.id)
            async with httpx.AsyncClient(base_url=live.http) as http:
                assert (await http.get("/v1/models", headers=bearer(gone_key))).status_code == 401  # at once
            assert await gone_client.closed(timeout_s=5.0) == 1008
            assert gone_client.all("error")[-1]["error"]["code"] == "login_ended"
            assert len(live.server.registry.sessions) == 1
            assert await refusal(live.url, additional_headers=bearer(gone_key)) == 401
            await kept_client.send("session.update", session={"type": "realtime"})
            await kept_client.until("session.updated")


async def test_a_key_that_expires_and_a_logout_end_their_sockets() -> None:
    async with closed() as live:
        access = live.server.access
        _, key = new_key(live.server.store.directory, expires_s=access.now() + 1000)
        async with connected(live.url, additional_headers=bearer(key)) as client:
            await client.until("session.created")
            later = access.now() + 1000
            access.now = lambda: later  # and the watch looks at the time every few seconds
            assert await client.closed() == 1008
        _, other = new_key(live.server.store.directory)
        async with httpx.AsyncClient(base_url=live.http, headers={"Origin": live.http}) as browser:
            await browser.post("/login", json={"credential": other})
            ticket = (await browser.post("/api/ticket")).json()["ticket"]
            protocols = [PAGE, f"voicepod.token.{ticket}"]
            async with connected(live.url, protocols=protocols, origin=live.http) as client:
                await client.until("session.created")
                await browser.post("/logout")
                assert await client.closed() == 1008


async def test_an_open_talk_keeps_its_login_alive() -> None:
    async with closed(access={"mode": "keys", "session_idle_s": 100}) as live:
        access = live.server.access
        _, key = new_key(live.server.store.directory)
        async with httpx.AsyncClient(base_url=live.http, headers={"Origin": live.http}) as browser:
            await browser.post("/login", json={"credential": key})
            ticket = (await browser.post("/api/ticket")).json()["ticket"]
            protocols = [PAGE, f"voicepod.token.{ticket}"]
            async with connected(live.url, protocols=protocols, origin=live.http) as client:
                await client.until("session.created")
                start_s = access.now()
                for minute in range(1, 5):
                    now_s = start_s + 61.0 * minute
                    access.now = lambda now_s=now_s: now_s  # type: ignore[misc]
                    access._checked_s = float("-inf")
                    await access.look()
                assert client.close_code is None
            assert (await browser.get("/v1/models")).status_code == 200


# --- seats and their owners


async def resume_token(client: Client) -> str:
    return str((await client.until("session.created"))["session"]["voicepod"]["resume_token"])


async def test_a_resume_token_opens_nothing_for_anybody_else() -> None:
    async with closed() as live:
        directory = live.server.store.directory
        anna, also_anna, bert = (new_key(directory, owner)[1] for owner in ("anna", "anna", "bert"))
        async with connected(live.url, additional_headers=bearer(anna), protocols=[PAGE]) as client:
            token = await resume_token(client)
            await client.send(
                "conversation.item.create",
                item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "my secret"}]},
            )
            await client.until("conversation.item.done")
        thief = [PAGE, f"voicepod.resume.{token}"]
        async with connected(live.url, additional_headers=bearer(bert), protocols=thief) as client:
            assert await resume_token(client) != token
            await client.send("voicepod.resume", token=token)
            assert (await client.until("error"))["error"]["code"] == "session_not_found"
            assert "my secret" not in json.dumps(client.events)
        async with connected(live.url, additional_headers=bearer(also_anna), protocols=thief) as client:
            assert await resume_token(client) == token
            assert "my secret" in json.dumps(await client.until("conversation.item.added"))


async def test_with_all_seats_taken_a_foreign_token_gets_none() -> None:
    async with closed(system={"max_concurrent_users": 1}) as live:
        directory = live.server.store.directory
        anna, bert = (new_key(directory, owner)[1] for owner in ("anna", "bert"))
        async with connected(live.url, additional_headers=bearer(anna), protocols=[PAGE]) as client:
            token = await resume_token(client)
            await client.socket.close(4000)
        async with connected(live.url, additional_headers=bearer(bert), protocols=[PAGE]) as client:
            await client.send("voicepod.resume", token=token)
            assert await client.closed() == 1013
        async with connected(live.url, additional_headers=bearer(anna), protocols=[PAGE]) as client:
            await client.send("voicepod.resume", token=token)
            assert await resume_token(client) == token


async def test_max_sockets_per_owner_acts() -> None:
    async with closed(network={"max_sockets_per_owner": 2}) as live:
        directory = live.server.store.directory
        anna, also_anna, bert = (new_key(directory, owner)[1] for owner in ("anna", "anna", "bert"))
        async with connected(live.url, additional_headers=bearer(anna)) as first:
            await first.until("session.created")
            async with connected(live.url, additional_headers=bearer(also_anna)) as second:
                await second.until("session.created")
                assert await refusal(live.url, additional_headers=bearer(anna)) == 503
                async with connected(live.url, additional_headers=bearer(bert)) as other:
                    await other.until("session.created")
            async with connected(live.url, additional_headers=bearer(anna)) as again:
                await again.until("session.created")


async def test_a_flood_of_messages_ends_the_socket_and_says_when_to_come_back() -> None:
    async with closed() as live:
        access = live.server.access
        _, key = new_key(live.server.store.directory)
        limiter = access.limiter
        async with connected(live.url, additional_headers=bearer(key)) as client:
            await client.until("session.created")
            (principal,) = access.live._sockets.values()
            await limiter.spend(principal, "message", 59_900)  # all but a hundred of this minute
            for _ in range(200):
                await client.send("input_audio_buffer.clear")
            assert await client.closed() == 1013
            error = client.all("error")[-1]["error"]
            assert error["code"] == "rate_limited"
            assert error["retry_after_s"] > 0


# --- headers and origins


@pytest.mark.parametrize("path", ["/", "/login", "/ping", "/nothing", "/vx/voice.js", "/api/metrics", "/theme.css"])
def test_every_answer_tells_the_browser_what_to_forbid(server: Closed, path: str) -> None:
    _, key = new_key(server.directory)
    with server.browser() as stranger, server.browser() as client:
        client.post("/login", json={"credential": key})
        for answer in (stranger.get(path), client.get(path)):
            for name in HEADERS:
                assert name in answer.headers, (path, name)
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
            assert "microphone=(self)" in answer.headers["Permissions-Policy"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_inline_scripts_of_the_page_run_only_with_the_nonce_of_this_answer(server: Closed) -> None:
    _, key = new_key(server.directory)
    nonces = set()
    with server.browser() as client:
        client.post("/login", json={"credential": key})
        for _ in range(2):
            answer = client.get("/", headers={"Accept-Encoding": "br, gzip"})
            policy = answer.headers["Content-Security-Policy"]
            (nonce,) = {part[7:-1] for part in policy.replace(";", " ").split() if part.startswith("'nonce-")}
            assert answer.text.count(f'<script nonce="{nonce}"') == answer.text.count("<script") > 3
            script_sources = next(part for part in policy.split("; ") if part.startswith("script-src"))
            assert "unsafe-inline" not in script_sources
            assert "*" not in policy
            assert answer.headers["Cache-Control"] == "no-store"
            nonces.add(nonce)
    assert len(nonces) == 2


async def test_a_refused_socket_gets_the_headers_too() -> None:
    async with closed() as live:
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with connected(live.url):
                pass
        assert refused.value.response.headers["X-Content-Type-Options"] == "nosniff"
        assert json.loads(refused.value.response.body or b"")["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("enabled", [True, False])
async def test_cors_lets_in_the_origins_that_are_named_and_never_with_cookies(enabled: bool) -> None:
    desk = "https://desk.example"
    async with closed(network={"cors_enabled": enabled, "allowed_origins": [desk]}) as live:
        _, key = new_key(live.server.store.directory)
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        async with httpx.AsyncClient(base_url=live.http) as http:
            for origin, allowed in ((desk, enabled), ("https://evil.example", False), ("null", False)):
                preflight = await http.options("/api/ticket", headers={"Origin": origin, **ask})
                answer = await http.post("/api/ticket", headers={"Origin": origin, **bearer(key)})
                for each in (preflight, answer):
                    assert each.headers.get("Access-Control-Allow-Origin") == (desk if allowed else None)
                    assert "Access-Control-Allow-Credentials" not in each.headers
                protocols = [PAGE, f"voicepod.token.{answer.json()['ticket']}"]
                if allowed:
                    async with connected(live.url, protocols=protocols, origin=origin) as client:
                        await client.until("session.created")
                else:
                    assert await refusal(live.url, protocols=protocols, origin=origin) == 403


# --- what may never get out


async def test_no_secret_and_no_forged_line_gets_into_the_log() -> None:
    forged = '2027-01-01 [info] auth.done owner=admin\n{"event": "auth.done"}\x1b[2K\u202e'
    async with closed() as live:
        _, key = new_key(live.server.store.directory)
        wrong = key[:-1] + ("A" if key[-1] != "A" else "E")
        with structlog.testing.capture_logs() as logged:
            async with httpx.AsyncClient(base_url=live.http, headers={"Origin": live.http}) as http:
                await http.post("/login", json={"credential": key})
                await http.post("/login", json={"credential": forged})
                for secret in (key, wrong, "vl_" + "x" * 43):
                    await http.get("/v1/models", headers=bearer(secret))
                raw = b"Bearer " + forged.replace("\n", " ").encode()
                with contextlib.suppress(httpx.RemoteProtocolError, httpx.LocalProtocolError):
                    await http.get("/v1/models", headers=[(b"Authorization", raw)])
                await http.get("/v1/models", headers={"User-Agent": "canary-3f9a", "X-Forwarded-For": "canary-3f9a"})
                await http.get("/v1/models?canary-3f9a", params={"key": key})
            await refusal(live.url, additional_headers=bearer(wrong))
        told = repr(logged)
        events = {event["event"] for event in logged}
        assert "auth.failed" in events
        for planted in (key, key.split("_", 2)[2], "canary-3f9a", "auth.done", "127.0.0.1"):
            assert planted not in told
        for event in logged:
            assert all("\n" not in value for value in event.values() if isinstance(value, str))
        async with httpx.AsyncClient(base_url=live.http) as http:
            operator = (live.server.store.directory / "operator.token").read_text().strip()
            figures = await http.get("/metrics", headers=bearer(operator))
        assert key.split("_")[1] not in figures.text
        assert 'voicepod_rejected_total{reason="invalid_api_key"}' in figures.text
        records = await live.server.store.read(lambda db: db.execute("SELECT * FROM audit").fetchall())
        kept = repr([tuple(record) for record in records])
        assert "auth.failed" in kept
        for planted in (key.split("_", 2)[2], "canary", "auth.done", "127.0.0.1"):
            assert planted not in kept


def test_the_keys_program_shows_a_secret_once_and_survives_nonsense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str, status: int = 0) -> str:
        assert keys_program(["--data", str(tmp_path / "data"), *arguments]) == status
        told = capsys.readouterr()
        return told.err if status else told.out

    text = run("create", "--name", "laptop", "--owner", "anna", "--days", "1").strip()
    _, identifier, secret = text.split("_", 2)
    listed = run("list")
    assert identifier in listed
    assert "laptop" in listed
    assert secret not in listed
    new = run("rotate", identifier, "--overlap-hours", "0").splitlines()[0]
    states = {row.split()[0]: row for row in run("list").splitlines()[1:]}
    assert "revoked" in states[identifier]
    assert "active" in states[new.split("_")[1]]
    run("revoke", new.split("_")[1])
    audit = run("audit")
    assert [word in audit for word in ("key.created", "key.revoked", secret)] == [True, True, False]
    assert "printable" in run("create", "--name", "a\nb", status=1)
    assert "no scope root" in run("create", "--name", "a", "--scopes", "root", status=1)
    assert "no key abc" in run("revoke", "abc", status=1)
    assert "is revoked" in run("rotate", identifier, status=1)
    with contextlib.closing(Database(tmp_path / "data")) as database:
        database.read().execute("DROP TRIGGER audit_is_not_changed")
        database.read().execute("UPDATE audit SET result = 'x' WHERE number = 2")
    assert "record 2 is not as it was written" in run("audit", status=1)
