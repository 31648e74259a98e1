"""Voices that are pitches: recordings, an engine and an encoder in which who speaks is how high the tone is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from api.access import keys
from api.access.principal import USER_SCOPES, Scope
from api.voices.consent import STATEMENT_VERSION
from pipeline.audio import AudioChunk, Samples, concat, file_bytes
from pipeline.engines.base import SpeechChunk, SpeechPiece, Voice
from pipeline.errors import InvalidInput
from tests.support.rest import Rest
from tests.support.scripted import TTS_RATE, ScriptedTts

PITCHES = {"anna": 220.0, "bruno": 110.0, "carla": 330.0}
STOCK = (Voice("anna", "Anna", "en"), Voice("bruno", "Bruno", "de"), Voice("carla", "Carla", "en"))
CONSENT = {"agreed": True, "statement": STATEMENT_VERSION, "name": "Ada Lovelace"}


def hum(seconds: float, pitch_hz: float, sample_rate: int = 24_000) -> AudioChunk:
    """A tone of many overtones that swells twice a second: few of its samples are near the loudest, as in speech."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    tone = sum(np.cos(2 * np.pi * pitch_hz * k * time) / k for k in range(1, 9))
    swell = 0.2 + 0.8 * np.sin(2 * np.pi * time) ** 2
    return AudioChunk((0.18 * swell * np.asarray(tone)).astype(np.float32), sample_rate)


def said(seconds: float, pitch_hz: float = 225.0, *, word_s: float = 0.5, pause_s: float = 0.15) -> AudioChunk:
    """Words with pauses between them."""
    words = [hum(word_s, pitch_hz), AudioChunk.silence(pause_s, 24_000)]
    n = round(seconds * 24_000)
    return concat(words * (round(seconds / (word_s + pause_s)) + 1), 24_000).slice(0, n)


def recording(seconds: float = 5.0, pitch_hz: float = 225.0) -> bytes:
    """A WAV file that every check finds good."""
    return file_bytes(said(seconds, pitch_hz), "wav")


class PitchSpeakers:
    """Hears the pitch: voices are alike when their pitches are within some percent."""

    def embed(self, audio: AudioChunk) -> Samples:
        spectrum = np.abs(np.fft.rfft(audio.samples))
        hertz = np.fft.rfftfreq(audio.n_samples, 1 / audio.sample_rate)
        is_pitch = (hertz > 60) & (hertz < 1000)
        pitch = float(hertz[is_pitch][np.argmax(spectrum[is_pitch])])
        return self.of(pitch)

    def partials(self, audio: AudioChunk) -> Samples:
        n = round(1.6 * audio.sample_rate)
        starts = range(0, max(audio.n_samples - n, 0) + 1, n)
        return np.stack([self.embed(audio.slice(start, start + n)) for start in starts])

    @staticmethod
    def of(pitch_hz: float) -> Samples:
        bins = np.arange(256)
        bump = np.exp(-(((bins - 64 * np.log2(pitch_hz / 60)) / 12) ** 2)).astype(np.float32)
        unit: Samples = bump / np.linalg.norm(bump)
        return unit


class PitchTts(ScriptedTts):
    """Stock voices of different pitches, spoken at once. `spoken_by` has the voice of each reply."""

    def __init__(self, pitches: dict[str, float] | None = None) -> None:
        super().__init__(first_audio_s=0.0, real_time_factor=0.0)
        self.pitches = dict(pitches or PITCHES)
        self.spoken_by: list[Voice] = []
        self.info = replace(ScriptedTts.info, voices=tuple(v for v in STOCK if v.id in self.pitches))

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        if voice.id not in self.pitches:
            raise InvalidInput("there is no such voice", code="voice_not_found", param="voice")
        self.spoken_by.append(voice)
        pitch = self.pitches[voice.id]
        async for chunk in super().synthesize(pieces, voice=voice):
            yield replace(chunk, audio=hum(chunk.audio.seconds, pitch, TTS_RATE))


class CloningPitchTts(PitchTts):
    """Clones the pitch of a recording. `may_clone` off: refuses."""

    def __init__(self, name: str = "scripted") -> None:
        super().__init__()
        self.info = replace(self.info, name=name, languages=("en", "de"))
        self.refusal: Exception | None = None
        self.n_cloned = 0

    async def clone(self, sample: AudioChunk, transcript: str, *, name: str) -> bytes:
        if self.refusal is not None:
            raise self.refusal
        self.n_cloned += 1
        pitch = float(np.argmax(PitchSpeakers().embed(sample)))
        return json.dumps({"pitch": 60 * 2 ** (pitch / 64), "words": transcript}).encode()

    async def add_voice(self, voice: Voice, data: bytes) -> None:
        try:
            self.pitches[voice.id] = json.loads(data)["pitch"]
        except (ValueError, KeyError) as error:
            raise InvalidInput("this voice file is damaged", code="voice_not_usable", param="voice") from error

    async def remove_voice(self, voice_id: str) -> None:
        self.pitches.pop(voice_id, None)


def headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


async def send(
    rest: Rest, *, audio: bytes | None = None, key: str | None = None, route: str = "/api/clone/samples", **fields: Any
) -> httpx.Response:
    """Send a recording with fields."""
    files = {"file": ("me.wav", audio or recording(), "audio/wav")}
    return await rest.client.post(route, files=files, data=fields, headers=headers(key))


async def cloned(
    rest: Rest, name: str = "Mine", *, key: str | None = None, audio: bytes | None = None, **wish: Any
) -> dict[str, Any]:
    """A new voice, made in the two steps of the page."""
    sample = (await send(rest, audio=audio, key=key)).json()
    body = {"sample_id": sample["id"], "name": name, "consent": CONSENT, **wish}
    answer = await rest.client.post("/api/clone", json=body, headers=headers(key))
    assert answer.status_code == 201, answer.text
    voice: dict[str, Any] = answer.json()
    return voice


async def new_key(rest: Rest, owner: str, scopes: frozenset[Scope] = USER_SCOPES) -> str:
    """An API key of this owner."""
    store = rest.live.server.store
    identifier = await store.write(lambda db: keys.owner_named(db, owner, now_s=0.0, create=True))
    _, text = await store.write(lambda db: keys.create(db, owner=identifier, name="test", scopes=scopes, now_s=0.0))
    return text
