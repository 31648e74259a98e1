"""What a server does before its first talk, and while its engines are pressed."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import app
from api.ledger import GB, CardMemory
from api.store import Database
from pipeline.audio import AudioChunk
from pipeline.engines.asr_by_load import AsrByLoad, with_light_model
from pipeline.engines.base import Engines, Voice
from pipeline.engines.lanes import Waited
from pipeline.errors import EngineError, EngineFailed, EngineTimeout
from pipeline.pressure import Pressure
from pipeline.records import TurnRecord
from pipeline.turn import Waits
from pipeline.warm_up import WORDS, warm_turn
from settings import Settings
from tests.support.client import connected
from tests.support.live_server import live_server
from tests.support.scripted import VOICES, ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedVad

WAITS = Waits.from_settings(Settings().turn)


class Pressed(Pressure):
    """Stands at one step."""

    def __init__(self, step: int) -> None:
        super().__init__(max_wait_s=1, clock=lambda: 0.0)
        self._level, self._changed_at_s = step, 0.0  # held there


async def warmed(engines: Engines, waits: Waits = WAITS) -> None:
    await warm_turn(engines, voice=VOICES[0], instructions="Be brief.", waits=waits)


async def test_a_turn_that_nobody_hears_goes_through_all_engines() -> None:
    asr, llm, tts = (
        ScriptedAsr(["so it was heard"]),
        ScriptedLlm(["one two three four five six seven eight nine"]),
        ScriptedTts(),
    )
    await warmed(Engines(ScriptedVad(), asr, llm, tts))
    (utterance,), (messages,) = asr.utterances, llm.asked
    assert utterance.seconds == pytest.approx(len(WORDS) * 0.06, abs=0.01)
    assert [(m.role, m.content) for m in messages] == [("system", "Be brief."), ("user", "so it was heard")]
    assert (llm.open_streams, tts.open_streams) == (0, 0)


def test_a_disk_that_takes_no_more_stops_the_start_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], logging_as_it_was: None
) -> None:
    database = Database(tmp_path)
    database.read().execute(
        "CREATE TRIGGER full BEFORE INSERT ON owners BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
    )
    database.close()
    engines = Engines(ScriptedVad(), ScriptedAsr(), ScriptedLlm(), ScriptedTts())
    monkeypatch.setattr(Engines, "from_settings", lambda settings: engines)
    monkeypatch.setattr(app, "require_models", lambda settings: None)
    assert app.main(["--set", f"storage.dir={tmp_path}", "--set", f"cache.dir={tmp_path}/cache", "--port", "0"]) == 1
    told = capsys.readouterr()
    assert told.err == f"voicepod: storage.dir {tmp_path}: database or disk is full\n"
    assert "Traceback" not in told.out


async def test_what_the_server_has_made_by_then_is_not_looked_through_in_a_talk() -> None:
    made = [object() for _ in range(10)]
    engines = Engines(ScriptedVad(), ScriptedAsr(["heard"]), ScriptedLlm(["answer"]), ScriptedTts())
    await app.warm_up(engines, voice=VOICES[0], instructions="Be brief.", waits=WAITS)
    assert not any(thing is made for thing in gc.get_objects())


async def test_an_engine_that_fails_or_hangs_in_it_is_told_by_its_error() -> None:
    with pytest.raises(EngineError) as failed:
        await warmed(
            Engines(ScriptedVad(), ScriptedAsr([EngineFailed("no", stage="asr")]), ScriptedLlm(), ScriptedTts())
        )
    assert failed.value.stage == "asr"
    short = Waits(asr_s=0.01, first_token_s=0.01, token_s=0.01, first_audio_s=0.01, audio_s=0.01)
    with pytest.raises(EngineTimeout):
        await warmed(Engines(ScriptedVad(), ScriptedAsr(delay_s=60), ScriptedLlm(), ScriptedTts()), short)


async def test_talks_begin_after_the_first_turn_only() -> None:
    may_end = asyncio.Event()

    async def slow(engines: Engines, *, voice: Voice, instructions: str, waits: Waits) -> None:
        assert voice.id == "anna"
        await may_end.wait()

    async with live_server(warm_up=slow, until_ready=False) as live, httpx.AsyncClient(base_url=live.http) as http:
        async with asyncio.timeout(30):
            while live.server.readiness.startup()["engines"][-1]["state"] != "loading":
                await asyncio.sleep(0.01)
        assert (await http.get("/health/ready")).status_code == 503
        assert (await http.get("/api/startup")).json()["engines"][-1]["kind"] == "turn"
        may_end.set()
        async with asyncio.timeout(30):
            while (await http.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.01)


async def test_while_the_engines_are_pressed_no_talk_begins_and_those_that_run_go_on() -> None:
    clock = [0.0]
    pressure = Pressure(max_wait_s=1, clock=lambda: clock[0])
    async with live_server(pressure=pressure) as live, connected(live.url) as first:
        await first.until("session.created")
        for _ in range(8):
            record = TurnRecord(1)
            record.note_work(Waited("tts", 9.0))
            pressure.note(record)
            clock[0] += 3.0
        async with connected(live.url) as second:
            error = (await second.until("error"))["error"]
            assert (error["code"], await second.closed()) == ("server_busy", 1013)
            assert "busy" in error["message"]
            assert error["retry_after_s"] > 0
        await first.say()
        assert (await first.until("response.done"))["response"]["status"] == "completed"
        async with httpx.AsyncClient(base_url=live.http) as http:
            assert "voicepod_load_step 3.0" in (await http.get("/metrics")).text
        clock[0] += 60
        for _ in range(3):
            assert pressure.step in ("normal", "first_clause", "light_asr")
            clock[0] += 3.0
        async with connected(live.url) as third:
            await third.until("session.created")


@pytest.mark.parametrize(("step", "n_first"), [(0, 90), (1, 45)])
async def test_the_first_piece_is_shorter_while_the_engines_are_pressed(step: int, n_first: int) -> None:
    pieces: list[str] = []
    tts = ScriptedTts(first_audio_s=0.01, real_time_factor=0.01, fail_on=lambda piece: pieces.append(piece.spoken))
    llm = ScriptedLlm(["word " * 40 + "end."], 0.01, 0.0)
    async with live_server(llm=llm, tts=tts, pressure=Pressed(step)) as live, connected(live.url) as client:
        await client.say()
        async with asyncio.timeout(30):
            while not pieces:
                await asyncio.sleep(0.01)
    assert n_first - 6 < len(pieces[0]) <= n_first


async def test_the_light_recogniser_hears_while_the_engines_are_pressed_if_it_knows_the_language() -> None:
    chosen, light = ScriptedAsr(["chosen"] * 3), ScriptedAsr(["light"] * 3)
    pressed = False
    asr = AsrByLoad(chosen, light, lambda: pressed)
    second = AudioChunk.silence(1, 16_000)

    async def heard(language: str | None) -> str:
        return (await asr.transcribe(second, language=language)).text

    assert await heard("en") == "chosen"
    pressed = True
    assert [await heard("en"), await heard(None), await heard("fr")] == ["light", "light", "chosen"]
    assert asr.info is chosen.info
    await asr.load()
    await asr.close()


async def test_a_light_recogniser_of_one_language_hears_no_language_that_is_to_be_found_out() -> None:
    chosen, light = ScriptedAsr(["chosen"]), ScriptedAsr(["light"])
    chosen.info = replace(chosen.info, languages=("en", "de"))
    asr = AsrByLoad(chosen, light, lambda: True)
    assert (await asr.transcribe(AudioChunk.silence(1, 16_000), language=None)).text == "chosen"


async def test_a_card_that_no_engine_lives_on_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    full = CardMemory(24 * GB, 24 * GB)  # of others' work
    monkeypatch.setattr("api.application.read_card", lambda device: full)
    monkeypatch.setattr("api.card_shares.cap_card_memory", lambda share: None)
    n_turns = 0

    async def count(engines: Engines, *, voice: Voice, instructions: str, waits: Waits) -> None:
        nonlocal n_turns
        n_turns += 1

    async with live_server(warm_up=count, until_ready=False) as live:
        async with asyncio.timeout(30):
            while live.server.readiness.state == "loading":
                await asyncio.sleep(0.01)
        assert live.server.readiness.state == "ready"
    assert n_turns == 1


def test_light_model_acts() -> None:
    asr = ScriptedAsr()
    assert with_light_model(asr, Settings(), lambda: True) is asr
    settings = Settings.model_validate({"asr": {"light_model": "tiny.en", "engine": "whisper", "device": "cuda"}})
    both = with_light_model(asr, settings, lambda: True)
    assert isinstance(both, AsrByLoad)
    assert both._light.info.model == "whisper-tiny.en"
    assert both._light.info.device == "cpu"


def test_max_wait_s_acts() -> None:
    settings = Settings.model_validate({"scaling_config": {"max_wait_s": 0.5}})
    pressure = Engines.from_settings(settings).pressure
    assert pressure is not None
    for _ in range(2):
        record = TurnRecord(1)
        record.note_work(Waited("tts", 0.2))
        pressure.note(record)
    assert pressure.step == "first_clause"
