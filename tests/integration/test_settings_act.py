"""Settings that act: what a server or a program does differently when one of them is set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import websockets

from pipeline.audio import AudioChunk, file_bytes
from pipeline.engines import asr_faster_whisper
from pipeline.engines.base import Engines, create_engine
from pipeline.engines.marking import MarkingTts
from pipeline.errors import ConfigError
from scripts import talk
from settings import Settings
from tests.support.client import connected
from tests.support.live_server import Live, live_server, scripted_settings
from tests.support.rest import a_file
from tests.support.scripted import ScriptedAsr

FOREIGN = "https://desk.example"


async def status_of(live: Live, path: str) -> int:
    async with httpx.AsyncClient() as http:
        return (await http.get(live.http + path)).status_code


async def handshake(live: Live, **options: Any) -> int:
    """The status with which a handshake was refused, 101 when it was not."""
    try:
        async with connected(live.url, **options):
            return 101
    except websockets.InvalidStatus as refused:
        return refused.response.status_code


async def created(**sections: dict[str, Any]) -> dict[str, Any]:
    """The session that a client is greeted with."""
    async with live_server(scripted_settings(**sections)) as live, connected(live.url) as client:
        session: dict[str, Any] = (await client.until("session.created"))["session"]
        return session


@pytest.mark.parametrize(("enabled", "status"), [(True, 200), (False, 404)])
async def test_enable_monitoring_acts(enabled: bool, status: int) -> None:
    async with live_server(scripted_settings(system={"enable_monitoring": enabled})) as live:
        assert await status_of(live, "/metrics") == status
        assert await status_of(live, "/health/ready") == 200


async def test_max_concurrent_users_acts() -> None:
    async with live_server(scripted_settings(system={"max_concurrent_users": 1})) as live:
        async with connected(live.url) as first:
            await first.until("session.created")
            async with connected(live.url) as second:
                error = (await second.until("error"))["error"]
                assert (error["code"], await second.closed()) == ("server_busy", 1013)
                assert error["retry_after_s"] > 0
                assert not second.all("session.created")


@pytest.mark.parametrize(("enabled", "status"), [(True, 101), (False, 403)])
async def test_websocket_enabled_acts(enabled: bool, status: int) -> None:
    async with live_server(scripted_settings(network={"websocket_enabled": enabled})) as live:
        assert await handshake(live) == status
        assert await status_of(live, "/health/ready") == 200


@pytest.mark.parametrize(
    ("network", "status"),
    [
        ({"cors_enabled": True, "allowed_origins": [FOREIGN]}, 101),
        ({"cors_enabled": False, "allowed_origins": [FOREIGN]}, 403),
        ({"cors_enabled": True, "allowed_origins": ["https://other.example"]}, 403),
        ({"cors_enabled": True}, 403),
    ],
)
async def test_cors_enabled_lets_in_allowed_origins_alone(network: dict[str, Any], status: int) -> None:
    async with live_server(scripted_settings(network=network)) as live:
        protocols = ["voicepod.v1", f"voicepod.token.{await live.ticket()}"]
        assert await handshake(live, protocols=protocols, origin=FOREIGN) == status
        assert await handshake(live, protocols=["voicepod.v1"], origin=FOREIGN) == 403  # never without a token


async def test_max_sockets_acts() -> None:
    async with live_server(scripted_settings(network={"max_sockets": 1})) as live:
        async with connected(live.url) as first:
            await first.until("session.created")
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with connected(live.url):
                    pass
        assert refused.value.response.status_code == 503
        assert int(refused.value.response.headers["Retry-After"]) > 0


@pytest.mark.parametrize("first_to_ask", ["page", "socket"])
async def test_without_preload_models_the_first_to_ask_loads_them(first_to_ask: str) -> None:
    settings = scripted_settings(performance={"preload_models": False})
    async with live_server(settings, until_ready=False) as live:
        assert await handshake(live, origin=FOREIGN) == 403  # a stranger does not count
        assert await status_of(live, "/health/ready") == 503
        if first_to_ask == "page":
            await live.ticket()
        else:
            async with connected(live.url) as early:
                assert (await early.until("error"))["error"]["code"] == "engine_not_ready"
                assert await early.closed() == 1013
        async with asyncio.timeout(10):
            while await status_of(live, "/health/ready") != 200:
                await asyncio.sleep(0.01)
        async with connected(live.url) as client:
            await client.until("session.created")


@pytest.mark.parametrize(
    ("section", "value", "told"),
    [
        ({"turn": {"end_wait_ms": 900}}, 900, lambda s: s["audio"]["input"]["turn_detection"]["silence_duration_ms"]),
        ({"llm": {"system_prompt": "Be a pirate."}}, "Be a pirate.", lambda s: s["instructions"]),
        ({"llm": {"max_tokens": 77}}, 77, lambda s: s["max_output_tokens"]),
        ({"asr": {"language": "de"}}, "de", lambda s: s["audio"]["input"]["transcription"]["language"]),
        ({"tts": {"voice": "bruno"}}, "bruno", lambda s: s["audio"]["output"]["voice"]),
        ({"tts": {"voice": "anna", "speed": 1.5}}, 1.5, lambda s: s["audio"]["output"]["speed"]),
    ],
    ids=["turn.end_wait_ms", "llm.system_prompt", "llm.max_tokens", "asr.language", "tts.voice", "tts.speed"],
)
async def test_a_session_begins_with_the_settings(
    section: dict[str, dict[str, Any]], value: object, told: Callable[[dict[str, Any]], object]
) -> None:
    assert told(await created()) != value
    assert told(await created(**section)) == value


async def test_the_system_prompt_and_the_limit_reach_the_language_model() -> None:
    settings = scripted_settings(llm={"system_prompt": "Be a pirate.", "max_tokens": 3})
    async with live_server(settings) as live, connected(live.url) as client:
        live.llm.replies = ["one two three four five."]
        await client.say()
        done = await client.until("response.done")
        assert live.llm.asked[0][0].content.startswith("Be a pirate.")
        (item,) = done["response"]["output"]
        assert item["content"][0]["transcript"].strip() == "one two three"


@pytest.mark.parametrize(("name", "model"), [("tiny.en", "whisper-tiny.en"), ("base", "whisper-base")])
def test_whisper_model_acts(name: str, model: str) -> None:
    settings = Settings.model_validate({"models": {"whisper_model": name}})
    assert create_engine("asr", "faster_whisper", settings).info.model == model


@pytest.mark.parametrize("engine", ["faster_whisper", "whisper"])
async def test_asr_path_acts_instead_of_the_model_by_name(engine: str, tmp_path: Path) -> None:
    asr = create_engine("asr", engine, Settings.model_validate({"asr": {"path": tmp_path / "mine", "device": "cpu"}}))
    assert asr.info.model == "mine"
    with pytest.raises(ConfigError, match="There is no directory"):
        await asr.load()
    await asr.close()


async def test_asr_path_with_a_hugging_face_model_is_for_the_other_engine(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    asr = create_engine("asr", "faster_whisper", Settings.model_validate({"asr": {"path": tmp_path}}))
    with pytest.raises(ConfigError, match=r"Set asr\.engine to whisper"):
        await asr.load()
    (tmp_path / "model.bin").touch()
    (tmp_path / "config.json").touch()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):  # the library would look for one on the network
        await asr.load()
    await asr.close()


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("local", "qwen2.5-coder-0.5b-instruct"),
        ("quality", "qwen2.5-coder-1.5b-instruct"),
        ("some-other-model", "some-other-model"),
    ],
)
def test_llm_model_acts(name: str, model: str) -> None:
    settings = Settings.model_validate({"models": {"llm_model": name}})
    assert create_engine("llm", "llamacpp", settings).info.model == model


def _as_on_a_machine_with_cards(device: str, *, setting: str) -> tuple[str, int]:
    kind, _, number = device.partition(":")
    return kind, int(number or 0)


@pytest.mark.parametrize(
    ("gpu_device", "own_device", "asked"),
    [
        ("cpu", "auto", ("cpu", 0, "int8")),
        ("cuda:1", "auto", ("cuda", 1, "int8_float16")),
        ("cuda:1", "cpu", ("cpu", 0, "int8")),
    ],
)
async def test_gpu_device_acts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu_device: str, own_device: str, asked: tuple[str, int, str]
) -> None:
    seen: list[tuple[str, int, str]] = []

    class Library:
        def WhisperModel(
            self, _path: str, *, device: str, device_index: int, compute_type: str, **_rest: object
        ) -> None:
            seen.append((device, device_index, compute_type))
            raise RuntimeError("this card does not work")

    monkeypatch.setattr(asr_faster_whisper, "resolved_device", _as_on_a_machine_with_cards)
    monkeypatch.setattr(asr_faster_whisper, "supported_types", lambda *_device: {"int8", "int8_float16"})
    monkeypatch.setattr(asr_faster_whisper, "load_cublas", lambda: None)
    monkeypatch.setattr(asr_faster_whisper, "_import_faster_whisper", Library)
    monkeypatch.setattr(asr_faster_whisper, "locate", lambda *_which: tmp_path)
    engine = create_engine(
        "asr",
        "faster_whisper",
        Settings.model_validate({"system": {"gpu_device": gpu_device}, "asr": {"device": own_device}}),
    )
    with pytest.raises(ConfigError):
        await engine.load()
    await engine.close()
    assert seen == [asked]


@pytest.mark.parametrize(
    ("options", "container", "rate"),
    [
        ([], "WAV", 24000),
        (["--set", "audio.sample_rate=22050"], "WAV", 22050),
        (["--set", "audio.format=flac", "--set", "audio.sample_rate=8000"], "FLAC", 8000),
    ],
)
def test_audio_sample_rate_and_format_act_in_the_answer_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], container: str, rate: int
) -> None:
    tone = np.sin(np.arange(24000) / 24000 * 2 * np.pi * 440).astype(np.float32) * 0.5

    async def spoken(_question: AudioChunk, _settings: Settings) -> AudioChunk:
        return AudioChunk(tone, 24000)

    question, answer = tmp_path / "question.wav", tmp_path / "answer"
    question.write_bytes(file_bytes(AudioChunk.silence(0.1, 16000), "wav"))
    monkeypatch.setattr(talk, "ask", spoken)
    monkeypatch.setattr("sys.argv", ["talk", str(question), "--out", str(answer), *options])
    assert talk.main() == 0
    info = soundfile.info(str(answer))
    assert (info.format, info.samplerate, info.channels, info.subtype) == (container, rate, 1, "PCM_16")
    samples, _ = soundfile.read(str(answer))
    assert info.duration == pytest.approx(1.0, abs=0.001)
    assert np.abs(np.fft.rfft(samples)).argmax() == pytest.approx(440, abs=1)


@pytest.mark.parametrize(("watermark", "is_marking"), [("cloned", False), ("all", True), ("off", False)])
def test_watermark_acts(watermark: str, is_marking: bool) -> None:
    engines = Engines.from_settings(scripted_settings(voices={"watermark": watermark}))
    assert isinstance(engines.tts, MarkingTts) is is_marking  # Kokoro has no cloned voices


@pytest.mark.parametrize(("days", "n_sessions"), [(30, 1), (0, 0)])
async def test_history_days_acts(days: int, n_sessions: int) -> None:
    async with live_server(scripted_settings(storage={"history_days": days})) as live:
        async with connected(live.url) as client:
            await client.until("session.created")
        assert await live.server.history.counts("local") == (n_sessions, 0)


@pytest.mark.parametrize(("days", "heard"), [(0, None), (7, "what was said")])
async def test_words_days_acts(days: int, heard: str | None) -> None:
    asr = ScriptedAsr(["what was said"], delay_s=0.0)
    async with live_server(scripted_settings(storage={"words_days": days}), asr=asr) as live:
        async with httpx.AsyncClient(base_url=live.http, headers={"Origin": live.http}, timeout=20) as http:
            answer = await http.post("/api/converse", content=a_file())
            assert answer.status_code == 200, answer.text
        (session,) = await live.server.history.of_owner("local")
        assert [turn["heard"] for turn in session["turns"]] == [heard]
