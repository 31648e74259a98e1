"""Piper's voice "joe": the fast voice for small machines, in a process of its own because Piper is GPL-3.0."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import IO

from pipeline.audio import AudioChunk
from pipeline.engines.base import EngineInfo, SpeechChunk, SpeechPiece, Voice
from pipeline.engines.lanes import Lane, Stop
from pipeline.engines.phonemes import pronounceable
from pipeline.engines.piecewise import one_ahead
from pipeline.engines.trimming import PAUSE_AFTER_SENTENCE_S, pause_after, trimmed
from pipeline.errors import ConfigError, EngineError, EngineFailed, EngineNotReady, EngineTimeout, InvalidInput
from pipeline.models import locate
from settings import Settings, cache_directory

MODEL_ID = "piper-joe"
MODEL_FILE = "en_US-joe-medium.onnx"
SAMPLE_RATE = 22_050
VOICE = Voice(id="joe", name="Joe (American, male)", language="en")
PROGRAM = Path(__file__).with_name("piper_program.py")
MIN_SPEED, MAX_SPEED = 0.5, 2.0
PIECE_TIMEOUT_S = 60.0  # a sentence takes a tenth of its own length


class PiperTts:
    """Text to 22.05 kHz speech. The process is started by `load`, and anew by the first piece after it died."""

    def __init__(self, *, models_dir: Path, venv_dir: Path, threads: int = 2) -> None:
        self._models_dir, self._venv_dir, self._threads = models_dir, venv_dir, threads
        self._lane = Lane("piper", 1, stage="tts")
        self._loading = asyncio.Lock()
        self._program: _Program | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> PiperTts:
        """Unloaded; reads `models.dir` and `tts.threads`; Piper itself is looked for in the cache directory."""
        return cls(
            models_dir=settings.models.dir,
            venv_dir=cache_directory(os.environ) / "piper-venv",
            threads=settings.tts.threads,
        )

    @property
    def info(self) -> EngineInfo:
        """One voice."""
        return EngineInfo(
            kind="tts", name="piper", model=MODEL_ID, sample_rate=SAMPLE_RATE, languages=("en",), voices=(VOICE,)
        )

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the lane."""
        return self._lane.n_waiting

    async def load(self) -> None:
        """Start the process and have it say one word."""
        async with self._loading:
            if self._program is None:
                self._program = await self._lane.run(self._start)

    async def close(self) -> None:
        """Stop after the running piece and end the process."""
        await self._lane.close()
        program, self._program = self._program, None
        if program is not None:
            await asyncio.to_thread(program.end)

    async def synthesize(
        self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice
    ) -> AsyncGenerator[SpeechChunk, None]:
        """Audio of the pieces in order, one prepared ahead. A process that dies costs the running piece only."""
        program = self._program
        if program is None:
            raise EngineNotReady("the voice is still loading, or was closed", stage="tts")
        if voice.id != VOICE.id:
            raise InvalidInput("there is no such voice", code="voice_not_found", param="voice")
        speed = min(max(voice.speed, MIN_SPEED), MAX_SPEED)

        async def speak(piece: SpeechPiece) -> Sequence[AudioChunk]:
            return await self._lane.run(lambda stop: program.speak(piece.spoken, speed, stop))

        async with aclosing(one_ahead(pieces, speak, sample_rate=SAMPLE_RATE)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _start(self, stop: Stop) -> _Program:
        python = self._venv_dir / "bin" / "python"
        if not python.exists():
            raise ConfigError(
                f"the voice piper is not installed. Run: python3.11 -m venv {self._venv_dir} && "
                f"{self._venv_dir}/bin/pip install -r requirements/piper.txt"
            )
        model = locate(self._models_dir, MODEL_ID) / MODEL_FILE
        program = _Program([str(python), "-I", str(PROGRAM), str(model), str(self._threads)])
        try:
            program.speak("Hello.", 1.0, stop)
        except EngineError as error:
            program.end()
            raise ConfigError(f"the voice piper in {self._venv_dir} does not start: {error.message}") from error
        return program


class _Program:
    """The process and its pipes. All methods block and belong to the lane's thread, but for `end`."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def speak(self, text: str, speed: float, stop: Stop) -> list[AudioChunk]:
        """A chunk for each sentence. `EngineFailed` when the process dies, `EngineTimeout` when it hangs."""
        spoken = pronounceable(text)
        if not spoken or stop:
            return []
        late = threading.Event()
        process = self._running()

        def give_up() -> None:
            late.set()
            process.kill()

        watchdog = threading.Timer(PIECE_TIMEOUT_S, give_up)
        watchdog.start()
        try:
            request = {"text": spoken, "length_scale": 1.0 / speed}
            stdin, stdout = _pipes(process)
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            sentences = list(_sentences(stdout))  # read to the end even when stopped, or the next piece gets the rest
        except (OSError, EOFError, ValueError, KeyError) as error:
            self.end()
            if late.is_set():
                raise EngineTimeout("the voice did not answer in time", stage="tts") from error
            raise EngineFailed("the voice stopped working", stage="tts") from error
        finally:
            watchdog.cancel()
        pauses = [PAUSE_AFTER_SENTENCE_S] * (len(sentences) - 1) + [pause_after(spoken)]
        return [
            AudioChunk(trimmed(chunk.samples, SAMPLE_RATE, pause_s=pause_s), SAMPLE_RATE)
            for chunk, pause_s in zip(sentences, pauses, strict=False)
        ]

    def end(self) -> None:
        """Kill the process and wait for it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in _pipes(process):
                pipe.close()
            process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.end()
        # An environment of its own: what this process knows (keys, tokens) is none of its business.
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "ORT_DISABLE_TELEMETRY": "1"},
        )
        self._process = process
        try:
            if _header(_pipes(process)[1])["sample_rate"] != SAMPLE_RATE:
                raise ValueError("another voice")
        except (OSError, EOFError, ValueError, KeyError) as error:
            self.end()
            raise EngineFailed("the voice could not be started", stage="tts") from error
        return process


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("the process was started without pipes")
    return process.stdin, process.stdout


def _header(stdout: IO[bytes]) -> dict[str, int]:
    line = stdout.readline()
    if not line:
        raise EOFError("the process ended")
    header: dict[str, int] = json.loads(line)
    return header


def _sentences(stdout: IO[bytes]) -> Iterator[AudioChunk]:
    while n_bytes := _header(stdout)["n_bytes"]:
        data = stdout.read(n_bytes)
        if len(data) != n_bytes:
            raise EOFError("the process ended")
        yield AudioChunk.from_pcm16(data, SAMPLE_RATE)
