"""The container's health check against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import alive
from scripts.alive import main
from tests.support.file_server import serving
from tests.support.tiny_model import closed_port

# Told on its output that it listens.
SERVER = """
import http.server, sys
class Live(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
server = http.server.HTTPServer((sys.argv[2], int(sys.argv[4])), Live)
print("listens", flush=True)
server.handle_request()
"""


@pytest.fixture(autouse=True)
def _no_server_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "_APP", Path("/nowhere/app.py"))


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


def test_the_server_is_asked_where_its_command_line_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Started with --port, it answered nobody whom a container's health check could know of."""
    app = tmp_path / "app.py"
    app.write_text(SERVER)
    monkeypatch.setattr(alive, "_APP", app)
    monkeypatch.setenv("GRADIO_SERVER_PORT", str(closed_port()))
    started = [sys.executable, "app.py", "--host", "127.0.0.2", "--port", str(closed_port())]
    with subprocess.Popen(started, cwd=tmp_path, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"listens\n"
        assert main() == 0
        server.wait(10)
