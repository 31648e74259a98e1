"""The table of `benchmarks.pod`: which weights it says it used, and what it makes of a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.gpus import Gpus
from api.selftest.report import Fit, Memory, Report, Speeds, Spread
from benchmarks.pod import COLUMNS, grouped, heading, main, row, with_weights
from pipeline.errors import ConfigError
from settings import Settings
from settings_sources import RANDOM_TINY, RANDOM_TINY_F5


def gpu_settings(models: Path, **sections: dict[str, object]) -> Settings:
    engines: dict[str, dict[str, object]] = {
        "asr": {"engine": "whisper"},
        "llm": {"engine": "transformers"},
        "tts": {"engine": "firered"},
    }
    own: dict[str, dict[str, object]] = {"models": {"dir": models}, "vad": {"engine": "webrtc"}}
    return Settings.model_validate({name: value | sections.get(name, {}) for name, value in (engines | own).items()})


def test_what_has_no_model_gets_random_weights_and_the_table_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICEPOD_CACHE", str(tmp_path))
    own = tmp_path / "own-chat"
    settings, weights = with_weights(gpu_settings(tmp_path / "models", llm={"path": own}))
    assert weights == {"asr": "tiny random", "llm": "real", "tts": "tiny random"}
    assert settings.llm.path == own
    assert settings.asr.path == tmp_path / "random-tiny" / RANDOM_TINY["asr.path"]
    assert (settings.asr.path / "model.safetensors").is_file()
    assert "asr: tiny random weights; llm: real weights" in heading(weights)


@pytest.mark.parametrize("has_card", [True, False])
def test_f5_without_a_model_gets_weights_of_its_own_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_card: bool
) -> None:
    monkeypatch.setenv("VOICEPOD_CACHE", str(tmp_path))
    monkeypatch.setattr(Gpus, "read", lambda self: ["a card"] if has_card else [])
    own: dict[str, object] = {"path": tmp_path / "own"}
    settings, weights = with_weights(gpu_settings(tmp_path / "models", asr=own, llm=own, tts={"engine": "f5"}))
    assert weights == {"asr": "real", "llm": "real", "tts": "tiny random"}
    assert settings.models.tts_model_path == tmp_path / "random-tiny" / RANDOM_TINY_F5
    assert list(settings.models.tts_model_path.glob("*.safetensors"))


def test_engines_are_put_into_the_processes_that_are_asked_for() -> None:
    assert grouped(Settings(), "asr+llm,tts").system.engine_processes == ("asr+llm", "tts")
    assert grouped(Settings(), "").system.engine_processes == ()
    with pytest.raises(ConfigError, match="asr\\+llm,tts"):
        grouped(Settings(), "asr,asr")


def test_a_row_has_every_column_and_a_dash_for_what_is_not_known() -> None:
    def cells(report: Report) -> list[str]:
        return [cell.strip() for cell in row("tts", report).strip("|").split("|")]

    some = Report(
        engines={},
        v2v_ms=Spread(812.4, 990.6, 20),
        parts_ms={},
        stop_ms=None,
        longest_gap_ms=0,
        rtf=Speeds(0.1, 0.25),
        talks=Fit(5, "behind"),
        memory=Memory(1, 20 * 1024**3, 24 * 1024**3),
        failures=("engine_failed",),
    )
    assert cells(some) == ["tts", "812", "991", "5 (behind), 1 failed", "–", "0.10", "0.25", "20.0 GiB"]
    assert len(cells(some)) == len(COLUMNS)


def test_a_wrong_option_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--profil", "gpu"]) == 2
    assert "did you mean --profile" in capsys.readouterr().err
