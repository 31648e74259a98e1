from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.models import (
    CUSTOM_LLM_ID,
    MARK_NAME,
    Manifest,
    Mark,
    VerifiedFile,
    faults,
    load_manifest,
    locate,
    read_mark,
    sha256_of,
    write_mark,
)
from settings_sources import load_settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = {"model.onnx": b"weights" * 100, "voices/a.bin": b"voice" * 50}


def manifest_entry(**changes: Any) -> dict[str, Any]:
    files = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in CONTENT.items()
    ]
    model = {"id": "tiny", "title": "Tiny", "role": "tts", "tier": "default", "licence": "MIT"}
    return {**model, "profiles": ["cpu"], "files": files, **changes}


def manifest_of(*models: dict[str, Any]) -> Manifest:
    return Manifest.model_validate({"format": 1, "packages": {}, "models": list(models) or [manifest_entry()]})


@pytest.fixture
def manifest() -> Manifest:
    return manifest_of()


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """A models directory in which the model `tiny` lies whole and marked."""
    directory = tmp_path / "models" / "tiny"
    for name, data in CONTENT.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    mark_as_verified(directory)
    return tmp_path / "models"


def mark_as_verified(directory: Path, model_id: str = "tiny") -> None:
    verified = [
        VerifiedFile(
            name=name,
            bytes=len(data),
            sha256=sha256_of(directory / name),
            mtime_ns=(directory / name).stat().st_mtime_ns,
        )
        for name, data in CONTENT.items()
    ]
    write_mark(directory, Mark(model=model_id, source="a test", files=tuple(verified)))


def damage(path: Path) -> None:
    """Flip a byte and give the file its old time back."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_locate_gives_the_directory_of_a_verified_model(models_dir: Path, manifest: Manifest) -> None:
    assert locate(models_dir, "tiny", manifest=manifest) == models_dir / "tiny"


def test_locate_names_the_command_that_downloads_an_absent_model(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match=r"python -m scripts\.download_models --model tiny --models-dir"):
        locate(tmp_path, "tiny", manifest=manifest)


def test_locate_names_the_models_there_are_when_asked_for_another(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match=r"no model 'tinny'\. Known are: tiny, llm-custom"):
        locate(tmp_path, "tinny", manifest=manifest)


def test_files_without_a_mark_do_not_count(models_dir: Path, manifest: Manifest) -> None:
    (models_dir / "tiny" / MARK_NAME).unlink()
    with pytest.raises(ConfigError, match="not completely downloaded"):
        locate(models_dir, "tiny", manifest=manifest)


def test_a_mark_that_cannot_be_read_counts_as_none(models_dir: Path, manifest: Manifest) -> None:
    (models_dir / "tiny" / MARK_NAME).write_text('{"format": 1, "model": "tiny"')
    assert read_mark(models_dir / "tiny") is None
    assert faults(models_dir / "tiny", manifest.model("tiny")) == ["it is not completely downloaded"]


def test_a_missing_and_a_short_file_are_both_named(models_dir: Path, manifest: Manifest) -> None:
    (models_dir / "tiny" / "model.onnx").unlink()
    (models_dir / "tiny" / "voices" / "a.bin").write_bytes(b"short")
    assert faults(models_dir / "tiny", manifest.model("tiny")) == [
        "model.onnx is missing",
        "voices/a.bin has 5 bytes instead of 250",
    ]


def test_a_mark_of_an_older_manifest_does_not_vouch_for_the_new_file(models_dir: Path) -> None:
    newer = manifest_entry()
    newer["files"][0]["sha256"] = "0" * 64
    with pytest.raises(ConfigError, match="of another version"):
        locate(models_dir, "tiny", manifest=manifest_of(newer))


def test_a_file_with_another_time_is_hashed_and_accepted_when_right(models_dir: Path, manifest: Manifest) -> None:
    os.utime(models_dir / "tiny" / "model.onnx", ns=(1, 1))
    assert locate(models_dir, "tiny", manifest=manifest) == models_dir / "tiny"


def test_a_file_with_another_time_is_refused_when_wrong(models_dir: Path, manifest: Manifest) -> None:
    damage(models_dir / "tiny" / "model.onnx")
    os.utime(models_dir / "tiny" / "model.onnx", ns=(1, 1))
    with pytest.raises(ConfigError, match="damaged"):
        locate(models_dir, "tiny", manifest=manifest)


def test_only_a_rehash_finds_damage_that_kept_size_and_time(models_dir: Path, manifest: Manifest) -> None:
    damage(models_dir / "tiny" / "model.onnx")
    model = manifest.model("tiny")
    assert faults(models_dir / "tiny", model) == []
    assert faults(models_dir / "tiny", model, rehash=True) == ["model.onnx is damaged (its sha256 is wrong)"]


def test_the_custom_llm_is_located_by_its_mark_alone(models_dir: Path, manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match="--llm hub:REPO@REVISION/FILE"):
        locate(models_dir, CUSTOM_LLM_ID, manifest=manifest)
    (models_dir / "tiny").rename(models_dir / CUSTOM_LLM_ID)
    mark_as_verified(models_dir / CUSTOM_LLM_ID, CUSTOM_LLM_ID)
    assert locate(models_dir, CUSTOM_LLM_ID, manifest=manifest) == models_dir / CUSTOM_LLM_ID


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\b", "", "./a"])
def test_a_file_name_that_leaves_the_model_directory_is_refused(name: str) -> None:
    entry = manifest_entry()
    entry["files"][0]["name"] = name
    with pytest.raises(ValueError, match="not a plain relative path"):
        manifest_of(entry)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hub": {"repository": "a/b", "revision": "main", "path": "x"}}, "full commit hash"),
        ({"parts": [{"package": "p", "member": "m", "bytes": 3}]}, "do not add up"),
        ({"parts": [{"package": "p", "member": "m", "bytes": 700}]}, "no package 'p'"),
    ],
)
def test_a_source_that_cannot_be_right_is_refused(change: dict[str, Any], complaint: str) -> None:
    entry = manifest_entry()
    entry["files"][0].update(change)
    with pytest.raises(ValueError, match=complaint):
        manifest_of(entry)


def test_a_hub_revision_that_is_a_commit_is_accepted() -> None:
    entry = manifest_entry()
    entry["files"][0]["hub"] = {"repository": "a/b", "revision": COMMIT, "path": "x"}
    assert manifest_of(entry).models[0].files[0].hub is not None


def test_two_models_of_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="unique"):
        manifest_of(manifest_entry(), manifest_entry())


def test_a_broken_manifest_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"format": 1, "packages": {}, "models": [manifest_entry(role="singer")]}))
    with pytest.raises(ConfigError, match=r"models\.0\.role"):
        load_manifest(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_manifest(tmp_path / "absent.json")


def test_every_file_of_the_cpu_profile_has_a_source_without_a_hub() -> None:
    """A machine that reaches no hub must still get every model of the CPU profile."""
    models = [m for m in load_manifest().models if "cpu" in m.profiles]
    assert len(models) == 6
    assert [f"{m.id}/{f.name}" for m in models for f in m.files if not f.parts] == []


def test_every_file_of_our_manifest_can_be_had_somewhere() -> None:
    files = [f for m in load_manifest().models for f in m.files]
    assert [f.name for f in files if not f.parts and not f.hub] == []


def test_only_fireredtts_2_has_files_without_a_sha256_and_few_models_are_pickles() -> None:
    models = load_manifest().models
    assert {m.id for m in models if any(f.sha256 is None for f in m.files)} == {"fireredtts-2"}
    names = {m.id: [f.name for f in m.files] for m in models}
    suffixes = (".pt", ".pth", ".tar", "pytorch_model.bin")
    pickles = {model_id for model_id, files in names.items() if any(name.endswith(suffixes) for name in files)}
    assert pickles == {"fireredtts-2", "perth-implicit", "resemblyzer", "vocos-mel-24khz"}


def test_models_of_the_hub_say_where_their_hashes_were_found_and_none_is_gated() -> None:
    models = load_manifest().models
    assert [m.id for m in models if any(not f.parts for f in m.files) and not m.hashes_from] == []
    assert [m.id for m in models if m.gated] == []


def test_the_shards_of_a_model_are_all_there() -> None:
    for model in load_manifest().models:
        shards = [match for f in model.files if (match := re.search(r"-(\d{5})-of-(\d{5})\.safetensors$", f.name))]
        if shards:
            assert [int(match[1]) for match in shards] == list(range(1, int(shards[0][2]) + 1)), model.id
            assert "model.safetensors.index.json" in {f.name for f in model.files}, model.id


def test_the_profiles_of_our_manifest_hold_a_model_of_each_role() -> None:
    manifest = load_manifest()
    for profile, hearing in (("cpu", ["asr"]), ("gpu", ["asr", "asr"])):
        roles = sorted(m.role for m in manifest.models if profile in m.profiles)
        assert roles == [*hearing, "llm", "speaker", "tts", "vad", "watermark"]
    assert {m.tier for m in manifest.models if m.role == "llm"} == {"default", "quality", "gpu"}


def test_our_manifest_carries_the_28_english_voices_of_kokoro() -> None:
    kokoro = load_manifest().model("kokoro-82m")
    assert kokoro is not None
    voices = [f.name for f in kokoro.files if f.name.startswith("voices/")]
    assert len(voices) == 28
    assert {name[7:9] for name in voices} == {"af", "am", "bf", "bm"}


def test_the_parts_of_each_file_of_our_manifest_are_in_numeric_order() -> None:
    for model in load_manifest().models:
        for file in model.files:
            numbers = [int(match[1]) for part in file.parts if (match := re.search(r"(\d+)$", part.package))]
            assert numbers == sorted(numbers), file.name


@pytest.mark.models
def test_the_models_of_the_cpu_profile_are_on_this_machine() -> None:
    models_dir = load_settings(None, os.environ).settings.models.dir
    for model in load_manifest().models:
        if "cpu" in model.profiles:
            assert locate(models_dir, model.id).is_dir()
