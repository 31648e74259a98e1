"""The model's files from each place of the chain, against a real S3 server and a server that answers as a hub does."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from pipeline.errors import ConfigError
from serverless.model_cache import FoundModel, find_model
from serverless.model_files import MARK, ModelFile, ModelSpec, complete, in_hub_cache, mark_complete
from serverless.model_hub import HubSource
from serverless.model_upload import upload_model
from serverless.s3 import S3Storage
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.file_server import FileServer, serving
from tests.support.s3_servers import S3Server

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "weights.safetensors": random.Random(7).randbytes(300_000),
    "vocos/config.yaml": b"feature_extractor: mel\n",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPEC = ModelSpec(
    "tiny",
    "r1",
    (
        ModelFile("weights.safetensors", "org/voice", "base/weights.safetensors"),
        ModelFile("vocos/config.yaml", "org/vocoder", "config.yaml"),
    ),
)
RANGE = 50_000


@pytest.fixture
def storage(server: S3Server) -> S3Storage:
    return server.storage(range_bytes=RANGE)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving() as server:
        for file, data in zip(SPEC.files, FILES.values(), strict=True):
            is_large = file.path.endswith("safetensors")
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            for revision in ("main", COMMIT):
                path = f"/{file.repository}/resolve/{revision}/{file.hub_path}"
                server.files[path] = data
                etag = hashlib.sha256(data).hexdigest() if is_large else git
                server.headers_of[path] = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        yield server


class Places:
    """The arguments of `find_model`, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.found = folder, list[FoundModel]()

    def find(self, **other: Any) -> Path:
        arguments: dict[str, Any] = {"local_dir": self.folder / "models", "hub_caches": ()}
        return find_model(SPEC, noted=self.found.append, **(arguments | other))

    @property
    def source(self) -> str:
        return self.found[-1].source


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def write(directory: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def hub_cache(folder: Path, *, refs: bool = True, only: str = "") -> Path:
    cache = folder / "hub"
    for file in SPEC.files:
        if only and file.path != only:
            continue
        repository = cache / f"models--{file.repository.replace('/', '--')}"
        write(repository / "snapshots" / COMMIT, {file.hub_path: FILES[file.path]})
        if refs:
            write(repository, {"refs/main": COMMIT.encode()})
    return cache


def assert_whole(directory: Path) -> None:
    assert {name: (directory / name).read_bytes() for name in FILES} == FILES
    left = {path.name for path in directory.rglob("*") if path.is_file()}
    assert left <= {MARK, *(Path(name).name for name in FILES)}


def fill(storage: S3Storage, folder: Path, hub: FileServer) -> None:
    """Put the model into the bucket, as the first worker does."""
    directory = find_model(
        SPEC, local_dir=folder / "first", hub_caches=(), storage=storage, hub=HubSource(endpoint=hub.address),
        upload_to_s3=True,
    )  # fmt: skip
    assert_whole(directory)
    hub.requests.clear()


def test_a_baked_model_is_used_where_it_lies(places: Places) -> None:
    baked = write(places.folder / "baked")
    assert places.find(baked_dir=baked) == baked
    assert places.source == "baked"


def test_runpods_cached_model_is_linked_and_not_copied(places: Places) -> None:
    cache = hub_cache(places.folder)
    directory = places.find(hub_caches=(cache,), baked_dir=places.folder / "none")
    assert_whole(directory)
    assert places.source == "runpod"
    assert all((directory / name).is_symlink() for name in FILES)
    assert places.find(hub_caches=(cache,)) == directory


def test_the_only_snapshot_counts_where_the_cache_names_no_branch(places: Places) -> None:
    assert_whole(places.find(hub_caches=(hub_cache(places.folder, refs=False),)))


def test_a_file_of_known_hash_is_taken_from_any_snapshot_that_has_it_and_no_other(tmp_path: Path) -> None:
    data = FILES["weights.safetensors"]
    right = hashlib.sha256(data).hexdigest()
    repository = tmp_path / "models--org--voice"
    blob = write(repository, {f"blobs/{right}": data}) / "blobs" / right
    link = repository / "snapshots" / ("a" * 40) / "base" / "weights.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    wanted = ModelFile("w", "org/voice", "base/weights.safetensors", hub_revision="b" * 40, sha256=right)
    assert in_hub_cache(tmp_path, wanted) == link
    assert in_hub_cache(tmp_path, dataclasses.replace(wanted, sha256="0" * 64)) is None
    assert in_hub_cache(tmp_path, dataclasses.replace(wanted, size=1)) is None
    assert in_hub_cache(tmp_path, dataclasses.replace(wanted, sha256=None)) is None
    assert in_hub_cache(tmp_path, dataclasses.replace(wanted, sha256=None, hub_revision="a" * 40)) == link


def test_a_new_snapshot_of_the_cached_model_is_followed(places: Places) -> None:
    cache = hub_cache(places.folder)
    directory = places.find(hub_caches=(cache,))
    repository = cache / "models--org--voice"
    write(repository, {"refs/main": b"f" * 40, f"snapshots/{'f' * 40}/base/weights.safetensors": b"new"})
    assert places.find(hub_caches=(cache,)) == directory
    assert (directory / "weights.safetensors").read_bytes() == b"new"


def test_places_that_this_user_may_not_look_into_are_passed_by(
    places: Places, hub: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, baked, stat = hub_cache(places.folder), write(places.folder / "baked"), Path.stat

    def refused(path: Path, **other: Any) -> os.stat_result:
        if path.is_relative_to(cache) or path.is_relative_to(baked):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **other)

    monkeypatch.setattr(Path, "stat", refused)
    assert_whole(places.find(baked_dir=baked, hub_caches=(cache,), hub=HubSource(endpoint=hub.address)))
    assert places.source == "hub"


def test_a_cached_file_that_cannot_be_read_comes_from_the_hub(
    places: Places, hub: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, opened = hub_cache(places.folder, only="weights.safetensors"), Path.open

    def refused(path: Path, *arguments: Any, **other: Any) -> Any:
        if path.resolve().is_relative_to(cache):
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *arguments, **other)

    monkeypatch.setattr(Path, "open", refused)
    directory = places.find(hub_caches=(cache,), hub=HubSource(endpoint=hub.address))
    monkeypatch.undo()
    assert_whole(directory)
    assert not (directory / "weights.safetensors").is_symlink()


def test_the_hub_brings_what_the_cache_lacks_and_the_copy_is_complete(places: Places, hub: FileServer) -> None:
    cache = hub_cache(places.folder, only="weights.safetensors")
    directory = places.find(hub_caches=(cache,), hub=HubSource(endpoint=hub.address))
    assert_whole(directory)
    assert places.found[-1].n_bytes == len(FILES["vocos/config.yaml"])
    assert not [path for _, path, _ in hub.requests if "weights" in path]
    shutil.rmtree(cache)
    with pytest.raises(ConfigError):
        places.find(hub_caches=(cache,))


def test_a_model_of_the_hub_is_uploaded_and_comes_from_the_bucket_then(
    places: Places, storage: S3Storage, hub: FileServer
) -> None:
    fill(storage, places.folder, hub)
    keys = [item.key for item in storage.list("models/")[0]]
    assert keys == [
        "models/tiny/r1/MANIFEST.json",
        "models/tiny/r1/vocos/config.yaml",
        "models/tiny/r1/weights.safetensors",
    ]
    directory = places.find(storage=storage, hub=HubSource(endpoint=hub.address))
    assert_whole(directory)
    assert places.source == "s3"
    assert places.found[-1].n_bytes == sum(map(len, FILES.values()))
    assert hub.requests == []
    assert places.find(storage=storage) == directory
    assert (places.source, places.found[-1].n_bytes) == ("volume", 0)


def test_without_the_switch_nothing_is_uploaded(places: Places, moto: S3Server, hub: FileServer) -> None:
    storage = moto.storage()
    places.find(storage=storage, hub=HubSource(endpoint=hub.address))
    assert places.source == "hub"
    assert storage.list("models/") == ([], None)


def test_a_hub_download_that_broke_off_is_gone_on_with(places: Places, hub: FileServer) -> None:
    hub.cut_after = [None, 100_000, None, None]
    for _ in range(3):
        try:
            directory = places.find(hub=HubSource(endpoint=hub.address))
        except ConfigError:
            continue
        assert_whole(directory)
        return
    raise AssertionError("the download never ended")


def test_what_a_killed_worker_had_from_the_hub_is_still_uploaded(
    places: Places, moto: S3Server, hub: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    arguments = {"storage": moto.storage(), "hub": HubSource(endpoint=hub.address), "upload_to_s3": True}
    with monkeypatch.context() as patch:
        patch.setattr("serverless.model_download.mark_complete", killed)
        with pytest.raises(KeyboardInterrupt):
            places.find(**arguments)
    assert_whole(places.find(**arguments))
    assert (places.source, places.found[-1].n_bytes) == ("hub", 0)
    assert moto.storage().head("models/tiny/r1/MANIFEST.json") is not None
    moto.empty()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Data processing error: https://signed.example"), "hub: the hub cannot be reached"),
        (OSError(errno.ENOSPC, "No space left on device"), "hub: the disk is full"),
    ],
)
def test_what_the_hubs_client_raises_is_a_reason(
    places: Places, hub: FileServer, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(ConfigError, match=reason) as caught:
        places.find(hub=HubSource(endpoint=hub.address))
    assert "signed.example" not in caught.value.message


def test_damaged_bytes_of_the_hub_are_refused(places: Places, hub: FileServer) -> None:
    for path in hub.files:
        if path.endswith("safetensors"):
            hub.files[path] = FILES["weights.safetensors"][:-1] + b"!"
    with pytest.raises(ConfigError, match="damaged"):
        places.find(hub=HubSource(endpoint=hub.address))
    assert not (places.folder / "models" / "tiny" / "r1").exists()


def test_every_place_and_its_reason_stand_in_one_error(places: Places, moto: S3Server, hub: FileServer) -> None:
    hub.status = 401
    with pytest.raises(ConfigError) as caught:
        places.find(
            baked_dir=places.folder / "baked",
            hub_caches=(places.folder / "hub",),
            storage=moto.storage(),
            hub=HubSource(endpoint=hub.address, token="hf_secret"),
        )
    for part in ("image: there is no", "RunPod's cached model:", "volume:", "S3: the bucket does not", "hub: "):
        assert part in caught.value.message
    assert "hf_secret" not in caught.value.message
    assert hub.address not in caught.value.message


def test_a_damaged_copy_on_the_volume_is_brought_anew(places: Places, hub: FileServer) -> None:
    source = HubSource(endpoint=hub.address)
    directory = places.find(hub=source)
    weights = directory / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert_whole(places.find(hub=source))
    assert places.source == "hub"
    os.utime(directory / "weights.safetensors")
    places.find(hub=source)
    assert places.source == "volume"
    (directory / MARK).unlink()
    places.find(hub=source)
    assert places.source == "hub"


def test_a_changed_object_in_the_bucket_is_not_believed(places: Places, moto: S3Server, hub: FileServer) -> None:
    storage = moto.storage(range_bytes=RANGE)
    fill(storage, places.folder, hub)
    changed = FILES["weights.safetensors"][:-1] + b"!"
    storage.put("models/tiny/r1/weights.safetensors", changed, content_type="application/octet-stream")
    with pytest.raises(ConfigError, match="damaged"):
        places.find(storage=storage)
    assert_whole(places.find(storage=storage, hub=HubSource(endpoint=hub.address)))
    assert places.source == "hub"
    moto.empty()


def test_a_manifest_of_another_file_is_refused(places: Places, moto: S3Server, hub: FileServer) -> None:
    storage = moto.storage()
    fill(storage, places.folder, hub)
    wanted = ModelFile("weights.safetensors", "org/voice", "base/weights.safetensors", sha256="0" * 64)
    with pytest.raises(ConfigError, match="another file than the one wanted"):
        find_model(ModelSpec("tiny", "r1", (wanted,)), local_dir=places.folder / "m", hub_caches=(), storage=storage)
    moto.empty()


@pytest.mark.parametrize("path", ["../../outside", "/etc/passwd", "a/../../b"])
def test_paths_of_a_manifest_are_taken_only_where_they_were_asked_for(
    places: Places, moto: S3Server, path: str
) -> None:
    files = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()
    ]
    manifest = {"name": "tiny", "revision": "r1", "files": [*files, {**files[0], "path": path}]}
    storage = moto.storage()
    storage.put("models/tiny/r1/MANIFEST.json", json.dumps(manifest).encode(), content_type="application/json")
    for name, data in FILES.items():
        storage.put(f"models/tiny/r1/{name}", data, content_type="application/octet-stream")
    assert_whole(places.find(storage=storage))
    assert sorted(p.name for p in places.folder.iterdir()) == ["models"]
    moto.empty()


def test_a_disk_without_room_is_said_before_anything_is_brought(
    places: Places, moto: S3Server, hub: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = moto.storage()
    fill(storage, places.folder, hub)
    usage = shutil.disk_usage(places.folder)
    monkeypatch.setattr("serverless.model_download.shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match="GB are free"):
        places.find(storage=storage)
    moto.empty()


def test_what_is_there_already_needs_no_more_room(
    places: Places, moto: S3Server, hub: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = moto.storage()
    fill(storage, places.folder, hub)
    write(places.folder / "models" / "tiny" / ".tmp-r1-1", {"weights.safetensors.part": b"x" * 300_000})
    usage = shutil.disk_usage(places.folder)._replace(free=(64 << 20) + 1000)
    monkeypatch.setattr("serverless.model_download.shutil.disk_usage", lambda path: usage)
    assert_whole(places.find(storage=storage))
    moto.empty()


def test_breaking_bodies_and_a_slow_bucket_only_cost_time(
    places: Places, moto: S3Server, proxy: FaultProxy, hub: FileServer
) -> None:
    fill(moto.storage(range_bytes=RANGE), places.folder, hub)
    proxy.faults += [
        Fault(method="GET", path="weights", cut_at=10),
        Fault(method="GET", path="weights", status=503, code="SlowDown"),
        Fault(method="GET", path="weights", cut_at=40_000),
    ]
    assert_whole(places.find(storage=moto.storage(endpoint_url=proxy.endpoint_url, range_bytes=RANGE)))
    assert places.source == "s3"


def test_a_byte_that_was_changed_on_the_way_is_found_and_brought_again(
    places: Places, moto: S3Server, proxy: FaultProxy, hub: FileServer
) -> None:
    fill(moto.storage(range_bytes=RANGE), places.folder, hub)
    proxy.faults.append(Fault(method="GET", path="weights", flip=True))
    assert_whole(places.find(storage=moto.storage(endpoint_url=proxy.endpoint_url, range_bytes=RANGE)))
    assert proxy.count("GET", "weights") == 12


CHILD = """
import sys
from pathlib import Path
from serverless.model_cache import find_model
from serverless.model_files import ModelFile, ModelSpec
from serverless.s3 import S3Storage
endpoint, key, secret, folder = sys.argv[1:]
spec = ModelSpec("tiny", "r1", (
    ModelFile("weights.safetensors", "org/voice", "base/weights.safetensors"),
    ModelFile("vocos/config.yaml", "org/vocoder", "config.yaml")))
storage = S3Storage(bucket="voice-bucket", endpoint_url=endpoint, access_key_id=key, secret_access_key=secret,
                    range_bytes=50_000)
find_model(spec, local_dir=Path(folder), hub_caches=(), storage=storage,
           noted=lambda found: print(found.source, found.n_bytes, flush=True))
"""


def child(moto: S3Server, endpoint: str, folder: Path) -> subprocess.Popen[str]:
    arguments = [endpoint, moto.access_key_id, moto.secret_access_key, str(folder)]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_kill_9_in_mid_download_leaves_no_model_and_the_next_worker_goes_on(
    places: Places, moto: S3Server, proxy: FaultProxy, hub: FileServer
) -> None:
    fill(moto.storage(range_bytes=RANGE), places.folder, hub)
    held = threading.Event()
    folder = places.folder / "models"
    # Four of the six ranges come; the others never do.
    proxy.faults += [Fault(method="GET", path="weights", times=4), Fault(method="GET", path="weights", hold=held)]
    process = child(moto, proxy.endpoint_url, folder)

    def noted() -> int:
        notes = list(folder.glob("tiny/.tmp-*/weights.safetensors.part.ranges"))
        return len(notes[0].read_text().splitlines()) - 1 if notes else 0

    try:
        wait_for(lambda: noted() >= 4)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (folder / "tiny" / "r1").exists()
    held.set()
    proxy.faults.clear()
    proxy.requests.clear()
    assert_whole(places.find(storage=moto.storage(endpoint_url=proxy.endpoint_url, range_bytes=RANGE)))
    assert proxy.count("GET", "weights") <= 2
    assert sorted(path.name for path in (folder / "tiny").iterdir()) == ["r1", "r1.lock"]


def test_two_workers_on_one_volume_download_once(
    places: Places, moto: S3Server, proxy: FaultProxy, hub: FileServer
) -> None:
    fill(moto.storage(range_bytes=RANGE), places.folder, hub)
    processes = [child(moto, proxy.endpoint_url, places.folder / "models") for _ in range(2)]
    told = sorted(process.communicate(timeout=60)[0].splitlines()[-1] for process in processes)
    assert told == [f"s3 {sum(map(len, FILES.values()))}", "volume 0"]
    assert proxy.count("GET", "weights") == 6
    assert_whole(places.folder / "models" / "tiny" / "r1")


def test_a_volume_without_locks_and_another_worker_at_work_still_gives_the_model(
    places: Places, hub: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("serverless.model_cache.fcntl", SimpleNamespace(flock=flock, LOCK_EX=2))
    others = write(places.folder / "models" / "tiny" / ".tmp-r1-1", {"weights.safetensors": b"half"})
    assert_whole(places.find(hub=HubSource(endpoint=hub.address)))
    assert (others / "weights.safetensors").read_bytes() == b"half"


def test_without_locks_a_model_that_another_worker_brought_meanwhile_stays(
    places: Places, hub: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = places.folder / "models" / "tiny" / "r1"

    def bring(directory: Path, *arguments: Any) -> Any:
        done = mark_complete(directory, *arguments)
        shutil.copytree(directory, place)
        (place / "in-use").touch()
        return done

    monkeypatch.setattr("serverless.model_download.mark_complete", bring)
    assert places.find(hub=HubSource(endpoint=hub.address)) == place
    assert (place / "in-use").exists()
    assert sorted(path.name for path in place.parent.iterdir()) == ["r1", "r1.lock"]


def test_of_many_workers_exactly_one_uploads(places: Places, moto: S3Server, hub: FileServer) -> None:
    directory = places.find(hub=HubSource(endpoint=hub.address))
    storage, start = moto.storage(), threading.Barrier(4)
    storage.head("jobs/x.json")
    done: list[bool] = []

    def upload(i: int) -> None:
        start.wait()
        done.append(upload_model(SPEC, directory, storage, worker=f"w{i}"))

    threads = [threading.Thread(target=upload, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [False, False, False, True]
    assert storage.head("models/tiny/r1/LEASE.json") is None
    moto.empty()


def test_a_lease_of_a_dead_worker_is_taken_over_after_its_time(
    places: Places, storage: S3Storage, hub: FileServer
) -> None:
    directory = places.find(hub=HubSource(endpoint=hub.address))
    lease = json.dumps({"holder": "dead", "expires": 1000.0}).encode()
    storage.put("models/tiny/r1/LEASE.json", lease, content_type="application/json")
    assert not upload_model(SPEC, directory, storage, worker="w", clock=lambda: 999.0)
    assert storage.head("models/tiny/r1/MANIFEST.json") is None
    assert upload_model(SPEC, directory, storage, worker="w", clock=lambda: 1001.0)
    assert storage.head("models/tiny/r1/MANIFEST.json") is not None
    assert storage.head("models/tiny/r1/LEASE.json") is None


def test_a_failed_upload_leaves_no_manifest_and_no_lease(
    places: Places, moto: S3Server, proxy: FaultProxy, hub: FileServer
) -> None:
    directory = places.find(hub=HubSource(endpoint=hub.address))
    proxy.faults.append(Fault(method="PUT", path="config.yaml", status=403, code="AccessDenied", times=9))
    storage = moto.storage(endpoint_url=proxy.endpoint_url)
    with structlog.testing.capture_logs() as logs:
        assert not upload_model(SPEC, directory, storage, worker="w")
    assert logs[-1]["event"] == "model.upload_failed"
    assert [item.key for item in storage.list("models/")[0]] == ["models/tiny/r1/weights.safetensors"]
    assert complete(directory, SPEC) is not None
