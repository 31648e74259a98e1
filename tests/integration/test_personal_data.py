"""One's own data: counted, handed out in one archive, deleted; and never somebody else's."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.access import audit, keys
from api.access.principal import USER_SCOPES, Scope
from tests.support.client import connected
from tests.support.live_server import Live
from tests.support.rest import ToneTts, a_file, rest_server
from tests.support.scripted import ScriptedAsr
from tests.support.tenants import own_voice

WORDS = "pomegranate"


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    asr = ScriptedAsr(delay_s=0.0)
    async with rest_server(access={"mode": "keys"}, storage={"words_days": 1}, asr=asr, tts=ToneTts()) as rest:
        yield rest.live


async def new_key(live: Live, owner: str, scopes: frozenset[Scope] = USER_SCOPES) -> str:
    store = live.server.store
    identifier = await store.write(lambda db: keys.owner_named(db, owner, now_s=0.0, create=True))
    _, text = await store.write(
        lambda db: keys.create(db, owner=identifier, name=f"{owner}'s laptop", scopes=scopes, now_s=0.0)
    )
    return text


def client(live: Live, key: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=live.http, headers=headers, timeout=20, verify=False)


async def live_a_little(live: Live, http: httpx.AsyncClient, key: str, name: str) -> str:
    """A talk on a socket, one over HTTP, a job, a voice: all with words of this person's. Gives the voice's id."""
    live.asr.texts += [f"{name} {WORDS} aloud", f"{name} {WORDS} in a file"]
    answer = await http.post("/api/converse", content=a_file(), headers={"Content-Type": "audio/wav"})
    assert answer.status_code == 200, answer.text
    job = (await http.post("/api/transcriptions", files={"file": ("a.wav", a_file())})).json()
    while job["status"] in ("queued", "running"):
        job = (await http.get(f"/api/jobs/{job['id']}")).json()
    text = {"type": "input_text", "text": f"{name} {WORDS} typed"}
    async with connected(live.url, additional_headers={"Authorization": f"Bearer {key}"}) as socket:
        await socket.send("conversation.item.create", item={"type": "message", "role": "user", "content": [text]})
        await socket.until("conversation.item.done")
    me = (await http.get("/api/me")).json()
    return await own_voice(live.server.voices, me["id"], f"{name} {WORDS}")


async def archive(http: httpx.AsyncClient) -> dict[str, bytes]:
    answer = await http.get("/api/me/data")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/zip"
    assert "attachment" in answer.headers["Content-Disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as files:
        assert files.testzip() is None
        return {name: files.read(name) for name in files.namelist()}


async def test_the_archive_has_all_of_ones_own_and_nothing_of_anybody_elses(live: Live) -> None:
    anna_key, bert_key = await new_key(live, "anna"), await new_key(live, "bert")
    async with client(live, anna_key) as anna, client(live, bert_key) as bert:
        voice = await live_a_little(live, anna, anna_key, "anna")
        other = await live_a_little(live, bert, bert_key, "bert")
        files = await archive(anna)
    told: dict[str, Any] = {name: json.loads(data) for name, data in files.items() if name.endswith(".json")}
    assert set(told["about.json"]["files"]) | {"about.json"} == set(told)
    assert files[f"voices/{voice}.wav"].startswith(b"RIFF")
    assert [key["name"] for key in told["keys.json"]] == ["anna's laptop"]
    assert told["jobs.json"][0]["result"]["text"] == f"anna {WORDS} in a file"
    assert told["voices.json"][0]["name"] == f"anna {WORDS}"
    assert told["consents.json"][0]["typed_name"] == f"anna {WORDS}"
    assert {entry["action"] for entry in told["audit.json"]} >= {"key.created", "consent.given", "data.exported"}
    turns = [turn for session in told["sessions.json"] for turn in session["turns"]]
    assert f"anna {WORDS} aloud" in {turn["heard"] for turn in turns}
    assert f"anna {WORDS} typed" in str(told["talks.json"])
    everything = b"".join(files.values())
    assert b"bert" not in everything
    assert other.encode() not in everything
    for secret in (anna_key, anna_key.split("_", 2)[2], bert_key):
        assert secret.encode() not in everything
    assert b"sha256" not in files["keys.json"] + files["logins.json"]


async def test_what_is_deleted_is_gone_from_memory_database_and_disk(live: Live) -> None:
    anna_key, bert_key = await new_key(live, "anna"), await new_key(live, "bert")
    store = live.server.store
    async with client(live, anna_key) as anna, client(live, bert_key) as bert:
        voice = await live_a_little(live, anna, anna_key, "anna")
        other = await live_a_little(live, bert, bert_key, "bert")
        before = (await bert.get("/api/me")).json()["counts"]
        for body in ({}, {"confirm": "yes"}, {"confirm": True}):
            refused = await anna.request("DELETE", "/api/me/data", json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "confirm")
        assert (await anna.request("DELETE", "/api/me/data")).status_code == 415
        async with connected(live.url, additional_headers={"Authorization": f"Bearer {anna_key}"}) as talking:
            await talking.until("session.created")
            answer = (await anna.request("DELETE", "/api/me/data", json={"confirm": "delete"})).json()
            await talking.closed()
        assert answer["deleted"] == {
            "talks": 3,
            "jobs": 1,
            "voices": 1,
            "recordings": 0,
            "sessions": 3,
            "turns": 1,
        }
        assert any("audit" in kept for kept in answer["kept"])
        counts = (await anna.get("/api/me")).json()["counts"]
        assert {name for name, n in counts.items() if n} == {"keys", "audit"}
        assert (await bert.get("/api/me")).json()["counts"] == before
        assert (await anna.get(f"/api/voices/{voice}")).status_code == 404
        assert (await bert.get(f"/api/voices/{other}/sample")).status_code == 200
        files = await archive(anna)
    assert [path.name for path in (store.directory / "voices").iterdir()] == [f"{other}.wav"]
    assert json.loads(files["sessions.json"]) == json.loads(files["talks.json"]) == json.loads(files["jobs.json"]) == []
    actions = [record.action for record in await store.read(audit.records)]
    assert actions.count("data.deleted") == 1
    assert await store.read(audit.first_broken) is None


async def test_a_key_that_reaches_a_part_gets_no_archive_and_deletes_nothing(live: Live) -> None:
    keys_ = [
        await new_key(live, "anna", frozenset(scopes)) for scopes in (("metrics",), ("voices",), ("voices", "talk"))
    ]
    for key, lacking in zip(keys_, ("voices", "talk, speech", "speech"), strict=True):
        async with client(live, key) as http:
            assert (await http.get("/api/me")).status_code == 200
            answers = [
                await http.get("/api/me/data"),
                await http.request("DELETE", "/api/me/data", json={"confirm": "delete"}),
            ]
            for answer in answers:
                assert answer.status_code == 403
                assert answer.json()["error"]["message"].endswith(lacking)


async def test_me_says_who_is_asking(live: Live) -> None:
    key = await new_key(live, "anna", frozenset(("speech",)))
    async with client(live, key) as http:
        me = (await http.get("/api/me")).json()
    assert (me["name"], me["scopes"], me["credential"]) == ("anna", ["speech"], f"key:{key.split('_')[1]}")
    operator = (live.server.store.directory / "operator.token").read_text().strip()
    async with client(live, operator) as http:
        assert (await http.get("/api/me")).json()["id"] == "operator"


async def test_a_link_in_place_of_a_recording_is_not_followed(live: Live) -> None:
    key = await new_key(live, "anna")
    async with client(live, key) as anna:
        owner = (await anna.get("/api/me")).json()["id"]
        voice = await own_voice(live.server.voices, owner, "mine")
        secret = live.server.store.directory / "operator.token"
        recording = live.server.store.directory / "voices" / f"{voice}.wav"
        recording.unlink()
        os.symlink(secret, recording)
        with pytest.raises(httpx.RemoteProtocolError):
            await archive(anna)
        assert (await anna.get(f"/api/voices/{voice}/sample")).status_code == 502
        recording.unlink()
        assert f"voices/{voice}.wav" not in await archive(anna)


async def test_exports_are_few(live: Live) -> None:
    live.server.access.limiter._is_on = True
    async with client(live, await new_key(live, "anna")) as anna:
        statuses = [(await anna.get("/api/me/data")).status_code for _ in range(11)]
    assert statuses == [*[200] * 10, 429]
