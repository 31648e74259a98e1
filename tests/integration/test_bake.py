"""The model of an image with weights, from a server that answers as a hub does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from serverless import bake
from serverless.model_files import ModelFile, ModelSpec
from serverless.model_hub import HubSource
from tests.support.file_server import FileServer, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 100
SPEC = ModelSpec("tiny", "r1", (ModelFile("vocos/weights.bin", "org/vocoder", "weights.bin"),))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving() as server:
        for revision in ("main", COMMIT):
            path = f"/org/vocoder/resolve/{revision}/weights.bin"
            server.files[path] = WEIGHTS
            etag = hashlib.sha256(WEIGHTS).hexdigest()
            server.headers_of[path] = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        yield server


def test_the_directory_holds_the_model_and_nothing_else_is_left(hub: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "f5"
    bake.bake(target, HubSource(endpoint=hub.address), SPEC)
    assert (target / "vocos" / "weights.bin").read_bytes() == WEIGHTS
    assert list(tmp_path.iterdir()) == [target]


def test_a_second_run_downloads_nothing(hub: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "f5"
    source = HubSource(endpoint=hub.address)
    bake.bake(target, source, SPEC)
    hub.requests.clear()
    bake.bake(target, source, SPEC)
    assert hub.requests == []
    assert (target / "vocos" / "weights.bin").read_bytes() == WEIGHTS


def test_a_hub_that_refuses_leaves_no_model(hub: FileServer, tmp_path: Path) -> None:
    hub.status = 404
    with pytest.raises(ConfigError, match="cannot be had"):
        bake.bake(tmp_path / "f5", HubSource(endpoint=hub.address), SPEC)
    assert not (tmp_path / "f5").exists()


def test_a_directory_that_holds_something_else_is_left_alone(hub: FileServer, tmp_path: Path) -> None:
    (mine := tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and holds no complete model"):
        bake.bake(tmp_path, HubSource(endpoint=hub.address), SPEC)
    assert (hub.requests, mine.read_text()) == ([], "years of work")


def test_an_empty_directory_is_filled(hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (target := tmp_path / "f5").mkdir()
    monkeypatch.chdir(target)
    bake.bake(Path("."), HubSource(endpoint=hub.address), SPEC)
    assert (target / "vocos" / "weights.bin").read_bytes() == WEIGHTS


@pytest.mark.parametrize("arguments", [[], ["--help"], ["a", "b"], ["--tiny"], ["--tiny", "--help"]])
def test_a_command_that_is_not_understood_downloads_nothing(arguments: list[str]) -> None:
    assert bake.main(arguments) == 2
