"""Ask a recorded question, get a spoken answer: the whole pipeline without a browser.

    python -m scripts.talk question.wav --out answer.wav

The file is played into a session in real time, as a microphone would, and the latency record of each turn is printed.
Settings come from the same places as the server's; the answer's file has their `audio.sample_rate` and `audio.format`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from pipeline import events
from pipeline.audio import AudioChunk, concat, decode_file, file_bytes
from pipeline.engines.base import Engines
from pipeline.errors import VoicepodError
from pipeline.options import SessionOptions
from pipeline.outbox import AudioEntry
from pipeline.session import Session
from settings import Settings
from settings_sources import load_settings

FRAME_S = 0.02
MAX_QUESTION_S = 300.0
END_OF_TALK_S = 60.0


async def talk(question: AudioChunk, engines: Engines, settings: Settings) -> AudioChunk:
    """Play `question` into a session and gather the spoken answers; prints words and records on the way."""
    session = Session(
        "sess_talk",
        engines,
        SessionOptions.from_settings(settings),
        turn=settings.turn,
        vad=settings.vad,
        history_tokens=settings.llm.history_tokens,
        max_reply_tokens=settings.llm.max_tokens,
        max_lead_s=settings.turn.max_pending_audio_s,  # a file needs no pacing
        clock=time.monotonic,
    )
    answer: list[AudioChunk] = []
    rate = session.options.output_sample_rate

    async def read() -> None:
        while True:
            entry = await session.outbox.get()
            if isinstance(entry, AudioEntry):
                answer.append(entry.audio)
                session.played(entry.playout.turn_id, entry.first_sample + entry.audio.n_samples)
            else:
                _show(entry.event)

    running = asyncio.create_task(session.run())
    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    try:
        await _speak(session, question.resampled(session.options.input_sample_rate))
        async with asyncio.timeout(END_OF_TALK_S):
            while session.state != ("silent", "idle") or session.outbox.n_pending:
                session.feed(AudioChunk.silence(FRAME_S, session.options.input_sample_rate))
                await asyncio.sleep(FRAME_S)
    finally:
        session.close()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await running
    return concat(answer, rate)


async def _speak(session: Session, question: AudioChunk) -> None:
    """Feed the question and one second of silence at the speed of speech."""
    frame_samples = round(FRAME_S * question.sample_rate)
    padded = concat([question, AudioChunk.silence(1.0, question.sample_rate)], question.sample_rate)
    next_at_s = time.monotonic()
    for start in range(0, padded.n_samples, frame_samples):
        session.feed(padded.slice(start, start + frame_samples))
        next_at_s += FRAME_S
        await asyncio.sleep(max(next_at_s - time.monotonic(), 0))


def _show(event: events.Event) -> None:
    if isinstance(event, events.TranscriptReady):
        print(f"you:    {event.transcript.text}")
    elif isinstance(event, events.ReplyFinished):
        print(f"answer: {event.text.strip()}")
    elif isinstance(event, events.TurnFailed):
        print(f"failed: {event.error.message} ({event.error.code})", file=sys.stderr)
    elif isinstance(event, events.TurnDone) and event.record.total_ms is not None:
        parts = "  ".join(f"{name} {ms:.0f}" for name, ms in event.record.parts_ms.items())
        print(f"ms:     {parts}  = {event.record.total_ms:.0f}")


async def ask(question: AudioChunk, settings: Settings) -> AudioChunk:
    """Load the engines, play the question, gather the answers, close the engines."""
    engines = Engines.from_settings(settings)
    try:
        for engine in engines.by_kind().values():
            await engine.load()
        return await talk(question, engines, settings)
    finally:
        for engine in engines.by_kind().values():
            await engine.close()


def main() -> int:
    """Entry point; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.talk", description="Ask a recorded question.")
    parser.add_argument("question", type=Path, help="WAV, FLAC, OGG or MP3 with speech")
    parser.add_argument("--out", type=Path, required=True, help="file for the answer")
    arguments, rest = parser.parse_known_args()
    try:
        question = decode_file(arguments.question.read_bytes(), max_seconds=MAX_QUESTION_S)
        settings = load_settings(rest, os.environ).settings
        answer = asyncio.run(ask(question, settings))
        if not answer.n_samples:
            print("talk: no answer was spoken; is there speech in the file?", file=sys.stderr)
            return 1
        arguments.out.write_bytes(file_bytes(answer.resampled(settings.audio.sample_rate), settings.audio.format))
        print(f"wrote   {arguments.out} ({answer.seconds:.1f} s)")
        return 0
    except VoicepodError as error:
        print(f"talk: {error.message}", file=sys.stderr)
    except OSError as error:
        print(f"talk: {error.filename}: {error.strerror}", file=sys.stderr)
    except TimeoutError:
        print("talk: the answer took too long", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
