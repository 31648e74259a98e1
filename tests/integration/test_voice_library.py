"""Voices: uploads with their checks, look-ups with their caches, lists of thousands; over a directory and over S3."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import shutil
import wave
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette

from pipeline.audio import AudioChunk, concat, decode_file, file_bytes
from serverless import keys
from serverless.errors import JobError
from serverless.fetch import fetch
from serverless.local_routes import serve_local
from serverless.local_storage import LocalStorage
from serverless.speech import Reference, prepare_reference
from serverless.storage import Storage, StorageError
from serverless.voice_cache import Recording, VoiceCache
from serverless.voices import UPLOAD_TYPE, Voices
from tests.support.file_server import serving
from tests.support.s3_servers import S3Server
from tests.support.speech_clips import SPEECH

TEXT = "And so my fellow Americans, ask not what your country can do for you."


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "directory":
        yield local(tmp_path)
        return
    server: S3Server = request.getfixturevalue("nanio")
    yield server.storage()
    server.empty()


@pytest.fixture
def directory(tmp_path: Path) -> LocalStorage:
    return local(tmp_path)


def local(folder: Path) -> LocalStorage:
    return LocalStorage(folder / "store", "http://worker.test", b"0123456789abcdef")


@cache
def speech(seconds: float = 8.0) -> AudioChunk:
    """A man speaking; repeated where more is asked for than there is."""
    clip = decode_file((SPEECH / "jfk.flac").read_bytes(), max_seconds=60).resampled(24_000)
    pause = AudioChunk(np.random.default_rng(0).normal(0, 1e-4, 12_000).astype(np.float32), 24_000)
    whole = concat([clip, pause] * (1 + int(seconds / clip.seconds)), 24_000)
    return whole.slice(0, round(seconds * 24_000))


@cache
def recording(seconds: float = 8.0) -> bytes:
    return file_bytes(speech(seconds), "wav")


@dataclass
class Listener:
    """Stands for the recogniser, and counts what it was asked."""

    text: str = TEXT
    language: str = "en"
    heard: list[AudioChunk] = field(default_factory=list)

    def __call__(self, audio: AudioChunk) -> tuple[str, str]:
        self.heard.append(audio)
        return self.text, self.language


class Counted:
    """A storage that tells which keys were got and can hold the getting until `go`."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.got = storage, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        self.got.append(key)
        return self.storage.get(key, max_bytes=max_bytes)


@cache
def default() -> Reference:
    return prepare_reference(speech(5.0), "And so my fellow Americans")


def voices_of(
    storage: Storage,
    tmp_path: Path,
    *,
    transcribe: Callable[[AudioChunk], tuple[str, str]] | None = None,
    fetched: Callable[[str], Awaitable[bytes]] | None = None,
    max_cache_mb: int = 100,
) -> Voices:
    async def nothing(url: str) -> bytes:
        raise AssertionError("nothing is fetched here")

    return Voices(
        storage,
        cache_dir=tmp_path / "cache",
        max_cache_mb=max_cache_mb,
        transcribe=transcribe,
        fetch=fetched or nothing,
        default=default(),
    )


async def upload(voices: Voices, name: str = "anna", data: bytes | None = None, **other: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"ref_text": TEXT, "language": "en", "consent": True, "overwrite": False}
    return await voices.upload(name, data=recording() if data is None else data, **(arguments | other))


async def failing(call: Awaitable[object]) -> JobError:
    with pytest.raises(JobError) as caught:
        await call
    return caught.value


async def test_an_uploaded_voice_is_a_wav_of_24_khz_with_a_record_and_can_be_used(
    storage: Storage, tmp_path: Path
) -> None:
    voices = voices_of(storage, tmp_path)
    answer = await upload(voices)
    assert answer["voice"]["duration"] == pytest.approx(8.0, abs=1.0)
    assert answer["voice"]["quality"]["grade"] in ("good", "fair")
    stored = storage.get("voices/anna.wav", max_bytes=10**7)
    with wave.open(io.BytesIO(stored)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
    record = json.loads(storage.get("voices/anna.json", max_bytes=10**5))
    assert (record["ref_text"], record["language"], record["consent"]) == (TEXT, "en", True)
    assert record["sha256"] == hashlib.sha256(stored).hexdigest()
    for name in ("anna", "anna.wav"):
        reference = await voices.resolve(name, None)
        assert (reference.text, reference.audio.sample_rate) == (TEXT, 24_000)
    again = await voices.resolve("anna", None)
    assert again.key == reference.key
    other = await voices.resolve("anna", "And so my fellow Americans, ask not what your country can do.")
    assert other.text.endswith("can do.")
    assert other.key != reference.key


async def test_no_voice_is_the_default_voice(directory: LocalStorage, tmp_path: Path) -> None:
    assert await voices_of(directory, tmp_path).resolve(None, None) is default()


async def test_a_voice_is_not_replaced_unless_asked(storage: Storage, tmp_path: Path) -> None:
    voices = voices_of(storage, tmp_path)
    await upload(voices)
    first = await voices.resolve("anna", None)
    assert (await failing(upload(voices, data=recording(6.0)))).code == "VOICE_EXISTS"
    assert (await voices.resolve("anna", None)).key == first.key
    await upload(voices, data=recording(6.0), ref_text="And so my fellow Americans, ask not.", overwrite=True)
    second = await voices.resolve("anna", None)
    assert second.text == "And so my fellow Americans, ask not."
    assert second.audio.seconds < first.audio.seconds


async def test_of_two_uploads_of_one_name_at_once_one_wins(directory: LocalStorage, tmp_path: Path) -> None:
    voices = voices_of(directory, tmp_path)
    results = await asyncio.gather(upload(voices), upload(voices), return_exceptions=True)
    assert [isinstance(r, JobError) and r.code for r in results].count("VOICE_EXISTS") == 1
    assert (await voices.resolve("anna", None)).text == TEXT


@pytest.mark.parametrize("consent", [False, None, "true", 1])
async def test_without_consent_nothing_is_stored(directory: LocalStorage, tmp_path: Path, consent: object) -> None:
    error = await failing(upload(voices_of(directory, tmp_path), consent=consent))
    assert (error.code, error.errors[0].field, error.errors[0].code) == ("INVALID_INPUT", "consent", "consent_required")
    assert directory.list("") == ([], None)


def noise(seconds: float, level: float) -> bytes:
    samples = np.random.default_rng(1).normal(0, level, round(seconds * 24_000)).astype(np.float32)
    return file_bytes(AudioChunk(np.clip(samples, -1, 1), 24_000), "wav")


def clipped() -> bytes:
    return file_bytes(AudioChunk(np.clip(speech().samples * 12, -0.6, 0.6), 24_000), "wav")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not_audio"),
        (b"<html>not found</html>", "not_audio"),
        (lambda: recording()[:1000], "broken"),
        (lambda: recording(0.5), "too_short"),
        (lambda: recording(31.0), "too_long"),
        (lambda: file_bytes(AudioChunk.silence(5, 24_000), "wav"), "silent"),
        (lambda: noise(5, 0.1), "noisy"),
        (clipped, "clipped"),
        (lambda: b"RIFF" + b"\0" * 25_000_001, "too_large"),
    ],
)
async def test_a_bad_recording_is_refused_with_its_reason(
    directory: LocalStorage, tmp_path: Path, data: bytes | Callable[[], bytes], code: str
) -> None:
    error = await failing(upload(voices_of(directory, tmp_path), data=data if isinstance(data, bytes) else data()))
    assert error.code == "VOICE_INVALID"
    assert code in [each.code for each in error.errors]
    assert directory.list("") == ([], None)


async def test_a_recording_without_text_is_transcribed_once_and_the_text_is_kept(
    storage: Storage, tmp_path: Path
) -> None:
    listener = Listener()
    voices = voices_of(storage, tmp_path, transcribe=listener)
    answer = await upload(voices, ref_text=None, language=None)
    assert (answer["voice"]["ref_text"], answer["voice"]["language"]) == (TEXT, "en")
    assert answer["voice"]["ref_text_source"] == "transcribed"
    for _ in range(3):
        assert (await voices.resolve("anna", None)).text == TEXT
    assert len(listener.heard) == 1


async def test_a_long_recording_is_cut_in_a_pause_before_it_is_transcribed(
    directory: LocalStorage, tmp_path: Path
) -> None:
    listener = Listener()
    voices = voices_of(directory, tmp_path, transcribe=listener)
    await upload(voices, data=recording(24.0), ref_text=None)
    assert 3 < listener.heard[0].seconds <= 12
    assert (await voices.resolve("anna", None)).audio.seconds <= 12


async def test_a_recording_without_text_and_without_a_recogniser_asks_for_it(
    directory: LocalStorage, tmp_path: Path
) -> None:
    error = await failing(upload(voices_of(directory, tmp_path), ref_text=None))
    assert (error.code, error.errors[0].field) == ("VOICE_INVALID", "ref_text")


async def test_voices_of_the_original_are_read_with_their_text_file(storage: Storage, tmp_path: Path) -> None:
    storage.put("voices/old.wav", recording(), content_type="audio/wav")
    storage.put("voices/old.txt", ("\ufeff" + TEXT + "\n").encode(), content_type="text/plain")
    voices = voices_of(storage, tmp_path)
    assert (await voices.resolve("old.wav", None)).text == TEXT
    listed = voices.list()["voices"]
    assert [(v["name"], v["has_ref_text"]) for v in listed] == [("old", True)]


async def test_a_recording_without_any_text_in_the_bucket_is_transcribed_once_for_all_workers(
    directory: LocalStorage, tmp_path: Path
) -> None:
    directory.put("voices/old.wav", recording(24.0), content_type="audio/wav")
    listener = Listener()
    first = voices_of(directory, tmp_path, transcribe=listener)
    references = await asyncio.gather(*(first.resolve("old", None) for _ in range(4)))
    assert {reference.text for reference in references} == {TEXT}
    other = voices_of(directory, tmp_path / "other")
    assert (await other.resolve("old", None)).key == references[0].key
    assert len(listener.heard) == 1


async def test_a_recording_that_was_replaced_by_hand_does_not_keep_the_old_text(
    directory: LocalStorage, tmp_path: Path
) -> None:
    listener = Listener(text="Quite another text.")
    voices = voices_of(directory, tmp_path, transcribe=listener)
    await upload(voices)
    directory.put("voices/anna.wav", recording(5.0), content_type="audio/wav")
    assert (await voices.resolve("anna", None)).text == "Quite another text."
    assert (await voices.resolve("anna", None)).text == "Quite another text."
    assert len(listener.heard) == 1


async def test_jobs_at_once_read_a_voice_once_and_later_ones_take_it_from_the_disk(
    directory: LocalStorage, tmp_path: Path
) -> None:
    await upload(voices_of(directory, tmp_path))
    counted = Counted(directory)
    voices = voices_of(counted, tmp_path)
    references = await asyncio.gather(*(voices.resolve("anna", None) for _ in range(8)))
    assert len({reference.key for reference in references}) == 1
    assert counted.got.count("voices/anna.wav") == 1
    await voices_of(counted, tmp_path).resolve("anna", None)
    assert counted.got.count("voices/anna.wav") == 1


async def test_whoever_waits_gets_the_voice_although_the_first_job_was_cancelled(
    directory: LocalStorage, tmp_path: Path
) -> None:
    await upload(voices_of(directory, tmp_path))
    voices = voices_of(directory, tmp_path)
    first = asyncio.create_task(voices.resolve("anna", None))
    second = asyncio.create_task(voices.resolve("anna", None))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).text == TEXT
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_damaged_cache_file_is_read_anew(directory: LocalStorage, tmp_path: Path) -> None:
    voices = voices_of(directory, tmp_path)
    await upload(voices)
    before = await voices.resolve("anna", None)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(b"{}\n123")
    assert (await voices.resolve("anna", None)).key == before.key


async def test_the_cache_keeps_to_its_size_and_forgets_the_least_used(directory: LocalStorage, tmp_path: Path) -> None:
    voices = voices_of(directory, tmp_path, max_cache_mb=1)
    for i in range(4):
        await upload(voices, f"v{i}")
        await voices.resolve(f"v{i}", None)
        if i:
            await voices.resolve("v0", None)
    sizes = [path.stat().st_size for path in (tmp_path / "cache").iterdir()]
    assert len(sizes) == 2
    assert sum(sizes) <= 1_000_000
    counted = Counted(directory)
    await voices_of(counted, tmp_path, max_cache_mb=1).resolve("v0", None)
    assert "voices/v0.wav" not in counted.got


def test_what_a_killed_worker_left_in_the_cache_is_pruned_as_well(tmp_path: Path) -> None:
    left = tmp_path / ".0123.voice.4567"
    left.write_bytes(b"x" * 1_000_000)
    os.utime(left, (1000, 1000))
    kept = VoiceCache(tmp_path, 1_000_000)
    kept.put(Recording(speech(), "0" * 64), "stored", "anna")
    assert not left.exists()
    assert kept.get("stored", "anna") is not None


def test_a_full_disk_does_not_fail_the_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    kept = VoiceCache(tmp_path / "cache", 100)
    kept.get("nothing")


async def test_a_missing_voice_names_its_neighbours(storage: Storage, tmp_path: Path) -> None:
    for name in ("anna-smith", "Anna", "bert"):
        storage.put(keys.voice_audio(name), b"x", content_type="audio/wav")
    voices = voices_of(storage, tmp_path)
    error = await failing(voices.resolve("ana", None))
    assert error.code == "VOICE_NOT_FOUND"
    assert "Anna" in error.message
    assert "bert" not in error.message
    assert not error.retryable
    for call in (voices.get, voices.delete):
        with pytest.raises(JobError, match="there is no voice"):
            call("zzz")


async def test_a_deleted_voice_is_gone_although_it_is_cached(storage: Storage, tmp_path: Path) -> None:
    voices = voices_of(storage, tmp_path)
    await upload(voices)
    await voices.resolve("anna", None)
    assert voices.get("anna")["voice"]["ref_text"] == TEXT
    voices.delete("anna")
    assert (await failing(voices.resolve("anna", None))).code == "VOICE_NOT_FOUND"
    assert storage.list("voices/") == ([], None)


async def test_the_text_of_an_upload_is_not_replaced_by_what_a_job_transcribed_meanwhile(
    directory: LocalStorage, tmp_path: Path
) -> None:
    await upload(voices_of(directory, tmp_path), data=recording(6.0))
    record = directory.get("voices/anna.json", max_bytes=10**5)
    directory.delete("voices/anna.json")  # between the two writes of an upload

    def transcribe(audio: AudioChunk) -> tuple[str, str]:
        directory.put("voices/anna.json", record, content_type="application/json")
        return "What was misheard.", "en"

    assert (await voices_of(directory, tmp_path, transcribe=transcribe).resolve("anna", None)).text == TEXT
    assert directory.get("voices/anna.json", max_bytes=10**5) == record


async def test_a_voice_that_is_deleted_while_it_is_transcribed_leaves_no_text_behind(
    directory: LocalStorage, tmp_path: Path
) -> None:
    directory.put("voices/old.wav", recording(5.0), content_type="audio/wav")

    def transcribe(audio: AudioChunk) -> tuple[str, str]:
        voices.delete("old")
        return TEXT, "en"

    voices = voices_of(directory, tmp_path, transcribe=transcribe)
    assert (await voices.resolve("old", None)).text == TEXT
    assert directory.list("") == ([], None)


class Failing(Counted):
    """A storage that refuses one call on one key, once."""

    def __init__(self, storage: Storage, method: str, key: str) -> None:
        super().__init__(storage)
        self.fault = method, key

    def _asked(self, method: str, key: str) -> None:
        if (method, key) == self.fault:
            self.fault = ("", "")
            raise StorageError("S3 failed", code="s3_error", retryable=True)

    def put(self, key: str, data: bytes | Path, **other: Any) -> None:
        self._asked("put", key)
        self.storage.put(key, data, **other)

    def delete(self, key: str) -> None:
        self._asked("delete", key)
        self.storage.delete(key)


@pytest.mark.parametrize("key", ["voices/anna.json", "voices/anna.txt", "voices/anna.wav"])
async def test_a_delete_that_failed_half_way_can_be_asked_for_again(
    directory: LocalStorage, tmp_path: Path, key: str
) -> None:
    voices = voices_of(Failing(directory, "delete", key), tmp_path)
    await upload(voices_of(directory, tmp_path))
    with pytest.raises(StorageError):
        voices.delete("anna")
    assert voices.delete("anna")["status"] == "success"
    assert directory.list("") == ([], None)


async def test_an_upload_that_failed_half_way_can_be_asked_for_again(directory: LocalStorage, tmp_path: Path) -> None:
    voices = voices_of(Failing(directory, "put", "voices/anna.json"), tmp_path)
    with pytest.raises(StorageError):
        await upload(voices)
    assert directory.list("") == ([], None)
    assert (await upload(voices))["status"] == "success"


async def test_a_confirmed_upload_that_cannot_be_cleared_away_is_a_voice_all_the_same(
    directory: LocalStorage, tmp_path: Path
) -> None:
    key = keys.upload("anna", "0" * 32)
    directory.put(key, recording(), content_type=UPLOAD_TYPE)
    voices = voices_of(Failing(directory, "delete", key), tmp_path)
    details: dict[str, Any] = {"ref_text": TEXT, "language": "en", "consent": True, "overwrite": False}
    assert (await voices.confirm("anna", "0" * 32, **details))["status"] == "success"


@pytest.mark.parametrize("suffix", ["json", "txt"])
async def test_a_record_that_is_too_large_counts_as_none(directory: LocalStorage, tmp_path: Path, suffix: str) -> None:
    directory.put("voices/old.wav", recording(5.0), content_type="audio/wav")
    directory.put(f"voices/old.{suffix}", b"x" * 100_000, content_type="text/plain")
    voices = voices_of(directory, tmp_path, transcribe=Listener())
    assert voices.list()["voices"][0]["has_ref_text"] is False
    assert voices.get("old")["voice"]["name"] == "old"
    assert (await voices.resolve("old", None)).text == TEXT


def fill(storage: Storage, names: list[str]) -> None:
    for name in names:
        storage.put(f"voices/{name}.wav", b"x", content_type="audio/wav")
    for key in ("voices/v0001.json", "voices/v0003.txt", "voices/deep/er.wav", "voices/v.wav.wav"):
        storage.put(key, b'{"ref_text": "x", "duration": 2.5}', content_type="application/json")


def test_thousands_of_voices_are_listed_page_by_page(directory: LocalStorage, tmp_path: Path) -> None:
    names = sorted(f"v{i:04d}" for i in range(2500))
    fill(directory, names[:5])
    for name in names[5:]:
        (directory.root / "voices" / f"{name}.wav").write_bytes(b"x")  # one by one and synced they take seconds
    voices, seen, cursor = voices_of(directory, tmp_path), [], None
    while True:
        page = voices.list(cursor, 1000)
        seen += page["voices"]
        assert page["count"] == len(page["voices"])
        if (cursor := page["cursor"]) is None:
            break
    assert [v["name"] for v in seen] == names
    assert [(v["duration"], v["has_ref_text"]) for v in seen[1:4]] == [(2.5, True), (None, False), (None, True)]


class SmallPages(Counted):
    """A storage whose pages hold seven objects."""

    def list(self, prefix: str, *, cursor: str | None = None, limit: int = 1000) -> Any:
        return self.storage.list(prefix, cursor=cursor, limit=min(limit, 7))


def test_a_list_goes_over_the_pages_of_the_storage(storage: Storage, tmp_path: Path) -> None:
    names = sorted(f"v{i:04d}" for i in range(24))
    fill(storage, names)
    voices = voices_of(SmallPages(storage), tmp_path)
    assert [v["name"] for v in voices.list()["voices"]] == names
    few = voices.list(prefix="v00", limit=3, cursor="v0021")
    assert ([v["name"] for v in few["voices"]], few["cursor"]) == (["v0022", "v0023"], None)
    assert voices.list(limit=24)["cursor"] is None
    assert voices.list(limit=23)["cursor"] == "v0022"


async def test_a_recording_can_be_put_to_a_signed_url_and_confirmed(nanio: S3Server, tmp_path: Path) -> None:
    voices = voices_of(nanio.storage(), tmp_path)
    wanted = await voices.request_upload("anna", seconds=60)
    async with httpx.AsyncClient() as client:
        answer = await client.put(wanted["upload_url"], content=recording(), headers=wanted["headers"])
    assert answer.status_code == 200
    details: dict[str, Any] = {"ref_text": TEXT, "language": "en", "consent": True, "overwrite": False}
    assert (await voices.confirm("anna", wanted["upload_id"], **details))["status"] == "success"
    assert (await voices.resolve("anna", None)).text == TEXT
    assert nanio.storage().list("uploads/") == ([], None)
    again = await failing(voices.confirm("anna", wanted["upload_id"], **details))
    assert (again.code, again.errors[0].code) == ("INVALID_INPUT", "not_uploaded")
    nanio.empty()


async def test_an_upload_that_is_too_large_is_deleted_unread(nanio: S3Server, tmp_path: Path) -> None:
    storage, upload_id = nanio.storage(), "0" * 32
    storage.put(keys.upload("anna", upload_id), b"\0" * 25_000_001, content_type=UPLOAD_TYPE)
    details: dict[str, Any] = {"ref_text": TEXT, "language": "en", "consent": True, "overwrite": False}
    error = await failing(voices_of(storage, tmp_path).confirm("anna", upload_id, **details))
    assert (error.code, error.errors[0].code) == ("VOICE_INVALID", "too_large")
    assert storage.list("uploads/") == ([], None)


async def test_a_recording_behind_a_url_is_a_voice_decoded_and_transcribed_once(
    directory: LocalStorage, tmp_path: Path
) -> None:
    listener = Listener()
    with serving({"/voice.wav": recording(), "/copy.wav": recording(), "/page": b"<html></html>"}) as server:

        async def fetched(url: str) -> bytes:
            return await fetch(url, timeout_s=20, allow_private=True)

        voices = voices_of(directory, tmp_path, transcribe=listener, fetched=fetched)
        together = await asyncio.gather(*(voices.resolve(server.address + "/voice.wav", None) for _ in range(3)))
        assert len(server.asked_for("/voice.wav")) == 1
        copy = await voices.resolve(server.address + "/copy.wav", None)
        assert {reference.key for reference in together} == {copy.key}
        assert len(listener.heard) == 1
        assert (await voices.resolve(server.address + "/copy.wav", TEXT)).text == TEXT
        assert (await failing(voices.resolve(server.address + "/page", None))).code == "VOICE_INVALID"
    assert directory.list("") == ([], None)


@pytest.mark.parametrize("name", ["../x", "a/../../b", "", ".hidden", "a b", "ä", "x" * 65, "a\n", "C:\\x", "a\0"])
async def test_a_name_that_is_no_name_reaches_no_storage(directory: LocalStorage, tmp_path: Path, name: str) -> None:
    async def fetched(url: str) -> bytes:
        return await fetch(url, timeout_s=1)

    counted = Counted(directory)
    voices = voices_of(counted, tmp_path, fetched=fetched)
    assert (await failing(voices.resolve(name, None))).code in ("INVALID_INPUT", "URL_BLOCKED")
    assert (await failing(upload(voices, name))).code == "INVALID_INPUT"
    assert (await failing(voices.request_upload(name, seconds=1))).code == "INVALID_INPUT"
    for call in (voices.get, voices.delete):
        with pytest.raises(JobError):
            call(name)
    assert counted.got == []


class TestLocalUrls:
    """The signed URLs of a directory, through the routes of the dev server."""

    @pytest.fixture
    def client(self, directory: LocalStorage) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=Starlette(routes=serve_local(directory)))
        return httpx.AsyncClient(transport=transport)

    async def test_reading_with_ranges(self, directory: LocalStorage, client: httpx.AsyncClient) -> None:
        directory.put("output/j.wav", b"0123456789", content_type="audio/wav")
        url = directory.presign_get("output/j.wav", seconds=60, filename="a.wav")
        whole = await client.get(url)
        assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, b"0123456789", "audio/wav")
        assert whole.headers["content-disposition"] == 'attachment; filename="a.wav"'
        part = await client.get(url, headers={"Range": "bytes=2-4"})
        assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
        assert (await client.get(url, headers={"Range": "bytes=20-"})).status_code == 416
        assert (await client.head(url)).status_code == 200

    async def test_nothing_else_is_allowed(self, directory: LocalStorage, client: httpx.AsyncClient) -> None:
        directory.put("output/j.wav", b"0123456789", content_type="audio/wav")
        url = directory.presign_get("output/j.wav", seconds=60)
        for wrong in (
            url.replace("j.wav", "k.wav"),
            url.replace("expires=", "expires=9"),
            url.split("?")[0],
            url + "&filename=x.html",
            url[:-1] + ("0" if url[-1] != "0" else "1"),
            url.replace("j.wav", "%2e%2e/%2e%2e/etc/passwd"),
        ):
            assert (await client.get(wrong)).status_code == 403, wrong
        assert (await client.put(url, content=b"x")).status_code == 403
        assert (await client.delete(url)).status_code == 405
        gone = directory.presign_get("output/none.wav", seconds=60)
        assert (await client.get(gone)).status_code == 404

    async def test_a_disk_that_fails_is_an_answer_without_its_path(
        self, directory: LocalStorage, client: httpx.AsyncClient
    ) -> None:
        directory.put("output/j.wav", b"0123456789", content_type="audio/wav")
        url = directory.presign_get("output/j.wav", seconds=60)
        shutil.rmtree(directory.root)
        answer = await client.get(url)
        assert (answer.status_code, str(directory.root) in answer.text) == (500, False)

    async def test_a_url_ends_with_its_time(self, tmp_path: Path) -> None:
        now = 1000.0
        storage = LocalStorage(tmp_path / "s", "http://worker.test", b"0123456789abcdef", clock=lambda: now)
        storage.put("output/j.wav", b"x", content_type="audio/wav")
        url = storage.presign_get("output/j.wav", seconds=60)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=Starlette(routes=serve_local(storage))))
        now = 1059.0
        assert (await client.get(url)).status_code == 200
        now = 1060.0
        assert (await client.get(url)).status_code == 403

    async def test_writing_up_to_the_agreed_size(self, directory: LocalStorage, client: httpx.AsyncClient) -> None:
        key = keys.upload("anna", "0" * 32)
        url = directory.presign_put(key, seconds=60, content_type=UPLOAD_TYPE, max_bytes=10)
        headers = {"Content-Type": UPLOAD_TYPE}

        async def endless() -> Any:
            while True:
                yield b"x" * 8

        assert (await client.put(url, content=b"x" * 11, headers=headers)).status_code == 413
        assert (await client.put(url, content=endless(), headers=headers)).status_code == 413
        assert (await client.put(url, content=b"x", headers={"Content-Type": "text/html"})).status_code == 403
        assert (await client.get(url)).status_code == 403
        assert directory.head(key) is None
        assert (await client.put(url, content=b"x" * 10, headers=headers)).status_code == 200
        assert directory.get(key, max_bytes=10) == b"x" * 10

    def test_no_link_is_followed(self, directory: LocalStorage, tmp_path: Path) -> None:
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "x.wav").write_bytes(b"secret")
        (directory.root / "output").symlink_to(tmp_path / "secret")
        assert directory.head("output/x.wav") is None
        with pytest.raises(Exception, match="could not be"):
            directory.put("output/y.wav", b"x", content_type="audio/wav")
        (directory.root / "jobs").mkdir()
        (directory.root / "jobs" / "x.json").symlink_to(tmp_path / "secret" / "x.wav")
        assert directory.head("jobs/x.json") is None
        assert directory.list("") == ([], None)
        directory.put("jobs/x.json", b"ours", content_type="application/json")
        assert (tmp_path / "secret" / "x.wav").read_bytes() == b"secret"
        assert sorted(path.name for path in (tmp_path / "secret").iterdir()) == ["x.wav"]
