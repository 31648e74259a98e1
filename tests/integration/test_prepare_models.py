"""The conversion of FireRedTTS-2 as part of a start, on a tiny checkpoint in the published format."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.models import Manifest, Mark, VerifiedFile, sha256_of, write_mark
from scripts.prepare_models import main, needs_conversion, prepare
from settings import Settings
from tests.support.firered_tiny import write_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = {"repository": "owner/tts", "revision": COMMIT}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("published") / "model")


def names(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file() and p.name[0] != ".")


@pytest.fixture
def models_dir(published: Path, tmp_path: Path) -> Path:
    """A models directory that holds the checkpoint, whole and marked, as the downloader leaves it."""
    directory = tmp_path / "models" / "fireredtts-2"
    shutil.copytree(published, directory)
    files = tuple(
        VerifiedFile(
            name=name,
            bytes=(directory / name).stat().st_size,
            sha256=sha256_of(directory / name),
            mtime_ns=(directory / name).stat().st_mtime_ns,
            origin=f"owner/tts@{COMMIT}/{name}",
        )
        for name in names(directory)
    )
    write_mark(directory, Mark(model="fireredtts-2", source="a test", files=files))
    return tmp_path / "models"


@pytest.fixture
def manifest(published: Path) -> Manifest:
    """Like ours: no sha256 is known beforehand."""
    files = [{"name": n, "bytes": 5, "sha256": None, "hub": {**HUB, "path": n}} for n in names(published)]
    model = {"id": "fireredtts-2", "title": "Tiny", "role": "tts", "tier": "quality", "licence": "MIT"}
    return Manifest.model_validate(
        {"format": 1, "packages": {}, "models": [{**model, "profiles": ["gpu"], "files": files}]}
    )


def settings(models_dir: Path, **models: Any) -> Settings:
    return Settings.model_validate({"models": {"dir": models_dir, **models}, "tts": {"engine": "firered"}})


def test_published_files_are_converted_beside_themselves_once(models_dir: Path, manifest: Manifest) -> None:
    said: list[str] = []
    prepare(settings(models_dir), manifest, said.append)
    directory = models_dir / "fireredtts-2"
    assert {"llm_posttrain.safetensors", "codec.safetensors"} <= set(names(directory))
    assert any("converted to safetensors, once" in line for line in said)
    times = {path: path.stat().st_mtime_ns for path in directory.glob("*.safetensors")}
    said.clear()
    prepare(settings(models_dir), manifest, said.append)
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*.safetensors")} == times


def test_the_engine_prefers_what_was_converted(models_dir: Path, manifest: Manifest) -> None:
    import torch

    from firered.checkpoint import open_source
    from firered.tensor_files import SafetensorsFile

    prepare(settings(models_dir), manifest, lambda _line: None)
    source = open_source(models_dir / "fireredtts-2", "codec", "generator", torch.float32)
    assert isinstance(source, SafetensorsFile)


def test_a_conversion_that_was_cut_off_is_finished(models_dir: Path, manifest: Manifest) -> None:
    prepare(settings(models_dir), manifest, lambda _line: None)
    (models_dir / "fireredtts-2" / "codec.safetensors").unlink()
    assert needs_conversion(models_dir / "fireredtts-2")
    prepare(settings(models_dir), manifest, lambda _line: None)
    assert not needs_conversion(models_dir / "fireredtts-2")


def test_published_files_that_changed_are_not_opened(models_dir: Path, manifest: Manifest) -> None:
    path = models_dir / "fireredtts-2" / "codec.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ConfigError, match=r"codec\.pt is damaged .* Run: python -m scripts\.download_models"):
        prepare(settings(models_dir), manifest, lambda _line: None)
    assert needs_conversion(models_dir / "fireredtts-2")


def test_a_model_of_ones_own_is_converted_where_it_lies(published: Path, tmp_path: Path, manifest: Manifest) -> None:
    own = tmp_path / "own"
    shutil.copytree(published, own)
    prepare(settings(tmp_path, tts_model_path=own), manifest, lambda _line: None)
    assert not needs_conversion(own)


def test_a_file_that_is_no_checkpoint_is_refused(published: Path, tmp_path: Path, manifest: Manifest) -> None:
    own = tmp_path / "own"
    shutil.copytree(published, own)
    (own / "codec.pt").write_bytes(b"<html>sign in</html>")
    with pytest.raises(ConfigError, match="FireRedTTS-2 cannot be converted"):
        prepare(settings(tmp_path, tts_model_path=own), manifest, lambda _line: None)


def test_too_little_space_is_said(models_dir: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firered.model_directory.shutil.disk_usage", lambda _path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(ConfigError, match="without enough space"):
        prepare(settings(models_dir), manifest, lambda _line: None)


def test_a_directory_that_cannot_be_written_is_used_as_it_is(
    models_dir: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("scripts.prepare_models.os.access", lambda _path, _mode: False)
    prepare(settings(models_dir), manifest, said.append)
    assert "loads as published" in said[0]
    assert needs_conversion(models_dir / "fireredtts-2")


def test_other_voices_and_an_absent_model_need_nothing(tmp_path: Path, manifest: Manifest) -> None:
    said: list[str] = []
    prepare(settings(tmp_path), manifest, said.append)
    prepare(Settings.model_validate({"models": {"dir": tmp_path}}), manifest, said.append)
    assert said == []


def test_the_command_takes_a_profile_a_preset_or_a_file(
    models_dir: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VOICEPOD__MODELS__DIR", str(models_dir))
    assert main(["--profile", "cpu"], manifest=manifest) == 0
    assert capsys.readouterr().out == ""
    assert main(["--preset", "48gb"], manifest=manifest) == 0
    assert "converted to safetensors, once" in capsys.readouterr().out
    assert main(["--config", str(models_dir / "absent.json")], manifest=manifest) == 2
    (models_dir / "fireredtts-2" / "codec.safetensors").unlink()
    os.utime(models_dir / "fireredtts-2" / "codec.pt", ns=(1, 1))
    (models_dir / "fireredtts-2" / "codec.pt").write_bytes(b"damaged")
    assert main(["--profile", "gpu"], manifest=manifest) == 1
    assert "codec.pt has 7 bytes" in capsys.readouterr().err
