"""The speech clips of `tests/fixtures/speech`: reading them, and making the synthetic ones anew (run as a module)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from pipeline.audio import AudioChunk, concat, decode_file
from pipeline.engines.base import SpeechPiece, Tts, Voice

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SPEECH, NOISE = FIXTURES / "speech", FIXTURES / "noise"
SAMPLE_RATE = 16_000
LEAD_IN_S, LEAD_OUT_S = 0.3, 0.5
ROOM_DB = -70.0  # a recording is never wholly silent

QUESTIONS = {
    "question_capital": ("What is the capital of France?", "af_heart"),
    "question_week": ("How many days are there in a week?", "am_michael"),
    "question_sky": ("What colour is the sky on a clear day?", "bf_emma"),
    "question_hamlet": ("Who wrote Romeo and Juliet?", "bm_george"),
    "question_joke": ("Can you tell me a short joke about a cat?", "af_bella"),
}
RECORDINGS = {
    "jfk.flac": (
        "And so my fellow Americans, ask not what your country can do for you, ask what you can do for your country."
    ),
    "LJ001-0002.wav": "in being comparatively modern.",
    "LJ001-0008.wav": "has never been surpassed.",
    "yes.wav": "Yes.",
    "thank_you.wav": "Thank you very much.",
    "hi_how_are_you.wav": "Hi, how are you?",
}


@dataclass(frozen=True)
class Clip:
    """A file and what is said in it; speech lies between `start_s` and `end_s` (whole file where unknown)."""

    name: str
    text: str
    audio: AudioChunk
    start_s: float
    end_s: float


def read_audio(path: Path) -> AudioChunk:
    return decode_file(path.read_bytes(), max_seconds=60.0)


def questions() -> list[Clip]:
    """The five questions, 16 kHz."""
    clips = []
    for name in QUESTIONS:
        facts = json.loads((SPEECH / f"{name}.json").read_text(encoding="utf-8"))
        audio = read_audio(SPEECH / f"{name}.flac")
        clips.append(Clip(name, facts["text"], audio, facts["start_s"], facts["end_s"]))
    return clips


def recordings() -> list[Clip]:
    """People speaking, each file at its own rate."""
    clips = []
    for name, text in RECORDINGS.items():
        audio = read_audio(SPEECH / name)
        clips.append(Clip(name, text, audio, 0.0, audio.seconds))
    return clips


def noises() -> list[Clip]:
    """Sounds without speech, 16 kHz."""
    return [Clip(path.name, "", read_audio(path), 0.0, 0.0) for path in sorted(NOISE.glob("*.wav"))]


async def pieces(*texts: str) -> AsyncIterator[SpeechPiece]:
    """`texts` as the pieces of one reply."""
    start = 0
    for index, text in enumerate(texts):
        yield SpeechPiece(index, text, start, start + len(text))
        start += len(text) + 1


async def spoken(tts: Tts, voice: Voice, *texts: str) -> AudioChunk:
    """All the audio of `texts`, at the engine's rate."""
    async with aclosing(tts.synthesize(pieces(*texts), voice=voice)) as chunks:  # type: ignore[type-var]
        return concat([chunk.audio async for chunk in chunks], tts.info.sample_rate)


async def make() -> None:
    """Speak the questions with Kokoro from the models directory of the settings, and write them."""
    from pipeline.engines.tts_kokoro import KokoroTts
    from settings import Settings

    tts = KokoroTts.from_settings(Settings())
    await tts.load()
    for name, (text, voice_id) in QUESTIONS.items():
        voice = Voice(voice_id, voice_id, "en")
        speech = (await spoken(tts, voice, text)).resampled(SAMPLE_RATE)
        samples = np.concatenate(
            (
                np.zeros(round(LEAD_IN_S * SAMPLE_RATE), np.float32),
                speech.samples * (0.5 / np.abs(speech.samples).max()),
                np.zeros(round(LEAD_OUT_S * SAMPLE_RATE), np.float32),
            )
        )
        loud = np.flatnonzero(np.abs(samples) > 0.01)
        room = np.random.default_rng(0).standard_normal(samples.size) * 10 ** (ROOM_DB / 20)
        soundfile.write(SPEECH / f"{name}.flac", samples + room, SAMPLE_RATE, subtype="PCM_16")
        facts = {
            "text": text,
            "language": "en",
            "voice": voice_id,
            "start_s": round(loud[0] / SAMPLE_RATE, 3),
            "end_s": round(loud[-1] / SAMPLE_RATE, 3),
        }
        (SPEECH / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    await tts.close()


if __name__ == "__main__":
    asyncio.run(make())
