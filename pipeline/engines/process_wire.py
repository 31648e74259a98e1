"""What a server and an engine process say to each other, over one stream socket.

A packet is `u32 header bytes, u32 body bytes` (little-endian), a JSON header, and a body: audio as float32, a voice
file, or nothing. Both ends are ours and of one version, so a packet that cannot be read is a fault of the stream and
ends the process; nothing from outside comes here unread.

    server -> process   start cap load call stream piece end more cancel priority ping close
    process -> server   started info item next done error work log pong
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from pydantic import SecretStr, TypeAdapter

from pipeline import errors
from pipeline.audio import AudioChunk
from pipeline.engines.base import EngineInfo, Message, SpeechChunk, SpeechPiece, Transcript, Voice, Word
from pipeline.engines.lanes import Ran, Spoke, Waited, Work
from pipeline.errors import EngineFailed, VoicepodError
from settings import Section, Settings

_SIZES: Final = struct.Struct("<II")
MAX_HEADER_BYTES: Final = 8 << 20  # a long history, or a tokenizer's languages and voices
MAX_BODY_BYTES: Final = 256 << 20  # an utterance of ten minutes at 96 kHz

TRANSCRIPT: Final = TypeAdapter(Transcript)
MESSAGES: Final = TypeAdapter(list[Message])
PIECE: Final = TypeAdapter(SpeechPiece)
VOICE: Final = TypeAdapter(Voice)
INFO: Final = TypeAdapter(EngineInfo)
WORDS: Final = TypeAdapter(tuple[Word, ...])


@dataclass(frozen=True, slots=True)
class Packet:
    """One message: `head["type"]` says which, `head["job"]` whose it is where it belongs to one."""

    head: Mapping[str, Any]
    body: bytes = field(default=b"", repr=False)

    @property
    def type(self) -> str:
        """Which message it is."""
        return str(self.head["type"])


class BrokenStream(ConnectionError):
    """The other end is gone, or what it sent is no packet."""


async def read_packet(reader: asyncio.StreamReader) -> Packet | None:
    """The next packet; None when the other end closed in good order. `BrokenStream` for anything else."""
    try:
        header_bytes, body_bytes = _SIZES.unpack(await reader.readexactly(_SIZES.size))
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise BrokenStream("the stream ended within a packet") from error
    except OSError as error:
        raise BrokenStream("the stream broke") from error
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise BrokenStream("the stream holds something that is no packet")
    try:
        head = json.loads(await reader.readexactly(header_bytes))
        return Packet(head, await reader.readexactly(body_bytes))
    except (asyncio.IncompleteReadError, OSError, ValueError) as error:
        raise BrokenStream("the stream ended within a packet") from error


def packed(packet: Packet) -> bytes:
    """The packet as it travels."""
    header = json.dumps(packet.head, separators=(",", ":")).encode()
    return _SIZES.pack(len(header), len(packet.body)) + header + packet.body


# --- values


def audio_head(audio: AudioChunk) -> dict[str, Any]:
    """What a header says of the audio in the body."""
    return {"sample_rate": audio.sample_rate}


def audio_body(audio: AudioChunk) -> bytes:
    """The samples as bytes."""
    return audio.samples.astype("<f4", copy=False).tobytes()


def audio_of(packet: Packet) -> AudioChunk:
    """The audio of a packet; it shares the packet's memory and must not be written to."""
    samples = np.frombuffer(packet.body, "<f4").astype(np.float32, copy=False)
    return AudioChunk(samples, int(packet.head["sample_rate"]))


def speech_head(chunk: SpeechChunk) -> dict[str, Any]:
    """What a header says of the speech in the body."""
    return {
        **audio_head(chunk.audio),
        "piece": chunk.piece_index,
        "final": chunk.final,
        "words": WORDS.dump_python(chunk.words, mode="json"),
    }


def speech_of(packet: Packet) -> SpeechChunk:
    """The speech of a packet."""
    head = packet.head
    words = WORDS.validate_python(head["words"]) if head["words"] else ()
    return SpeechChunk(audio_of(packet), int(head["piece"]), words, final=bool(head["final"]))


# --- errors

_BY_NAME: Final[dict[str, type[VoicepodError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, VoicepodError)
}
_EXTRAS: Final = ("stage", "param", "retry_after_s")


def error_head(error: BaseException, stage: str) -> dict[str, Any]:
    """A typed error as it is; any other becomes an `EngineFailed` whose words say nothing of the inside."""
    if not isinstance(error, VoicepodError):
        error = EngineFailed(f"the {stage} stage failed unexpectedly ({type(error).__name__})", stage=stage)
    kind = next(kind for kind in type(error).__mro__ if kind.__name__ in _BY_NAME)
    extras = {name: getattr(error, name) for name in _EXTRAS if getattr(error, name, None) is not None}
    return {"name": kind.__name__, "message": error.message, "code": error.code, "retryable": error.retryable, **extras}


def error_of(head: Mapping[str, Any]) -> VoicepodError:
    """The error that `error_head` told."""
    kind = _BY_NAME[head["name"]]
    error = kind(head["message"], **{name: head[name] for name in _EXTRAS if name in head})
    error.code, error.retryable = head["code"], head["retryable"]
    return error


# --- work, for the latency record

_WORK: Final[dict[str, type[Waited] | type[Ran] | type[Spoke]]] = {"Waited": Waited, "Ran": Ran, "Spoke": Spoke}


def work_head(work: Work) -> dict[str, Any]:
    """Work as JSON."""
    return {"name": type(work).__name__, "values": [getattr(work, name) for name in work.__slots__]}


def work_of(head: Mapping[str, Any]) -> Work:
    """The work that `work_head` told."""
    return _WORK[head["name"]](*head["values"])


# --- settings


def settings_head(settings: Settings) -> dict[str, Any]:
    """Every setting, secrets in clear: the socket belongs to the two processes alone."""
    return {name: _plain(getattr(settings, name)) for name in Settings.model_fields}


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Section):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def settings_of(head: Mapping[str, Any]) -> Settings:
    """The settings that `settings_head` told."""
    return Settings.model_validate(head)
