"""docs/configuration.md and the command that writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import config
from settings_guide import LIBRARY_VARIABLES, RETIRED, VARIABLES
from settings_keys import all_keys


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*VARIABLES, *LIBRARY_VARIABLES, "VOICEPOD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_page_is_not_stale() -> None:
    assert config.PAGE.read_text(encoding="utf-8") == config.render_page(), "run: python -m scripts.config docs"


def test_the_page_is_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = config.render_page()
    monkeypatch.setenv("VOICEPOD_CACHE", str(tmp_path / "elsewhere"))
    assert config.render_page() == here


def test_the_page_has_every_key_and_variable() -> None:
    page = config.render_page()
    for name in (*all_keys(), *VARIABLES, *LIBRARY_VARIABLES, *RETIRED):
        assert f"`{name}" in page or name == "logging", name


def test_docs_writes_the_page_and_check_compares_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(config, "PAGE", tmp_path / "configuration.md")
    assert config.main(["docs", "--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert config.main(["docs"]) == 0
    assert config.main(["docs", "--check"]) == 0
    (tmp_path / "configuration.md").write_text("old")
    assert config.main(["docs", "--check"]) == 1


def test_show_prints_values_with_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main(["show", "--port", "8123"]) == 0
    assert "network.port = 8123  # command line --port" in capsys.readouterr().out


def test_check_says_what_is_wrong_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main(["check", "--set", "audio.buffer_size=1024"]) == 0
    assert "audio.buffer_size" in capsys.readouterr().out
    assert config.main(["check", "--port", "x"]) == 1
    assert "network.port = x" in capsys.readouterr().err


def test_anything_else_shows_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["dokcs"], ["docs", "--chekc"]):
        assert config.main(argv) == 2
        assert "show|check|docs" in capsys.readouterr().err
