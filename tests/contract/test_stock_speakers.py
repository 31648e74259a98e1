"""The table of stock voices that comes with the program is that of the models that it is for."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from pipeline.engines.base import Tts
from pipeline.errors import ConfigError
from pipeline.matching import StockTable, listen, nearest
from pipeline.models import locate
from pipeline.speaker import MODEL_ID, SpeakerEncoder, similarity
from pipeline.turn import Waits
from settings import Settings
from tests.contract.conftest import WAIT_S, Kept
from tests.unit.test_sample_quality import JFK

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

WAITS = Waits(asr_s=WAIT_S, first_token_s=WAIT_S, token_s=WAIT_S, first_audio_s=WAIT_S, audio_s=WAIT_S)


@pytest.fixture(scope="module")
def speakers() -> SpeakerEncoder:
    try:
        return SpeakerEncoder.load(locate(Settings().models.dir, MODEL_ID))
    except ConfigError as error:
        if os.environ.get("VOICEPOD_REQUIRE_MODELS"):
            raise
        pytest.skip(str(error))


@pytest_asyncio.fixture(loop_scope="session")
async def kokoro(kept: Kept) -> Tts:
    engine: Tts = await kept("tts", "kokoro")
    return engine


async def test_a_match_with_kokoro_takes_nobody_a_minute(kokoro: Tts, speakers: SpeakerEncoder, tmp_path: Path) -> None:
    table = await StockTable(tmp_path).of(kokoro, speakers, WAITS)
    assert {voice.id for voice in kokoro.info.voices} <= set(table)
    assert os.listdir(tmp_path) == []  # nothing had to be heard
    match = nearest(speakers.embed(JFK), table, kokoro.info.voices, "en")
    assert match.voice.id[1] == "m"
    assert 0.4 < match.similarity < 0.9


async def test_the_table_has_the_voice_that_kokoro_speaks_with(
    kokoro: Tts, speakers: SpeakerEncoder, tmp_path: Path
) -> None:
    table = await StockTable(tmp_path).of(kokoro, speakers, WAITS)
    voice = next(voice for voice in kokoro.info.voices if voice.id == "bf_emma")
    (heard,) = (await listen(kokoro, speakers, [replace(voice, speed=1.0)], WAITS)).values()
    assert similarity(heard, table[voice.id]) > 0.97
