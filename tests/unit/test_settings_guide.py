"""The requirement documents' keys and variables: each loads, resolves and has a row in docs/admin-guide-map.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from serverless.settings import VARIABLES as WORKER_VARIABLES
from serverless.settings import WorkerSettings, variables_of
from settings import Settings
from settings_guide import ALIASES, LIBRARY_VARIABLES, RETIRED, VARIABLES
from settings_keys import all_keys, field_of, is_secret
from settings_sources import LoadedSettings, load_settings

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "admin_guide"
BLOCKS = {path.stem: json.loads(path.read_text()) for path in sorted(FIXTURES.glob("*.json"))}
GUIDE_VARIABLES = (FIXTURES / "variables.txt").read_text().split()
# The app reads RUNPOD_POD_ID as well, for its URL.
ONLY_THE_WORKERS = sorted(set(WORKER_VARIABLES) - set(VARIABLES) - set(LIBRARY_VARIABLES) - {"RUNPOD_POD_ID"})
WORKER_FIELDS = {name: field for field in WorkerSettings.model_fields for name in variables_of(field)}
PARTS = {
    "GPU pod",
    "operations",
}
# What each variable is set to in the documents, and what it becomes.
EXAMPLES: dict[str, tuple[str, Any]] = {
    "GRADIO_SERVER_NAME": ("0.0.0.0", "0.0.0.0"),
    "GRADIO_SERVER_PORT": ("7860", 7860),
    "LOG_LEVEL": ("INFO", "INFO"),
    "MODEL_CACHE_DIR": ("/workspace/models", Path("/workspace/models")),
    "AUDIO_CACHE_DIR": ("/tmp/audio_cache", Path("/tmp/audio_cache")),
    "OMP_NUM_THREADS": ("4", 4),
    "OPENAI_API_KEY": ("sk-1", "sk-1"),
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*VARIABLES, *LIBRARY_VARIABLES, *WORKER_VARIABLES, "VOICEPOD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def load(document: Any, environ: dict[str, str] | None = None) -> LoadedSettings:
    file = Path("config.json")
    file.write_text(json.dumps(document))
    return load_settings(None, environ or {}, file)


def leaves(block: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Dotted keys of a block with their values; the names chosen by the operator become `*`."""
    for name, value in block.items():
        inside = (*path, "*" if path in {("logging", part) for part in ("formatters", "handlers", "loggers")} else name)
        if isinstance(value, dict):
            yield from leaves(value, inside)
        else:
            yield ".".join(inside), value


GUIDE_KEYS = sorted({key for block in BLOCKS.values() for key, _ in leaves(block)})


def map_rows() -> dict[str, list[str]]:
    """First cell -> the other cells of every four-column row of the map."""
    text = (ROOT / "docs" / "admin-guide-map.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("` "): row[1:] for row in rows if len(row) == 4}


def value_of(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value.get_secret_value() if is_secret(key) else value


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_of_the_guide_loads_unchanged(name: str) -> None:
    assert isinstance(load(BLOCKS[name]).settings, Settings)


def test_all_blocks_of_the_guide_load_from_one_file() -> None:
    whole = {section: content for block in BLOCKS.values() for section, content in block.items()}
    loaded = load(whole)
    assert loaded.settings.network.host == "0.0.0.0"
    assert loaded.settings.logging is not None


@pytest.mark.parametrize("name", BLOCKS)
def test_every_key_of_the_guide_reaches_its_setting(name: str) -> None:
    settings = load(BLOCKS[name]).settings
    if name == "logging":
        assert settings.logging is not None
        kept = settings.logging.model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert kept == BLOCKS[name]["logging"]
        return
    for key, value in leaves(BLOCKS[name]):
        if key not in RETIRED:
            found = value_of(settings, ALIASES.get(key, key))
            assert (str(found) if isinstance(found, Path) else found) == value, key


def test_the_fixtures_hold_the_blocks_of_the_guide() -> None:
    assert set(BLOCKS) == {"config", "logging", "model_optimization", "scaling_config"}
    assert len(GUIDE_KEYS) == 51


@pytest.mark.parametrize("key", sorted(RETIRED))
def test_retired_keys_load_with_a_notice(key: str) -> None:
    section, _, name = key.partition(".")
    loaded = load({section: {name: True}})
    assert loaded.notices == [f"{key} (config.json) has no effect: {RETIRED[key]}"]
    assert key not in all_keys()


@pytest.mark.parametrize("key", sorted(set(RETIRED) - {"security.input_validation"}))
def test_a_retired_key_names_a_setting_that_exists(key: str) -> None:
    named = re.findall(r"\b[a-z_]+\.[a-z_]+\b", RETIRED[key])
    assert named
    assert set(named) <= set(all_keys())


def test_input_validation_cannot_be_switched_off() -> None:
    assert load({"security": {"input_validation": True}}).notices
    for wrong in (False, "false", 0, None, "no"):
        with pytest.raises(ConfigError, match="cannot be switched off"):
            load({"security": {"input_validation": wrong}})
    with pytest.raises(ConfigError, match="cannot be switched off"):
        load({}, {"VOICEPOD__SECURITY__INPUT_VALIDATION": "false"})


@pytest.mark.parametrize("variable", sorted(VARIABLES))
def test_every_variable_sets_its_setting(variable: str) -> None:
    text, value = EXAMPLES[variable]
    loaded = load({}, {variable: text})
    for key in VARIABLES[variable]:
        assert value_of(loaded.settings, key) == value
        assert loaded.sources[key] == f"environment {variable}"
        assert load({}, {variable: ""}).sources == load({}).sources


def test_library_variables_are_listed_and_left_alone() -> None:
    environ = {name: f"value of {name}" for name in LIBRARY_VARIABLES}
    loaded = load({}, environ)
    assert loaded.library_variables == environ
    assert loaded.sources == load({}).sources
    assert all(f'{name} = "value of {name}"' in loaded.describe() for name in LIBRARY_VARIABLES)


@pytest.mark.parametrize("variable", GUIDE_VARIABLES)
def test_every_variable_of_the_documents_is_known(variable: str) -> None:
    assert (variable in VARIABLES) + (variable in LIBRARY_VARIABLES) + (variable in ONLY_THE_WORKERS) == 1


def test_the_app_ignores_the_variables_of_the_worker() -> None:
    environ = dict.fromkeys(ONLY_THE_WORKERS, "neither a number nor a path: \x00")
    loaded = load({}, environ)
    assert loaded.settings == load({}).settings
    assert loaded.describe() == load({}).describe()


def test_the_map_has_a_row_for_every_key_and_variable_and_no_other() -> None:
    known = {*GUIDE_KEYS, *GUIDE_VARIABLES, *VARIABLES, *LIBRARY_VARIABLES}
    assert set(map_rows()) == known | {"AWS_SESSION_TOKEN", "REQUEST_TIMEOUT", "PROCESSING_TIMEOUT"}


@pytest.mark.parametrize(("name", "cells"), map_rows().items())
def test_a_row_of_the_map_names_what_the_code_does(name: str, cells: list[str]) -> None:
    setting, _, proof = cells
    expected: list[str] = []
    if name in VARIABLES:
        expected = list(VARIABLES[name])
    elif name in LIBRARY_VARIABLES:
        assert setting == f"library: {LIBRARY_VARIABLES[name]}"
    elif name in RETIRED:
        assert setting == "retired"
    elif name in ONLY_THE_WORKERS:
        assert setting == f"`serverless/settings.py`: `{WORKER_FIELDS[name]}`"
        assert proof.startswith("`test_")
        return
    else:
        expected = [ALIASES.get(name, name)]
    assert re.findall(r"`([^`]+)`", setting) == expected
    for key in expected:
        if not key.startswith("logging"):
            extra = field_of(key).json_schema_extra
            later = extra.get("later") if isinstance(extra, dict) else None
            assert (proof.removeprefix("later: ") == later) == (later is not None), key
    if proof.startswith("later: "):
        assert proof.removeprefix("later: ") in PARTS


def test_the_tests_that_the_map_names_exist() -> None:
    text = (ROOT / "docs" / "admin-guide-map.md").read_text()
    for file, test in set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)):
        (path,) = (ROOT / "tests").glob(f"*/{file}")
        assert f"def {test}(" in path.read_text(), (file, test)


def test_settings_that_wait_for_a_later_part_name_one_of_the_parts() -> None:
    for key in all_keys():
        extra = field_of(key).json_schema_extra
        assert not isinstance(extra, dict) or extra.get("later") in {None, *PARTS}, key
