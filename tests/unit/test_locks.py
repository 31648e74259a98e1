"""requirements/gpu.lock is what requirements/gpu.txt says, every file by its hash, with torch for CUDA."""

from __future__ import annotations

import re
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pins(name: str) -> dict[str, str]:
    """Names and versions of a requirements file and of those it includes."""
    found: dict[str, str] = {}
    for line in (REQUIREMENTS / name).read_text().splitlines():
        if included := re.match(r"-r\s+(\S+)", line):
            found |= pins(included[1])
        elif pin := re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", line):
            found[re.sub(r"[._-]+", "-", pin[1]).lower()] = pin[2]
    return found


def test_the_lock_holds_the_versions_of_the_gpu_profile() -> None:
    wanted, locked = pins("gpu.txt"), pins("gpu.lock")
    stale = {name: version for name, version in wanted.items() if locked.get(name) != version}
    assert stale == {}, "run: scripts/lock.sh"


def test_what_the_lock_adds_is_what_torch_brings_for_cuda() -> None:
    added = set(pins("gpu.lock")) - set(pins("gpu.txt"))
    assert [name for name in added if not re.match(r"nvidia-|cuda-|triton$|setuptools$", name)] == []
    assert "nvidia-cudnn-cu13" in added


def test_every_file_of_a_lock_has_a_hash() -> None:
    for name in ("gpu.lock", "build.lock"):
        blocks = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^#.*\n", "", (REQUIREMENTS / name).read_text(), flags=re.M))
        assert len(blocks) == len(pins(name))
        assert [block.splitlines()[0] for block in blocks if not HASH.search(block)] == []


def test_what_builds_packages_is_locked_as_well() -> None:
    assert {"setuptools", "wheel"} <= set(pins("build.lock"))
