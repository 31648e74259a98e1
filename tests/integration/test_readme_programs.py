"""What the README says about programs runs as it stands there."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.access import keys
from api.access.principal import USER_SCOPES
from tests.support.rest import Rest, TimedAsr, ToneTts, rest_server
from tests.support.scripted import ScriptedLlm

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    section = README.partition("## Use it from programs\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    asr = TimedAsr(["The quick brown fox.", "The quick brown fox."], delay_s=0.0)
    async with rest_server(access={"mode": "keys"}, asr=asr, llm=ScriptedLlm(), tts=ToneTts()) as running:
        yield running


async def run(rest: Rest, folder: Path, *command: str) -> str:
    store = rest.live.server.store
    owner = await store.write(lambda db: keys.owner_named(db, "reader", now_s=0.0, create=True))
    _, key = await store.write(lambda db: keys.create(db, owner=owner, name="programs", scopes=USER_SCOPES, now_s=0.0))
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "VOICEPOD": rest.live.http, "VOICEPOD_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_the_curl_commands_speak_and_answer(rest: Rest, tmp_path: Path) -> None:
    (commands,) = blocks("sh")
    await run(rest, tmp_path, "bash", "-euo", "pipefail", "-c", commands)
    for name in ("question.wav", "answer.wav"):
        assert (tmp_path / name).read_bytes().startswith(b"RIFF")
        assert (tmp_path / name).stat().st_size > 10_000


async def test_the_openai_client_speaks_and_listens(rest: Rest, tmp_path: Path) -> None:
    (program,) = blocks("python")
    assert await run(rest, tmp_path, sys.executable, "-c", program) == "The quick brown fox.\n"
    assert (tmp_path / "fox.mp3").stat().st_size > 1000
