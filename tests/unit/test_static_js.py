"""Runs the Node tests of the page's modules that need no browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ui.own_files import BASE, STATIC, modules, version_of

ROOT = Path(__file__).parents[2]
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


def test_every_module_that_the_page_imports_is_there_and_loaded_beforehand() -> None:
    found = {"voice.js", "ticket.js"}
    waiting = list(found)
    while waiting:
        imported = set(re.findall(r'from "\./([\w-]+\.js)"', (STATIC / waiting.pop()).read_text(encoding="utf-8")))
        waiting += imported - found
        found |= imported
    assert modules() == [BASE + name for name in sorted(found)]


def test_a_version_changes_with_each_name_and_each_byte(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_bytes(b"1")
    versions = {version_of(tmp_path)}
    (tmp_path / "a.js").write_bytes(b"2")
    versions.add(version_of(tmp_path))
    (tmp_path / "a.js").rename(tmp_path / "b.js")
    versions.add(version_of(tmp_path))
    (tmp_path / "c.js").touch()
    versions.add(version_of(tmp_path))
    assert len(versions) == 4
