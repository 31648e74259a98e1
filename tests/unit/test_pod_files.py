"""The pod's template and pages say what the image, the script and the presets do."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.model_needs import needed_models
from pipeline.models import load_manifest
from scripts.presets import PRESETS, settings_of

ROOT = Path(__file__).parents[2]
TEMPLATE = json.loads((ROOT / "deploy" / "runpod" / "template.json").read_text())
# Fields of RunPod's request to create a template (docs.runpod.io, POST /templates, read in 2026).
FIELDS = {"name", "imageName", "category", "isPublic", "isServerless", "containerDiskInGb", "volumeInGb"}
FIELDS |= {"volumeMountPath", "ports", "env", "readme", "dockerEntrypoint", "dockerStartCmd", "containerRegistryAuthId"}
CONVERTED_GB = 7.8


def download_gb(preset: str) -> float:
    return sum(m.total_bytes for m in needed_models(settings_of(PRESETS[preset], {}), load_manifest())) / 1e9


def test_the_template_has_the_fields_that_runpod_takes() -> None:
    assert set(TEMPLATE) <= FIELDS
    assert TEMPLATE["ports"] == ["7860/http"]
    assert TEMPLATE["volumeMountPath"] == "/workspace"
    assert not TEMPLATE["isPublic"]
    assert not TEMPLATE["isServerless"]


def test_the_template_holds_no_secret_and_no_setting_that_opens_a_door() -> None:
    assert [name for name in TEMPLATE["env"] if re.search(r"TOKEN|KEY|SECRET|PASSWORD|ACCESS", name)] == []


@pytest.mark.parametrize("preset", PRESETS)
def test_the_volume_holds_the_models_of_every_preset_and_the_conversion(preset: str) -> None:
    assert download_gb(preset) + CONVERTED_GB < TEMPLATE["volumeInGb"] * 0.6


@pytest.mark.parametrize("preset", PRESETS)
def test_the_page_about_gpus_names_talks_and_download_of_each_preset(preset: str) -> None:
    page = (ROOT / "docs" / "gpu.md").read_text().splitlines()
    column = 2 + list(PRESETS).index(preset)
    talks, download = (
        next(line for line in page if line.startswith(f"| {row}")) for row in ("talks at once", "download")
    )
    assert int(talks.split("|")[column]) == settings_of(PRESETS[preset], {}).system.max_concurrent_users
    assert float(download.split("|")[column].split()[0]) == pytest.approx(download_gb(preset), abs=0.06)


def test_the_page_about_gpus_names_every_revision() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    models = [m for m in load_manifest().models if any(not f.parts for f in m.files)]
    revisions = {f.hub.revision[:8] for m in models for f in m.files if f.hub}
    assert len(revisions) == 9
    assert [revision for revision in revisions if revision not in page] == []


@pytest.mark.parametrize(
    "page", ["docs/runpod.md", "docs/gpu.md", "deploy/runpod/README.md", "docs/decisions/0011-a-slim-base.md"]
)
def test_links_of_the_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_the_folders_of_the_page_are_those_that_the_script_makes() -> None:
    script = (ROOT / "deploy" / "volume.sh").read_text()
    made = set(re.findall(r"for folder in ([a-z ]+);", script))
    rows = re.findall(r"^\| `([a-z]+)` \|.*\| (0\d+) \|$", (ROOT / "docs" / "runpod.md").read_text(), re.MULTILINE)
    assert {" ".join(sorted(folders.split())) for folders in made} == {" ".join(sorted(name for name, _ in rows))}
    assert {mode for name, mode in rows if name != "models"} == {"0700"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave root")
def test_the_login_link_of_the_page_can_be_made_from_a_terminal_of_roots() -> None:
    line = next(s for s in (ROOT / "docs" / "runpod.md").read_text().splitlines() if s.endswith(" login-link"))
    # Not pytest's own directory: another user must be able to look into it.
    with tempfile.TemporaryDirectory(prefix="volume-") as name:
        volume = Path(name)
        volume.chmod(0o755)
        (volume / "voicepod").mkdir()
        os.chown(volume / "voicepod", 10001, 10001)
        words = shlex.split(line.replace("/workspace", name))
        assert words[:6] == ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "python", "-m"]
        # The packages of this machine may be root's alone, so root is left only once they are imported.
        leave = "import os, sys, encodings.utf_8_sig; from scripts.keys import main; "
        leave += "os.setgroups([]); os.setgid(10001); os.setuid(10001)"
        done = subprocess.run(
            [sys.executable, "-c", f"{leave}; sys.exit(main(sys.argv[1:]))", *words[7:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "/login#" in done.stdout
        assert {path.stat().st_uid for path in (volume / "voicepod").iterdir()} == {10001}
