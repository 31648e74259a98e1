"""How the local RunPod is started: what it refuses, and what its workers get."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from serverless.devserver import __main__ as command
from serverless.devserver.demo import demo_environ, local_storage
from serverless.devserver.server import Plan


def test_other_machines_need_a_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEVSERVER_API_KEY", raising=False)
    assert command.main(["--host", "0.0.0.0"]) == 1
    assert "DEVSERVER_API_KEY" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert command.main(["--port", str(taken.getsockname()[1]), "--workers", "0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "0"],
        ["--port", "99999"],
        ["--workers", "-1"],
        ["--execution-timeout", "nan"],
        ["--execution-timeout", "0"],
        ["--endpoint", "a/../b"],
        ["--endpoint", ""],
        ["--command"],
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        command.main(arguments)
    assert refused.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def plan_for(arguments: list[str]) -> Plan:
    with contextlib.ExitStack() as stack:
        return command._plan(command._parser().parse_args(arguments), stack)


def test_the_callers_key_is_not_told_to_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVSERVER_API_KEY", "secret")
    plan = plan_for(["--port", "1", "--execution-timeout", "7"])
    assert plan.api_key == "secret"
    assert "secret" not in plan.environ.values()
    assert plan.limits.execution_timeout_s == 7.0


def test_another_worker_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_for(["--workers", "2", "--command", "python", "-u", "mine.py"]).command == ["python", "-u", "mine.py"]


def test_local_storage_is_served_where_the_workers_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STORAGE", "local")
    monkeypatch.setenv("STORAGE_DIR", str(tmp_path))
    plan = plan_for(["--port", "8123"])
    assert plan.environ["STORAGE_URL"] == "http://127.0.0.1:8123"
    assert plan.environ["STORAGE_DIR"] == str(tmp_path)
    assert len(plan.environ["STORAGE_SECRET"]) >= 32
    assert plan.routes


def test_what_is_stored_on_this_machine_outlives_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STORAGE", "local")
    monkeypatch.delenv("STORAGE_DIR", raising=False)
    monkeypatch.setenv("VOICEPOD_DATA", str(tmp_path))
    assert Path(plan_for(["--port", "8123"]).environ["STORAGE_DIR"]).is_relative_to(tmp_path)


def test_each_start_signs_with_a_secret_of_its_own(tmp_path: Path) -> None:
    first, second = (local_storage({}, "http://127.0.0.1:1", tmp_path)[0]["STORAGE_SECRET"] for _ in range(2))
    assert first != second
    given = local_storage({"STORAGE_SECRET": "of-sixteen-chars"}, "http://127.0.0.1:1", tmp_path)[0]
    assert given["STORAGE_SECRET"] == "of-sixteen-chars"


def test_the_demonstration_takes_real_weights_and_settings_where_they_are_named(tmp_path: Path) -> None:
    environ = demo_environ({"F5_MODEL_DIR": "/real", "ALLOW_CPU": "false"}, tmp_path)
    assert (environ["F5_MODEL_DIR"], environ["ALLOW_CPU"]) == ("/real", "false")
    assert {"DEVICE", "NFE_STEP"} & set(environ) == set()
    assert list(tmp_path.iterdir()) == []
