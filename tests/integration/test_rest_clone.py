"""A voice of one's own over HTTP: recording, verdict, consent, and what is refused on the way."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from api.access import audit
from api.voices import records
from api.voices.consent import STATEMENT, STATEMENT_VERSION
from api.voices.recordings import KEEP_S, MAX_IN_ALL, MAX_OF_OWNER
from pipeline.audio import AudioChunk, concat, decode_file, file_bytes
from pipeline.errors import EngineFailed, InvalidInput
from tests.support.audio_corpus import Bad, file_of, not_audio, phone_memo, thieves
from tests.support.rest import Rest, rest_server
from tests.support.scripted import ScriptedAsr
from tests.support.voices import (
    CONSENT,
    CloningPitchTts,
    PitchSpeakers,
    PitchTts,
    cloned,
    recording,
    said,
    send,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = {"name": "Mine", "consent": CONSENT}


def server(**how: Any) -> Any:
    return rest_server(
        **{"tts": CloningPitchTts(), "speakers": PitchSpeakers(), "asr": ScriptedAsr(delay_s=0.0), **how}
    )


@pytest_asyncio.fixture(loop_scope="module")
async def rest() -> AsyncIterator[Rest]:
    async with server() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Rest]:
    """For tests that make no voice."""
    async with server() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def matching() -> AsyncIterator[Rest]:
    async with server(tts=PitchTts()) as running:
        yield running


async def clone(rest: Rest, **body: Any) -> httpx.Response:
    return await rest.client.post("/api/clone", json=body)


def refusal(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


# --- what there is


async def test_the_server_says_whether_it_clones_or_matches_or_does_neither(rest: Rest, matching: Rest) -> None:
    first = (await rest.client.get("/api/clone")).json()
    assert (first["method"], first["engine"], first["languages"]) == ("clone", "scripted", ["en", "de"])
    assert first["statement"] == {"version": STATEMENT_VERSION, "text": STATEMENT}
    assert (first["min_s"], first["max_s"], first["max_voices"], first["n_voices"]) == (3, 30, 20, 0)
    assert (first["watermark"], first["phrase_required"], first["notice"]) == (True, False, None)
    second = (await matching.client.get("/api/clone")).json()
    assert (second["method"], second["languages"], second["watermark"]) == ("match", ["de", "en"], False)
    async with server(tts=PitchTts(), speakers=None) as neither:
        assert (await neither.client.get("/api/clone")).json()["method"] == "none"
        assert refusal(await send(neither, route="/api/clone", name="Me", agreed="true", consent_name="Ada")) == (
            400,
            "cloning_not_offered",
            None,
        )


async def test_the_limit_of_firereds_authors_is_told() -> None:
    async with server(tts=CloningPitchTts("firered")) as rest:
        assert "academic research" in (await rest.client.get("/api/clone")).json()["notice"]


# --- a recording


async def test_a_good_recording_is_described_and_its_words_are_heard(rest: Rest) -> None:
    rest.live.asr.texts[:] = ["Ask not what your country can do for you."]
    answer = await send(rest, language="en")
    assert answer.status_code == 201
    sample = answer.json()
    assert sample["id"].startswith("smp_")
    assert (sample["seconds"], sample["language"], sample["phrase"]) == (5.0, "en", None)
    assert sample["transcript"] == "Ask not what your country can do for you."
    verdict = sample["verdict"]
    assert (verdict["usable"], verdict["grade"], verdict["problems"]) == (True, "good", [])
    assert verdict["speech_seconds"] > 3
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("audio", "code"),
    [
        (said(2), "too_short"),
        (said(35), "too_long"),
        (concat([said(4, 150), said(5, 420), said(4, 150), said(4, 420)], 24_000), "several_speakers"),
        (AudioChunk(np.clip(said(6).samples * 8, -0.3, 0.3), 24_000), "clipped"),
    ],
    ids=["short", "long", "two", "clipped"],
)
async def test_a_recording_that_cannot_be_used_says_why_and_costs_no_recognition(
    shared: Rest, audio: AudioChunk, code: str
) -> None:
    n_heard = len(shared.live.asr.utterances)
    answer = await send(shared, audio=file_bytes(audio, "wav"))
    assert answer.status_code == 201
    verdict = answer.json()["verdict"]
    assert (verdict["usable"], verdict["grade"]) == (False, "poor")
    assert code in {problem["code"] for problem in verdict["problems"] if problem["severity"] == "error"}
    assert all(problem["message"] for problem in verdict["problems"])
    assert verdict["several_speakers"] is (code == "several_speakers")
    assert len(shared.live.asr.utterances) == n_heard
    assert refusal(await clone(shared, **BODY, sample_id=answer.json()["id"])) == (400, "recording_not_usable", "file")


async def test_a_recording_is_trimmed(rest: Rest) -> None:
    audio = concat([said(4, 150), said(4, 225)], 24_000)
    answer = await send(rest, audio=file_bytes(audio, "wav"), start_s="4", end_s="7.5")
    assert answer.json()["seconds"] == 3.5
    voice = (await clone(rest, **BODY, sample_id=answer.json()["id"])).json()
    kept = (await rest.client.get(f"/api/voices/{voice['id']}/sample")).content
    sample = decode_file(kept, max_seconds=10)
    assert sample.seconds == 3.5
    assert float(PitchSpeakers().embed(sample) @ PitchSpeakers.of(225)) > 0.95


@pytest.mark.parametrize("trim", [("9", "12"), ("3", "3"), ("4", "1")])
async def test_a_trim_that_leaves_nothing_is_refused(shared: Rest, trim: tuple[str, str]) -> None:
    assert refusal(await send(shared, start_s=trim[0], end_s=trim[1]))[::2] == (400, "start_s")


@pytest.mark.parametrize(("field", "value"), [("start_s", "-1"), ("end_s", "nan"), ("language", "English")])
async def test_a_wrong_field_is_named(shared: Rest, field: str, value: str) -> None:
    fields: dict[str, Any] = {field: value}
    assert refusal(await send(shared, **fields)) == (400, "invalid_value", field)
    assert refusal(await send(shared, language="xx"))[2] == "language"


@pytest.mark.parametrize("route", ["/api/clone/samples", "/api/clone"])
async def test_hostile_files_are_refused_with_a_reason_and_never_a_fault(
    shared: Rest, route: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim.wav"
    victim.write_bytes(recording(4))
    bad = {name: case for name, case in (thieves(victim, "canary") | not_audio()).items() if isinstance(case, Bad)}
    for name in list(bad)[::9]:
        answer = await send(shared, audio=bad[name].data, route=route, name="Me", agreed="true", consent_name="Ada L")
        assert answer.status_code in (201, 400), name
        if answer.status_code == 400:
            assert answer.json()["error"]["code"] in bad[name].codes | {"recording_not_usable", "too_long"}, name
        else:
            assert not answer.json()["verdict"]["usable"], name
    assert shared.live.server.voices.own("local") == ()


@pytest.mark.parametrize("name", ["wav of floats", "phone memo"])
async def test_what_programs_and_phones_record_is_taken(shared: Rest, name: str) -> None:
    audio = phone_memo(5.0) if name == "phone memo" else file_of(said(5).samples, 24_000, subtype="FLOAT")
    assert (await send(shared, audio=audio)).status_code == 201


async def test_a_recording_is_forgotten_when_asked_and_after_a_while(rest: Rest) -> None:
    shelf = rest.live.server.workshop.recordings
    sample = (await send(rest)).json()
    assert (await rest.client.delete(f"/api/clone/samples/{sample['id']}")).status_code == 204
    assert refusal(await rest.client.delete(f"/api/clone/samples/{sample['id']}"))[:2] == (404, "sample_not_found")
    later = (await send(rest)).json()
    known = shelf._now
    shelf._now = lambda: known() + KEEP_S + 1
    assert refusal(await clone(rest, **BODY, sample_id=later["id"]))[:2] == (404, "sample_not_found")


async def test_an_owner_has_so_many_recordings_and_the_oldest_goes(rest: Rest) -> None:
    ids = [(await send(rest)).json()["id"] for _ in range(MAX_OF_OWNER + 1)]
    assert refusal(await clone(rest, **BODY, sample_id=ids[0]))[0] == 404
    assert (await clone(rest, **BODY, sample_id=ids[-1])).status_code == 201


async def test_strangers_recordings_never_push_out_ones_own_but_the_memory_is_bounded(rest: Rest) -> None:
    shelf = rest.live.server.workshop.recordings
    await send(rest)
    (own,) = shelf._things.values()
    for number in range(MAX_IN_ALL - 1):
        shelf._things[f"smp_{number}"] = own.__class__(
            **{name: getattr(own, name) for name in own.__slots__} | {"id": f"smp_{number}", "owner": f"o{number}"}
        )
    assert shelf.get(own.id, own.owner) is own
    assert (await send(rest)).status_code == 201  # one's own older one makes room
    shelf.drop_all(own.owner)
    shelf._things["smp_x"] = own.__class__(
        **{name: getattr(own, name) for name in own.__slots__} | {"id": "smp_x", "owner": "x"}
    )
    answer = await send(rest)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_busy")
    assert int(answer.headers["retry-after"]) > 0


# --- the voice


async def test_a_clone_speaks_with_the_voice_of_its_recording(rest: Rest) -> None:
    rest.live.asr.texts[:] = ["These are my words."]
    voice = await cloned(rest, audio=recording(5, 280))
    assert voice["id"].startswith("voice_")
    assert len(voice["id"]) == len("voice_") + 24
    assert (voice["kind"], voice["name"], voice["match"]) == ("clone", "Mine", None)
    assert (voice["language"], voice["languages"]) == ("en", ["en", "de"])
    assert (voice["transcript"], voice["seconds"]) == ("These are my words.", 5.0)
    assert (voice["watermarked"], voice["usable"], voice["reason"]) == (True, True, None)
    spoken = await rest.client.post("/api/tts", json={"text": "Hello there.", "voice": voice["id"], "format": "wav"})
    heard = PitchSpeakers().embed(decode_file(spoken.content, max_seconds=60))
    assert float(heard @ PitchSpeakers.of(280)) > 0.95
    assert (await rest.client.get("/api/clone")).json()["n_voices"] == 1


async def test_the_location_of_a_voice_is_told(rest: Rest) -> None:
    answer = await clone(rest, **BODY, sample_id=(await send(rest)).json()["id"])
    assert answer.headers["location"] == f"/api/voices/{answer.json()['id']}"
    assert (await rest.client.get(answer.headers["location"])).json() == answer.json()


async def test_the_recording_is_spent_by_the_voice_that_is_made_of_it(rest: Rest) -> None:
    sample = (await send(rest)).json()
    assert (await clone(rest, **BODY, sample_id=sample["id"])).status_code == 201
    again = await clone(rest, name="Again", consent=CONSENT, sample_id=sample["id"])
    assert refusal(again)[:2] == (404, "sample_not_found")


async def test_one_call_of_a_form_is_enough(rest: Rest) -> None:
    answer = await send(
        rest,
        route="/api/clone",
        name="Mine",
        transcript="My own words",
        agreed="true",
        consent_name="Ada",
    )
    assert answer.status_code == 201
    assert (answer.json()["transcript"], answer.json()["kind"]) == ("My own words", "clone")
    refused = await send(rest, route="/api/clone", name="Two", agreed="false", consent_name="Ada")
    assert refusal(refused)[:2] == (400, "consent_missing")


async def test_a_match_says_that_it_is_one_and_speaks_as_the_nearest_stock_voice(matching: Rest) -> None:
    voice = await cloned(matching, audio=recording(5, 320))
    assert (voice["kind"], voice["watermarked"]) == ("match", False)
    assert (voice["match"]["voice"], voice["match"]["name"]) == ("carla", "Carla")
    assert 0.8 < voice["match"]["similarity"] <= 1
    await matching.client.post("/api/tts", json={"text": "Hello.", "voice": voice["id"], "format": "wav"})
    tts = matching.live.tts
    assert isinstance(tts, PitchTts)
    assert tts.spoken_by[-1].id == "carla"


async def test_a_match_is_of_the_language_of_the_recording(matching: Rest) -> None:
    matching.live.asr.info = matching.live.asr.info.__class__("asr", "scripted", "script", languages=("en", "de", "fr"))
    german = (await send(matching, language="de")).json()
    voice = (await clone(matching, **BODY, sample_id=german["id"])).json()
    assert (voice["match"]["voice"], voice["language"]) == ("bruno", "de")
    french = (await send(matching, language="fr")).json()
    refused = await clone(matching, name="Other", consent=CONSENT, sample_id=french["id"])
    assert refusal(refused) == (400, "no_voice_for_language", "language")
    assert "French" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("consent", "code"),
    [
        ({**CONSENT, "agreed": False}, "consent_missing"),
        ({**CONSENT, "statement": "1999"}, "statement_outdated"),
        ({**CONSENT, "name": " 123 "}, "consent_name_missing"),
        ({**CONSENT, "agreed": "true"}, "invalid_value"),
        ({"agreed": True}, "invalid_value"),
        (None, "invalid_value"),
    ],
)
async def test_no_voice_is_made_without_a_full_consent(shared: Rest, consent: Any, code: str) -> None:
    sample = (await send(shared)).json()
    assert refusal(await clone(shared, name="Mine", sample_id=sample["id"], consent=consent))[:2] == (400, code)
    assert shared.live.server.voices.own("local") == ()


@pytest.mark.parametrize("name", ["", "  ", "\u200b\u202e", "x" * 61])
async def test_a_name_has_one_to_sixty_characters_that_can_be_seen(shared: Rest, name: str) -> None:
    sample = (await send(shared)).json()
    answer = await clone(shared, name=name, consent=CONSENT, sample_id=sample["id"])
    assert answer.status_code in (400, 413)
    assert shared.live.server.voices.own("local") == ()


async def test_a_name_is_cleaned_and_unique_whatever_its_case(rest: Rest) -> None:
    first = await cloned(rest, "A\u0308pfel\u202e <b>")
    assert first["name"] == "\u00c4pfel <b>"
    sample = (await send(rest)).json()
    assert refusal(await clone(rest, name="\u00e4PFEL <B>", consent=CONSENT, sample_id=sample["id"])) == (
        400,
        "name_taken",
        "name",
    )


async def test_max_voices_acts() -> None:
    async with server(voices={"max_voices": 1}) as rest:
        await cloned(rest)
        sample = (await send(rest)).json()
        answer = await clone(rest, name="Two", consent=CONSENT, sample_id=sample["id"])
        assert refusal(answer)[:2] == (400, "too_many_voices")
    async with server(voices={"max_voices": 0}) as rest:
        assert (await rest.client.get("/api/clone")).json()["method"] == "none"


async def test_two_at_once_cannot_pass_the_limit_or_share_a_name() -> None:
    async with server(voices={"max_voices": 2}) as rest:
        samples = [(await send(rest)).json()["id"] for _ in range(4)]
        names = ["Same", "Same", "One", "Two"]
        answers = await asyncio.gather(
            *(
                clone(rest, name=name, consent=CONSENT, sample_id=sample)
                for name, sample in zip(names, samples, strict=True)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [201, 201, 400, 400]
        own = rest.live.server.voices.own("local")
        assert len({voice.name for voice in own}) == 2
        files = list((rest.live.server.store.directory / "voices").iterdir())
        assert {path.name.partition(".")[0] for path in files} == {voice.id for voice in own}


@pytest.mark.parametrize(
    ("failure", "status"),
    [(InvalidInput("no speech in it", code="voice_not_clonable"), 400), (EngineFailed("x", stage="tts"), 500)],
)
async def test_an_engine_that_refuses_leaves_nothing(rest: Rest, failure: Exception, status: int) -> None:
    tts = rest.live.tts
    assert isinstance(tts, CloningPitchTts)
    tts.refusal = failure
    sample = (await send(rest)).json()
    assert (await clone(rest, **BODY, sample_id=sample["id"])).status_code == status
    assert list((rest.live.server.store.directory / "voices").iterdir()) == []
    tts.refusal = None
    assert (await clone(rest, **BODY, sample_id=sample["id"])).status_code == 201


# --- the phrase


async def test_a_phrase_read_by_the_same_voice_is_noted_in_the_consent(rest: Rest) -> None:
    phrase = (await rest.client.post("/api/clone/phrase")).json()
    rest.live.asr.texts[:] = ["some words", phrase["text"]]
    sample = (await send(rest)).json()
    read = (await send(rest, audio=recording(2.5), phrase_id=phrase["id"])).json()
    assert read["phrase"] == {"matches": True, "heard": phrase["text"]}
    consent = {**CONSENT, "phrase_sample_id": read["id"]}
    assert (await clone(rest, name="Mine", consent=consent, sample_id=sample["id"])).status_code == 201
    (kept,) = await rest.live.server.voices.consents("local")
    assert kept.phrase == phrase["text"]
    assert kept.phrase_similarity == pytest.approx(1, abs=0.01)


async def test_a_phrase_read_wrong_or_by_another_voice_is_refused(rest: Rest) -> None:
    phrase = (await rest.client.post("/api/clone/phrase", json={"language": "de"})).json()
    rest.live.asr.texts[:] = ["some words", "something else", phrase["text"]]
    sample = (await send(rest)).json()
    wrong = (await send(rest, audio=recording(3), phrase_id=phrase["id"])).json()
    assert wrong["phrase"] == {"matches": False, "heard": "something else"}
    other = (await send(rest, audio=recording(3, 120), phrase_id=phrase["id"])).json()
    for read, code in ((wrong, "phrase_not_heard"), (other, "phrase_other_voice"), (sample, "phrase_not_heard")):
        consent = {**CONSENT, "phrase_sample_id": read["id"]}
        assert refusal(await clone(rest, name="Mine", consent=consent, sample_id=sample["id"]))[:2] == (400, code)


async def test_phrase_required_acts() -> None:
    async with server(voices={"phrase_required": True}) as rest:
        assert (await rest.client.get("/api/clone")).json()["phrase_required"]
        sample = (await send(rest)).json()
        assert refusal(await clone(rest, **BODY, sample_id=sample["id"]))[:2] == (400, "phrase_required")


async def test_an_unknown_phrase_is_not_found(shared: Rest) -> None:
    assert refusal(await send(shared, phrase_id="phr_none"))[:2] == (404, "phrase_not_found")


async def test_min_and_max_reference_act() -> None:
    async with server(voices={"min_reference_s": 6, "max_reference_s": 8}) as rest:
        for seconds, grade in ((5, "poor"), (7, "good"), (9, "poor")):
            assert (await send(rest, audio=recording(seconds))).json()["verdict"]["grade"] == grade


# --- what is kept


async def test_files_are_private_and_the_audit_log_has_the_consent(rest: Rest) -> None:
    voice = await cloned(rest)
    directory = rest.live.server.store.directory / "voices"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    wav = (await rest.client.get(f"/api/voices/{voice['id']}/sample")).content
    (consent,) = await rest.live.server.voices.consents("local")
    assert (consent.voice, consent.typed_name, consent.statement_text) == (voice["id"], "Ada Lovelace", STATEMENT)
    assert consent.sample_sha256 == hashlib.sha256(wav).digest()
    store = rest.live.server.store
    log = await store.read(audit.records)
    assert [(record.action, record.object, record.owner) for record in log[-2:]] == [
        ("consent.given", consent.id, "local"),
        ("voice.clone", voice["id"], "local"),
    ]
    await rest.client.delete(f"/api/voices/{voice['id']}")
    log = await store.read(audit.records)
    assert (log[-1].action, log[-1].object) == ("voice.deleted", voice["id"])
    assert await store.read(audit.first_broken) is None


async def test_the_event_tells_nothing_of_the_person(rest: Rest, capsys: pytest.CaptureFixture[str]) -> None:
    rest.live.asr.texts[:] = ["secretwords of mine"]
    voice = await cloned(rest, "Secretname")
    told = [line for line in capsys.readouterr().out.splitlines() if "voice.cloned" in line]
    assert len(told) == 1
    for hidden in ("Secretname", "secretwords", "Lovelace", voice["id"], "local"):
        assert hidden not in told[0]


async def test_a_consent_outlives_its_voice_for_the_days_of_the_setting(rest: Rest) -> None:
    voice = await cloned(rest)
    book, store = rest.live.server.voices, rest.live.server.store
    await rest.client.delete(f"/api/voices/{voice['id']}")
    (consent,) = await book.consents("local")
    assert consent.voice_deleted_s is not None
    days, end_s = book.settings.consent_days, consent.voice_deleted_s + 86_400 * book.settings.consent_days
    await store.write(lambda db: records.sweep(db, keep_days=days, now_s=end_s - 1))
    assert len(await book.consents("local")) == 1
    await store.write(lambda db: records.sweep(db, keep_days=days, now_s=end_s))
    assert await book.consents("local") == []


async def test_consent_days_acts() -> None:
    async with server(voices={"consent_days": 0}) as rest:
        voice = await cloned(rest)
        await rest.live.server.voices.sweep()
        assert len(await rest.live.server.voices.consents("local")) == 1
        await rest.client.delete(f"/api/voices/{voice['id']}")
        await rest.live.server.voices.sweep()
        assert await rest.live.server.voices.consents("local") == []


async def test_uploads_and_generations_are_counted() -> None:
    async with server(security={"rate_limiting": True}) as rest:
        for _ in range(10):
            assert (await send(rest, audio=b"no audio")).status_code == 400
        answer = await send(rest)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")


async def test_max_upload_size_mb_acts() -> None:
    async with server(security={"rate_limiting": False, "max_upload_size_mb": 0.1}) as rest:
        assert refusal(await send(rest))[:2] == (413, "upload_too_large")


async def test_while_the_engines_load_nothing_is_taken() -> None:
    async with server(performance={"preload_models": False}, until_ready=False) as rest:
        rest.live.server.readiness.expect("tts", "scripted")
        rest.live.server.readiness.drain()
        answer = await send(rest)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_busy")
