"""One's own voices: nobody else's, in talks and files at once, through restarts, other engines and broken disks."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.voices import records
from api.voices.book import VoiceBook
from api.voices.workshop import open_speakers
from pipeline.audio import AudioChunk
from pipeline.engines.base import Voice, engine_key
from pipeline.errors import InvalidInput
from tests.support.client import Client, connected
from tests.support.live_server import Live
from tests.support.rest import Rest, rest_server
from tests.support.scripted import ScriptedAsr, ScriptedTts
from tests.support.voices import (
    CONSENT,
    CloningPitchTts,
    PitchSpeakers,
    PitchTts,
    cloned,
    headers,
    new_key,
    send,
)

KEYS = {"mode": "keys"}


def server(**how: Any) -> Any:
    engines = {"tts": CloningPitchTts(), "speakers": PitchSpeakers(), "asr": ScriptedAsr(delay_s=0.0)}
    return rest_server(**{**engines, **how})


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with server() as running:
        yield running


def tts_of(rest: Rest) -> CloningPitchTts:
    assert isinstance(rest.live.tts, CloningPitchTts)
    return rest.live.tts


def voice_files(live: Live) -> list[Path]:
    return sorted((live.server.store.directory / "voices").iterdir())


async def choose(client: Client, voice: str, n: int = 1) -> dict[str, Any]:
    """Ask for the voice; the nth session.updated."""
    await client.send("session.update", session={"audio": {"output": {"voice": voice}}})
    session: dict[str, Any] = (await client.until("session.updated", n))["session"]
    return session


# --- nobody else's


async def test_anothers_voice_is_exactly_like_none_on_every_door() -> None:
    async with server(access=KEYS) as rest:
        anna, bert = await new_key(rest, "anna"), await new_key(rest, "bert")
        voice = await cloned(rest, key=anna)
        none = "voice_" + "0" * 24
        sample = (await send(rest, key=anna)).json()["id"]
        answers: dict[str, list[Any]] = {}
        for name, key in ((voice["id"], bert), (none, bert), (none, anna)):
            known, client = headers(key), rest.client
            for method, path, body in (
                ("GET", f"/api/voices/{name}", None),
                ("PATCH", f"/api/voices/{name}", {"name": "Stolen"}),
                ("DELETE", f"/api/voices/{name}", None),
                ("GET", f"/api/voices/{name}/sample", None),
                ("POST", "/v1/audio/speech", {"model": "x", "input": "Hello.", "voice": name}),
                ("POST", "/api/tts", {"text": "Hello.", "voice": name}),
                ("POST", f"/api/converse?voice={name}", None),
            ):
                answer = await client.request(method, path, json=body, headers=known)
                if "converse" in path:
                    answer = await client.post(path, content=b"RIFF", headers=known)
                answers.setdefault(f"{method} {path.replace(name, '')}", []).append(
                    (answer.status_code, answer.json()["error"])
                )
        for door, told in answers.items():
            assert told[0] == told[1] == told[2], door
            assert told[0][0] in (400, 404), door
            assert told[0][1]["code"] == "voice_not_found", door
        stolen = await rest.client.post(
            "/api/clone", json={"sample_id": sample, "name": "Mine", "consent": CONSENT}, headers=headers(bert)
        )
        assert stolen.status_code == 404
        assert (await rest.client.delete(f"/api/clone/samples/{sample}", headers=headers(bert))).status_code == 404
        listed = (await rest.client.get("/api/voices", headers=headers(bert))).json()["data"]
        assert {shown["kind"] for shown in listed} == {"stock"}
        async with connected(rest.live.url, additional_headers=headers(bert)) as client:
            created = await client.until("session.created")
            assert voice["id"] not in str(created)
            await client.send("session.update", session={"audio": {"output": {"voice": voice["id"]}}})
            assert (await client.until("error"))["error"]["code"] == "voice_not_found"
        assert (await rest.client.get(f"/api/voices/{voice['id']}", headers=headers(anna))).json() == voice


async def test_a_key_without_the_scope_makes_and_sees_no_voices() -> None:
    async with server(access=KEYS) as rest:
        key = await new_key(rest, "anna", frozenset(("talk", "speech")))
        for method, path in (("GET", "/api/clone"), ("POST", "/api/clone"), ("GET", "/api/voices")):
            assert (await rest.client.request(method, path, headers=headers(key))).status_code == 403


async def test_the_same_name_is_free_for_another_owner() -> None:
    async with server(access=KEYS) as rest:
        for owner in ("anna", "bert"):
            assert (await cloned(rest, "Mine", key=await new_key(rest, owner)))["name"] == "Mine"


# --- the list


async def test_own_voices_stand_before_the_stock_and_those_cannot_be_changed(rest: Rest) -> None:
    voice = await cloned(rest)
    listed = (await rest.client.get("/api/voices")).json()
    assert listed["object"] == "list"
    assert [shown["id"] for shown in listed["data"]] == [voice["id"], "anna", "bruno", "carla"]
    stock = (await rest.client.get("/api/voices/anna")).json()
    assert (stock["kind"], stock["created_at"], stock["seconds"], stock["match"]) == ("stock", None, None, None)
    for answer in (
        await rest.client.patch("/api/voices/anna", json={"name": "Mine"}),
        await rest.client.delete("/api/voices/anna"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "stock_voice")


async def test_a_voice_is_renamed_but_not_to_a_name_that_is_taken(rest: Rest) -> None:
    first, second = await cloned(rest, "One"), await cloned(rest, "Two")
    path = f"/api/voices/{second['id']}"
    assert (await rest.client.patch(path, json={"name": "TWO "})).json()["name"] == "TWO"
    taken = await rest.client.patch(path, json={"name": "one"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (400, "name_taken")
    assert (await rest.client.get(f"/api/voices/{first['id']}")).json()["name"] == "One"


# --- in a talk


async def test_a_voice_that_is_made_while_a_socket_is_open_is_usable_at_once(rest: Rest) -> None:
    async with connected(rest.live.url) as client:
        session = (await client.until("session.created"))["session"]
        assert [voice["id"] for voice in session["voicepod"]["voices"]] == ["anna", "bruno", "carla"]
        voice = await cloned(rest)
        session = await choose(client, voice["id"])
        assert session["audio"]["output"]["voice"] == voice["id"]
        assert {"id": voice["id"], "name": "Mine", "language": "en"} in session["voicepod"]["voices"]
        await client.say()
        await client.until("response.done")
        spoken = tts_of(rest).spoken_by[-1]
        assert (spoken.id, spoken.cloned) == (voice["id"], True)
    async with connected(rest.live.url) as client:
        session = (await client.until("session.created"))["session"]
        assert voice["id"] in [known["id"] for known in session["voicepod"]["voices"]]


async def test_a_match_keeps_its_own_id_in_a_talk_and_speaks_as_the_stock_voice() -> None:
    async with server(tts=PitchTts()) as rest, connected(rest.live.url) as client:
        voice = await cloned(rest)
        assert (await choose(client, voice["id"]))["audio"]["output"]["voice"] == voice["id"]
        await client.say()
        assert (await client.until("response.done"))["response"]["status"] == "completed"
        assert isinstance(rest.live.tts, PitchTts)
        assert rest.live.tts.spoken_by[-1].id == "anna"


async def test_a_voice_that_is_deleted_during_a_talk_gives_way_to_the_servers_own(rest: Rest) -> None:
    voice = await cloned(rest)
    async with connected(rest.live.url) as client:
        await client.until("session.created")
        await choose(client, voice["id"])
        await client.say()
        await client.until("response.done")
        assert (await rest.client.delete(f"/api/voices/{voice['id']}")).status_code == 204
        told = (await client.until("session.updated", 2))["session"]
        assert told["audio"]["output"]["voice"] == "anna"
        assert voice["id"] not in [known["id"] for known in told["voicepod"]["voices"]]
        await client.say()
        assert (await client.until("response.done", 2))["response"]["status"] == "completed"
        assert [spoken.id for spoken in tts_of(rest).spoken_by[-2:]] == [voice["id"], "anna"]


async def test_a_voice_that_goes_while_it_speaks_ends_its_sentence() -> None:
    tts = CloningPitchTts()
    tts.real_time_factor = 0.5
    async with server(tts=tts) as rest, connected(rest.live.url) as client:
        voice = await cloned(rest)
        await choose(client, voice["id"])
        await client.say()
        await client.until("response.output_audio.delta")
        await rest.client.delete(f"/api/voices/{voice['id']}")
        assert (await client.until("response.done"))["response"]["status"] == "completed"


async def test_one_shot_talks_speak_with_a_voice_of_ones_own(rest: Rest) -> None:
    voice = await cloned(rest)
    question = (await rest.client.get(f"/api/voices/{voice['id']}/sample")).content
    answer = await rest.client.post(
        f"/api/converse?voice={voice['id']}", content=question, headers={"Content-Type": "audio/wav"}
    )
    assert answer.status_code == 200
    assert tts_of(rest).spoken_by[-1].id == voice["id"]
    await rest.client.delete(f"/api/voices/{voice['id']}")
    session = answer.headers["voicepod-session"]
    again = await rest.client.post(
        f"/api/converse?session={session}", content=question, headers={"Content-Type": "audio/wav"}
    )
    assert again.status_code == 200
    assert tts_of(rest).spoken_by[-1].id == "anna"


async def test_openais_way_of_naming_ones_voice_works(rest: Rest) -> None:
    voice = await cloned(rest)
    body = {"model": "voicepod", "input": "Hello.", "voice": {"id": voice["id"]}, "response_format": "wav"}
    assert (await rest.client.post("/v1/audio/speech", json=body)).status_code == 200
    assert tts_of(rest).spoken_by[-1].id == voice["id"]


# --- through a restart


async def test_a_voice_is_there_after_a_restart_and_speaks_without_being_made_again(tmp_path: Path) -> None:
    async with server(storage={"dir": tmp_path}) as rest:
        voice = await cloned(rest)
    tts = CloningPitchTts()
    async with server(storage={"dir": tmp_path}, tts=tts) as rest:
        assert (await rest.client.get(f"/api/voices/{voice['id']}")).json() == voice
        body = {"text": "Hello.", "voice": voice["id"], "format": "wav"}
        assert (await rest.client.post("/api/tts", json=body)).status_code == 200
        assert tts.n_cloned == 0


async def test_an_engine_that_breaks_over_a_voice_does_not_keep_the_server_from_starting(tmp_path: Path) -> None:
    class Broken(CloningPitchTts):
        async def add_voice(self, voice: Voice, data: bytes) -> None:
            raise RuntimeError("CUDA error: an illegal memory access")

        async def clone(self, sample: AudioChunk, transcript: str, *, name: str) -> bytes:
            raise RuntimeError("CUDA error: an illegal memory access")

    async with server(storage={"dir": tmp_path}) as rest:
        voice = await cloned(rest)
    for engine in (Broken(), Broken("another")):
        async with server(storage={"dir": tmp_path}, tts=engine) as rest, asyncio.timeout(10):
            while "engine failed" not in (await rest.client.get(f"/api/voices/{voice['id']}")).json()["reason"]:
                await asyncio.sleep(0.02)
            assert (await rest.client.post("/api/tts", json={"text": "Hi.", "voice": "anna"})).status_code == 200


async def test_a_voice_that_is_being_made_when_the_server_stops_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(storage={"dir": tmp_path}) as rest:
        begun, add_voice = asyncio.Event(), tts_of(rest).add_voice

        async def slow(voice: Voice, data: bytes) -> None:
            begun.set()
            while rest.live.server.readiness.is_ready:
                await asyncio.sleep(0.01)
            await add_voice(voice, data)

        monkeypatch.setattr(rest.live.tts, "add_voice", slow)
        body = {"sample_id": (await send(rest)).json()["id"], "name": "Mine", "consent": CONSENT}
        asking = asyncio.create_task(rest.client.post("/api/clone", json=body))
        await begun.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    async with server(storage={"dir": tmp_path}) as rest:
        (own,) = rest.live.server.voices.own("local")
        assert (await rest.client.get(f"/api/voices/{own.id}")).json()["usable"]


async def test_damaged_data_makes_a_voice_unusable_and_stops_nothing(tmp_path: Path) -> None:
    async with server(storage={"dir": tmp_path}) as rest:
        voice, other = await cloned(rest), await cloned(rest, "Other")
        (data,) = (tmp_path / "voices").glob(f"{voice['id']}.*.voice")
        data.write_bytes(b"broken")
    async with server(storage={"dir": tmp_path}) as rest:
        shown = (await rest.client.get(f"/api/voices/{voice['id']}")).json()
        assert (shown["usable"], shown["reason"]) == (False, "this voice file is damaged")
        assert (await rest.client.get(f"/api/voices/{other['id']}")).json()["usable"]
        refused = await rest.client.post("/api/tts", json={"text": "Hello.", "voice": voice["id"]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "voice_not_usable")
        assert (await rest.client.delete(f"/api/voices/{voice['id']}")).status_code == 204


async def test_another_engine_that_clones_makes_the_voice_anew_from_its_recording(tmp_path: Path) -> None:
    async with server(storage={"dir": tmp_path}) as rest:
        voice = await cloned(rest)
    tts = CloningPitchTts("another")
    async with server(storage={"dir": tmp_path}, tts=tts) as rest:
        async with asyncio.timeout(10):
            while not (await rest.client.get(f"/api/voices/{voice['id']}")).json()["usable"]:
                await asyncio.sleep(0.02)
        assert tts.n_cloned == 1
        assert (await rest.client.post("/api/tts", json={"text": "Hi.", "voice": voice["id"]})).status_code == 200
    async with server(storage={"dir": tmp_path}, tts=(back := CloningPitchTts())) as rest:
        assert (await rest.client.get(f"/api/voices/{voice['id']}")).json()["usable"]
        assert back.n_cloned == 0  # its own data was kept


async def test_an_engine_that_cannot_clone_lists_the_voice_and_says_why(tmp_path: Path) -> None:
    async with server(storage={"dir": tmp_path}) as rest:
        voice = await cloned(rest)
    async with server(storage={"dir": tmp_path}, tts=PitchTts()) as rest:
        shown = (await rest.client.get(f"/api/voices/{voice['id']}")).json()
        assert not shown["usable"]
        assert "cannot clone" in shown["reason"]
        async with connected(rest.live.url) as client:
            session = (await client.until("session.created"))["session"]
            assert voice["id"] not in [known["id"] for known in session["voicepod"]["voices"]]


async def test_a_match_whose_stock_voice_is_gone_says_so(tmp_path: Path) -> None:
    async with server(storage={"dir": tmp_path}, tts=PitchTts()) as rest:
        voice = await cloned(rest)
    async with server(storage={"dir": tmp_path}, tts=CloningPitchTts("another")) as rest:
        shown = (await rest.client.get(f"/api/voices/{voice['id']}")).json()
        assert (shown["usable"], shown["kind"]) == (False, "match")
        assert "matched to a voice of scripted" in shown["reason"]


# --- broken disks


async def test_a_write_that_fails_leaves_nothing_half_made(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    sample = (await send(rest)).json()["id"]
    wish = {"sample_id": sample, "name": "Mine", "consent": CONSENT}
    monkeypatch.setattr("api.voices.files.os.fsync", fail)
    answer = await rest.client.post("/api/clone", json=wish)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "storage_error")
    assert "device" not in answer.text
    assert voice_files(rest.live) == []
    assert set(tts_of(rest).pitches) == {"anna", "bruno", "carla"}
    assert await rest.live.server.voices.consents("local") == []
    monkeypatch.undo()
    assert (await rest.client.post("/api/clone", json=wish)).status_code == 201


async def test_a_database_that_fails_leaves_no_file_and_no_sound(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    sample, store = (await send(rest)).json()["id"], rest.live.server.store
    monkeypatch.setattr(records, "_insert", fail)
    answer = await rest.client.post("/api/clone", json={"sample_id": sample, "name": "Mine", "consent": CONSENT})
    monkeypatch.undo()
    assert answer.status_code == 502
    assert voice_files(rest.live) == []
    assert set(tts_of(rest).pitches) == {"anna", "bruno", "carla"}
    assert (await rest.client.get("/api/clone")).json()["n_voices"] == 0
    assert await store.read(lambda db: db.execute("SELECT count(*) FROM voices").fetchone()[0]) == 0


async def test_files_of_a_server_that_died_in_between_are_removed_at_the_next_start(tmp_path: Path) -> None:
    async with server(storage={"dir": tmp_path}) as rest:
        voice = await cloned(rest)
    stray, half = tmp_path / "voices" / f"voice_{'a' * 24}.wav", tmp_path / "voices" / ".voice_b.wav.12345678"
    stray.write_bytes(b"RIFF")
    half.write_bytes(b"RI")
    async with server(storage={"dir": tmp_path}) as rest:
        async with asyncio.timeout(10):
            while stray.exists() or half.exists():
                await asyncio.sleep(0.02)
        assert (await rest.client.get(f"/api/voices/{voice['id']}/sample")).status_code == 200


async def test_a_server_that_goes_on_beside_a_new_one_leaves_the_new_ones_voices_alone(tmp_path: Path) -> None:
    """A pod that is being replaced shares its volume with the next one for a while."""
    async with server(storage={"dir": tmp_path}) as old, server(storage={"dir": tmp_path}) as new:
        voice = await cloned(new)
        await old.live.server.voices.sweep()
        assert (await new.client.get(f"/api/voices/{voice['id']}/sample")).status_code == 200


async def test_a_folder_among_the_files_keeps_nothing_from_being_removed(tmp_path: Path) -> None:
    """As `lost+found` is, where the voices have a volume of their own."""
    folder, stray = tmp_path / "voices" / "lost+found", tmp_path / "voices" / f"voice_{'a' * 24}.wav"
    async with server(storage={"dir": tmp_path}) as rest:
        folder.mkdir()
        stray.write_bytes(b"RIFF")
        await rest.live.server.voices.sweep()
        assert [folder] == voice_files(rest.live)


async def test_a_client_that_leaves_while_its_voice_is_kept_leaves_a_whole_voice(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = asyncio.Event(), asyncio.Event()
    tts, book = tts_of(rest), rest.live.server.voices
    add_voice = tts.add_voice

    async def slow(voice: Voice, data: bytes) -> None:
        begun.set()
        await may_go_on.wait()
        await add_voice(voice, data)

    monkeypatch.setattr(tts, "add_voice", slow)
    sample = (await send(rest)).json()["id"]
    body = {"sample_id": sample, "name": "Mine", "consent": CONSENT}
    asking = asyncio.create_task(rest.client.post("/api/clone", json=body))
    await begun.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    may_go_on.set()
    await asyncio.gather(*book._finishing)
    (own,) = book.own("local")
    assert {path.name.partition(".")[0] for path in voice_files(rest.live)} == {own.id}
    rows = await rest.live.server.store.read(lambda db: db.execute("SELECT id FROM voices").fetchall())
    assert [row["id"] for row in rows] == [own.id]
    assert (await rest.client.post("/api/tts", json={"text": "Hello.", "voice": own.id})).status_code == 200


async def test_all_voices_of_an_owner_are_forgotten_at_once_and_their_consents_stay(rest: Rest) -> None:
    await cloned(rest, "One")
    await cloned(rest, "Two")
    book = rest.live.server.voices
    await book.delete_all("local", credential="open")
    assert voice_files(rest.live) == []
    assert book.own("local") == ()
    assert len(await book.consents("local")) == 2


async def test_adding_and_removing_while_others_speak_disturbs_nobody() -> None:
    tts = CloningPitchTts()
    tts.real_time_factor = 0.05
    async with server(tts=tts) as rest:
        voice = await cloned(rest, "Speaks")
        body = {"text": "One two three four five. " * 8, "voice": voice["id"], "format": "pcm"}
        speaking = [asyncio.create_task(rest.client.post("/api/tts", json=body)) for _ in range(3)]
        for number in range(4):
            other = await cloned(rest, f"Other {number}")
            await rest.client.delete(f"/api/voices/{other['id']}")
        sizes = {len((await answer).content) for answer in speaking}
        assert len(sizes) == 1
        assert sizes.pop() > 100_000


def test_an_engines_key_is_a_plain_part_of_a_file_name() -> None:
    info = ScriptedTts.info.__class__("tts", "fire/../red", "a.b\0c")
    assert engine_key(info) == "fire-red-a-b-c"


async def test_a_voice_whose_recording_is_lost_still_speaks(rest: Rest) -> None:
    voice = await cloned(rest)
    (wav,) = (path for path in voice_files(rest.live) if path.suffix == ".wav")
    wav.unlink()
    lost = await rest.client.get(f"/api/voices/{voice['id']}/sample")
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "recording_not_found")
    assert (await rest.client.post("/api/tts", json={"text": "Hi.", "voice": voice["id"]})).status_code == 200
    assert (await rest.client.delete(f"/api/voices/{voice['id']}")).status_code == 204


def test_without_its_weights_there_is_no_speaker_encoder(tmp_path: Path) -> None:
    assert open_speakers(tmp_path) is None


async def test_a_book_without_an_engine_that_clones_refuses_a_clone(tmp_path: Path) -> None:
    async with server(tts=PitchTts()) as rest:
        with pytest.raises(InvalidInput, match="cannot clone"):
            rest.live.server.voices._cloning()
        assert isinstance(rest.live.server.voices, VoiceBook)
