"""Limits by class and caller, and wrong credentials: counted by a clock that only goes forward, in bounded memory."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import httpx
import pytest
import structlog
from starlette.requests import HTTPConnection

from api.access import credentials, limit_storage
from api.access.credentials import KEY
from api.access.guesses import FREE, MAX_SUBJECTS, MAX_WAIT_S
from api.access.limit_storage import WindowStorage
from api.access.limits import ALL_TOGETHER, KINDS, Limiter, limits_of
from api.access.principal import USER_SCOPES, Principal
from pipeline.errors import RateLimited, RequestError, Unauthorized
from settings import SecuritySettings
from tests.support.doors import Clock, Doors

ANNA, BERT = (Principal(name, f"key:{name}", USER_SCOPES) for name in ("anna", "bert"))
SECURITY = SecuritySettings()


async def granted(limiter: Limiter, principal: Principal, n: int, kind: str = "api", amount: float = 1) -> int:
    count = 0
    for _ in range(n):
        with contextlib.suppress(RateLimited):
            await limiter.spend(principal, kind, amount)  # type: ignore[arg-type]
            count += 1
    return count


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(SECURITY, clock=clock.monotonic)


def test_the_classes_of_the_guide_have_its_figures() -> None:
    limits = limits_of(SECURITY)
    assert set(limits) == set(KINDS)
    assert [(limits[kind].amount, limits[kind].window_s) for kind in ("api", "upload", "generation")] == [
        (60, 60),
        (10, 300),
        (30, 60),
    ]


@pytest.mark.parametrize("kind", KINDS)
async def test_exactly_the_limit_is_granted_in_a_window(clock: Clock, kind: str) -> None:
    limiter = Limiter(SECURITY, clock=clock.monotonic)
    limit = limits_of(SECURITY)[kind]  # type: ignore[index]
    amount = max(limit.amount // 50, 1)
    n = limit.amount // amount
    clock.monotonic_s = limit.window_s * 1000.0
    assert await granted(limiter, ANNA, 2 * n, kind, amount) == n
    clock.pass_s(limit.window_s * 2)
    assert await granted(limiter, ANNA, 2 * n, kind, amount) == n


async def test_an_unknown_class_is_an_error_and_not_a_free_pass(limiter: Limiter) -> None:
    with pytest.raises(KeyError):
        await limiter.spend(ANNA, "uploads")  # type: ignore[arg-type]
    off = Limiter(SecuritySettings(rate_limiting=False), clock=Clock().monotonic)
    with pytest.raises(KeyError):
        await off.spend(ANNA, "uploads")  # type: ignore[arg-type]


async def test_one_caller_does_not_use_up_anothers_share(limiter: Limiter) -> None:
    assert await granted(limiter, ANNA, 100) == 60
    assert await granted(limiter, BERT, 100) == 60


async def test_all_callers_together_have_a_limit_as_well(limiter: Limiter) -> None:
    many = [Principal("anna", f"key:{number}", USER_SCOPES) for number in range(20)]
    assert sum([await granted(limiter, each, 60) for each in many]) == 60 * ALL_TOGETHER
    # What was refused to one caller was not taken from everybody's share.
    assert await granted(limiter, BERT, 1, "upload") == 1


async def test_the_wall_clock_moves_no_window(clock: Clock, limiter: Limiter) -> None:
    await granted(limiter, ANNA, 60)
    for jump_s in (120.0, -86_400.0, 86_400.0):
        clock.now_s += jump_s
        assert await granted(limiter, ANNA, 5) == 0
    clock.pass_s(120)
    assert await granted(limiter, ANNA, 100) == 60


@pytest.mark.parametrize("into_s", [0.0, 1.0, 29.5, 59.0])
@pytest.mark.parametrize("n_before", [0, 20, 60])
@pytest.mark.parametrize("cost", [1, 7, 60])
async def test_after_the_time_that_is_named_it_fits_and_not_before(
    clock: Clock, limiter: Limiter, into_s: float, n_before: int, cost: int
) -> None:
    clock.monotonic_s = 60_000.0
    await granted(limiter, ANNA, n_before)
    clock.monotonic_s += 60.0 + into_s
    await granted(limiter, ANNA, 60)
    with pytest.raises(RateLimited) as refused:
        await limiter.spend(ANNA, "api", cost)
    wait_s = refused.value.retry_after_s
    assert 0 < wait_s <= 121
    clock.pass_s(wait_s - 0.5)
    assert await granted(limiter, ANNA, 1, "api", cost) == 0 or wait_s < 0.5
    clock.pass_s(0.51)
    assert await granted(limiter, ANNA, 1, "api", cost) == 1


async def test_more_than_the_limit_at_once_never_fits(limiter: Limiter) -> None:
    assert await granted(limiter, ANNA, 1, "characters", 30_001) == 0
    assert await granted(limiter, ANNA, 1, "characters", 30_000) == 1
    await limiter.spend(ANNA, "characters", 0)  # nothing costs nothing


async def test_a_share_of_a_second_counts_as_a_second(limiter: Limiter) -> None:
    assert await granted(limiter, ANNA, 4000, "audio_s", 0.25) == 1800


async def test_made_up_names_are_forgotten_before_they_fill_the_memory(clock: Clock) -> None:
    storage = WindowStorage(clock.monotonic)
    for number in range(3 * limit_storage.MAX_NAMES):
        await storage.acquire_sliding_window_entry(f"name {number}", 10, 60)
    assert len(storage) == limit_storage.MAX_NAMES
    assert await storage.get("name 0") == 0
    assert await storage.get(f"name {3 * limit_storage.MAX_NAMES - 1}") == 1


async def test_a_limit_that_is_hit_is_logged_once_a_window_and_names_nobody(clock: Clock, limiter: Limiter) -> None:
    clock.monotonic_s = 60_000.0
    with structlog.testing.capture_logs() as logged:
        await granted(limiter, ANNA, 100)
        assert logged == [{"event": "limit.hit", "log_level": "info", "kind": "api", "everybody": False}]
        clock.pass_s(60)
        await granted(limiter, ANNA, 100)
    assert len(logged) == 2


async def count_200(client: httpx.AsyncClient, n: int) -> int:
    return [(await client.get("/scope/talk")).status_code for _ in range(n)].count(200)


async def test_max_requests_per_minute_acts(tmp_path: Path) -> None:
    doors = Doors(tmp_path / "own", security={"max_requests_per_minute": 7})
    _, text = doors.new_key()
    async with doors.client(text) as client:
        assert await count_200(client, 10) == 7
        refused = await client.get("/scope/talk")
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["Retry-After"]) >= 1
        doors.clock.pass_s(math.ceil(refused.json()["error"]["retry_after_s"]))
        assert (await client.get("/scope/talk")).status_code == 200
    async with doors.logged_in() as browser:
        assert await count_200(browser, 10) == 7
    assert "rate_limited" in doors.rejected


async def test_rate_limiting_acts(tmp_path: Path) -> None:
    doors = Doors(tmp_path / "own", security={"max_requests_per_minute": 7, "rate_limiting": False})
    _, text = doors.new_key()
    async with doors.client(text) as client:
        assert await count_200(client, 20) == 20


# --- wrong credentials


async def test_ten_thousand_guesses_find_nothing_and_slow_nobody_else(tmp_path: Path) -> None:
    """All from the address that the legitimate user has too, as everybody behind one proxy does."""
    doors = Doors(tmp_path / "own")
    key, text = doors.new_key()
    answers: list[Exception | Principal] = []

    async def show(shown: str) -> Exception | Principal:
        headers = [(b"authorization", f"Bearer {shown}".encode())]
        scope = {"type": "http", "scheme": "http", "client": ("192.0.2.7", 1), "headers": headers, "path": "/"}
        try:
            return await doors.access.principal(HTTPConnection(scope))
        except RequestError as refused:
            return refused

    for number in range(10_000):
        other = credentials.mint(KEY).text
        answers.append(await show(f"vp_{key.id}_{other.split('_', 2)[2]}" if number % 2 else other))
        if number % 100 == 0:  # the owner of the very key that is guessed at, and the neighbour's login
            assert isinstance(await show(text), Principal)
    async with doors.logged_in("bert") as neighbour:
        assert (await neighbour.get("/scope/talk")).status_code == 200
    assert [type(answer) for answer in answers] == [Unauthorized] * FREE + [RateLimited] * (10_000 - FREE)
    waits = [answer.retry_after_s for answer in answers if isinstance(answer, RateLimited)]
    assert waits[:6] == [1, 2, 4, 8, 16, 32]
    assert max(waits) == waits[-1] == MAX_WAIT_S
    assert len(doors.access._guesses) <= MAX_SUBJECTS
    # The disk does not fill with them: the 1st, 2nd, 4th, 8th ... failure of a subject is recorded.
    failures = await doors.store.read(
        lambda db: db.execute("SELECT count(*) FROM audit WHERE action = 'auth.failed'").fetchone()
    )
    assert failures[0] < 30


async def test_guesses_are_told_apart_by_key_and_by_client_where_the_proxy_is_trusted(tmp_path: Path) -> None:
    doors = Doors(tmp_path / "own", access={"trusted_hops": 1})
    mine, other = doors.new_key()[0], doors.new_key()[0]

    async def guess(identifier: str, address: str) -> int:
        wrong = f"vp_{identifier}_{'A' * 43}"
        headers = {"Authorization": f"Bearer {wrong}", "X-Forwarded-For": address}
        async with doors.client(origin=None) as client:
            return (await client.get("/scope/talk", headers=headers)).status_code

    assert [await guess(mine.id, f"203.0.113.{number}") for number in range(8)] == [401] * FREE + [429] * 3
    assert await guess(other.id, "203.0.113.99") == 401
    made_up = [f"{number:012x}" for number in range(8)]
    assert [await guess(identifier, "198.51.100.1") for identifier in made_up] == [401] * FREE + [429] * 3
    assert await guess(made_up[0], "198.51.100.2") == 401
    doors.clock.pass_s(900)
    assert await guess(mine.id, "203.0.113.1") == 401


async def test_a_proxys_address_alone_is_no_identity(tmp_path: Path) -> None:
    """Somebody behind a proxy that is not configured guesses; the neighbour's typing mistake is still told as one."""
    doors = Doors(tmp_path / "own")
    async with doors.client(origin=None) as client:
        for _ in range(20):
            headers = {"Authorization": f"Bearer {credentials.mint(KEY).text}", "X-Forwarded-For": "203.0.113.5"}
            assert (await client.get("/scope/talk", headers=headers)).status_code == 401


async def test_made_up_key_ids_do_not_fill_the_memory(tmp_path: Path) -> None:
    doors = Doors(tmp_path / "own")
    guesses = doors.access._guesses
    for number in range(3 * MAX_SUBJECTS):
        guesses.failed([f"key:{number}"], Unauthorized("no"))
    assert len(guesses) == MAX_SUBJECTS
