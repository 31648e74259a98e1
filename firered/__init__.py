"""FireRedTTS-2 inference in real time: many streams of speech on one device, from the first 80 ms frame on.

    with FireRedEngine.from_pretrained("models/FireRedTTS2", device="cuda") as engine:
        voice = engine.encode_voice(samples, 48_000, "What is said in the recording.")
        stream = engine.open(StreamOptions(voices={"[S1]": voice}))
        stream.add_text("Hello there.")
        stream.end()
        for event in stream: ...

Depends on torch, tokenizers, safetensors, numpy, soxr and soundfile, and on nothing else of this project.
"""

from firered.engine import EngineOptions, FireRedEngine
from firered.errors import CheckpointError, EngineClosedError, FireRedError, GenerationError, InputError
from firered.guards import EndReason, GuardLimits
from firered.stream import (
    PieceEnd,
    SpeechAudio,
    SpeechStream,
    StreamEnd,
    StreamEvent,
    StreamFailed,
    StreamOptions,
)
from firered.voice import VoicePrompt

__all__ = [
    "CheckpointError",
    "EndReason",
    "EngineClosedError",
    "EngineOptions",
    "FireRedEngine",
    "FireRedError",
    "GenerationError",
    "GuardLimits",
    "InputError",
    "PieceEnd",
    "SpeechAudio",
    "SpeechStream",
    "StreamEnd",
    "StreamEvent",
    "StreamFailed",
    "StreamOptions",
    "VoicePrompt",
]
