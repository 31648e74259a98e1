"""`docs/api.md` is true: its examples run, its tables are whole."""

from __future__ import annotations

import ast
import asyncio
import os
import re
from pathlib import Path

from api.access import keys
from api.access.principal import SCOPES
from api.access.rules import doors
from api.application import Server
from pipeline.engines.base import Engines
from tests.support.live_server import scripted_settings
from tests.support.rest import BriefTts, TimedAsr, ToneTts, a_file, rest_server
from tests.support.scripted import ScriptedAsr, ScriptedLlm, ScriptedVad
from tests.support.voices import PitchSpeakers, recording

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
# What raises the codes of the HTTP routes; those of a talk stand in docs/protocol.md.
SOURCES = [*(ROOT / "api" / "rest").glob("*.py"), ROOT / "api" / "uploads.py", ROOT / "pipeline" / "reading.py"]
SOURCES += [ROOT / "pipeline" / name for name in ("untrusted_audio.py", "untrusted_text.py", "audio_containers.py")]
SOURCES += [*(ROOT / "api" / "voices").glob("*.py"), ROOT / "pipeline" / "matching.py"]


def examples() -> list[str]:
    """Every command of the page, in order; a block may hold several."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [command for block in blocks for command in block.strip().split("\n\n")]


async def test_every_example_runs(tmp_path: Path) -> None:
    (tmp_path / "question.wav").write_bytes(a_file(2.0))
    (tmp_path / "my-voice.wav").write_bytes(recording(7.0))
    lasting = "\n".join(command if "=$(" in command else f"{{ {command}\n}}" for command in examples())
    async with rest_server(
        access={"mode": "keys"}, asr=TimedAsr(delay_s=0.0), llm=ScriptedLlm(), tts=ToneTts(), speakers=PitchSpeakers()
    ) as rest:
        store = rest.live.server.store
        owner = await store.write(lambda db: keys.owner_named(db, "reader", now_s=0.0, create=True))
        _, key = await store.write(lambda db: keys.create(db, owner=owner, name="page", scopes=SCOPES, now_s=0.0))
        shell = await asyncio.create_subprocess_exec(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            f"trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n{lasting}",
            cwd=tmp_path,
            env={**os.environ, "VOICEPOD": rest.live.http, "VOICEPOD_KEY": key},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = (text.decode() for text in await asyncio.wait_for(shell.communicate(), 60))
    assert shell.returncode == 0, errors
    for made in ("fox.mp3", "morning.flac", "morning.wav", "answer.wav", "answer.mp3", "mine.wav", "reference.wav"):
        assert (tmp_path / made).stat().st_size > 1000, made
    for told in ("transcript.text.done", "-->", "WEBVTT", '"type":"done"', "/v1/audio/speech", "average_response_time"):
        assert told in output, told


def test_every_route_of_the_api_has_an_example(tmp_path: Path) -> None:
    settings = scripted_settings(storage={"dir": tmp_path})
    server = Server(settings, Engines(ScriptedVad(), ScriptedAsr(), ScriptedLlm(), BriefTts()))
    commands = "\n".join(examples())
    missing = []
    for door in doors(server.app):
        if not door.path.startswith(("/api/", "/v1/")) or door.path in ("/v1/realtime", "/api/ticket"):
            continue
        path = re.sub(r"\\\{\w+\\\}", r"[^/\\s?\"]+", re.escape(door.path))
        asked = re.findall(rf'"\$VOICEPOD{path}[?"].*', commands)
        for method in door.methods - {"HEAD"}:
            lines = [line for line in commands.splitlines() if re.search(rf'"\$VOICEPOD{path}[?"]', line)]
            deletes = [line for line in lines if "-X DELETE" in line]
            if not asked or (method == "DELETE" and not deletes) or (method != "DELETE" and lines == deletes):
                missing.append((method, door.path))
    asyncio.run(server.store.aclose())
    assert missing == []


def codes_raised() -> set[str]:
    found = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                found.add(str(node.value.value))
    return found


def test_every_code_is_explained() -> None:
    codes = codes_raised()
    assert "not_audio" in codes
    assert [code for code in codes if not re.search(rf"^\| [^|]*`{re.escape(code)}`[^|]*\|", PAGE, re.MULTILINE)] == []


def test_links_within_the_page_lead_somewhere() -> None:
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings
