"""container_startup.sh run for real, with a Python, a card and a set-up that only write down what they were asked."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from settings_sources import load_settings

ROOT = Path(__file__).parents[2]
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
FOLDERS = ("models", "logs", "cache", "backups", "configs", "voicepod")
# Writes its arguments and environment as a line of JSON; fails where FAIL is part of the command.
RECORDER = """#!/usr/bin/python3
import json, os, sys
line = {"arguments": sys.argv[1:], "environ": dict(os.environ), "uid": os.getuid()}
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps(line) + "\\n")
sys.exit(bool(os.environ.get("FAIL")) and os.environ["FAIL"] in " ".join(sys.argv))
"""


@dataclass
class Machine:
    """A directory with the script, and what it ran."""

    home: Path
    environ: dict[str, str] = field(default_factory=dict)
    said: str = ""

    def start(self, *arguments: str, **environ: str) -> int:
        env = {"PATH": f"{self.home}/bin:{PATH}", "HOME": str(self.home), "RECORD": str(self.home / "record")}
        env |= {"VOICEPOD_VENV": str(self.home / "venv")} | self.environ | environ
        done = subprocess.run(
            [str(self.home / "container_startup.sh"), *arguments], env=env, capture_output=True, text=True, timeout=60
        )
        self.said = done.stdout + done.stderr
        return done.returncode

    @property
    def ran(self) -> list[dict[str, object]]:
        record = self.home / "record"
        return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []

    @property
    def commands(self) -> list[str]:
        return [" ".join(line["arguments"]) for line in self.ran]  # type: ignore[arg-type]

    def seen(self, name: str) -> object:
        """A variable as the server sees it."""
        return self.ran[-1]["environ"].get(name)  # type: ignore[attr-defined]


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def machine() -> Iterator[Machine]:
    # Not pytest's own directory: another user must be able to look into it.
    with tempfile.TemporaryDirectory(prefix="startup-") as name:
        home = Path(name)
        home.chmod(0o755)
        shutil.copy(ROOT / "container_startup.sh", home)
        shutil.copytree(ROOT / "deploy", home / "deploy")
        executable(home / "venv" / "bin" / "python", RECORDER)
        executable(home / "bin" / "nvidia-smi", "#!/bin/sh\nexit 9\n")
        yield Machine(home)


def put_in(machine: Machine, *cards_mib: int | str) -> None:
    rows = "".join(f"echo {mib}\n" for mib in cards_mib)
    executable(machine.home / "bin" / "nvidia-smi", f"#!/bin/sh\n{rows}")


def test_without_a_card_it_is_the_cpu_profile(machine: Machine) -> None:
    assert machine.start("--port", "7861") == 0
    assert machine.commands == [
        "-m scripts.download_models --profile cpu",
        "-m scripts.prepare_models --profile cpu",
        "app.py --profile cpu --port 7861",
    ]
    assert "no NVIDIA card answers; the CPU profile" in machine.said


@pytest.mark.parametrize(
    ("cards", "preset"),
    [
        ([23034], "24gb"),
        ([24564], "24gb"),
        ([46068], "48gb"),
        ([81559], "80gb"),
        ([143771], "80gb"),
        ([8192, 46068], "48gb"),
    ],
)
def test_the_card_chooses_the_preset(machine: Machine, cards: list[int], preset: str) -> None:
    put_in(machine, *cards)
    assert machine.start() == 0
    assert machine.commands == [
        f"-m scripts.download_models --preset {preset}",
        f"-m scripts.prepare_models --preset {preset}",
        f"app.py --profile gpu --config configs/gpu-{preset}.json",
    ]
    assert f"a card of {max(cards)} MiB; the preset {preset}" in machine.said


@pytest.mark.parametrize("cards", [[12282], ["[N/A]"], []])
def test_a_card_that_is_too_small_or_does_not_say_is_left_alone(machine: Machine, cards: list[int]) -> None:
    put_in(machine, *cards)
    assert machine.start() == 0
    assert machine.commands[-1] == "app.py --profile cpu"


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_hidden_card_is_left_alone(machine: Machine, visible: str) -> None:
    put_in(machine, 81559)
    assert machine.start(CUDA_VISIBLE_DEVICES=visible) == 0
    assert machine.commands[-1] == "app.py --profile cpu"


@pytest.mark.parametrize(
    ("arguments", "environ", "models", "server"),
    [
        (["--profile", "cpu"], {}, "--profile cpu", "--profile cpu"),
        (["--profile=cpu"], {}, "--profile cpu", "--profile cpu"),
        (["--profile", "gpu", "--port", "1"], {}, "--profile gpu", "--profile gpu --port 1"),
        ([], {"VOICEPOD_PROFILE": "cpu"}, "--profile cpu", "--profile cpu"),
        ([], {"VOICEPOD_PROFILE": "48gb"}, "--preset 48gb", "--profile gpu --config configs/gpu-48gb.json"),
        (["--profile", "24gb"], {}, "--preset 24gb", "--profile gpu --config configs/gpu-24gb.json"),
        (["--config", "/own.json"], {}, "--config /own.json", "--profile gpu --config /own.json"),
        (["--config=/own.json"], {}, "--config /own.json", "--profile gpu --config=/own.json"),
    ],
)
def test_what_is_asked_for_wins_over_the_card(
    machine: Machine, arguments: list[str], environ: dict[str, str], models: str, server: str
) -> None:
    put_in(machine, 81559)
    assert machine.start(*arguments, **environ) == 0
    assert machine.commands == [
        f"-m scripts.download_models {models}",
        f"-m scripts.prepare_models {models}",
        f"app.py {server}",
    ]


def test_random_weights_need_no_download_of_the_large_models(machine: Machine) -> None:
    assert machine.start("--profile", "gpu", "--random-tiny", "--device", "cpu") == 0
    assert machine.commands == [
        "-m scripts.download_models --model silero-vad --model resemblyzer --model perth-implicit",
        "app.py --profile gpu --random-tiny --device cpu",
    ]


def test_random_weights_alone_mean_the_gpu_profile_also_without_a_card(machine: Machine) -> None:
    assert machine.start("--random-tiny") == 0
    assert machine.commands[-1] == "app.py --profile gpu --random-tiny"


@pytest.mark.parametrize("cards", [[81559], []])
def test_a_preset_that_is_named_as_a_file_brings_its_own_models(machine: Machine, cards: list[int]) -> None:
    put_in(machine, *cards)
    assert machine.start("--config", "configs/gpu-48gb.json") == 0
    assert machine.commands[0] == "-m scripts.download_models --config configs/gpu-48gb.json"


@pytest.mark.parametrize("arguments", [["--models-dir", "/own models"], ["--models-dir=/own models"]])
def test_models_go_to_the_directory_that_the_server_is_told(machine: Machine, arguments: list[str]) -> None:
    assert machine.start(*arguments) == 0
    assert [line["environ"].get("MODEL_CACHE_DIR") for line in machine.ran] == ["/own models"] * 3  # type: ignore[attr-defined]
    assert machine.ran[-1]["arguments"][3:] == arguments  # type: ignore[index]


@pytest.mark.parametrize("option", ["--profile", "--config", "--models-dir", "--set"])
def test_an_option_without_its_value_is_wrong_usage_and_says_so(machine: Machine, option: str) -> None:
    assert machine.start(option) == 2
    assert f"{option} needs a value" in machine.said
    assert machine.commands == []


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_starts_nothing(machine: Machine, option: str) -> None:
    assert machine.start(option) == 0
    assert machine.commands == ["app.py --help"]


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_in_a_bare_clone_installs_and_downloads_nothing(machine: Machine, option: str) -> None:
    executable(machine.home / "scripts" / "setup.sh", '#!/bin/sh\n"$HOME/venv/bin/python" setup "$@"\n')
    assert machine.start(option, VOICEPOD_VENV="") == 0
    assert machine.commands == []
    assert "VOICEPOD_PROFILE=cpu|24gb|48gb|80gb" in machine.said


def test_a_profile_that_does_not_exist_is_wrong_usage(machine: Machine) -> None:
    assert machine.start("--profile", "tpu") == 2
    assert machine.commands == []


def test_arguments_reach_the_server_as_they_are(machine: Machine) -> None:
    assert machine.start("--set", "llm.system_prompt=Be brief; $HOME *") == 0
    assert machine.ran[-1]["arguments"] == [
        "app.py",
        "--profile",
        "cpu",
        "--set",
        "llm.system_prompt=Be brief; $HOME *",
    ]


@pytest.mark.parametrize("arguments", [["--set", "tts.engine=piper"], ["--set=tts.engine=piper"]])
def test_models_are_those_of_the_settings_that_the_server_is_given(machine: Machine, arguments: list[str]) -> None:
    assert machine.start(*arguments) == 0
    assert machine.commands[:2] == [
        "-m scripts.download_models --profile cpu --set tts.engine=piper",
        "-m scripts.prepare_models --profile cpu --set tts.engine=piper",
    ]


def test_a_configuration_of_ones_own_in_the_clone_is_used(machine: Machine) -> None:
    put_in(machine, 24564)
    (machine.home / "config.json").write_text("{}")
    assert machine.start() == 0
    assert machine.commands[0] == "-m scripts.download_models --config config.json"
    assert machine.commands[-1] == "app.py --profile gpu"


def test_models_that_are_not_to_be_had_stop_the_start(machine: Machine) -> None:
    assert machine.start(FAIL="download_models") == 1
    assert len(machine.ran) == 1
    assert "the models are not complete" in machine.said


def test_a_failed_conversion_stops_the_start(machine: Machine) -> None:
    assert machine.start(FAIL="prepare_models") == 1
    assert len(machine.ran) == 2


def test_without_an_environment_of_its_own_it_sets_one_up(machine: Machine) -> None:
    executable(machine.home / "scripts" / "setup.sh", '#!/bin/sh\n.venv/bin/python setup "$@"\n')
    shutil.copytree(machine.home / "venv", machine.home / ".venv")
    put_in(machine, 24564)
    assert machine.start(VOICEPOD_VENV="") == 0
    assert machine.commands[0] == "setup gpu --no-models"
    assert machine.commands[-1].startswith("app.py --profile gpu")


# --- the volume


@pytest.fixture
def volume(machine: Machine) -> Path:
    path = machine.home / "workspace"
    path.mkdir()
    machine.environ["VOICEPOD_WORKSPACE"] = str(path)
    return path


def test_the_volume_gets_its_folders_with_their_modes(machine: Machine, volume: Path) -> None:
    assert machine.start() == 0
    modes = {folder: stat.S_IMODE((volume / folder).stat().st_mode) for folder in FOLDERS}
    assert modes == {folder: 0o755 if folder == "models" else 0o700 for folder in FOLDERS}
    assert machine.start() == 0  # and again with all of it there


def test_the_server_keeps_everything_on_the_volume(machine: Machine, volume: Path) -> None:
    machine.start()
    settings = load_settings(["--profile", "cpu"], machine.ran[-1]["environ"]).settings  # type: ignore[arg-type]
    assert settings.models.dir == volume / "models"
    assert settings.cache.dir == volume / "cache" / "audio"
    assert settings.voices.dir == volume / "cache" / "voices"
    assert settings.storage.dir == volume / "voicepod"


def test_model_cache_dir_wins_over_voicepod_cache(machine: Machine, volume: Path) -> None:
    machine.start(MODEL_CACHE_DIR="/elsewhere/models", VOICEPOD_CACHE="/elsewhere/cache", VOICEPOD_DATA="/data")
    settings = load_settings(["--profile", "cpu"], machine.ran[-1]["environ"]).settings  # type: ignore[arg-type]
    assert settings.models.dir == Path("/elsewhere/models")
    assert settings.cache.dir == Path("/elsewhere/cache/audio")
    assert settings.storage.dir == Path("/data")


def test_without_a_volume_nothing_is_moved(machine: Machine) -> None:
    machine.start()
    assert [machine.seen(name) for name in ("MODEL_CACHE_DIR", "VOICEPOD_CACHE", "VOICEPOD_DATA")] == [None] * 3


def test_a_configuration_on_the_volume_is_used(machine: Machine, volume: Path) -> None:
    (volume / "configs").mkdir()
    (volume / "configs" / "config.json").write_text("{}")
    put_in(machine, 81559)
    assert machine.start("--port", "1") == 0
    own = volume / "configs" / "config.json"
    assert machine.commands[0] == f"-m scripts.download_models --config {own}"
    assert machine.commands[-1] == f"app.py --profile gpu --config {own} --port 1"


def test_a_volume_that_cannot_be_written_says_what_to_do(machine: Machine, volume: Path) -> None:
    (volume / "logs").write_text("a file where a folder belongs")
    assert machine.start() == 1
    assert machine.commands == []
    assert f"cannot write to {volume}/logs" in machine.said
    assert "the image's target 'pod'" in machine.said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave root")
def test_started_as_root_it_hands_the_folders_over_and_leaves_root(machine: Machine, volume: Path) -> None:
    (volume / "models").mkdir()
    (volume / "models" / "old").write_text("of root")
    (volume / "foreign").write_text("not ours")
    (machine.home / "record").touch()
    (machine.home / "record").chmod(0o666)
    assert machine.start("--port", "1", VOICEPOD_RUN_AS="10001") == 0, machine.said
    assert [line["uid"] for line in machine.ran] == [10001] * 3
    assert {(volume / folder).stat().st_uid for folder in FOLDERS} == {10001}
    assert (volume / "models" / "old").stat().st_uid == 10001
    assert (volume / "foreign").stat().st_uid == 0
    assert machine.seen("HOME") == str(volume / "cache")
    assert machine.commands[-1] == "app.py --profile cpu --port 1"
