"""What every engine must do at its start and its end."""

from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.audio import AudioChunk
from pipeline.engines.base import ENGINES, EngineKind, Message, Voice, create_engine
from pipeline.engines.tiny_whisper import write_tiny_whisper
from pipeline.errors import ConfigError, EngineNotReady
from settings import ModelsSettings, Settings
from tests.contract.conftest import load_engine, remote
from tests.support.speech_clips import pieces

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

EVERY: list[tuple[EngineKind, str]] = [(kind, name) for kind, names in ENGINES.items() for name in sorted(names)]


def small_weights(name: str, directory: Path) -> dict[str, Any]:
    """Sections of the settings with the smallest model that there is for this engine."""
    match name:
        case "whisper":
            return {"asr": {"path": write_tiny_whisper(directory), "device": "cpu", "threads": 1}}
        case "faster_whisper":
            return {"models": {"whisper_model": "tiny.en"}}
        case _:
            return {}


async def use(kind: EngineKind, engine: object) -> None:
    """One small job."""
    match kind:
        case "vad":
            engine.stream().probability(np.zeros(engine.frame_samples, np.float32))  # type: ignore[attr-defined]
        case "asr":
            await engine.transcribe(AudioChunk.silence(0.5, 16_000), language="en")  # type: ignore[attr-defined]
        case "llm":
            await engine.count_tokens("Hello")  # type: ignore[attr-defined]
            async with aclosing(engine.reply([Message("user", "Hi")], max_tokens=1)) as reply:  # type: ignore[attr-defined]
                assert [delta async for delta in reply]
        case "tts":
            voice = (*engine.info.voices, Voice("any", "any", "en"))[0]  # type: ignore[attr-defined]
            async with aclosing(engine.synthesize(pieces("Hi."), voice=voice)) as chunks:  # type: ignore[attr-defined]
                assert [chunk async for chunk in chunks][-1].final


@pytest.mark.parametrize(("kind", "name"), EVERY)
async def test_an_engine_refuses_work_until_loaded_loads_twice_and_refuses_after_close(
    kind: EngineKind, name: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineNotReady):
        await use(kind, create_engine(kind, name, Settings()))
    remote(name)  # the server that an engine asks is no process of its own
    processes = {child.pid for child in psutil.Process().children(recursive=True)}
    engine = await load_engine(kind, name, **small_weights(name, tmp_path))
    await engine.load()
    assert (engine.info.kind, engine.info.name) == (kind, name)
    await use(kind, engine)
    await engine.close()
    with pytest.raises(EngineNotReady):
        await use(kind, engine)
    await engine.close()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= processes


@pytest.mark.parametrize(("kind", "name"), [pair for pair in EVERY if pair[1] != "webrtc"])
async def test_a_missing_model_stops_the_start_with_the_command_that_gets_it(
    kind: EngineKind, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    nothing = Settings(models=ModelsSettings(dir=tmp_path_factory.mktemp("no-models")))
    engine = create_engine(kind, name, nothing)
    with pytest.raises(ConfigError, match="Run: "):
        await engine.load()
    await engine.close()
