"""The adapter for upstream's FireRedTTS-2, with a scripted package in the place of the real one."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from firered import StreamOptions
from pipeline.engines.base import SpeechChunk, Voice
from pipeline.engines.tts_firered_upstream import FireRedUpstreamTts
from pipeline.errors import ConfigError, EngineFailed, EngineNotReady, InvalidInput, OutOfMemory
from tests.support.firered_tts import firered_settings, write_voice
from tests.support.speech_clips import pieces

WAIT_S = 60.0  # only a fault waits this long
ANNA, BRUNO = Voice("anna", "Anna", "en"), Voice("bruno", "Bruno", "en")


@dataclass
class Upstream:
    """Speaks half a second for each text, or fails as it is told to."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    loaded_with: tuple[str, str, str] | None = None
    failure: BaseException | None = None
    speaking: threading.Event = field(default_factory=threading.Event)
    may_speak: threading.Event = field(default_factory=threading.Event)

    def package(self) -> ModuleType:
        def open_model(*args: str) -> Upstream:
            self.loaded_with = (args[0], args[1], args[2])
            return self

        module = ModuleType("fireredtts2")
        module.__dict__["FireRedTTS2"] = open_model
        return module

    def generate_dialogue(self, text_list: list[str], **options: Any) -> torch.Tensor:
        self.speaking.set()
        assert self.may_speak.wait(WAIT_S)
        self.calls.append({"texts": text_list, "drawn": float(torch.rand(1)), **options})
        if self.failure is not None:
            raise self.failure
        return torch.full((1, 12_000 * len(text_list)), 1.5)


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Upstream:
    scripted = Upstream()
    scripted.may_speak.set()
    monkeypatch.setitem(sys.modules, "fireredtts2", scripted.package())
    return scripted


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("llm_posttrain.pt", "codec.pt"):
        (directory / name).write_bytes(b"as published")
    return directory


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    directory = tmp_path / "voices"
    write_voice(directory / "anna.voice", "Anna")
    soundfile.write(directory / "anna.wav", np.zeros(16_000, np.float32), 16_000)
    (directory / "anna.txt").write_text(" What Anna says. \n")
    write_voice(directory / "bruno.voice", "Bruno")
    (directory / "clara.voice").write_bytes(b"damaged")
    return directory


async def loaded(model: Path, voices: Path) -> FireRedUpstreamTts:
    tts = FireRedUpstreamTts.from_settings(firered_settings(model, voices))
    async with asyncio.timeout(WAIT_S):
        await tts.load()
    return tts


async def said(tts: FireRedUpstreamTts, *texts: str, voice: Voice = ANNA) -> list[SpeechChunk]:
    async with asyncio.timeout(WAIT_S), aclosing(tts.synthesize(pieces(*texts), voice=voice)) as chunks:
        return [chunk async for chunk in chunks]


async def test_pieces_are_spoken_whole_with_the_recording_and_our_sampling(
    upstream: Upstream, model: Path, voices: Path
) -> None:
    tts = await loaded(model, voices)
    assert upstream.loaded_with == (str(model), "dialogue", "cpu")
    upstream.calls.clear()
    chunks = await said(tts, "Hello.", "...", "How are you?")
    assert [(chunk.piece_index, chunk.final) for chunk in chunks] == [(0, True), (1, True), (2, True)]
    assert [chunk.audio.n_samples > 0 for chunk in chunks] == [True, False, True]
    assert max(chunk.audio.samples.max(initial=0) for chunk in chunks) == 1.0
    first = upstream.calls[0]
    assert first["texts"] == ["[S1]Hello."]
    assert first["prompt_wav_list"] == [str(voices / "anna.wav")]
    assert first["prompt_text_list"] == ["[S1]What Anna says."]
    ours = StreamOptions()
    assert (first["temperature"], first["topk"]) == (ours.temperature, ours.top_k)
    await tts.close()


async def test_a_voice_without_a_recording_is_random_and_says_so(
    upstream: Upstream, model: Path, voices: Path, tmp_path: Path
) -> None:
    tts = await loaded(model, voices)
    assert [voice.name for voice in tts.info.voices] == ["Anna", "Bruno (random: no recording)"]
    await said(tts, "Hello.", voice=BRUNO)
    assert upstream.calls[-1]["prompt_wav_list"] is None
    with pytest.raises(InvalidInput):
        await said(tts, "Hello.", voice=Voice("clara", "Clara", "en"))
    await tts.close()
    without = await loaded(model, tmp_path / "nowhere")
    assert [voice.id for voice in without.info.voices] == ["random"]
    await without.close()


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (RuntimeError("CUDA out of memory"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (AssertionError(), EngineFailed),
        (IndexError("index 2049 is out of bounds"), EngineFailed),
    ],
)
async def test_failures_of_upstream_become_ours(
    upstream: Upstream, model: Path, voices: Path, failure: BaseException, expected: type[Exception]
) -> None:
    tts = await loaded(model, voices)
    upstream.failure = failure
    with pytest.raises(expected):
        await said(tts, "Hello.")
    upstream.failure = None
    assert await said(tts, "Hello.")
    await tts.close()


async def test_an_end_of_speech_as_the_first_frame_is_a_piece_without_audio(
    upstream: Upstream, model: Path, voices: Path
) -> None:
    tts = await loaded(model, voices)
    upstream.failure = RuntimeError("stack expects a non-empty TensorList")
    (chunk,) = await said(tts, "Hello.")
    assert (chunk.final, chunk.audio.n_samples) == (True, 0)
    await tts.close()


async def test_closing_frees_the_reader_at_once_and_the_piece_is_spoken_to_its_end(
    upstream: Upstream, model: Path, voices: Path
) -> None:
    tts = await loaded(model, voices)
    upstream.calls.clear()
    upstream.may_speak.clear()
    upstream.speaking.clear()
    reader = asyncio.create_task(said(tts, "Hello.", "Again."))
    assert await asyncio.to_thread(upstream.speaking.wait, WAIT_S)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert tts._lane.n_running == 1
    upstream.may_speak.set()
    async with asyncio.timeout(WAIT_S):
        await tts._lane.idle()
    assert len(upstream.calls) == 1
    await tts.close()


async def test_speed_changes_the_length(upstream: Upstream, model: Path, voices: Path) -> None:
    tts = await loaded(model, voices)
    (slow,), (fast,) = [
        await said(tts, "Hello", voice=Voice("anna", "Anna", "en", speed=speed)) for speed in (0.5, 2.0)
    ]
    assert slow.audio.seconds == pytest.approx(1.0, abs=0.05)
    assert fast.audio.seconds == pytest.approx(0.25, abs=0.05)
    await tts.close()


async def test_a_seed_is_set_before_the_piece_is_drawn(upstream: Upstream, model: Path, voices: Path) -> None:
    tts = await loaded(model, voices)
    for seed in (7, 7, 8):
        await said(tts, "Hello.", voice=Voice("anna", "Anna", "en", seed=seed))
    first, again, other = (call["drawn"] for call in upstream.calls[-3:])
    assert first == again != other
    await tts.close()


async def test_without_the_package_the_message_names_the_requirements(
    model: Path, voices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fireredtts2", None)
    tts = FireRedUpstreamTts.from_settings(firered_settings(model, voices))
    with pytest.raises(ConfigError, match=r"Run: .* requirements/firered-upstream\.txt"):
        await tts.load()
    assert "torchaudio" not in sys.modules
    with pytest.raises(EngineNotReady):
        await said(tts, "Hello.")
    await tts.close()


async def test_a_converted_directory_is_refused(upstream: Upstream, model: Path, voices: Path) -> None:
    (model / "codec.pt").unlink()
    tts = FireRedUpstreamTts.from_settings(firered_settings(model, voices))
    with pytest.raises(ConfigError, match=r"needs codec\.pt"):
        await tts.load()
    await tts.close()


async def test_recordings_are_read_and_resampled_without_torchaudio(
    voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fireredtts2.py").write_text("import torchaudio\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    tts = FireRedUpstreamTts.from_settings(firered_settings(tmp_path / "nowhere", voices))
    with pytest.raises(ConfigError, match="there is no directory"):
        await tts.load()  # the package is imported before the model is looked for
    torchaudio = sys.modules.pop("fireredtts2").torchaudio
    audio, sample_rate = torchaudio.load(str(voices / "anna.wav"))
    assert (tuple(audio.shape), sample_rate) == ((1, 16_000), 16_000)
    assert torchaudio.functional.resample(audio, 16_000, 16_000) is audio
    assert tuple(torchaudio.functional.resample(audio, 16_000, 24_000).shape) == (1, 24_000)
    await tts.close()
