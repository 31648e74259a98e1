"""What a client may choose for its session. Frozen: an update makes a new value, a turn keeps the one it began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from settings import Settings

Modality = Literal["audio", "text"]
# In tokens, of one reply; None: the session's limit, "inf": the server's.
ReplyLimit = int | Literal["inf"] | None

# Names of the languages that a session can be set to, for the instructions of the model.
LANGUAGES = {
    "en": "English",
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "nl": "Dutch",
    "pt": "Portuguese",
    "zh": "Chinese",
}


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """Server-side turn taking: `silence_ms` ends an utterance (the page calls it patience)."""

    threshold: float
    prefix_ms: int
    silence_ms: int
    create_response: bool = True
    interrupt_response: bool = True

    @classmethod
    def from_settings(cls, settings: Settings) -> TurnDetection:
        """The server's own turn taking."""
        return cls(settings.vad.threshold, settings.vad.prefix_ms, settings.turn.end_wait_ms)


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Rates in hertz. `language` None detects it, `turn_detection` None is hold-to-talk, `headphones` no echo guard."""

    instructions: str
    voice: str
    turn_detection: TurnDetection | None
    language: str | None = None
    speed: float = 1.0
    modality: Modality = "audio"
    input_sample_rate: int = 24000
    output_sample_rate: int = 24000
    max_output_tokens: int | None = None
    headphones: bool = False

    @classmethod
    def from_settings(cls, settings: Settings) -> SessionOptions:
        """What a new session begins with."""
        return cls(
            instructions=settings.llm.system_prompt,
            voice=settings.tts.voice,
            turn_detection=TurnDetection.from_settings(settings),
            language=None if settings.asr.language == "auto" else settings.asr.language,
            speed=settings.tts.speed,
            max_output_tokens=settings.llm.max_tokens,
        )


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """What one reply does differently from its session; `text` is said as it is, without the model.

    `metadata` is the client's own, and comes back with the response. `requested`: the client waits for its end.
    """

    instructions: str | None = None
    spoken: bool | None = None
    max_tokens: ReplyLimit = None
    text: str | None = None
    metadata: Mapping[str, str] | None = None
    requested: bool = False

    def once_more(self) -> ReplyOptions:
        """The same for a reply in the place of one whose end was told."""
        return replace(self, metadata=None, requested=False)
