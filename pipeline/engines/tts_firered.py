"""FireRedTTS-2 by our own engine (`firered/`): many replies at once, audio from the first 80 ms frame on.

One engine holds the weights and a slot for each talk. It runs on a thread of its own and batches the replies itself, so
there is no lane but for loading. Importing this module needs no torch; `load` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import structlog

from pipeline.audio import AudioChunk
from pipeline.engines import lanes
from pipeline.engines.base import EngineInfo, SpeechChunk, SpeechPiece, Voice
from pipeline.engines.lanes import Lane, Stop
from pipeline.engines.out_of_memory import is_out_of_memory
from pipeline.engines.stretching import MAX_SPEED, MIN_SPEED
from pipeline.engines.torch_device import import_torch, torch_device
from pipeline.errors import ConfigError, EngineNotReady, InvalidInput
from settings import Settings

if TYPE_CHECKING:
    from firered import FireRedEngine, GuardLimits, StreamOptions, VoicePrompt
    from pipeline.engines.firered_reply import FireRedReply

Precision = Literal["fp32", "fp16", "bf16"]

log = structlog.get_logger()

MODEL_ID = "fireredtts-2"
SAMPLE_RATE = 24_000
LANGUAGES = ("en", "zh", "ja", "ko", "fr", "de", "ru")  # of the published checkpoints, as upstream's README names them
RANDOM_VOICE = Voice("random", "Random: another one in every answer", "en", languages=LANGUAGES)

MAX_SLOTS = 64  # the largest batch that the engine has a graph for; more talks than that wait for each other
VOICE_SUFFIX = ".voice"
MAX_VOICE_BYTES = 1 << 20  # a minute of codes and its words take 40 kB
_VOICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # what `tts.voice` takes
CLOSE_TIMEOUT_S = 10.0  # as for a lane

_HOW_TO_GET_IT = (
    "Run: python -m scripts.download_models --profile gpu (12.6 GB for this model). For a copy of your own "
    "(config_llm.json, config_codec.json, llm_posttrain.pt, codec.pt, Qwen2.5-1.5B), "
    "Run: python -m scripts.convert_firered DOWNLOADED CONVERTED, then set models.tts_model_path to CONVERTED"
)


class FireRedTts:
    """Text to 24 kHz speech in the voices of a directory, read at `load`; without any a random one.

    `device` is auto, cpu, cuda or cuda:N. `slots` replies are spoken at once, the next one waits. On a CPU the weights
    are always fp32, and `threads` cores work on a frame. `limits` end runaway speech; None takes the engine's own.
    """

    def __init__(
        self,
        *,
        directory: Path | None,
        voices_dir: Path,
        device: str = "auto",
        precision: Precision = "bf16",
        slots: int = 4,
        threads: int = 2,
        limits: GuardLimits | None = None,
    ) -> None:
        self._directory, self._voices_dir = directory, voices_dir
        self._device, self._precision = device, precision
        self._slots, self._threads, self._limits = min(slots, MAX_SLOTS), threads, limits
        self._lane = Lane("firered", 1, stage="tts")  # loads, and makes voices
        self._loading = asyncio.Lock()
        self._engine: FireRedEngine | None = None
        self._prompts: dict[str, VoicePrompt] = {}
        self._clones: dict[str, VoicePrompt] = {}
        self._replies: set[FireRedReply] = set()  # those that have a stream in the engine

    @classmethod
    def from_settings(cls, settings: Settings, *, limits: GuardLimits | None = None) -> FireRedTts:
        """Unloaded; reads `models`, `voices.dir`, `tts.threads` and `system`.

        Without `models.tts_model_path` it is the model that scripts.download_models puts into `models.dir`.
        """
        return cls(
            directory=settings.models.tts_model_path or settings.models.dir / MODEL_ID,
            voices_dir=settings.voices.dir,
            device=settings.system.gpu_device,
            precision=settings.models.model_precision,
            slots=settings.system.max_concurrent_users,
            threads=settings.tts.threads,
            limits=limits,
        )

    @property
    def info(self) -> EngineInfo:
        """`device` and `voices` are complete once loaded."""
        voices = tuple(
            Voice(voice_id, prompt.name or voice_id, "en", languages=LANGUAGES)
            for voice_id, prompt in self._prompts.items()
        )
        return EngineInfo(
            kind="tts",
            name="firered",
            model=MODEL_ID,
            device=self._device,
            sample_rate=SAMPLE_RATE,
            capacity=self._slots,
            languages=LANGUAGES,
            voices=voices or (RANDOM_VOICE,),
        )

    @property
    def n_waiting(self) -> int:
        """Replies that wait for a slot."""
        return 0 if self._engine is None else max(self._engine.n_streams - self._slots, 0)

    async def idle(self) -> None:
        """Return once no piece is being spoken and no ended reply has its slot."""
        while busy := [reply for reply in self._replies if not reply.settled.is_set()]:
            await busy[0].settled.wait()

    async def load(self) -> None:
        """Read weights and voices, and speak one word, which warms up the device."""
        async with self._loading:
            if self._engine is None:
                await self._lane.run(self._read)

    async def close(self) -> None:
        """End the running replies with `EngineNotReady` and drop the weights."""
        await self._lane.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            await _close(engine)

    async def synthesize(
        self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice
    ) -> AsyncGenerator[SpeechChunk, None]:
        """Audio frame by frame, pieces in order, one prepared ahead; closing it stops the model at the next frame.

        Silence of more than 0.15 s before a piece is cut to that: it is held back until sound follows, so that nothing
        audible waits. A speed other than 1 is a time-stretch. `InvalidInput` for a voice that is neither in
        `info.voices` nor added.
        """
        engine = self._loaded()
        if voice.id not in self._clones and voice.id not in {known.id for known in self.info.voices}:
            raise InvalidInput("there is no such voice", code="voice_not_found", param="voice")
        from pipeline.engines.firered_reply import FireRedReply

        speed = min(max(voice.speed, MIN_SPEED), MAX_SPEED)
        reply = FireRedReply(engine, self._options(voice), speed=speed, on_over=self._replies.discard)
        self._replies.add(reply)
        async with aclosing(reply.chunks(pieces)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _options(self, voice: Voice) -> StreamOptions:
        """How a reply speaks. Audio is made ahead of a listener by a bounded time only, where a turn has one.

        Nobody listens while a file is made, and who listens at a higher speed needs more than the engine's real time.
        """
        from firered import InputError, StreamOptions
        from firered.stream import DEFAULT_MAX_LEAD_S

        prompt = self._clones.get(voice.id) or self._prompts.get(voice.id)
        is_paced = lanes.job_priority.get(None) is not None and voice.speed <= 1
        try:
            return StreamOptions(
                voices={} if prompt is None else {"[S1]": prompt},
                seed=voice.seed,
                max_lead_s=DEFAULT_MAX_LEAD_S if is_paced else None,
            )
        except InputError as error:
            raise InvalidInput(str(error), param="seed") from error

    def _loaded(self) -> FireRedEngine:
        if self._engine is None:
            raise EngineNotReady("the voice is still loading, or was closed", stage="tts")
        return self._engine

    # --- voices from recordings

    async def clone(self, sample: AudioChunk, transcript: str, *, name: str) -> bytes:
        """The recording as codes, in firered's voice file. Takes seconds; one after the other."""
        engine = self._loaded()

        def encode(stop: Stop) -> bytes:
            from firered import FireRedError, InputError
            from pipeline.engines.firered_reply import pipeline_error

            try:
                return engine.encode_voice(sample.samples, sample.sample_rate, transcript, name).to_bytes()
            except InputError as error:
                raise InvalidInput(str(error), code="voice_not_clonable", param="file") from error
            except FireRedError as error:
                raise pipeline_error(error) from error

        return await self._lane.run(encode)

    async def add_voice(self, voice: Voice, data: bytes) -> None:
        """Speak with the voice file `data` under `voice.id` from now on."""
        engine = self._loaded()

        def read(stop: Stop) -> VoicePrompt:
            from firered import FireRedError, InputError, StreamOptions, VoicePrompt
            from pipeline.engines.firered_reply import pipeline_error

            try:
                prompt = VoicePrompt.from_bytes(data)
                engine.open(StreamOptions(voices={"[S1]": prompt})).cancel()  # refuses what the model cannot speak with
            except InputError as error:
                raise InvalidInput(str(error), code="voice_not_usable", param="voice") from error
            except FireRedError as error:
                raise pipeline_error(error) from error
            return prompt

        self._clones[voice.id] = await self._lane.run(read)

    async def remove_voice(self, voice_id: str) -> None:
        """Forget it. A reply that has begun keeps its own hold of the codes."""
        self._clones.pop(voice_id, None)

    # --- loading, in the lane's thread

    def _read(self, stop: Stop) -> None:
        directory = model_directory(self._directory)
        torch = import_torch("FireRedTTS-2")
        device = torch_device(self._device, torch, setting="system.gpu_device")
        engine = self._open(directory, device, torch)
        try:
            # Opening a stream refuses a voice that this model cannot speak with.
            prompts = read_voices(self._voices_dir, lambda voices: engine.open(voices).cancel())
            if not stop:
                _warm_up(engine, next(iter(prompts.values()), None))
        except BaseException:
            engine.close()
            raise
        if stop:
            engine.close()
            return
        # Set here and not by `load`, so that `close` finds the engine even when nobody waits for `load` any more.
        self._device, self._prompts, self._engine = device, prompts, engine

    def _open(self, directory: Path, device: str, torch: Any) -> FireRedEngine:
        from firered import CheckpointError, EngineOptions, FireRedEngine, GuardLimits

        dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        if device == "cpu":
            torch.set_num_threads(self._threads)  # for threads that begin after this, the engine's among them
        dtype = torch.float32 if device == "cpu" else dtypes[self._precision]
        options = EngineOptions(max_streams=self._slots, limits=self._limits or GuardLimits())
        try:
            return FireRedEngine.from_pretrained(directory, device, dtype, options=options)
        except CheckpointError as error:
            raise ConfigError(f"FireRedTTS-2 cannot be loaded: {error}. {_HOW_TO_GET_IT}") from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"FireRedTTS-2 does not fit into the memory of {device}: lower system.max_concurrent_users (a talk "
                "takes 0.2 GB) or free the device"
            ) from error


def read_voices(directory: Path, check: Callable[[StreamOptions], None]) -> dict[str, VoicePrompt]:
    """The voice files of a directory by their stems, in order. What cannot be used is logged and left out.

    `check` raises firered's InputError for a voice that the engine does not take.
    """
    from firered import InputError, StreamOptions, VoicePrompt

    prompts = {}
    for path in sorted(directory.glob(f"*{VOICE_SUFFIX}")):
        try:
            if not _VOICE_ID.fullmatch(path.stem):
                raise InputError("the name of the file may hold letters, digits and . _ - only")
            if path.stat().st_size > MAX_VOICE_BYTES:
                raise InputError("this is not a voice file: it is too large")
            prompt = VoicePrompt.from_bytes(path.read_bytes())
            check(StreamOptions(voices={"[S1]": prompt}))
        except (InputError, OSError) as error:
            log.warning("voice.skipped", file=path.name, reason=str(error))
        else:
            prompts[path.stem] = prompt
    return prompts


def model_directory(directory: Path | None) -> Path:
    """The directory of a FireRedTTS-2 model, or a `ConfigError` that says how to get the model."""
    if directory is None:
        raise ConfigError(f"models.tts_model_path does not name a FireRedTTS-2 model. {_HOW_TO_GET_IT}")
    if not directory.is_dir():
        raise ConfigError(f"FireRedTTS-2: there is no directory {directory}. {_HOW_TO_GET_IT}")
    return directory


async def _close(engine: FireRedEngine) -> None:
    """Closes it in a thread that nothing waits for: a frame that never ends must not keep the server from closing."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    def close() -> None:
        engine.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=close, name="firered-close", daemon=True).start()
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await closed.wait()
    except TimeoutError:
        lanes.abandoned.add("firered")


def _warm_up(engine: FireRedEngine, voice: VoicePrompt | None) -> None:
    """Speaks until the first audio: libraries set themselves up, and the first voice's prefix is in the cache."""
    from firered import FireRedError, SpeechAudio, StreamOptions
    from pipeline.engines.firered_reply import pipeline_error

    stream = engine.open(StreamOptions(voices={} if voice is None else {"[S1]": voice}))
    stream.add_text("Hello.")
    stream.end()
    try:
        for event in stream:
            if isinstance(event, SpeechAudio):
                stream.cancel()
    except FireRedError as error:
        raise pipeline_error(error) from error
