"""The container's health check against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.alive import main
from tests.support.file_server import serving
from tests.support.tiny_model import closed_port


def ask(monkeypatch: pytest.MonkeyPatch, port: str) -> int:
    monkeypatch.setenv("GRADIO_SERVER_PORT", port)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")  # must not be used
    return main()


def test_a_server_that_answers_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"/health/live": b"{}"}) as server:
        assert ask(monkeypatch, server.address.rpartition(":")[2]) == 0
        assert [path for _method, path, _headers in server.requests] == ["/health/live"]


def test_the_port_of_the_volumes_configuration_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving({"/health/live": b"{}"}) as server:
        (tmp_path / "configs").mkdir()
        own = {"network": {"port": int(server.address.rpartition(":")[2])}}
        (tmp_path / "configs" / "config.json").write_text(json.dumps(own))
        monkeypatch.setenv("VOICEPOD_WORKSPACE", str(tmp_path))
        monkeypatch.delenv("GRADIO_SERVER_PORT", raising=False)
        assert main() == 0


def test_a_server_that_refuses_or_is_not_there_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        assert ask(monkeypatch, server.address.rpartition(":")[2]) == 1
    assert "it answered 404" in capsys.readouterr().err
    assert ask(monkeypatch, str(closed_port())) == 1
    assert "no answer: ConnectError" in capsys.readouterr().err
    assert ask(monkeypatch, "many") == 1
