"""FireRedTTS-2 as its authors run it, to compare with: the package `fireredtts2`, one whole piece at a time.

Optional (requirements/firered-upstream.txt), slow, one reply at a time, and it cannot be stopped within a piece. Only
`generate_dialogue` is called: upstream's way to clone a monologue tries again for ever while a piece stays short. It
unpickles llm_posttrain.pt in a way that runs code in it: give it nothing but the official files.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile
import soxr

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.base import EngineInfo, SpeechChunk, SpeechPiece, Voice
from pipeline.engines.lanes import Lane, Stop
from pipeline.engines.out_of_memory import is_out_of_memory
from pipeline.engines.piecewise import one_ahead
from pipeline.engines.stand_in import in_place_of
from pipeline.engines.stretching import MAX_SPEED, MIN_SPEED, TimeStretch
from pipeline.engines.torch_device import import_torch, torch_device
from pipeline.engines.trimming import pause_after, trimmed
from pipeline.engines.tts_firered import (
    LANGUAGES,
    MODEL_ID,
    RANDOM_VOICE,
    SAMPLE_RATE,
    model_directory,
    read_voices,
)
from pipeline.errors import ConfigError, EngineFailed, EngineNotReady, InvalidInput, OutOfMemory
from settings import Settings

SPEAKER = "[S1]"
WEIGHT_FILES = ("llm_posttrain.pt", "codec.pt")  # a converted directory has no use for them, upstream has no other


@dataclass(frozen=True, slots=True)
class _Recording:
    """A voice to upstream: a file and the words spoken in it."""

    path: Path
    transcript: str


class FireRedUpstreamTts:
    """Text to 24 kHz speech. One lane of one thread; a piece that was begun is always spoken to its end.

    A voice file `<id>.voice` counts, with the recording `<id>.wav` and its words `<id>.txt` beside it: upstream has no
    other form of a voice. Without these two the voice is a random one.
    """

    def __init__(self, *, directory: Path | None, voices_dir: Path, device: str = "auto", threads: int = 2) -> None:
        self._directory, self._voices_dir, self._device, self._threads = directory, voices_dir, device, threads
        self._lane = Lane("firered-upstream", 1, stage="tts")
        self._loading = asyncio.Lock()
        self._model: Any = None
        self._voices: tuple[Voice, ...] = ()
        self._recordings: dict[str, _Recording] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> FireRedUpstreamTts:
        """Unloaded; reads `models.tts_model_path`, `voices.dir`, `system.gpu_device` and `tts.threads`."""
        return cls(
            directory=settings.models.tts_model_path,
            voices_dir=settings.voices.dir,
            device=settings.system.gpu_device,
            threads=settings.tts.threads,
        )

    @property
    def info(self) -> EngineInfo:
        """`device` and `voices` are complete once loaded."""
        return EngineInfo(
            kind="tts",
            name="firered_upstream",
            model=MODEL_ID,
            device=self._device,
            sample_rate=SAMPLE_RATE,
            languages=LANGUAGES,
            voices=self._voices or (RANDOM_VOICE,),
        )

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the lane."""
        return self._lane.n_waiting

    async def load(self) -> None:
        """Read weights and voices, and speak one word."""
        async with self._loading:
            if self._model is None:
                self._model = await self._lane.run(self._read)

    async def close(self) -> None:
        """Stop after the running piece and drop the weights."""
        await self._lane.close()
        self._model = None

    async def synthesize(
        self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice
    ) -> AsyncGenerator[SpeechChunk, None]:
        """Audio of the pieces in order, one prepared ahead. `InvalidInput` for a voice that is not in `info.voices`."""
        model = self._model
        if model is None:
            raise EngineNotReady("the voice is still loading, or was closed", stage="tts")
        if voice.id not in {known.id for known in self.info.voices}:
            raise InvalidInput("there is no such voice", code="voice_not_found", param="voice")
        recording, speed = self._recordings.get(voice.id), min(max(voice.speed, MIN_SPEED), MAX_SPEED)

        async def speak(piece: SpeechPiece) -> Sequence[AudioChunk]:
            return await self._lane.run(lambda stop: _speak(model, piece.spoken, recording, speed, voice.seed))

        async with aclosing(one_ahead(pieces, speak, sample_rate=SAMPLE_RATE)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _read(self, stop: Stop) -> Any:
        torch = import_torch("FireRedTTS-2")
        upstream = _import_upstream()
        directory = model_directory(self._directory)
        missing = [name for name in WEIGHT_FILES if not (directory / name).is_file()]
        if missing:
            raise ConfigError(
                f"models.tts_model_path: upstream's FireRedTTS-2 needs {missing[0]} in {directory}, as it was published"
            )
        self._device = torch_device(self._device, torch, setting="system.gpu_device")
        if self._device == "cpu":
            torch.set_num_threads(self._threads)
        try:
            model = upstream.FireRedTTS2(str(directory), "dialogue", self._device)
        except Exception as error:
            raise ConfigError(f"upstream's FireRedTTS-2 cannot load {directory}: {error}") from error
        self._read_voices()
        _speak(model, "Hello.", None, 1.0, None)
        return model

    def _read_voices(self) -> None:
        voices = []
        for voice_id, prompt in read_voices(self._voices_dir, lambda _: None).items():
            path, words = (self._voices_dir / f"{voice_id}.{suffix}" for suffix in ("wav", "txt"))
            name = prompt.name or voice_id
            if path.is_file() and words.is_file():
                self._recordings[voice_id] = _Recording(path, words.read_text(encoding="utf-8").strip())
            else:
                name += " (random: no recording)"
            voices.append(Voice(voice_id, name, "en", languages=LANGUAGES))
        self._voices = tuple(voices)


def _speak(model: Any, text: str, recording: _Recording | None, speed: float, seed: int | None) -> list[AudioChunk]:
    """Audio of one piece; none when nothing can be spoken, or the model chose to say nothing."""
    from firered import InputError, StreamOptions
    from firered.text import prepare_text

    try:
        segments = prepare_text(text)
    except InputError:
        return []
    if seed is not None:
        import_torch("FireRedTTS-2").manual_seed(seed)  # upstream draws from the process's own generator
    sampling = StreamOptions()  # as our own engine samples, or the comparison would be one of settings
    try:
        speech = model.generate_dialogue(
            [SPEAKER + segment for segment in segments],
            prompt_wav_list=None if recording is None else [str(recording.path)],
            prompt_text_list=None if recording is None else [SPEAKER + recording.transcript],
            temperature=sampling.temperature,
            topk=sampling.top_k,
        )
    except Exception as error:
        if "non-empty" in str(error):  # torch.stack of no frames: the end of speech came first
            return []
        if is_out_of_memory(error):
            raise OutOfMemory("the voice ran out of memory", stage="tts") from error
        raise EngineFailed("the voice failed", stage="tts") from error
    samples: Samples = speech.detach().cpu().float().numpy().reshape(-1)
    if not np.isfinite(samples).all():
        raise EngineFailed("the voice gave something that is not audio", stage="tts")
    if speed != 1:
        stretch = TimeStretch(speed, SAMPLE_RATE)
        samples = np.concatenate((stretch.feed(samples), stretch.flush()))
    samples = np.clip(samples, -1.0, 1.0)
    return [AudioChunk(trimmed(samples, SAMPLE_RATE, pause_s=pause_after(text)), SAMPLE_RATE)]


def _import_upstream() -> Any:
    """The package, with a stand-in for torchaudio while it is imported.

    Upstream loads and resamples recordings with torchaudio, whose newest wheel needs one version of torch and its CUDA
    build, and for `load` torchcodec and FFmpeg. soundfile and soxr do the same here.
    """
    with contextlib.suppress(ImportError):  # it looks which packages there are, and must not find the stand-in
        importlib.import_module("transformers")
    try:
        with in_place_of(_torchaudio()):
            return importlib.import_module("fireredtts2")
    except Exception as error:
        raise ConfigError(
            f"the package of upstream's FireRedTTS-2 cannot be imported ({error}). "
            "Run: .venv/bin/pip install -r requirements/firered-upstream.txt"
        ) from error


def _torchaudio() -> ModuleType:
    module = ModuleType("torchaudio", "Stands in for torchaudio.")
    functional = ModuleType("torchaudio.functional", "Stands in for torchaudio.functional.")
    module.__dict__.update(load=_load_audio, functional=functional)
    functional.__dict__.update(resample=_resample)
    return module


def _load_audio(path: str) -> tuple[Any, int]:
    """Like torchaudio.load: a tensor (channels, n_samples) float32, and the rate."""
    torch = import_torch("FireRedTTS-2")
    samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(np.ascontiguousarray(samples.T)), int(sample_rate)


def _resample(audio: Any, source_rate: int, target_rate: int) -> Any:
    """Like torchaudio.functional.resample: (channels, n_samples) on any device."""
    if source_rate == target_rate:
        return audio
    torch = import_torch("FireRedTTS-2")
    resampled = soxr.resample(audio.cpu().numpy().T, source_rate, target_rate)
    return torch.from_numpy(np.ascontiguousarray(resampled.T)).to(audio.device)
