"""How well the engines hear and are heard.

    python -m benchmarks.quality

WER in: recorded speech against its transcript. WER out: each question is answered, the spoken answer is heard by the
ASR engine and compared with the pieces that were spoken. Both pooled: all errors over all words. Numbers are compared
as words, so that "366" and "three hundred and sixty-six" are the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import jiwer

from pipeline.audio import AudioChunk, concat, decode_file
from pipeline.engines.base import Engines, Message, SpeechPiece
from pipeline.sentences import PieceSplitter, speakable
from settings import Settings
from settings_sources import load_settings

CLIPS = Path(__file__).parents[1] / "tests/fixtures/speech"


def words(text: str) -> str:
    """Lower-case words without punctuation, numbers spelled out."""
    spelled = speakable(text, "en").lower().replace("-", " ")
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)?", spelled))


async def answer(engines: Engines, settings: Settings, question: str) -> tuple[str, AudioChunk]:
    """What was spoken, and its sound."""
    voice = next(v for v in engines.tts.info.voices if v.id == settings.tts.voice)
    splitter = PieceSplitter(language="en", first_clause_min_chars=12, piece_max_chars=200)
    messages = [Message("system", settings.llm.system_prompt), Message("user", question)]
    pieces: list[SpeechPiece] = []
    async for delta in engines.llm.reply(messages, max_tokens=settings.llm.max_tokens):
        pieces += splitter.feed(delta)
    pieces += splitter.finish()

    async def given() -> AsyncIterator[SpeechPiece]:
        for piece in pieces:
            yield piece

    chunks = [chunk.audio async for chunk in engines.tts.synthesize(given(), voice=voice)]
    return " ".join(piece.spoken for piece in pieces), concat(chunks, engines.tts.info.sample_rate)


async def measure(settings: Settings) -> None:
    """Load, listen, speak, print."""
    engines = Engines.from_settings(settings)
    for engine in (engines.llm, engines.asr, engines.tts):
        await engine.load()
    try:
        said, heard = [], []
        for path in sorted(CLIPS.glob("*.json")):
            clip = decode_file(path.with_suffix(".flac").read_bytes(), max_seconds=60)
            text = json.loads(path.read_text())["text"]
            transcript = await engines.asr.transcribe(clip, language=None)
            said.append(words(text))
            heard.append(words(transcript.text))
        print(f"WER in   {jiwer.wer(said, heard):.3f} over {len(said)} clips")
        spoken, heard_back, speech_s, speech_compute_s = [], [], 0.0, 0.0
        for question in said:
            began = time.perf_counter()
            text, audio = await answer(engines, settings, question)
            speech_compute_s += time.perf_counter() - began
            speech_s += audio.seconds
            transcript = await engines.asr.transcribe(audio, language="en")
            spoken.append(words(text))
            heard_back.append(words(transcript.text))
            print(f"  {question!r}: {text!r}\n    heard back: {transcript.text!r}")
        print(f"WER out  {jiwer.wer(spoken, heard_back):.3f} over {len(spoken)} answers, {speech_s:.0f} s of speech")
        print(f"answer   {speech_compute_s / speech_s:.2f} s of LLM and TTS per second of speech")
    finally:
        for engine in (engines.llm, engines.asr, engines.tts):
            await engine.close()


if __name__ == "__main__":
    asyncio.run(measure(load_settings([], os.environ).settings))
