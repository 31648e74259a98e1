"""API keys: what they look like, what is kept of them, when they open something."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.access import credentials, keys
from api.access.credentials import COOKIE, KEY
from api.access.principal import SCOPES, USER_SCOPES
from pipeline.errors import InvalidInput, NotFound, Unauthorized
from tests.support.doors import Doors


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    return Doors(tmp_path / "data")


def verify(doors: Doors, text: str) -> str:
    shown = credentials.parse(KEY, text)
    assert shown is not None
    return doors.store.now(lambda db: keys.verify(db, shown, now_s=doors.clock.now())).owner


def test_a_key_has_an_id_and_256_random_bits_and_is_its_own_kind() -> None:
    minted = [credentials.mint(KEY) for _ in range(100)]
    assert len({each.text for each in minted}) == len({each.id for each in minted}) == 100
    for each in minted:
        shown = credentials.parse(KEY, each.text)
        assert shown is not None
        assert (shown.id, shown.matches(each.secret_sha256)) == (each.id, True)
        assert len(shown.secret) == 43  # 32 bytes in base64
        assert credentials.parse(COOKIE, each.text) is None


@given(st.text(max_size=200))
def test_any_other_text_is_no_key(text: str) -> None:
    assert credentials.parse(KEY, text) is None


def test_only_a_hash_of_the_secret_is_on_the_disk(doors: Doors) -> None:
    _, text = doors.new_key()
    link = doors.new_link()
    kept = b"".join(path.read_bytes() for path in doors.store.directory.iterdir())
    assert b"test" in kept
    for secret in (text.split("_", 2)[2], link.split("_", 1)[1]):
        assert secret.encode() not in kept


async def test_a_key_opens_what_its_scopes_say_and_nothing_else(doors: Doors) -> None:
    _, text = doors.new_key(scopes=frozenset(("speech",)))
    async with doors.client(text) as client:
        status = {scope: (await client.get(f"/scope/{scope}")).status_code for scope in SCOPES}
    assert status == {scope: 200 if scope == "speech" else 403 for scope in SCOPES}
    _, admin = doors.new_key(scopes=frozenset(("admin",)))
    async with doors.client(admin) as client:
        assert {(await client.get(f"/scope/{scope}")).status_code for scope in SCOPES} == {200}


async def test_a_wrong_secret_an_unknown_id_and_no_key_are_refused_alike(doors: Doors) -> None:
    key, text = doors.new_key()
    other = credentials.mint(KEY)
    wrong = [f"vp_{key.id}_{other.text.split('_', 2)[2]}", other.text, text[:-1], text.upper(), "", "none", "vp__"]
    bodies = set()
    for each in wrong[:3]:
        async with doors.client(each) as client:
            answer = await client.get("/scope/talk")
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            bodies.add(answer.json()["error"]["code"])
    assert bodies == {"invalid_api_key"}
    for each in wrong[3:]:
        async with doors.client(each) as client:
            assert (await client.get("/scope/talk")).status_code in (401, 429)
    async with doors.client(text) as client:
        assert (await client.get("/scope/talk")).status_code == 200


def test_a_key_ends_when_it_is_revoked_or_expires(doors: Doors) -> None:
    owner = doors.owner()
    revoked, one = doors.new_key()
    _, two = doors.new_key(life_s=100)
    assert verify(doors, one) == verify(doors, two) == owner
    doors.store.now(lambda db: keys.revoke(db, revoked.id, now_s=doors.clock.now()))
    with pytest.raises(Unauthorized, match="revoked"):
        verify(doors, one)
    doors.clock.pass_s(99)
    verify(doors, two)
    doors.clock.pass_s(1)
    with pytest.raises(Unauthorized, match="expired"):
        verify(doors, two)


def test_after_a_rotation_both_keys_work_for_a_while_and_then_the_new_one(doors: Doors) -> None:
    old, old_text = doors.new_key(scopes=frozenset(("talk", "metrics")))
    new, new_text = doors.store.now(lambda db: keys.rotate(db, old.id, now_s=doors.clock.now(), overlap_s=3600))
    assert (new.owner, new.name, new.scopes) == (old.owner, old.name, old.scopes)
    doors.clock.pass_s(3599)
    assert verify(doors, old_text) == verify(doors, new_text)
    doors.clock.pass_s(1)
    with pytest.raises(Unauthorized):
        verify(doors, old_text)
    assert verify(doors, new_text) == old.owner
    with pytest.raises(InvalidInput, match="revoked"):
        doors.store.now(lambda db: keys.rotate(db, old.id, now_s=doors.clock.now(), overlap_s=0))
    # A rotation does not give a revoked key a second life, and revoking at once cuts the overlap short.
    doors.store.now(lambda db: keys.rotate(db, new.id, now_s=doors.clock.now(), overlap_s=3600))
    doors.store.now(lambda db: keys.revoke(db, new.id, now_s=doors.clock.now()))
    with pytest.raises(Unauthorized):
        verify(doors, new_text)


def test_the_last_use_is_kept_to_the_minute(doors: Doors) -> None:
    key, text = doors.new_key()
    first = doors.clock.now()
    verify(doors, text)
    doors.clock.pass_s(59)
    verify(doors, text)
    assert doors.store.now(lambda db: keys.get(db, key.id)).last_used_s == first
    doors.clock.pass_s(1)
    verify(doors, text)
    assert doors.store.now(lambda db: keys.get(db, key.id)).last_used_s == first + 60


@pytest.mark.parametrize("name", ["", " a", "a\nb", "a\x1b[31m", "\u202eabc", "x" * 65, "a\0"])
def test_a_name_that_could_disturb_a_list_or_a_log_is_refused(doors: Doors, name: str) -> None:
    with pytest.raises(InvalidInput):
        doors.new_key(owner=name)
    owner = doors.owner()
    with pytest.raises(InvalidInput):
        doors.store.now(lambda db: keys.create(db, owner=owner, name=name, scopes=USER_SCOPES, now_s=0.0))


def test_an_id_that_does_not_exist_is_named(doors: Doors) -> None:
    for change in (keys.get, lambda db, key: keys.revoke(db, key, now_s=0.0)):
        with pytest.raises(NotFound, match="there is no key abc"):
            doors.store.now(lambda db, change=change: change(db, "abc"))  # type: ignore[misc]
    with pytest.raises(InvalidInput, match="scopes"):
        doors.new_key(scopes=frozenset())
