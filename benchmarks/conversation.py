"""Latency of a talk over the real WebSocket, as a client hears it.

    python -m benchmarks.conversation --fixed            engines of fixed delay: what the orchestration itself costs
    python -m benchmarks.conversation --url ws://…       a running server with its real engines; $VOICEPOD_KEY opens it

v2v is the last speech sample sent to the first audible sample received; stop is the first sample of an interruption
sent to the last audible sample received; overhead is v2v less the floor, the sum of the fixed delays. Every second
turn is interrupted. The talker is a process of its own, so that CPU seconds are the server's alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import websockets
from numpy.typing import NDArray

from benchmarks import fixed_server
from pipeline.audio import decode_file

RATE = 16000
FRAME = RATE // 50
AUDIBLE = 500  # of 32768
END_WAIT_MS = 200  # as the other systems were measured with
INTERRUPT_AFTER_S, QUIET_AFTER_S = 2.6, 9.0
TALKS_WAIT_S = 40.0


@dataclass(slots=True)
class Ear:
    """What came back, and when."""

    last_speech_at: float | None = None
    v2v_ms: list[float] = field(default_factory=list)
    last_audible_at: float = 0.0
    stale_frames: int = 0
    flushed: int = 0
    turn: int = 0
    played: int = 0
    started_at: float = 0.0
    parts: list[dict[str, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    runs_dry_at: float = 0.0  # when all that came of this turn has been played
    gaps_ms: list[float] = field(default_factory=list)  # silences inside a reply because its audio came too late
    said: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def frame(self, message: bytes) -> None:
        """A frame of the server's audio."""
        now = time.perf_counter()
        turn, first_sample = struct.unpack_from("<II", message)
        pcm = np.frombuffer(message[8:], "<i2")
        if turn <= self.flushed:
            self.stale_frames += 1
            return
        if turn != self.turn:
            self.turn, self.started_at = turn, now
        elif now > self.runs_dry_at:
            self.gaps_ms.append((now - self.runs_dry_at) * 1000)
        self.runs_dry_at = max(now, self.runs_dry_at) + pcm.size / fixed_server.RATE
        self.played = first_sample + pcm.size
        if np.abs(pcm).max() > AUDIBLE:
            self.last_audible_at = now
            if self.last_speech_at is not None:
                self.v2v_ms.append((now - self.last_speech_at) * 1000)
                self.last_speech_at = None

    def event(self, text: str) -> None:
        """An event of the server."""
        event = json.loads(text)
        if event["type"] == "voicepod.flush":
            self.flushed = event["turn"]
            self.last_audible_at = max(self.last_audible_at, time.perf_counter())
        elif event["type"] == "voicepod.turn_metrics" and event["total_ms"] is not None:
            self.parts.append(event["parts_ms"])
        elif event["type"] == "conversation.item.input_audio_transcription.completed":
            self.said.append(event["transcript"])
        elif event["type"] == "response.output_audio_transcript.done":
            self.answers.append(event["transcript"].strip())
        elif event["type"] == "error":
            self.errors.append(event["error"]["code"])


def speech(path: Path | None) -> NDArray[np.int16]:
    """The question at 16 kHz, cut exactly where the voice ends; by default what the other systems were asked."""
    if path is None:
        spoken = subprocess.run(["espeak-ng", "--stdout", "What time is it?"], capture_output=True, check=True).stdout
    else:
        spoken = path.read_bytes()
    pcm = np.frombuffer(decode_file(spoken, max_seconds=30).resampled(RATE).to_pcm16(), "<i2")
    loud = np.flatnonzero(np.abs(pcm) > 300)
    return pcm[loud[0] : loud[-1] + 160]


async def talk(
    url: str, question: NDArray[np.int16], n_turns: int, end_wait_ms: int, quiet_s: float
) -> tuple[Ear, list[float], float]:
    """Speak `n_turns` questions; every second one interrupts the answer before it. Gives stops in ms and seconds."""
    ear, stops = Ear(), []
    key = os.environ.get("VOICEPOD_KEY")
    options: dict[str, Any] = {"additional_headers": {"Authorization": f"Bearer {key}"}} if key else {}
    async with websockets.connect(url, subprotocols=["voicepod.v1"], max_size=None, **options) as ws:  # type: ignore[list-item]

        async def read() -> None:
            async for message in ws:
                if isinstance(message, bytes):
                    ear.frame(message)
                else:
                    ear.event(message)

        detection = {"type": "server_vad", "silence_duration_ms": end_wait_ms}
        audio_input = {"format": {"type": "audio/pcm", "rate": RATE}, "turn_detection": detection}
        await ws.send(json.dumps({"type": "session.update", "session": {"audio": {"input": audio_input}}}))
        reading = asyncio.create_task(read())
        silence = np.zeros(FRAME, np.int16)
        next_at = began = time.perf_counter()

        async def tick(pcm: NDArray[np.int16]) -> None:
            nonlocal next_at
            await ws.send(pcm.tobytes())
            next_at += 0.02
            await asyncio.sleep(max(0.0, next_at - time.perf_counter()))

        for _ in range(75):
            await tick(silence)
        for turn in range(n_turns):
            ear.last_speech_at = None
            onset = time.perf_counter()
            speaking = ear.last_audible_at > onset - 0.3
            flushed_before = ear.flushed
            for start in range(0, len(question), FRAME):
                await tick(question[start : start + FRAME])
            if speaking and ear.flushed > flushed_before:
                stops.append((ear.last_audible_at - onset) * 1000)
            ear.last_speech_at = time.perf_counter()
            wait_s = quiet_s if turn % 2 or turn == n_turns - 1 else INTERRUPT_AFTER_S
            for i in range(int(wait_s / 0.02)):
                await tick(silence)
                if i % 5 == 0 and ear.turn > ear.flushed:
                    played = min(ear.played, int((time.perf_counter() - ear.started_at) * 24000))
                    event = {"type": "voicepod.playback", "turn": ear.turn, "played_samples": played}
                    await ws.send(json.dumps(event))
        elapsed_s = time.perf_counter() - began
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
    return ear, stops, elapsed_s


@contextlib.contextmanager
def fixed_server_process(seats: int = 4) -> Iterator[tuple[str, psutil.Process]]:
    """The server of fixed delays in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.fixed_server", "--port", str(port), "--seats", str(seats)]
    process = subprocess.Popen(command)
    try:
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready").status == 200:
                    break
            if process.poll() is not None:
                sys.exit("the server did not start")
            time.sleep(0.1)
        yield f"ws://127.0.0.1:{port}/v1/realtime", psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def floor_ms() -> float:
    """What the fixed delays alone cost: endpointing, STT, LLM to the end of the first clause, TTS."""
    n_words = len(fixed_server.REPLY.split(". ")[0].split())
    llm_s = fixed_server.FIRST_TOKEN_S + (n_words - 1) * fixed_server.TOKEN_S
    return END_WAIT_MS + (fixed_server.STT_S + llm_s + fixed_server.FIRST_AUDIO_S) * 1000


def spread(values: list[float]) -> str:
    """Median, 95th percentile and range in words."""
    if not values:
        return "none"
    ordered = sorted(values)
    p95 = ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)]
    middle = statistics.median(ordered)
    return f"p50 {middle:.0f}, p95 {p95:.0f} ({ordered[0]:.0f}-{ordered[-1]:.0f}), n={len(ordered)}"


def report(ear: Ear, stops: list[float], elapsed_s: float, cpu_s: float | None, floor: float | None) -> None:
    """Print the figures."""
    print(f"machine    {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"v2v ms     {spread(ear.v2v_ms)}")
    if floor is not None:
        print(f"floor ms   {floor:.0f}")
        print(f"overhead   {spread([ms - floor for ms in ear.v2v_ms])}")
    print(f"stop ms    {spread(stops)}")
    names = list(dict.fromkeys(name for parts in ear.parts for name in parts))
    for name in names:
        print(f"  {name:<16} {spread([parts[name] for parts in ear.parts if name in parts])}")
    if cpu_s is not None:
        print(f"CPU        {cpu_s * 60 / elapsed_s:.2f} s per talk minute")
    print(f"gaps ms    {spread(ear.gaps_ms)}")
    print(f"frames of a flushed turn received and dropped: {ear.stale_frames}; errors: {ear.errors or 'none'}")


async def talks(url: str, clips: list[Path]) -> None:
    """One question in each of several talks at the same time; prints who understood, answered and stuttered how."""
    found = await asyncio.gather(*(talk(url, speech(clip), 1, 600, TALKS_WAIT_S) for clip in clips))
    for clip, (ear, _, _) in zip(clips, found, strict=True):
        print(f"{clip.stem}: v2v {spread(ear.v2v_ms)}; gaps {spread(ear.gaps_ms)}; errors {ear.errors or 'none'}")
        print(f"  heard {ear.said}, answered {ear.answers}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversation", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--fixed", action="store_true", help="engines of fixed delay")
    which.add_argument("--url", help="a running server")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--question", type=Path, help="a recording instead of espeak-ng's 'What time is it?'")
    parser.add_argument("--talks", type=Path, nargs="+", metavar="CLIP", help="with --url: one talk a clip, at once")
    parser.add_argument("--quiet-s", type=float, default=QUIET_AFTER_S, help="silence after a turn that is heard out")
    arguments = parser.parse_args()
    if arguments.talks:
        asyncio.run(talks(arguments.url, arguments.talks))
        return
    question = speech(arguments.question)
    if arguments.url:
        ear, stops, elapsed_s = asyncio.run(talk(arguments.url, question, arguments.turns, 600, arguments.quiet_s))
        report(ear, stops, elapsed_s, None, None)
        return
    with fixed_server_process() as (url, process):
        before = sum(process.cpu_times()[:2])
        ear, stops, elapsed_s = asyncio.run(talk(url, question, arguments.turns, END_WAIT_MS, arguments.quiet_s))
        cpu_s = sum(process.cpu_times()[:2]) - before
    report(ear, stops, elapsed_s, cpu_s, floor_ms())


if __name__ == "__main__":
    main()
