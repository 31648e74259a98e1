"""What holds for the repository as a whole."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "service", "misc"}
MODEL_LIBRARIES = {"torch", "onnxruntime", "ctranslate2", "faster_whisper", "xllamacpp", "webrtcvad", "transformers"}
WEB = {"gradio", "fastapi", "starlette", "uvicorn", "prometheus_client"}


def modules() -> list[Path]:
    """Every Python file of the project, by path from the root."""
    listed = [path.relative_to(ROOT) for path in ROOT.glob("*.py")]
    for package in sorted(path.parent for path in ROOT.glob("*/__init__.py")):
        listed += [path.relative_to(ROOT) for path in package.rglob("*.py")]
    return listed


def top_level_names() -> list[str]:
    return sorted({path.parts[0].removesuffix(".py") for path in modules()})


def imported_by(module: str) -> set[str]:
    """Top-level names in `sys.modules` after importing `module` in a fresh interpreter."""
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", top_level_names())
def test_a_top_level_name_resolves_inside_the_repository(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)
    assert name not in sys.stdlib_module_names


def test_nothing_is_called_by_a_name_that_says_nothing() -> None:
    parts = {(path, part) for path in modules() for part in path.with_suffix("").parts}
    assert [str(path) for path, part in parts if set(part.lower().split("_")) & BANNED_NAMES] == []


def test_no_class_is_called_by_a_name_that_says_nothing() -> None:
    named = re.compile(r"^[ \t]*class (\w*(?:utils|helper|manager|service))\b", re.IGNORECASE | re.MULTILINE)
    assert [f"{path}: {name}" for path in modules() for name in named.findall((ROOT / path).read_text())] == []


def test_module_names_are_lower_case_words() -> None:
    assert [str(path) for path in modules() if not path.stem.isidentifier() or path.stem != path.stem.lower()] == []


@pytest.mark.parametrize("module", ["pipeline", "pipeline.session", "pipeline.engines.base", "settings"])
def test_importing_the_core_loads_no_model_library_and_no_web(module: str) -> None:
    assert imported_by(module) & (MODEL_LIBRARIES | WEB) == set()


def test_each_product_module_says_what_it_is() -> None:
    # A docstring is the first thing behind comments, if there is anything.
    said = re.compile(r'(?:\s|#.*\n)*r?(?:"""|\Z)')
    product = [path for path in modules() if path.parts[0] != "tests"]
    assert [str(path) for path in product if not said.match((ROOT / path).read_text())] == []
