"""The nearest stock voice: which one, in which language, and where its table comes from."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from pipeline import matching
from pipeline.engines.base import EngineInfo, Voice
from pipeline.errors import InvalidInput
from pipeline.matching import SHIPPED, StockTable, nearest, packed, table_name
from pipeline.turn import Waits
from tests.support.voices import PITCHES, STOCK, PitchSpeakers, PitchTts, said

WAITS = Waits(asr_s=5, first_token_s=5, token_s=5, first_audio_s=5, audio_s=5)
TABLE = {name: PitchSpeakers.of(pitch) for name, pitch in PITCHES.items()}


@pytest.mark.parametrize(("pitch", "voice"), [(230, "anna"), (200, "anna"), (320, "carla"), (400, "carla")])
def test_the_voice_that_sounds_most_alike_is_chosen(pitch: float, voice: str) -> None:
    found = nearest(PitchSpeakers.of(pitch), TABLE, STOCK, "en")
    assert found.voice.id == voice
    assert 0 < found.similarity <= 1.0001


def test_only_voices_that_speak_the_language_count() -> None:
    assert nearest(PitchSpeakers.of(325), TABLE, STOCK, "de").voice.id == "bruno"
    both = (*STOCK, Voice("carla", "Carla", "en", languages=("en", "de")))
    assert nearest(PitchSpeakers.of(325), TABLE, both, "de").voice.id == "carla"


def test_without_a_voice_of_the_language_that_is_said_plainly() -> None:
    with pytest.raises(InvalidInput, match="no voice that speaks French") as refused:
        nearest(PitchSpeakers.of(200), TABLE, STOCK, "fr")
    assert (refused.value.code, refused.value.param) == ("no_voice_for_language", "language")


async def test_stock_voices_are_heard_once_and_kept(tmp_path: Path) -> None:
    tts, speakers = PitchTts(), PitchSpeakers()
    table = await StockTable(tmp_path / "kept").of(tts, speakers, WAITS)
    assert {voice.id for voice in tts.spoken_by} == set(PITCHES)
    assert nearest(speakers.embed(said(3, 332)), table, STOCK, "en").voice.id == "carla"
    (file,) = (tmp_path / "kept").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    again = PitchTts()
    kept = await StockTable(tmp_path / "kept").of(again, speakers, WAITS)
    assert again.spoken_by == []
    assert all(np.allclose(kept[name], table[name], atol=1e-3) for name in table)


async def test_a_voice_that_the_table_lacks_is_heard(tmp_path: Path) -> None:
    await StockTable(tmp_path).of(PitchTts({"anna": 220.0}), PitchSpeakers(), WAITS)
    more = PitchTts()
    table = await StockTable(tmp_path).of(more, PitchSpeakers(), WAITS)
    assert {voice.id for voice in more.spoken_by} == {"bruno", "carla"}
    assert set(table) == set(PITCHES)


@pytest.mark.parametrize(
    "content", [b"", b"no table", b"PK\x03\x04broken", packed({"anna": np.ones(3, np.float32)})[:-9]]
)
async def test_a_damaged_table_is_made_anew(tmp_path: Path, content: bytes) -> None:
    tts = PitchTts()
    (tmp_path / table_name(tts.info)).write_bytes(content)
    assert set(await StockTable(tmp_path).of(tts, PitchSpeakers(), WAITS)) == set(PITCHES)


async def test_where_the_table_cannot_be_kept_matching_works_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert set(await StockTable(tmp_path / "file").of(PitchTts(), PitchSpeakers(), WAITS)) == set(PITCHES)


def test_an_engines_name_never_leads_out_of_the_directory() -> None:
    info = EngineInfo("tts", "../../etc", "a/b\\c\0d")
    assert Path(table_name(info)).name == table_name(info)
    assert ".." not in table_name(info).replace("..-", "")


def test_the_table_of_kokoro_comes_along_and_its_voices_differ() -> None:
    table = matching._read(SHIPPED / "kokoro-kokoro-82m.npz")
    assert len(table) == 28
    assert {name[0] for name in table} == {"a", "b"}
    vectors = np.stack(list(table.values()))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    alike = vectors @ vectors.T - 2 * np.eye(28)
    assert alike.max() < 0.97
