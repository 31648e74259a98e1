"""Models of the GPU profile: sharded, without a known sha256, gated, chosen by preset or configuration file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.models import Manifest, load_manifest, locate, read_mark
from scripts.model_pins import git_blob_of
from tests.support.download_fixtures import hub, models_dir, own_world
from tests.support.file_server import FileServer, serving
from tests.support.tiny_model import COMMIT, closed_port, download, sha256, written

__all__ = ["hub", "models_dir", "own_world"]

SHARDS = {f"model-{n:05}-of-00003.safetensors": bytes([n]) * 1000 * n for n in (1, 2, 3)}
INDEX = json.dumps({"weight_map": dict(zip("abc", SHARDS, strict=True))}).encode()
FILES = {**SHARDS, "model.safetensors.index.json": INDEX, "tokenizer/tokenizer.json": b'{"version": "1.0"}'}
SMALL = ("model.safetensors.index.json", "tokenizer/tokenizer.json")


def path_of(name: str, revision: str = COMMIT) -> str:
    return f"/owner/chat/resolve/{revision}/{name}"


def manifest(*, known: bool, revision: str = COMMIT, **changes: Any) -> Manifest:
    """A model in three shards; with `known` the manifest has their sizes and hashes."""
    files = [
        {
            "name": name,
            "bytes": len(data) if known else 5,
            "sha256": sha256(data) if known else None,
            "hub": {"repository": "owner/chat", "revision": revision, "path": name},
        }
        for name, data in FILES.items()
    ]
    model = {"id": "chat", "title": "Chat", "role": "llm", "tier": "gpu", "licence": "MIT", "profiles": ["gpu"]}
    return Manifest.model_validate({"format": 1, "packages": {}, "models": [{**model, **changes, "files": files}]})


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def publish(hub: FileServer, files: dict[str, bytes], revision: str = COMMIT) -> None:
    """As the real hub does: shards behind a redirect that names size and sha256, small files with a git object id."""
    for name, data in files.items():
        if name in SMALL:
            hub.files[path_of(name, revision)] = data
            hub.headers_of[path_of(name, revision)] = {"ETag": f'"{git_blob(data)}"'}
            continue
        hub.files[f"/store/{name}"] = data
        hub.headers_of[f"/store/{name}"] = {"ETag": '"' + "f" * 64 + '"'}
        hub.redirects[path_of(name, revision)] = f"/store/{name}"
        facts = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        hub.headers_of[path_of(name, revision)] = facts


def chat(models_dir: Path, *arguments: str, of: Manifest) -> int:
    return download(models_dir, "--model", "chat", *arguments, manifest=of)


def whole(models_dir: Path, of: Manifest, files: dict[str, bytes] = FILES) -> bool:
    directory = locate(models_dir, "chat", manifest=of)
    return {name: (directory / name).read_bytes() for name in files} == files


def test_a_model_in_shards_comes_from_the_hub(hub: FileServer, models_dir: Path) -> None:
    publish(hub, FILES)
    of = manifest(known=True)
    assert chat(models_dir, of=of) == 0
    assert whole(models_dir, of)


def test_a_model_in_shards_comes_from_a_local_directory(models_dir: Path, tmp_path: Path) -> None:
    local = written({f"chat/{name}": data for name, data in FILES.items()}, tmp_path / "usb")
    of = manifest(known=True)
    assert chat(models_dir, "--offline", "--local-dir", str(local), of=of) == 0
    assert whole(models_dir, of)


def test_a_shard_that_is_missing_from_a_local_directory_is_named(
    models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "model-00002-of-00003.safetensors"
    local = written({f"chat/{n}": data for n, data in FILES.items() if n != name}, tmp_path / "usb")
    assert chat(models_dir, "--offline", "--local-dir", str(local), of=manifest(known=True)) == 1
    assert f"chat: {name}: local directory: no such file" in capsys.readouterr().err


def test_hashes_that_the_manifest_lacks_are_the_hubs_and_are_kept(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, FILES)
    of = manifest(known=False)
    assert chat(models_dir, of=of) == 0
    assert whole(models_dir, of)
    mark = read_mark(models_dir / "chat")
    assert mark is not None
    assert {file.name: file.sha256 for file in mark.files} == {name: sha256(data) for name, data in FILES.items()}
    assert mark.files[0].origin == f"owner/chat@{COMMIT}/model-00001-of-00003.safetensors"
    said = capsys.readouterr().out
    assert f"sha256 {sha256(SHARDS['model-00001-of-00003.safetensors'])} (as the hub names it)" in said
    assert f"git object {git_blob(INDEX)} (as the hub names it)" in said
    hub.requests.clear()
    assert chat(models_dir, of=of) == 0
    assert hub.requests == []


@pytest.mark.parametrize("name", ["model-00001-of-00003.safetensors", "tokenizer/tokenizer.json"])
def test_a_file_that_is_not_what_the_hub_says_never_gets_its_name(
    hub: FileServer, models_dir: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, FILES)
    at = path_of(name) if name in SMALL else f"/store/{name}"
    hub.files[at] = b"!" + hub.files[at][1:]
    assert chat(models_dir, of=manifest(known=False)) == 1
    assert f"{name}: hub: what it gave is damaged" in capsys.readouterr().err
    assert not (models_dir / "chat" / name).exists()
    assert read_mark(models_dir / "chat") is None


def test_a_kept_hash_refuses_a_file_that_changed(hub: FileServer, models_dir: Path) -> None:
    publish(hub, FILES)
    of = manifest(known=False)
    chat(models_dir, of=of)
    name = "model-00003-of-00003.safetensors"
    (models_dir / "chat" / name).write_bytes(b"?" * 3000)
    with pytest.raises(ConfigError, match=f"{name} is damaged"):
        locate(models_dir, "chat", manifest=of)
    hub.requests.clear()
    assert chat(models_dir, of=of) == 0
    assert whole(models_dir, of)
    assert hub.asked_for(path_of("model-00001-of-00003.safetensors")) == []


def test_a_kept_hash_counts_for_its_own_revision_alone(hub: FileServer, models_dir: Path) -> None:
    publish(hub, FILES)
    chat(models_dir, of=manifest(known=False))
    newer = {name: b"new " + data for name, data in FILES.items()}
    publish(hub, newer, "f" * 40)
    of = manifest(known=False, revision="f" * 40)
    with pytest.raises(ConfigError, match="of another version"):
        locate(models_dir, "chat", manifest=of)
    assert chat(models_dir, of=of) == 0
    assert whole(models_dir, of, newer)


def test_where_nobody_can_be_asked_your_own_copy_is_believed_once(
    models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = written({f"chat/{name}": data for name, data in FILES.items()}, tmp_path / "usb")
    of = manifest(known=False)
    assert chat(models_dir, "--offline", "--local-dir", str(local), of=of) == 0
    assert "of your own copy: nothing to compare it with" in capsys.readouterr().out
    assert whole(models_dir, of)
    (models_dir / "chat" / "model-00001-of-00003.safetensors").write_bytes(b"?" * 1000)
    with pytest.raises(ConfigError, match="is damaged"):
        locate(models_dir, "chat", manifest=of)


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_cut_copy_of_your_own_is_not_believed(
    models_dir: Path, tmp_path: Path, kept: float, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "model-00002-of-00003.safetensors"
    cut = FILES[name][: int(kept * len(FILES[name]))]
    local = written({f"chat/{n}": data for n, data in (FILES | {name: cut}).items()}, tmp_path / "usb")
    about = manifest(known=True).model_dump(mode="json")
    for file in about["models"][0]["files"]:
        file["sha256"] = None
    of = Manifest.model_validate(about)
    assert chat(models_dir, "--offline", "--local-dir", str(local), of=of) == 1
    assert f"{name}: a copy has {len(cut)} bytes instead of about {len(FILES[name])}" in capsys.readouterr().err


def test_your_own_copy_is_compared_with_the_hub_where_it_can_be_asked(
    hub: FileServer, models_dir: Path, tmp_path: Path
) -> None:
    publish(hub, FILES)
    name = "model-00002-of-00003.safetensors"
    local = written({f"chat/{n}": data for n, data in FILES.items()} | {f"chat/{name}": b"x" * 2000}, tmp_path / "usb")
    of = manifest(known=False)
    assert chat(models_dir, "--local-dir", str(local), of=of) == 0
    assert whole(models_dir, of)
    assert hub.asked_for(f"/store/{name}") == [None]
    assert hub.asked_for("/store/model-00001-of-00003.safetensors") == []


def test_a_model_without_hashes_cannot_be_had_from_nobody(models_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(models_dir, "--offline", of=manifest(known=False)) == 1
    assert "the hub may not be asked, and no local directory has it whole" in capsys.readouterr().err


def test_a_hub_that_names_no_hash_is_not_believed(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files |= {path_of(name): data for name, data in FILES.items()}
    assert chat(models_dir, of=manifest(known=False)) == 1
    assert "the hub names no sha256 to compare it with" in capsys.readouterr().err


def test_a_hub_that_is_busy_is_asked_again_for_what_it_knows(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, FILES)
    hub.status = 503
    hub.redirects.clear()
    assert chat(models_dir, of=manifest(known=False)) == 1
    assert "the hub does not answer now (503)" in capsys.readouterr().err
    assert [method for method, _path, _headers in hub.requests] == ["HEAD"] * 3


TERMS = "Accept the terms on the model's page, make a token there and set HF_TOKEN"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("known", [True, False])
def test_a_gated_model_says_what_to_do(
    hub: FileServer, models_dir: Path, status: int, known: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, FILES)
    hub.redirects.clear()
    hub.status = status
    assert chat(models_dir, of=manifest(known=known, gated=True, terms=TERMS)) == 1
    said = capsys.readouterr().err
    assert f"the hub refuses the file ({status})" in said
    assert "set HF_TOKEN" in said
    assert TERMS in said


def test_a_token_that_is_refused_is_not_shown(
    hub: FileServer, models_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    hub.status = 403
    assert chat(models_dir, of=manifest(known=True, gated=True, terms=TERMS)) == 1
    said = capsys.readouterr()
    assert "the HF_TOKEN that is set may not read it" in said.err
    assert "hf_canary" not in said.out + said.err


def test_the_token_never_leaves_for_the_store_that_the_hub_points_to(
    hub: FileServer, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    publish(hub, FILES)
    with serving({f"/store/{name}": data for name, data in SHARDS.items()}) as store:
        hub.redirects = {path_of(name): f"{store.address}/store/{name}" for name in SHARDS}
        assert chat(models_dir, of=manifest(known=False)) == 0
        assert {headers.get("authorization") for _method, _path, headers in store.requests} == {None}
    assert {headers.get("authorization") for _method, _path, headers in hub.requests} == {"Bearer hf_canary"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"gated": True}, "says what to do"), ({"files": [{"name": "a", "bytes": 1, "sha256": None}]}, "only a hub's")],
)
def test_a_manifest_that_leaves_people_alone_is_refused(change: dict[str, Any], complaint: str) -> None:
    model = manifest(known=True).models[0].model_dump(mode="json")
    with pytest.raises(ValueError, match=complaint):
        Manifest.model_validate({"format": 1, "packages": {}, "models": [{**model, **change}]})


def test_what_users_must_read_is_said(hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(hub, FILES)
    assert chat(models_dir, of=manifest(known=True, notice="Not for Sundays.")) == 0
    assert "Not for Sundays." in capsys.readouterr().out


@pytest.mark.parametrize("sum_of", [b"", b"word", bytes(100_000)])
def test_the_git_object_id_is_gits(tmp_path: Path, sum_of: bytes) -> None:
    (tmp_path / "file").write_bytes(sum_of)
    assert git_blob_of(tmp_path / "file") == git_blob(sum_of)


def listed(models_dir: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> set[str]:
    assert download(models_dir, *arguments, "--dry-run", manifest=load_manifest()) == 0
    ids = {model.id for model in load_manifest().models}
    return {word for line in capsys.readouterr().out.splitlines() if (word := line.split(" ")[0]) in ids}


EARS = {"silero-vad", "whisper-base", "resemblyzer", "perth-implicit"}


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--preset", "24gb"], {"whisper-turbo", "qwen3-4b-instruct-2507", "fireredtts-2"}),
        (["--preset", "48gb"], {"whisper-turbo", "qwen2.5-7b-instruct", "fireredtts-2"}),
        (["--preset", "80gb"], {"whisper-large-v3", "qwen2.5-7b-instruct", "fireredtts-2"}),
        (["--profile", "gpu"], {"whisper-turbo", "qwen3-4b-instruct-2507", "fireredtts-2"}),
    ],
)
def test_a_preset_names_its_models(
    models_dir: Path, arguments: list[str], ids: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(models_dir, capsys, *arguments) == ids | EARS


def test_a_configuration_file_names_its_models(
    models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.json"
    own = {
        "vad": {"engine": "webrtc"},
        "models": {"whisper_model": "small", "tts_model_path": "/models/mine"},
        "llm": {"engine": "openai"},
        "tts": {"engine": "firered"},
    }
    file.write_text(json.dumps(own))
    assert listed(models_dir, capsys, "--config", str(file)) == {"whisper-small", "resemblyzer", "perth-implicit"}


@pytest.mark.parametrize("own", [{"models": {"whisper_model": "huge"}}, {"models": {"colour": "red"}}])
def test_a_configuration_that_names_what_is_not_there_is_wrong_usage(
    models_dir: Path, tmp_path: Path, own: dict[str, Any]
) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps(own))
    assert download(models_dir, "--config", str(file), "--dry-run", manifest=load_manifest()) == 2
    assert download(models_dir, "--config", str(tmp_path / "absent"), manifest=load_manifest()) == 2


def test_two_ways_to_name_models_are_wrong_usage(models_dir: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        download(models_dir, "--profile", "gpu", "--preset", "48gb", manifest=load_manifest())
    assert ended.value.code == 2


def test_nothing_of_the_gpu_profile_asks_a_closed_door_for_long(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert download(models_dir, "--model", "fireredtts-2", manifest=load_manifest()) == 1
    assert "the hub is out of reach" in capsys.readouterr().err
