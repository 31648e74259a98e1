"""What an engine is: four Protocols, the values that cross them, and the registry of adapters.

An engine holds weights, never a conversation. Blocking work runs in the engine's own lane (`lanes.py`), so every
method here may be awaited on the event loop. Streams are declared `def`, not `async def`: an async generator satisfies
them, and the caller closes it with `contextlib.aclosing`, which is also how a stream is cancelled.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from pipeline.audio import AudioChunk, Samples
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.engines.process_supervisor import EngineProcess
    from pipeline.pressure import Pressure
    from settings import Settings

EngineKind = Literal["vad", "asr", "llm", "tts"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about a loaded engine. `sample_rate` in hertz is what it takes (vad, asr) or gives (tts); 0 for an llm.

    `capacity` is how many jobs run at once. `languages` are ISO 639-1 codes, empty when any text will do.
    `context_tokens` is the LLM's window, prompt and answer together.
    """

    kind: EngineKind
    name: str
    model: str
    device: str = "cpu"
    sample_rate: int = 0
    capacity: int = 1
    languages: tuple[str, ...] = ()
    voices: tuple[Voice, ...] = ()
    context_tokens: int = 0


_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")


def engine_key(info: EngineInfo) -> str:
    """An engine with its model, as part of a file's name."""
    return f"{_UNSAFE.sub('-', info.name)}-{_UNSAFE.sub('-', info.model)}"


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice the TTS can speak with: `id` names it to the engine, `language` is an ISO 639-1 code.

    `languages` are further ones that it speaks as well. `seed` repeats the audio where an engine draws it at random.
    `cloned`: it is a user's, made from a recording of a person.
    """

    id: str
    name: str
    language: str
    speed: float = 1.0
    languages: tuple[str, ...] = ()
    seed: int | None = None
    cloned: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its times, in seconds from the start of the audio it belongs to."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said. `language` is an ISO 639-1 code; `text` is empty when there was no speech."""

    text: str
    language: str
    words: tuple[Word, ...] = ()
    audio_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of what the LLM reads."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class SpeechPiece:
    """A stretch of reply that is spoken as one: `spoken` stands for the characters `[reply_start, reply_end)`.

    Markdown, numbers and abbreviations make the two differ.
    """

    index: int
    spoken: str
    reply_start: int
    reply_end: int


@dataclass(frozen=True, slots=True, eq=False)
class SpeechChunk:
    """Audio of one piece, in piece order. The last chunk of a piece has `final=True` (its audio may be empty).

    `words` have times from the start of the piece, where the engine knows them.
    """

    audio: AudioChunk
    piece_index: int
    words: tuple[Word, ...] = ()
    final: bool = False


class Engine(Protocol):
    """What all engines share. `load` may be awaited twice; after `close` the engine refuses work."""

    @property
    def info(self) -> EngineInfo:
        """Facts; complete once `load` has returned."""
        ...

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for a slot of the engine's lane."""
        ...

    async def load(self) -> None:
        """Read the weights and run one warm-up job. `ConfigError` names a missing model or program."""
        ...

    async def close(self) -> None:
        """Stop running jobs and free the weights."""
        ...


class VadStream(Protocol):
    """Per-talk state of a VAD."""

    def probability(self, frame: Samples) -> float:
        """Speech probability in [0, 1] of one frame, float32 (frame_samples,). Called on the event loop: under 2 ms."""
        ...


@runtime_checkable
class Vad(Engine, Protocol):
    """Voice activity detection."""

    @property
    def frame_samples(self) -> int:
        """Samples in a frame at `info.sample_rate`."""
        ...

    def stream(self) -> VadStream:
        """Fresh state, for one talk's next utterance."""
        ...


class TurnDetector(Engine, Protocol):
    """Judges whether an utterance is complete."""

    async def score(self, audio: AudioChunk) -> float:
        """Probability in [0, 1] that the speaker has finished."""
        ...


@runtime_checkable
class Asr(Engine, Protocol):
    """Speech recognition of one utterance."""

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """What was said in `utterance` (any rate). `language` None detects it. Raises `EngineError`."""
        ...


@runtime_checkable
class WordTimes(Asr, Protocol):
    """Speech recognition that can also tell when each word was said. That takes longer, so it is asked for."""

    async def transcribe_words(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        """As `transcribe`, with the words and their times."""
        ...


@runtime_checkable
class Llm(Engine, Protocol):
    """A chat model."""

    def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncIterator[str]:
        """Text deltas of the answer, at most `max_tokens` (None: the setting). Closing the iterator stops the model."""
        ...

    async def count_tokens(self, text: str) -> int:
        """Tokens of `text` alone, without the chat template."""
        ...


@runtime_checkable
class Tts(Engine, Protocol):
    """Speech synthesis."""

    def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        """Audio at `info.sample_rate` for the pieces as they come, in order. Closing the iterator stops the model."""
        ...


@runtime_checkable
class CloningTts(Tts, Protocol):
    """Speech synthesis in voices that are made from recordings. They speak beside `info.voices`, not among them."""

    async def clone(self, sample: AudioChunk, transcript: str, *, name: str) -> bytes:
        """The voice of a recording whose words are `transcript`, for `add_voice`. `InvalidInput` says what is wrong."""
        ...

    async def add_voice(self, voice: Voice, data: bytes) -> None:
        """Speak with it from now on. `InvalidInput` for data that is damaged or another model's."""
        ...

    async def remove_voice(self, voice_id: str) -> None:
        """Forget it; replies that speak with it already go on. One that is not there is no error."""
        ...


# name -> "module:class"; a module is imported when its engine is asked for, so that unused model libraries stay out.
ENGINES: dict[EngineKind, dict[str, str]] = {
    "vad": {
        "silero": "pipeline.engines.vad_silero:SileroVad",
        "webrtc": "pipeline.engines.vad_webrtc:WebrtcVad",
    },
    "asr": {
        "faster_whisper": "pipeline.engines.asr_faster_whisper:FasterWhisperAsr",
        "whisper": "pipeline.engines.asr_whisper:WhisperAsr",
    },
    "llm": {
        "llamacpp": "pipeline.engines.llm_llamacpp:LlamaCppLlm",
        "openai": "pipeline.engines.llm_openai:OpenAiLlm",
        "transformers": "pipeline.engines.llm_transformers:TransformersLlm",
    },
    "tts": {
        "f5": "pipeline.engines.tts_f5:F5Tts",
        "firered": "pipeline.engines.tts_firered:FireRedTts",
        "firered_upstream": "pipeline.engines.tts_firered_upstream:FireRedUpstreamTts",
        "kokoro": "pipeline.engines.tts_kokoro:KokoroTts",
        "piper": "pipeline.engines.tts_piper:PiperTts",
    },
}


def create_engine(kind: EngineKind, name: str, settings: Settings) -> Any:
    """An unloaded engine, built by its adapter's `from_settings`. `ConfigError` lists the names that exist."""
    known = ENGINES[kind]
    if name not in known:
        raise ConfigError(f"there is no {kind} engine '{name}'; choose one of: {', '.join(sorted(known))}")
    module_name, class_name = known[name].split(":")
    adapter = getattr(importlib.import_module(module_name), class_name)
    return adapter.from_settings(settings)


@dataclass(frozen=True, slots=True)
class Engines:
    """The four engines of a talk, shared by all sessions.

    `processes` are those that some of them live in; `pressure` knows how hard they are pressed, None: nobody asks.
    """

    vad: Vad
    asr: Asr
    llm: Llm
    tts: Tts
    processes: tuple[EngineProcess, ...] = ()
    pressure: Pressure | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Engines:
        """The engines that the settings name, not loaded yet; the TTS marks what it says as `voices.watermark` asks."""
        from pipeline.engines.asr_by_load import with_light_model  # these modules import this one
        from pipeline.engines.marking import with_watermark
        from pipeline.engines.process import in_processes
        from pipeline.engines.shelf import Shelf, on_shelf
        from pipeline.pressure import Pressure
        from settings import EVICTABLE

        pressure = Pressure(max_wait_s=settings.scaling_config.max_wait_s, clock=time.monotonic)
        elsewhere, processes = in_processes(settings)

        shelf = Shelf(settings.system.max_loaded_models)
        is_tight = settings.system.max_loaded_models < len(EVICTABLE)

        def engine(kind: EngineKind, name: str) -> Any:
            if kind in elsewhere:
                return elsewhere[kind]
            if is_tight and kind in EVICTABLE:
                return on_shelf(shelf, kind, lambda: create_engine(kind, name, settings))
            return create_engine(kind, name, settings)

        return cls(
            engine("vad", settings.vad.engine),
            with_light_model(
                engine("asr", settings.asr.engine), settings, is_pressed=lambda: pressure.at_least("light_asr")
            ),
            engine("llm", settings.llm.engine),
            with_watermark(engine("tts", settings.tts.engine), settings),
            processes,
            pressure,
        )

    def by_kind(self) -> dict[EngineKind, Engine]:
        """The engines in the order in which they are best loaded: the small one first, then the largest."""
        return {"vad": self.vad, "llm": self.llm, "asr": self.asr, "tts": self.tts}
