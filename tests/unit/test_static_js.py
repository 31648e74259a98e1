"""Runs the Node tests of the page's modules that need no browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "ui" / "static"
TESTS = sorted((ROOT / "tests" / "js").glob("*.test.mjs"))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node 20 or later")
@pytest.mark.parametrize("test_file", TESTS, ids=lambda path: path.stem)
def test_the_pages_modules_pass_their_node_tests(test_file: Path) -> None:
    done = subprocess.run(["node", str(test_file)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for path in STATIC.iterdir():
        addresses = re.findall(r"https?://[\w.-]+", path.read_text(encoding="utf-8"))
        allowed = {"http://localhost"}  # stands in a sentence that tells people where a microphone works
        assert set(addresses) <= allowed, path.name


def test_every_import_of_the_page_names_a_file_that_is_there() -> None:
    for path in STATIC.glob("*.js"):
        for name in re.findall(r'from "\./([\w-]+\.js)"', path.read_text(encoding="utf-8")):
            assert (STATIC / name).is_file(), f"{path.name} imports {name}"
