"""The doctor: one check and one fix for each point of the troubleshooting list."""

from __future__ import annotations

import json
import subprocess
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import StorageError
from serverless import doctor_points
from serverless.doctor import POINTS, Finding, examine, main
from serverless.doctor_points import Ground
from serverless.timings import google
from serverless.timings.words import NotAligned


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "STORAGE": "local",
        "STORAGE_DIR": str(tmp_path / "storage"),
        "CACHE_DIR": str(tmp_path / "cache"),
        "ALLOW_CPU": "true",
    }


def found(ground: Ground, point: str) -> Finding:
    (finding,) = examine(ground, [each for each in POINTS if each.point == point])
    return finding


def test_every_point_of_the_list_is_there_with_a_fix() -> None:
    problems = [point.problem.split()[0] for point in POINTS]
    assert {name: problems.count(name) for name in problems} == {
        "S3": 3,
        "Model": 3,
        "Word": 5,
        "Google": 5,
        "Performance": 4,
    }
    assert all(point.fix for point in POINTS)
    assert len({(point.problem, point.point) for point in POINTS}) == len(POINTS)


def test_a_laptop_that_is_set_up_has_nothing_wrong(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([], environ) == 0
    printed = capsys.readouterr().out
    assert "wrong" not in printed
    assert printed.count("\n") == len(POINTS) + 5
    assert str(tmp_path) not in printed
    assert not list((tmp_path / "storage").rglob("*speed*"))


def test_wrong_settings_are_one_point_and_leave_the_rest_unjudged(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    del environ["STORAGE"]
    assert main(["--json"], environ) == 1
    findings = {f["point"]: f for f in json.loads(capsys.readouterr().out)}
    assert findings["variables"]["found"] == "S3_BUCKET is required, unless STORAGE=local"
    assert [name for name, f in findings.items() if f["state"] == "wrong"] == ["variables"]


def test_an_option_that_is_not_known_shows_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--fix"], {}) == 2
    assert "python -m serverless.doctor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "wrong", "skipped"), [("s3_wrong_region", "region", ""), ("s3_access_denied", "permissions", "region")]
)
def test_what_s3_refuses_is_the_point_that_its_code_names(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, code: str, wrong: str, skipped: str
) -> None:
    def check() -> None:
        raise StorageError("S3 says no", code=code)

    monkeypatch.setattr(doctor_points, "make_storage", lambda settings: SimpleNamespace(check=check))
    environ |= {"STORAGE": "s3", "S3_BUCKET": "a-bucket"}
    findings = {f.point: f for f in examine(Ground(environ))}
    assert [(f.point, f.found) for f in findings.values() if f.state == "wrong"] == [(wrong, "S3 says no")]
    if skipped:
        assert findings[skipped].state == "skipped"
    assert findings["S3 speed"].state == "skipped"


def test_a_card_that_the_driver_does_not_show_is_wrong(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del environ["ALLOW_CPU"]
    monkeypatch.setattr("shutil.which", lambda program: None)
    assert found(Ground(environ), "card").found == "there is no nvidia-smi: the container has no driver"
    monkeypatch.setattr("shutil.which", lambda program: f"/bin/{program}")

    def smi(output: str) -> Any:
        return lambda *args, **kwargs: subprocess.CompletedProcess(args, 0, output, "")

    monkeypatch.setattr("subprocess.run", smi(""))
    assert found(Ground(environ), "card").found == "the driver shows no card"
    monkeypatch.setattr("subprocess.run", smi("NVIDIA L40S, 44000 MiB\n"))
    assert found(Ground(environ), "card").state == "ok"


@pytest.mark.parametrize(
    ("capability", "archs", "total", "wrong"),
    [
        ((8, 9), ["sm_80", "sm_89"], 48 * 10**9, set()),
        ((12, 0), ["sm_80", "sm_90"], 48 * 10**9, {"CUDA"}),
        ((7, 5), ["sm_75"], 3 * 10**9, {"CUDA", "card memory"}),
    ],
)
def test_a_card_that_torch_cannot_use_or_that_is_too_small_is_wrong(
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    archs: list[str],
    total: int,
    wrong: set[str],
) -> None:
    del environ["ALLOW_CPU"]
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_device_capability=lambda number: capability,
        get_arch_list=lambda: archs,
        get_device_properties=lambda device: SimpleNamespace(total_memory=total),
    )
    monkeypatch.setitem(__import__("sys").modules, "torch", SimpleNamespace(cuda=cuda))
    states = {f.point: f.state for f in examine(Ground(environ)) if f.point in ("CUDA", "card memory")}
    assert {name for name, state in states.items() if state == "wrong"} == wrong


def test_a_cache_that_cannot_be_written_is_wrong(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environ["HF_HOME"] = str(tmp_path / "file" / "hub")
    assert found(Ground(environ), "cache directory").state == "wrong"


def test_a_full_disk_and_full_memory_are_wrong(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**10, 10**10, 10**8))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**9))
    findings = {f.point: f for f in examine(Ground(environ))}
    assert findings["disk"].found == "0.1 GB are free"
    assert findings["memory"].found == "1.0 GB of main memory are free"
    assert findings["cache directory"].state == "wrong"


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "3000000000", "memory.current": "2500000000", "memory.stat": "inactive_file 500000000"},
        {
            "memory/memory.limit_in_bytes": "3000000000",
            "memory/memory.usage_in_bytes": "2500000000",
            "memory/memory.stat": "total_inactive_file 500000000",
        },
    ],
    ids=["version 2", "version 1"],
)
def test_the_containers_limit_counts_and_not_the_machines_memory(
    files: dict[str, str], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    monkeypatch.setattr("pipeline.cgroup.ROOT", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**11))
    assert found(Ground(environ), "memory").found == "1.0 GB of main memory are free"


def test_methods_that_the_image_lacks_are_wrong(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    assert found(Ground(environ), "installation").found == "not installed: espeak-ng"


def test_a_ctc_model_that_is_named_must_be_there(environ: dict[str, str], tmp_path: Path) -> None:
    environ["CTC_MODEL_DIR"] = str(tmp_path / "ctc")
    assert found(Ground(environ), "models").state == "wrong"
    (tmp_path / "ctc" / "en").mkdir(parents=True)
    assert found(Ground(environ), "models").found == "CTC_MODEL_DIR holds no model: no config.json"
    (tmp_path / "ctc" / "en" / "config.json").write_text("{}")
    assert found(Ground(environ), "models").state == "ok"


def test_an_account_that_is_not_whole_is_wrong_and_not_shown(environ: dict[str, str]) -> None:
    environ["GOOGLE_CREDENTIALS_JSON"] = '{"type": "service_account", "private_key": "canary"}'
    finding = found(Ground(environ), "credentials")
    assert finding.state == "wrong"
    assert "canary" not in finding.found


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("Google answered FAILED_PRECONDITION", "API enabled"),
        ("Google answered PERMISSION_DENIED", "IAM permissions"),
        ("Google answered RESOURCE_EXHAUSTED", "quotas"),
        ("Google did not answer in time", "billing"),
        ("Google heard no words", None),
    ],
)
def test_what_google_answers_is_the_point_it_belongs_to(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, answer: str, wrong: str | None
) -> None:
    def align(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        raise NotAligned(answer)

    calls: list[Any] = []
    monkeypatch.setattr(doctor_points, "google_account", lambda settings: SimpleNamespace(project_id="p"))
    monkeypatch.setattr(google, "align", align)
    asked = [f.point for f in examine(Ground(environ, asks_google=True)) if f.state == "wrong"]
    assert asked == ([wrong] if wrong else [])
    assert len(calls) == 1
    assert {f.state for f in examine(Ground(environ)) if f.point == "quotas"} == {"skipped"}
    assert len(calls) == 1


def test_slow_storage_and_a_slow_google_are_wrong(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_points, "_MIN_MB_PER_S", 10**9)
    monkeypatch.setattr(doctor_points, "_SLOW_GOOGLE_S", -1.0)
    monkeypatch.setattr(Ground, "google", ("OK", 0.5))
    findings = {f.point: f.state for f in examine(Ground(environ))}
    assert (findings["S3 speed"], findings["Google latency"]) == ("wrong", "wrong")


def test_a_card_without_options_of_the_allocator_is_told_which_to_set(environ: dict[str, str]) -> None:
    assert found(Ground(environ), "allocator").state == "skipped"
    del environ["ALLOW_CPU"]
    assert found(Ground(environ), "allocator").fix == "set PYTORCH_ALLOC_CONF=expandable_segments:True"
    environ["PYTORCH_CUDA_ALLOC_CONF"] = "max_split_size_mb:512"
    assert found(Ground(environ), "allocator").found == "max_split_size_mb:512"


def test_what_nobody_foresaw_is_told_by_its_kind(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ZeroDivisionError("canary")

    monkeypatch.setattr("psutil.virtual_memory", broken)
    assert found(Ground(environ), "memory").found == "failed with ZeroDivisionError"
