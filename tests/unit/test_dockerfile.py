"""The image's recipe, read as what it is: stages of instructions. Nothing here needs Docker."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECRET = re.compile(r"token|secret|password|passwd|api_?key|credential|private_key|aws_", re.IGNORECASE)
Instruction = tuple[str, str]


def stages() -> dict[str, list[Instruction]]:
    """Instructions by stage, in order; what stands before the first FROM is the stage ""."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, list[Instruction]] = {"": []}
    name = ""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            name = rest.split(" AS ")[1]
            found[name] = []
        found[name].append((word, rest.strip()))
    return found


def all_of(word: str) -> list[str]:
    return [rest for instructions in stages().values() for w, rest in instructions if w == word]


def last_of(stage: str, word: str) -> str:
    """The stage's own last instruction of that kind, else that of the stage it builds on."""
    instructions = stages()[stage]
    own = [rest for w, rest in instructions if w == word]
    base = instructions[0][1].split(" AS ")[0]
    return own[-1] if own else last_of(base, word)


def copied() -> list[str]:
    sources = []
    for rest in all_of("COPY"):
        words = rest.split()
        if not any(word.startswith("--from=") for word in words):
            sources += [word for word in words[:-1] if not word.startswith("--")]
    return sources


def test_the_base_is_named_by_its_digest() -> None:
    assert [rest for rest in all_of("ARG") if rest.startswith("BASE=")] == [
        "BASE=python:3.11-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84"
    ]
    bases = {rest.split(" AS ")[0] for rest in all_of("FROM")}
    assert bases == {"${BASE}", "app"}


def test_the_default_stage_is_the_last_one_and_never_root() -> None:
    names = list(stages())
    assert names == ["", "wheels", "app", "pod", "server"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last_of("server", "USER"))


def test_the_stage_that_starts_as_root_says_whom_it_becomes() -> None:
    assert last_of("pod", "USER") == "0:0"
    assert last_of("pod", "ENV") == "VOICEPOD_RUN_AS=10001"
    assert "--uid 10001" in " ".join(all_of("RUN"))


@pytest.mark.parametrize("stage", ["pod", "server"])
def test_tini_is_the_first_process_and_runs_the_script_that_a_laptop_runs(stage: str) -> None:
    assert json.loads(last_of(stage, "ENTRYPOINT")) == ["/usr/bin/tini", "-g", "--", "/app/container_startup.sh"]
    assert re.search(r"\btini\b", " ".join(all_of("RUN")))


@pytest.mark.parametrize("stage", ["pod", "server"])
def test_the_health_check_asks_the_server(stage: str) -> None:
    check = last_of(stage, "HEALTHCHECK")
    assert check.endswith('CMD ["/opt/venv/bin/python", "-m", "scripts.alive"]')
    assert "/health/live" in (ROOT / "scripts" / "alive.py").read_text()
    assert all_of("EXPOSE") == ["7860"]


def test_nothing_is_added_from_a_url_or_piped_into_a_shell() -> None:
    assert all_of("ADD") == []
    assert not re.search(r"curl|wget|https?://", " ".join(all_of("RUN")))


def test_every_wheel_is_installed_by_its_hash() -> None:
    assert "deploy/install_wheels.sh requirements/gpu.lock /opt/venv python3.11" in all_of("RUN")
    script = (ROOT / "deploy" / "install_wheels.sh").read_text()
    installs = [line for line in script.splitlines() if re.match(r"\s*pip install", line)]
    assert len(installs) == 2
    assert all("--require-hashes" in line for line in installs)
    assert "pip install" not in " ".join(all_of("RUN"))


def test_no_secret_is_named_in_the_recipe() -> None:
    assert [rest for word in ("ARG", "ENV") for rest in all_of(word) if SECRET.search(rest)] == []


def test_every_source_that_is_copied_exists() -> None:
    assert [source for source in copied() if not (ROOT / source).exists()] == []


def test_every_module_of_the_product_is_copied() -> None:
    product = {path.name for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert product - {"tests", "serverless"} <= set(copied())  # serverless has an image of its own


def ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_only_what_is_copied_goes_into_the_build() -> None:
    patterns = ignored()
    assert patterns[0] == "*"
    let_in = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    assert let_in | {"deploy/install_wheels.sh"} == set(copied())  # which lies in deploy


@pytest.mark.parametrize("name", [".env", "config.json", "models/x/model.safetensors", "deploy/tls.key", ".git/config"])
def test_keys_settings_and_models_stay_out_of_the_build(name: str) -> None:
    inside = False
    for pattern in ignored():
        keep, plain = pattern.startswith("!"), pattern.removeprefix("!")
        deep = plain.removeprefix("**/")
        matches = fnmatch.fnmatch(Path(name).name, deep) if deep != plain else name.split("/")[0] == plain
        if matches or plain == "*":
            inside = keep
    assert not inside


def test_commands_of_the_recipe_stop_at_the_first_failure() -> None:
    assert [rest for rest in all_of("RUN") if ";" in rest or "||" in rest or " | " in rest] == []


def test_hadolint_and_shellcheck_have_nothing_to_say() -> None:
    tools = Path(sys.executable).parent
    scripts = [
        "container_startup.sh",
        *(str(p.relative_to(ROOT)) for d in ("deploy", "scripts") for p in (ROOT / d).glob("*.sh")),
    ]
    for command in ([str(tools / "hadolint"), "--no-color", "Dockerfile"], [str(tools / "shellcheck"), "-x", *scripts]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "")


def test_package_lists_do_not_stay_in_the_image() -> None:
    for rest in all_of("RUN"):
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest
