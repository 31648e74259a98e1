"""The recipe of the worker's image and the sample environments beside it. Nothing here needs Docker."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from serverless import settings
from tests.support.dockerfile import Recipe

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(ROOT / "serverless" / "Dockerfile")
APP = Recipe(ROOT / "Dockerfile")
SECRET = re.compile(r"token|secret|password|passwd|api_?key|credential|private_key|aws_", re.IGNORECASE)
SAMPLES = sorted((ROOT / "serverless" / "env").glob("*.env"))
OF_ONE_BUILD = {"torch", "triton"}  # what they ask for differs with the card; gpu.lock has it
# What a package asks for and the worker never imports: training, plots, microphones; build tools come with the venv.
LEFT_OUT = {
    "f5-tts": "accelerate bitsandbytes cached-path datasets ema-pytorch gradio librosa matplotlib torchaudio torchcodec"
    " transformers-stream-generator unidecode wandb",
    "openai-whisper": "numba",
    "pocketsphinx": "sounddevice",
    "vocos": "encodec torchaudio",
}
CUDA = re.compile(r"^(?:nvidia|cuda)[a-z0-9-]*==\S+", re.MULTILINE)


def pins(name: str) -> set[str]:
    text = (ROOT / "requirements" / name).read_text()
    return {match.lower() for match in re.findall(r"^([A-Za-z0-9_.-]+==[^\s;\\]+)", text, re.MULTILINE)}


def test_the_base_is_that_of_the_app_named_by_its_digest() -> None:
    bases = [rest for rest in RECIPE.all_of("ARG") if rest.startswith("BASE=")]
    assert bases == [rest for rest in APP.all_of("ARG") if rest.startswith("BASE=")]
    assert re.search(r"@sha256:[0-9a-f]{64}$", bases[0])


def test_the_default_stage_is_the_last_one_and_never_root() -> None:
    assert list(RECIPE.stages)[-1] == "worker"
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", RECIPE.last_of("worker", "USER"))


def test_tini_is_the_first_process_and_sends_signals_to_the_worker_alone() -> None:
    words = json.loads(RECIPE.last_of("worker", "ENTRYPOINT"))
    assert words == ["/usr/bin/tini", "--", "/opt/venv/bin/python", "-m", "serverless.handler"]
    assert re.search(r"\btini\b", " ".join(RECIPE.all_of("RUN")))


def test_the_default_image_holds_no_weights() -> None:
    assert "WEIGHTS=none" in RECIPE.all_of("ARG")
    assert [word for word, _ in RECIPE.stages["weights-none"]] == ["FROM", "RUN"]
    assert "serverless.bake" not in str(RECIPE.stages["weights-none"])


def test_the_build_fails_where_the_worker_would_not_start() -> None:
    tried = next(rest for rest in RECIPE.all_of("RUN") if "--check" in rest)
    assert re.search(r"serverless.bake --tiny (\S+) .*F5_MODEL_DIR=\1 .*serverless.handler --check .*rm -r \1$", tried)


def test_the_log_of_the_sdk_never_shows_results() -> None:
    assert "RUNPOD_LOG_LEVEL=INFO" in RECIPE.last_of("code", "ENV").split()


def test_every_wheel_is_installed_by_its_hash_and_nothing_when_the_container_starts() -> None:
    assert "deploy/install_wheels.sh requirements/serverless.lock /opt/venv python3.11 flat" in RECIPE.all_of("RUN")
    assert "pip install" not in " ".join(RECIPE.all_of("RUN"))
    for path in (ROOT / "serverless").rglob("*.py"):
        assert not re.search(r"\bpip\b.{0,20}\binstall\b.*check_call|check_call.*\bpip\b", path.read_text()), path


def test_the_lock_is_the_list_and_what_cuda_brings() -> None:
    cuda = {pin.lower() for pin in CUDA.findall((ROOT / "requirements" / "gpu.lock").read_text())}
    assert cuda
    assert pins("serverless.lock") == pins("serverless.txt") | cuda
    blocks = re.split(r"^(?=\S+==)", (ROOT / "requirements" / "serverless.lock").read_text(), flags=re.MULTILINE)[1:]
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_what_packages_ask_for_is_in_the_list_or_left_out_on_purpose() -> None:
    listed = {pin.partition("==")[0].replace("_", "-") for pin in pins("serverless.txt")}
    lacking = set()
    for name in listed - OF_ONE_BUILD:
        for text in requires(name) or []:
            needed = Requirement(text)
            is_wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
            wanted = needed.name.lower().replace("_", "-")
            if is_wanted and wanted not in listed:
                lacking.add((name, wanted))
    assert lacking == {(name, needed) for name, all_needed in LEFT_OUT.items() for needed in all_needed.split()}


def test_what_worker_and_app_both_need_is_the_same() -> None:
    both: dict[str, set[str]] = {}
    for pin in pins("serverless.txt") | pins("gpu.lock"):
        name, _, version = pin.partition("==")
        both.setdefault(name.replace("_", "-"), set()).add(version)
    assert {name: versions for name, versions in both.items() if len(versions) > 1} == {}


def test_nothing_is_added_from_a_url_or_piped_into_a_shell() -> None:
    assert RECIPE.all_of("ADD") == []
    assert not re.search(r"curl|wget|https?://", " ".join(RECIPE.all_of("RUN")))


def test_no_secret_is_named_in_the_recipe() -> None:
    assert [rest for word in ("ARG", "ENV") for rest in RECIPE.all_of(word) if SECRET.search(rest)] == []


def test_commands_of_the_recipe_stop_at_the_first_failure() -> None:
    shell = [rest for rest in RECIPE.all_of("RUN") if not rest.startswith("[")]
    assert [rest for rest in shell if ";" in rest or "||" in rest or " | " in rest] == []


def test_every_source_that_is_copied_exists() -> None:
    assert [source for source in RECIPE.copied() if not (ROOT / source).exists()] == []


def module_file(name: str) -> Path | None:
    place = ROOT / name.replace(".", "/")
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def imports_of(path: Path) -> set[str]:
    """Every module that is imported anywhere in a file, and every name of it, which may be a module too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@cache
def worker_modules() -> dict[str, Path]:
    """The modules of this repository that the worker needs, wherever in it they are imported."""
    found: dict[str, Path] = {}
    files = (ROOT / "serverless").rglob("*.py")
    waiting = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    while waiting:
        name = waiting.pop()
        path = module_file(name)
        if path is not None and name not in found:
            found[name] = path
            waiting += imports_of(path)
    return found


def test_every_module_that_the_worker_imports_is_copied() -> None:
    copied = {source.removesuffix(".py") for source in RECIPE.copied()}
    assert "serverless.handler" in worker_modules()
    assert {name.split(".")[0] for name in worker_modules()} - copied == set()


def test_every_package_that_the_worker_imports_is_in_the_lock() -> None:
    locked = {pin.partition("==")[0].replace("_", "-") for pin in pins("serverless.lock")}
    homes = packages_distributions()
    foreign = {name.split(".")[0] for path in worker_modules().values() for name in imports_of(path)}
    lacking = set()
    for name in foreign - set(sys.stdlib_module_names) - {"moto"}:  # the demonstration runs from a checkout
        if module_file(name) is None and not {home.lower().replace("_", "-") for home in homes[name]} & locked:
            lacking.add(name)
    assert lacking == set()


def ignored() -> list[str]:
    lines = (ROOT / "serverless" / "Dockerfile.dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_only_what_is_copied_goes_into_the_build() -> None:
    patterns = ignored()
    assert patterns[0] == "*"
    assert {pattern[1:] for pattern in patterns if pattern.startswith("!")} == set(RECIPE.copied())


@pytest.mark.parametrize(
    "name",
    [".env", "serverless/env/production.env", "config.json", "models/x.safetensors", "pipeline/tls.key", ".git/config"],
)
def test_keys_settings_and_models_stay_out_of_the_build(name: str) -> None:
    inside = False
    for pattern in ignored():
        keep, plain = pattern.startswith("!"), pattern.removeprefix("!")
        deep = plain.removeprefix("**/")
        matches = fnmatch.fnmatch(Path(name).name, deep) if deep != plain else name.split("/")[0] == plain
        if matches or plain == "*":
            inside = keep
    assert not inside


def test_hadolint_and_shellcheck_have_nothing_to_say() -> None:
    tools = Path(sys.executable).parent
    for command in (
        [str(tools / "hadolint"), "--no-color", "serverless/Dockerfile"],
        [str(tools / "shellcheck"), "-x", "deploy/install_wheels.sh", "scripts/lock.sh"],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "")


def test_package_lists_do_not_stay_in_the_image() -> None:
    for rest in RECIPE.all_of("RUN"):
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest


def test_the_three_kinds_of_environment_have_a_sample() -> None:
    assert [path.stem for path in SAMPLES] == ["dev", "high-volume", "production"]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_is_read_as_docker_reads_it_and_accepted(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    given = dict(line.split("=", 1) for line in lines)
    assert len(given) == len(lines)
    assert [name for name, value in given.items() if value != value.strip(" \"'") or " #" in value] == []
    assert set(given) <= set(settings.VARIABLES)
    loaded = settings.load(given)
    assert loaded.bucket == given["S3_BUCKET"]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_holds_no_key(path: Path) -> None:
    given = re.findall(r"^(?:AWS_SECRET_ACCESS_KEY|GOOGLE_CREDENTIALS_JSON|HF_TOKEN)=(.*)$", path.read_text(), re.M)
    assert given == (["minioadmin"] if path.stem == "dev" else [])
