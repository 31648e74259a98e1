"""F5-TTS v1 as a voice of the app: English and Chinese, cloned voices, one piece of speech at a time.

It needs the packages of the serverless worker (requirements/serverless.txt). The weights are CC-BY-NC: not for
commercial use. Importing this module needs no torch; `load` does.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from pipeline.audio import AudioChunk, Samples, decode_file, file_bytes
from pipeline.engines import f5_reference
from pipeline.engines.base import EngineInfo, SpeechChunk, SpeechPiece, Voice
from pipeline.engines.f5_model import F5Files, F5Model
from pipeline.engines.f5_text import MAX_REFERENCE_S, SAMPLE_RATE, byte_rate, max_text_bytes
from pipeline.engines.lanes import Lane, Stop
from pipeline.engines.piecewise import one_ahead
from pipeline.engines.trimming import pause_after, trimmed
from pipeline.errors import EngineNotReady, InvalidInput
from pipeline.models import locate
from pipeline.text_chunks import chunks_of, is_speakable
from settings import Settings

MODEL_ID: Final = "f5-tts-v1-base"
VOCODER_ID: Final = "vocos-mel-24khz"
LANGUAGES: Final = ("en", "zh")  # of the published weights
NATURE = Voice("nature", "Nature (F5-TTS's own example, female)", "en", languages=LANGUAGES)
MIN_SPEED, MAX_SPEED = 0.5, 2.0
N_STEPS: Final = 16  # half of the default: a talk waits for them; published comparisons hear little difference
GUIDANCE: Final = 2.0
MAX_SEED: Final = 2**32

VOICE_SUFFIX: Final = ".voice"
MAX_VOICE_BYTES: Final = 1 << 20  # 12 s of 24 kHz as FLAC take 0.4 MB
_MAGIC: Final = b"voicepod-f5-voice 1\n"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class F5Voice:
    """A reference to speak like: `audio` mono 24 kHz, at most 12 s, in which `text` is said."""

    audio: AudioChunk
    text: str
    name: str

    @classmethod
    def of_recording(cls, audio: AudioChunk, text: str, name: str) -> F5Voice:
        """`InvalidInput` says what is wrong with the recording."""
        return cls(*f5_reference.prepare(audio, text), name)

    def to_bytes(self) -> bytes:
        """A line that says what it is, a line of JSON, and a FLAC file."""
        head = json.dumps({"name": self.name, "text": self.text}).encode()
        return b"".join((_MAGIC, head, b"\n", file_bytes(self.audio, "flac")))

    @classmethod
    def from_bytes(cls, data: bytes) -> F5Voice:
        """`InvalidInput` for what `to_bytes` did not write."""
        try:
            if not data.startswith(_MAGIC) or len(data) > MAX_VOICE_BYTES:
                raise InvalidInput("this is not a voice file of F5-TTS")
            head, _, flac = data[len(_MAGIC) :].partition(b"\n")
            fields = json.loads(head)
            audio = decode_file(flac, max_seconds=MAX_REFERENCE_S + 0.1)
            voice = cls(audio, str(fields["text"]), str(fields["name"]))
            (voice.text + voice.name).encode()  # JSON can hold half of a surrogate pair
            f5_reference.check_rate(audio.seconds, voice.text)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidInput("the voice file is damaged") from error
        if (
            audio.sample_rate != SAMPLE_RATE
            or audio.seconds < f5_reference.MIN_SPEECH_S
            or not is_speakable(voice.text)
        ):
            raise InvalidInput("the voice file is damaged")
        return voice


class F5Tts:
    """Text to 24 kHz speech in the package's own voice, those of `voices_dir` and cloned ones.

    One lane of one thread. `directory` holds the model, with its vocoder in the folder vocos; None takes the two that
    scripts.download_models puts into `models_dir`. `device` is auto, cpu, cuda or cuda:N.
    """

    def __init__(
        self,
        *,
        models_dir: Path,
        directory: Path | None,
        voices_dir: Path,
        device: str = "auto",
        threads: int = 2,
        n_steps: int = N_STEPS,
    ) -> None:
        self._n_steps = n_steps
        self._models_dir, self._directory, self._voices_dir = models_dir, directory, voices_dir
        self._device, self._threads = device, threads
        self._lane = Lane("f5", 1, stage="tts")
        self._loading = asyncio.Lock()
        self._model: F5Model | None = None
        self._voices: dict[str, F5Voice] = {}
        self._clones: dict[str, F5Voice] = {}

    @classmethod
    def from_settings(cls, settings: Settings, *, n_steps: int = N_STEPS) -> F5Tts:
        """Unloaded; reads `models.dir`, `models.tts_model_path`, `voices.dir`, `system.gpu_device`, `tts.threads`."""
        return cls(
            models_dir=settings.models.dir,
            directory=settings.models.tts_model_path,
            voices_dir=settings.voices.dir,
            device=settings.system.gpu_device,
            threads=settings.tts.threads,
            n_steps=n_steps,
        )

    @property
    def info(self) -> EngineInfo:
        """`device` and `voices` are complete once loaded."""
        own = (Voice(key, voice.name, "en", languages=LANGUAGES) for key, voice in self._voices.items())
        return EngineInfo(
            kind="tts",
            name="f5",
            model=MODEL_ID,
            device=self._device,
            sample_rate=SAMPLE_RATE,
            languages=LANGUAGES,
            voices=(NATURE, *(voice for voice in own if voice.id != NATURE.id)),
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
        """Stop the running piece at its next step and drop the weights."""
        await self._lane.close()
        self._model = None

    async def synthesize(
        self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice
    ) -> AsyncGenerator[SpeechChunk, None]:
        """Audio of the pieces in order, one prepared ahead; closing it stops the model at its next step.

        `voice.seed` repeats the audio, None draws one. `InvalidInput` for a voice that is neither in `info.voices` nor
        added.
        """
        model = self._loaded()
        reference = self._clones.get(voice.id) or self._voices.get(voice.id)
        if reference is None:
            raise InvalidInput("there is no such voice", code="voice_not_found", param="voice")

        async def speak(piece: SpeechPiece) -> Sequence[AudioChunk]:
            return await self._lane.run(lambda stop: self._speak(model, reference, piece, voice, stop))

        async with aclosing(one_ahead(pieces, speak, sample_rate=SAMPLE_RATE)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _loaded(self) -> F5Model:
        if self._model is None:
            raise EngineNotReady("the voice is still loading, or was closed", stage="tts")
        return self._model

    def _speak(
        self, model: F5Model, reference: F5Voice, piece: SpeechPiece, voice: Voice, stop: Stop
    ) -> list[AudioChunk]:
        """Audio of one piece, a chunk for each run of the model; none when nothing can be spoken."""
        speed = min(max(voice.speed, MIN_SPEED), MAX_SPEED)
        seconds = reference.audio.seconds
        max_bytes = max_text_bytes(seconds, byte_rate(seconds, reference.text), speed)
        seed = secrets.randbelow(MAX_SEED) if voice.seed is None else voice.seed
        chunks = []
        for i, text in enumerate(chunks_of(piece.spoken, max_bytes) if is_speakable(piece.spoken) else ()):
            if stop or not is_speakable(text):
                continue
            samples: Samples = model.speak_chunk(
                reference.audio,
                reference.text,
                text.strip(),
                seed=(seed + piece.index * 1009 + i) % MAX_SEED,  # another draw for each stretch of a reply
                speed=speed,
                nfe_step=self._n_steps,
                cfg_strength=GUIDANCE,
                cancelled=lambda: bool(stop),
            )
            samples = np.clip(samples, -1.0, 1.0)
            chunks.append(AudioChunk(trimmed(samples, SAMPLE_RATE, pause_s=pause_after(text)), SAMPLE_RATE))
        return chunks

    # --- voices from recordings

    async def clone(self, sample: AudioChunk, transcript: str, *, name: str) -> bytes:
        """The recording, at most 12 s of it, with its words: there is nothing to compute."""
        self._loaded()
        return await asyncio.to_thread(lambda: F5Voice.of_recording(sample, transcript, name).to_bytes())

    async def add_voice(self, voice: Voice, data: bytes) -> None:
        """Speak with the voice file `data` under `voice.id` from now on."""
        self._loaded()
        try:
            self._clones[voice.id] = await asyncio.to_thread(F5Voice.from_bytes, data)
        except InvalidInput as error:
            raise InvalidInput(error.message, code="voice_not_usable", param="voice") from error

    async def remove_voice(self, voice_id: str) -> None:
        """Forget it. A reply that has begun keeps its own hold of the reference."""
        self._clones.pop(voice_id, None)

    # --- loading, in the lane's thread

    def _read(self, stop: Stop) -> F5Model:
        if self._directory is not None:
            files = F5Files.in_directories(self._directory)
        else:
            files = F5Files.in_directories(*(locate(self._models_dir, key) for key in (MODEL_ID, VOCODER_ID)))
        model = F5Model.load(files, device=self._device, threads=self._threads)
        voices = {NATURE.id: F5Voice(*f5_reference.default_recording(), NATURE.name)} | self._read_voices()
        self._speak(model, voices[NATURE.id], SpeechPiece(0, "Hello.", 0, 6), NATURE, stop)
        self._voices, self._device = voices, model.device
        return model

    def _read_voices(self) -> dict[str, F5Voice]:
        """The voice files of the directory by their stems. Those of other engines and damaged ones are left out."""
        voices = {}
        for path in sorted(self._voices_dir.glob(f"*{VOICE_SUFFIX}")):
            try:
                if path.stat().st_size > MAX_VOICE_BYTES:
                    raise InvalidInput("this is not a voice file: it is too large")
                voices[path.stem] = F5Voice.from_bytes(path.read_bytes())
            except (InvalidInput, OSError) as error:
                log.warning("voice.skipped", file=path.name, reason=str(error))
        return voices
