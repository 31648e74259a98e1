"""A session's options as the OpenAI Realtime `session` object, and back from the partial object of an update."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InvalidInput
from pipeline.options import SessionOptions, TurnDetection

Json = dict[str, Any]
MIN_RATE, MAX_RATE = 8000, 48000
# Names of OpenAI's voices, which tools send unasked.
_OPENAI_VOICES: Final = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)


class Part(BaseModel):
    """Unknown fields are ignored, as the protocol grows; known ones are checked."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class Format(Part):
    """Only PCM16 is spoken here."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Annotated[int, Field(ge=MIN_RATE, le=MAX_RATE)] = 24000


class Detection(Part):
    """server_vad or semantic_vad; both are the same endpointing here, eagerness sets its wait."""

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    prefix_padding_ms: Annotated[int, Field(ge=0, le=2000)] | None = None
    silence_duration_ms: Annotated[int, Field(ge=100, le=5000)] | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class Transcription(Part):
    """`language` is an ISO 639-1 code, with or without a region; null detects it."""

    language: Annotated[str, Field(pattern=r"^[a-z]{2}(-[A-Za-z0-9]{2,8})*$|^auto$|^$")] | None = None


class Input(Part):
    """session.audio.input."""

    format: Format | None = None
    transcription: Transcription | None = None
    turn_detection: Detection | None = None


class Output(Part):
    """session.audio.output."""

    format: Format | None = None
    voice: Annotated[str, Field(max_length=200)] | Json | None = None
    speed: Annotated[float, Field(ge=0.5, le=2.0)] | None = None


class Audio(Part):
    """session.audio."""

    input: Input | None = None
    output: Output | None = None


class Additions(Part):
    """session.voicepod."""

    headphones: bool | None = None


class SessionUpdate(Part):
    """The `session` of session.update; what is absent stays as it is."""

    type: Literal["realtime"] | None = None
    instructions: Annotated[str, Field(max_length=20_000)] | None = None
    output_modalities: Annotated[list[Literal["audio", "text"]], Field(min_length=1, max_length=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=4096)] | Literal["inf"] | None = None
    audio: Audio | None = None
    voicepod: Additions | None = None


EAGERNESS_MS = {"low": 1200, "medium": 600, "high": 300, "auto": 600}


def parse(model: type[BaseModel], data: object, at: str) -> Any:
    """`data` as the model; `InvalidInput` names the first field at fault, starting at `at`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join([at, *(str(part) for part in first["loc"])])
        raise InvalidInput(f"{path}: {first['msg']}", code="invalid_value", param=path) from None


def means_the_servers_own(voice: str, voices: Collection[str]) -> bool:
    """Whether it is a name of OpenAI's that no voice here has."""
    return voice in _OPENAI_VOICES and voice not in voices


def updated(
    options: SessionOptions, session: object, *, voices: Collection[str], own_voice: str, default: TurnDetection
) -> SessionOptions:
    """The options after a session.update. `InvalidInput` for a wrong value; then nothing was changed.

    `own_voice` is the server's, `default` its turn detection.
    """
    update: SessionUpdate = parse(SessionUpdate, session, "session")
    new = options
    if update.instructions is not None:
        new = replace(new, instructions=update.instructions)
    if update.output_modalities is not None:
        new = replace(new, modality=update.output_modalities[0])
    if "max_output_tokens" in update.model_fields_set:
        limit = update.max_output_tokens
        new = replace(new, max_output_tokens=limit if isinstance(limit, int) else None)
    if update.voicepod is not None and update.voicepod.headphones is not None:
        new = replace(new, headphones=update.voicepod.headphones)
    audio = update.audio or Audio()
    if audio.input is not None:
        new = _with_input(new, audio.input, default)
    if audio.output is not None:
        new = _with_output(new, audio.output, voices, own_voice)
    return new


def _with_input(options: SessionOptions, update: Input, default: TurnDetection) -> SessionOptions:
    if update.format is not None:
        options = replace(options, input_sample_rate=update.format.rate)
    if update.transcription is not None and "language" in update.transcription.model_fields_set:
        language = update.transcription.language
        options = replace(options, language=None if language in (None, "", "auto") else language[:2])
    if "turn_detection" in update.model_fields_set:
        options = replace(options, turn_detection=_detection(options.turn_detection, update.turn_detection, default))
    return options


def _detection(before: TurnDetection | None, update: Detection | None, default: TurnDetection) -> TurnDetection | None:
    if update is None:
        return None
    base = before or default
    silence_ms = update.silence_duration_ms
    if silence_ms is None and update.eagerness is not None:
        silence_ms = EAGERNESS_MS[update.eagerness]
    return TurnDetection(
        threshold=base.threshold if update.threshold is None else update.threshold,
        prefix_ms=base.prefix_ms if update.prefix_padding_ms is None else update.prefix_padding_ms,
        silence_ms=base.silence_ms if silence_ms is None else silence_ms,
        create_response=base.create_response if update.create_response is None else update.create_response,
        interrupt_response=base.interrupt_response if update.interrupt_response is None else update.interrupt_response,
    )


def _with_output(options: SessionOptions, update: Output, voices: Collection[str], own_voice: str) -> SessionOptions:
    if update.format is not None:
        options = replace(options, output_sample_rate=update.format.rate)
    if update.speed is not None:
        options = replace(options, speed=update.speed)
    voice = update.voice.get("id") if isinstance(update.voice, dict) else update.voice
    if voice is not None:
        if isinstance(voice, str) and means_the_servers_own(voice, voices):
            voice = own_voice
        if not isinstance(voice, str) or voice not in voices:
            raise InvalidInput(
                "this voice does not exist; session.voicepod.voices lists those that do",
                code="voice_not_found",
                param="session.audio.output.voice",
            )
        options = replace(options, voice=voice)
    return options


def session_json(session_id: str, options: SessionOptions, facts: Json) -> Json:
    """The whole `session` object. `facts` holds what options do not: asr model, voicepod fields."""
    detection = options.turn_detection
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": "voicepod",
        "output_modalities": [options.modality],
        "instructions": options.instructions,
        "max_output_tokens": options.max_output_tokens or "inf",
        "tools": [],
        "tool_choice": "auto",
        "tracing": None,
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": options.input_sample_rate},
                "transcription": {"model": facts["asr_model"], "language": options.language},
                "noise_reduction": None,
                "turn_detection": None
                if detection is None
                else {
                    "type": "server_vad",
                    "threshold": detection.threshold,
                    "prefix_padding_ms": detection.prefix_ms,
                    "silence_duration_ms": detection.silence_ms,
                    "create_response": detection.create_response,
                    "interrupt_response": detection.interrupt_response,
                    "idle_timeout_ms": None,
                },
            },
            "output": {
                "format": {"type": "audio/pcm", "rate": options.output_sample_rate},
                "voice": options.voice,
                "speed": options.speed,
            },
        },
        "voicepod": {**facts["voicepod"], "headphones": options.headphones},
    }
