"""Writes down what an uploaded voice says, once: Whisper behind a call that blocks.

The engine lives on an event loop of its own in one thread: it is asynchronous, and the worker's loops come and go. Its
weights are read at the first use; most workers never need them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.audio import AudioChunk
from serverless.errors import JobError

if TYPE_CHECKING:
    from pipeline.engines.asr_whisper import WhisperAsr

T = TypeVar("T")


class Transcriber:
    """Call it with audio: the text and its language. Any thread but one of an event loop."""

    def __init__(self, directory: Path, *, device: str, threads: int, timeout_s: float = 120.0) -> None:
        self._directory, self._device, self._threads, self._timeout_s = directory, device, threads, timeout_s
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asr: WhisperAsr | None = None

    def __call__(self, audio: AudioChunk) -> tuple[str, str]:
        """What is said and its language. JobError VOICE_INVALID when nothing is understood, TIMEOUT."""
        heard = self._run(self._heard(audio))
        if not heard[0].strip():
            raise JobError("VOICE_INVALID", "no words were understood in the recording; give ref_text")
        return heard

    def close(self) -> None:
        """Stop the thread and drop the weights."""
        with self._starting:
            loop, self._loop = self._loop, None
        if loop is not None:
            if self._asr is not None:
                asyncio.run_coroutine_threadsafe(self._asr.close(), loop).result(self._timeout_s)
            loop.call_soon_threadsafe(loop.stop)

    async def _heard(self, audio: AudioChunk) -> tuple[str, str]:
        if self._asr is None:
            from pipeline.engines.asr_whisper import WhisperAsr

            self._asr = WhisperAsr(
                models_dir=self._directory.parent,
                model="base",
                path=self._directory,
                threads=self._threads,
                beam_size=5,
                compute_type="default",
                device=self._device,
            )
        await self._asr.load()
        transcript = await self._asr.transcribe(audio, language=None)
        return transcript.text.strip(), transcript.language

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(self._loop,), name="transcribing", daemon=True).start()
            loop = self._loop
        running = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return running.result(self._timeout_s)
        except TimeoutError:
            running.cancel()
            raise JobError("TIMEOUT", "writing down what the voice says took too long; give ref_text") from None


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
