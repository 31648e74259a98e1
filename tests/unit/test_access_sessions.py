"""Browser logins: links that work once, cookies, ends, and requests that another page made the browser send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api import uploads
from api.access import keys, sessions
from api.access.cookies import PLAIN_NAME, SECURE_NAME
from api.access.principal import USER_SCOPES, Principal
from api.access.tickets import MAX_TICKETS, TICKET_S
from tests.support.doors import ORIGIN, Doors


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    return Doors(tmp_path / "data")


async def status(client: Any, path: str = "/scope/talk", **options: Any) -> int:
    return int((await client.get(path, **options)).status_code)


async def test_a_link_logs_in_once_and_within_a_day(doors: Doors) -> None:
    link, late = doors.new_link(), doors.new_link()
    async with doors.client() as first, doors.client() as second:
        assert await status(first) == 401
        assert (await first.post("/login", json={"credential": link})).json() == {"set_up": False}
        assert await status(first) == 200
        again = await second.post("/login", json={"credential": link})
        assert (again.status_code, again.json()["error"]["code"]) == (401, "invalid_link")
        assert not again.cookies
        doors.clock.pass_s(sessions.LINK_LIFE_S)
        assert (await second.post("/login", json={"credential": late})).status_code == 401


async def test_the_cookie_cannot_be_read_by_scripts_or_sent_by_other_sites(doors: Doors) -> None:
    async with doors.client() as client:
        plain = (await client.post("/login", json={"credential": doors.new_link()})).headers["set-cookie"]
    for part in (f"{PLAIN_NAME}=vs_", "HttpOnly", "Path=/", "SameSite=lax", f"Max-Age={12 * 3600}"):
        assert part in plain
    assert "Secure" not in plain
    assert "Domain" not in plain


@pytest.mark.parametrize(
    ("settings", "url", "headers"),
    [
        ({}, "https://voicepod.test", {"Origin": "https://voicepod.test"}),
        ({}, "http://voicepod.test", {"Origin": "https://voicepod.test"}),  # a proxy that nobody told us of
        ({"access": {"trusted_hops": 1}}, ORIGIN, {"X-Forwarded-Proto": "https", "X-Forwarded-For": "1.2.3.4"}),
    ],
    ids=["tls", "origin", "proxy"],
)
async def test_behind_https_the_cookie_stays_there_and_with_this_host(
    tmp_path: Path, settings: dict[str, Any], url: str, headers: dict[str, str]
) -> None:
    doors = Doors(tmp_path / "own", **settings)
    async with doors.client() as client:
        answer = await client.post(f"{url}/login", json={"credential": doors.new_link()}, headers=headers)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{SECURE_NAME}=vs_")
    assert "Secure" in cookie


async def test_a_forwarded_https_that_nobody_vouches_for_changes_nothing(doors: Doors) -> None:
    async with doors.client() as client:
        headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "1.2.3.4"}
        answer = await client.post("/login", json={"credential": doors.new_link()}, headers=headers)
    assert answer.headers["set-cookie"].startswith(f"{PLAIN_NAME}=")


async def test_a_session_that_the_browser_brought_along_is_not_the_one_it_gets(doors: Doors) -> None:
    """Session fixation: an attacker plants a cookie and waits for the victim to log in."""
    planted = f"vs_{'ab' * 6}_{'A' * 43}"
    async with doors.logged_in("mallory") as attacker:
        for cookie in (planted, attacker.cookies[PLAIN_NAME]):  # made up, and a session of the attacker's own
            async with doors.client() as victim:
                headers = {"Cookie": f"{PLAIN_NAME}={cookie}"}
                await victim.post("/login", json={"credential": doors.new_link()}, headers=headers)
                assert victim.cookies[PLAIN_NAME] != cookie
                assert (await victim.get("/scope/talk")).json()["owner"] == doors.owner()
                assert await status(doors.client(), headers=headers) == 401


async def test_an_id_without_its_secret_is_nobody(doors: Doors) -> None:
    async with doors.logged_in() as client, doors.client() as thief:
        kind, identifier, secret = client.cookies[PLAIN_NAME].split("_", 2)
        for wrong in (f"{kind}_{identifier}_{'A' * 43}", f"{kind}_{'0' * 12}_{secret}", identifier):
            thief.cookies.set(PLAIN_NAME, wrong)
            assert await status(thief) == 401


async def test_a_login_ends_when_idle_and_at_the_latest_after_its_life(doors: Doors) -> None:
    life = doors.access.life
    async with doors.logged_in() as idle, doors.logged_in() as busy:
        for _ in range(int(life.absolute_s / 1000) - 1):
            doors.clock.pass_s(1000)
            assert await status(busy) == 200
        assert await status(idle) == 401
        doors.clock.pass_s(1000)
        assert await status(busy) == 200
        doors.clock.pass_s(life.absolute_s % 1000)
        assert await status(busy) == 401


async def test_what_the_page_does_by_itself_keeps_no_login_alive(doors: Doors) -> None:
    async with doors.logged_in() as client:
        identifier = client.cookies[PLAIN_NAME].split("_", 2)[1]

        async def seen_s() -> float:
            rows = await doors.store.read(
                lambda db: db.execute("SELECT last_seen_s FROM browser_sessions WHERE id = ?", (identifier,)).fetchone()
            )
            return float(rows[0])

        begun = await seen_s()
        doors.clock.pass_s(100)
        assert await status(client, "/gradio_api/talk") == 200
        assert await seen_s() == begun
        await client.get("/scope/talk")
        assert await seen_s() == begun + 100


async def test_logging_out_ends_the_session_on_the_server_and_its_sockets(doors: Doors) -> None:
    async with doors.logged_in() as client, doors.client() as thief:
        cookie = client.cookies[PLAIN_NAME]
        credential = (await client.get("/scope/talk")).json()["credential"]
        with doors.access.live.holding(Principal(doors.owner(), credential, USER_SCOPES)) as ended:
            answer = await client.post("/logout")
            assert ended.is_set()
        assert (answer.status_code, answer.headers["location"]) == (303, "login")
        assert PLAIN_NAME not in client.cookies
        thief.cookies.set(PLAIN_NAME, cookie)
        assert await status(thief) == 401


async def test_a_login_with_a_key_reaches_as_far_as_the_key_and_ends_with_it(doors: Doors) -> None:
    key, text = doors.new_key(scopes=frozenset(("talk",)))
    async with doors.client() as client:
        assert (await client.post("/login", json={"credential": f" {text}\n"})).status_code == 200
        assert (await status(client), await status(client, "/scope/speech")) == (200, 403)
        await doors.store.write(lambda db: keys.revoke(db, key.id, now_s=doors.clock.now(), after_s=60))
        assert await status(client) == 200
        doors.clock.pass_s(60)
        assert await status(client) == 401


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b'{"credential": 1}', b'{"credential": null}', b"[" * 900, b"\xff\xfe"]
)
async def test_a_body_that_is_no_login_is_refused_in_words(doors: Doors, body: bytes) -> None:
    async with doors.client() as client:
        answer = await client.post("/login", content=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "credential")
        assert (await client.post("/login", content=b"x" * 1025)).status_code == 413


async def test_a_login_whose_body_never_comes_is_given_up(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no key, and would hold its connection for ever."""

    async def dripping() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    monkeypatch.setattr(uploads, "MAX_SECONDS", 0.01)
    async with doors.client() as client, asyncio.timeout(10):
        answer = await client.post("/login", content=dripping())
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "upload_too_slow")


CROSS_SITE = [
    ({"Origin": "https://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://voicepod.test.evil.example"}, 403),
    ({"Origin": "http://other.voicepod.test"}, 403),  # a neighbour under the same domain: same-site for the browser
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({}, 403),
    ({"Sec-Fetch-Site": "same-origin"}, 200),
    ({"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}, 200),
    ({"Origin": ORIGIN}, 200),
]


@pytest.mark.parametrize(("headers", "expected"), CROSS_SITE)
async def test_a_cookie_counts_on_unsafe_methods_only_from_the_page_itself(
    doors: Doors, headers: dict[str, str], expected: int
) -> None:
    async with doors.logged_in() as client:
        del client.headers["Origin"]
        assert (await client.post("/scope/talk", headers=headers)).status_code == expected
        assert (await client.get("/scope/talk", headers=headers)).status_code == 200  # which nobody else can read
        login = await client.post("/login", json={"credential": doors.new_link()}, headers=headers)
        assert login.status_code == expected
        assert (await client.post("/logout", headers=headers)).status_code == (303 if expected == 200 else 403)
    _, text = doors.new_key()
    async with doors.client(text) as program:  # no browser adds a key by itself
        assert (await program.post("/scope/talk", headers=headers)).status_code == 200


async def test_an_origin_that_cors_lets_in_still_cannot_use_the_cookie(tmp_path: Path) -> None:
    foreign = "https://desk.example"
    doors = Doors(tmp_path / "own", network={"cors_enabled": True, "allowed_origins": [foreign]})
    async with doors.logged_in() as client:
        assert (await client.post("/scope/talk", headers={"Origin": foreign})).status_code == 403


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),  # a program
        ({"Origin": "http://127.0.0.1:7860"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),  # DNS rebinding
    ],
)
async def test_an_open_server_on_loopback_does_nothing_for_another_sites_page(
    tmp_path: Path, headers: dict[str, str], expected: int
) -> None:
    doors = Doors(tmp_path / "own", access={"mode": "open"}, network={"host": "127.0.0.1"})
    async with doors.client(origin=None) as client:
        answer = await client.post("http://127.0.0.1:7860/scope/admin", headers=headers)
        assert answer.status_code == expected
        seen = await client.get("http://127.0.0.1:7860/scope/admin", headers=headers)
        assert seen.status_code == (403 if "Host" in headers else 200)  # a name that is not ours could read it


async def test_a_ticket_is_for_one_socket_of_whoever_asked_and_for_a_minute(doors: Doors) -> None:
    tickets = doors.access.tickets
    async with doors.logged_in("anna") as anna, doors.logged_in("bert") as bert:
        of_anna, of_bert = [(await each.post("/api/ticket")).json()["ticket"] for each in (anna, bert)]
        late = (await anna.post("/api/ticket")).json()["ticket"]
    assert doors.n_tickets == 3
    used = tickets.use(of_anna)
    assert used is not None
    assert used.owner == doors.owner("anna")
    assert tickets.use(of_anna) is None
    assert (tickets.use(of_bert) or used).owner == doors.owner("bert")
    doors.clock.pass_s(TICKET_S)
    assert tickets.use(late) is None
    assert tickets.use("") is None
    first = tickets.mint(used)
    for _ in range(MAX_TICKETS):
        tickets.mint(used)
    assert tickets.use(first) is None


async def test_a_ticket_needs_the_right_to_talk(doors: Doors) -> None:
    _, text = doors.new_key(scopes=frozenset(("speech",)))
    async with doors.client(text) as client, doors.client() as stranger:
        assert (await client.post("/api/ticket")).status_code == 403
        assert (await stranger.post("/api/ticket")).status_code == 401
