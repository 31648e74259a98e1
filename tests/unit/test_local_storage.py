"""A directory keeps the promises of `Storage`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import InvalidInput, StorageError
from serverless import keys
from serverless.local_storage import LocalStorage
from serverless.storage import NotStored, disk_errors


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store", None, b"0123456789abcdef")


def test_what_is_put_can_be_got_and_headed_and_deleted(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    storage.put("output/a.wav", b"RIFF", content_type="audio/wav", filename="a.wav")
    storage.put("output/b.wav", tmp_path / "file", content_type="audio/wav")
    assert storage.get("output/a.wav", max_bytes=4) == b"RIFF"
    assert storage.get("output/b.wav", max_bytes=100) == b"from a file"
    with pytest.raises(StorageError, match="too large"):
        storage.get("output/a.wav", max_bytes=3)
    found = storage.head("output/a.wav")
    assert found is not None
    assert (found.key, found.size) == ("output/a.wav", 4)
    storage.delete("output/a.wav")
    storage.delete("output/a.wav")
    storage.delete("nothing/at/all")
    assert storage.head("output/a.wav") is None
    with pytest.raises(NotStored):
        storage.get("output/a.wav", max_bytes=4)
    with pytest.raises(NotStored):
        storage.get("output", max_bytes=4)
    with pytest.raises(NotStored):
        storage.get("output/b.wav/deeper", max_bytes=4)


def test_a_changed_object_has_another_etag(storage: LocalStorage) -> None:
    storage.put("voices/a.wav", b"one", content_type="audio/wav")
    first = storage.head("voices/a.wav")
    storage.put("voices/a.wav", b"two", content_type="audio/wav")
    second = storage.head("voices/a.wav")
    assert first is not None
    assert second is not None
    assert first.etag != second.etag


def test_listing_goes_on_after_the_cursor(storage: LocalStorage) -> None:
    names = [f"voices/v{i}.wav" for i in range(7)]
    for name in reversed(names):
        storage.put(name, b"x", content_type="audio/wav")
    storage.put("output/other.wav", b"x", content_type="audio/wav")
    seen, cursor, pages = [], None, 0
    while True:
        page, cursor = storage.list("voices/", cursor=cursor, limit=3)
        seen += [item.key for item in page]
        pages += 1
        if cursor is None:
            break
    assert (seen, pages) == (names, 3)


def test_what_others_left_in_the_directory_is_no_object_and_ends_no_list(storage: LocalStorage, tmp_path: Path) -> None:
    for i in range(4):
        storage.put(f"voices/v{i}.wav", b"x", content_type="audio/wav")
    folder = storage.root / "voices"
    for name in (".DS_Store", "My Voice.wav", "ä.wav", os.fsdecode(b"\xff.wav")):
        (folder / name).write_bytes(b"x")
    (folder / "v00.wav").symlink_to(folder / "v0.wav")
    os.mkfifo(folder / "v01.wav")
    seen, cursor = list[str](), None
    while True:
        page, cursor = storage.list("voices/", cursor=cursor, limit=1)
        seen += [item.key for item in page]
        if cursor is None:
            break
    assert seen == [f"voices/v{i}.wav" for i in range(4)]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(storage: LocalStorage) -> None:
    storage.put("jobs/a.json", b"old", content_type="application/json")

    def write() -> None:
        with storage.writing("jobs/a.json") as file:
            file.write(b"half of the n")
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError):
        write()
    assert storage.get("jobs/a.json", max_bytes=9) == b"old"
    assert os.listdir(storage.root / "jobs") == ["a.json"]


def test_files_are_for_this_user_alone(storage: LocalStorage) -> None:
    storage.put("jobs/a.json", b"x", content_type="application/json")
    assert (storage.root / "jobs" / "a.json").stat().st_mode & 0o777 == 0o600
    assert (storage.root / "jobs").stat().st_mode & 0o077 == 0


def test_a_download_of_the_wrong_size_is_refused(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("models/m/r/w", b"12345", content_type="application/octet-stream")
    storage.download("models/m/r/w", tmp_path / "deep" / "w", size=5)
    assert (tmp_path / "deep" / "w").read_bytes() == b"12345"
    with pytest.raises(StorageError, match="another size"):
        storage.download("models/m/r/w", tmp_path / "w", size=6)


@pytest.mark.parametrize("key", ["../x", "a//b", "/a", "a/", "a/../b", "a b", "voices/ä.wav", ".hidden", "", "a\0"])
def test_a_key_that_is_no_key_touches_no_disk(storage: LocalStorage, key: str) -> None:
    for call in (
        lambda: storage.put(key, b"", content_type="a/b"),
        lambda: storage.get(key, max_bytes=1),
        lambda: storage.head(key),
        lambda: storage.delete(key),
        lambda: storage.presign_get(key, seconds=1),
        lambda: storage.presign_put(key, seconds=1, content_type="a/b", max_bytes=1),
    ):
        with pytest.raises(InvalidInput):
            call()
    assert os.listdir(storage.root) == []


def test_the_check_passes_and_leaves_nothing_behind(storage: LocalStorage) -> None:
    storage.check()
    assert storage.list(keys.HEALTHZ) == ([], None)


def test_a_disk_that_cannot_be_written_is_told_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StorageError) as caught:
        LocalStorage(tmp_path / "file" / "store", None, b"0123456789abcdef")
    assert str(tmp_path) not in caught.value.message
    with pytest.raises(StorageError) as full, disk_errors("written"):
        raise OSError(28, "No space left on device", str(tmp_path))
    assert (full.value.code, full.value.retryable) == ("no_space", False)


def test_without_an_address_signed_urls_are_paths(storage: LocalStorage) -> None:
    assert storage.presign_get("output/a.wav", seconds=60).startswith("/storage/output/a.wav?expires=")


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        LocalStorage(tmp_path, None, b"short")
