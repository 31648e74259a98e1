"""One synthesis from its request to the files in the storage: voice, speech, mark, audio file, word times, subtitles.

Files are written in this order: the audio, the files of word times, and (by the worker) the record that names them.
What fails at the word times costs the word times and is told as `timing_error`; the audio stays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import structlog

from pipeline.audio import AudioChunk
from pipeline.errors import VoicepodError
from serverless import keys
from serverless.errors import JobError, told
from serverless.failures import traced
from serverless.limits import Limits, Occupant
from serverless.manifests import HEARTBEAT_S, JobRecord
from serverless.requests import TtsRequest
from serverless.results import stored_file, timing_fields
from serverless.speech import ChunkEngine, EncodedAudio, Reference, Speech, encode, synthesize
from serverless.storage import Storage
from serverless.subtitles import render
from serverless.timings import Tools, WordTimings, time_words
from serverless.work import Stopwatch, Threads, forget_gpu_peak, gpu_peak_mb

log = structlog.get_logger()

T = TypeVar("T")
PROGRESS_EVERY_S: Final = 1.0  # a post to RunPod each
RECORD_EVERY_S: Final = 3.0  # a write to the storage each


class Marker(Protocol):
    """What marks speech: `pipeline.watermark.Watermarker`."""

    def stream(self, sample_rate: int) -> Any:
        """Has `add(samples) -> samples` and `flush() -> samples`."""
        ...


@dataclass(frozen=True, slots=True)
class TtsJob:
    """What one synthesis needs. `tell` gets the progress for RunPod, from any thread."""

    request: TtsRequest
    job_id: str
    limits: Limits
    record: JobRecord
    storage: Storage
    engine: ChunkEngine
    marker: Marker | None
    tools: Tools
    threads: Threads
    occupant: Occupant
    tell: Callable[[Mapping[str, Any]], None]
    nfe_step: int
    watch: Stopwatch = field(default_factory=Stopwatch)

    async def run(self, reference: Awaitable[Reference]) -> dict[str, Any]:
        """The result as the record keeps it. JobError, or another VoicepodError, with nothing half written named."""
        async with self._heartbeat():
            with self.watch.step("voice"):
                voice = await reference
            queued = time.perf_counter()
            speech = await self.threads.speak(lambda: self._speak(voice, queued))
            with self.watch.step("encode"):
                audio, file = await self.threads.encode(lambda: self._encoded(speech))
            stored, timing = await _both(self._stored_audio(file), self._timing(speech, audio))
            timings, timing_answer = timing
            with self.watch.step("upload"):
                files, file_error = await self._stored_timings(timings, audio)
            if file_error is not None:
                timing_answer["timing_error"] = file_error
        return {
            "audio": stored,
            "timings": files,
            "answer": self._described(speech, audio) | timing_answer,
        }

    # --- in the model's thread

    def _speak(self, voice: Reference, queued: float) -> Speech:
        self.watch.ms["queue"] = (time.perf_counter() - queued) * 1000
        if self.limits.is_over():
            raise JobError("CANCELLED", "the job was stopped before it began")
        self.record.update("RUNNING", progress={"chunk": 0, "n_chunks": None, "percent": 0})
        forget_gpu_peak()
        told_at = recorded_at = time.monotonic()

        def progress(chunk: int, n_chunks: int, seconds: float) -> None:
            nonlocal told_at, recorded_at
            now = time.monotonic()
            state = {
                "chunk": chunk,
                "n_chunks": n_chunks,
                "percent": round(100 * chunk / max(1, n_chunks)),
                "audio_s": round(seconds, 3),
            }
            is_last = chunk >= n_chunks  # the answer follows: a late post would stand after it
            if not is_last and (now - told_at >= PROGRESS_EVERY_S or chunk == 1):
                told_at = now
                self.tell(state)
            if now - recorded_at >= RECORD_EVERY_S:
                recorded_at = now
                self.threads.storage.submit(_quietly(lambda: self.record.update("RUNNING", progress=state)))

        with self.watch.step("synth"), self.occupant.of(self.limits):
            return synthesize(
                self.engine,
                voice,
                self.request.text,
                speed=self.request.speed,
                seed=self.request.seed,
                nfe_step=self.nfe_step,
                cfg_strength=self.request.cfg_strength,
                cancelled=self.limits.is_over,
                progress=progress,
            )

    def _encoded(self, speech: Speech) -> tuple[AudioChunk, EncodedAudio]:
        audio = speech.audio
        if self.marker is not None:
            stream = self.marker.stream(audio.sample_rate)
            samples = np.concatenate((stream.add(audio.samples), stream.flush()))
            audio = AudioChunk(samples.astype(np.float32, copy=False), audio.sample_rate)
        return audio, encode(audio, self.request.output_format, self.request.output_sample_rate)

    # --- the rest

    async def _stored_audio(self, file: EncodedAudio) -> dict[str, Any]:
        key = keys.output(self.job_id, file.suffix)
        with self.watch.step("upload"):
            await self.threads.store(
                lambda: self.storage.put(
                    key, file.data, content_type=file.content_type, filename=key.rpartition("/")[2]
                )
            )
        return stored_file(key, file.content_type, file.data)

    async def _timing(self, speech: Speech, audio: AudioChunk) -> tuple[WordTimings | None, dict[str, Any]]:
        request = self.request
        if not request.return_word_timings:
            return None, {}
        answer: dict[str, Any] = {"timing_method": request.timing_method, "timing_format": request.timing_format}
        try:
            # A method that is not done in time is left to its thread: the audio must not wait for it.
            async with asyncio.timeout(self.limits.left_for_extras_s):
                with self.watch.step("align"):
                    timings = await self.threads.align(
                        lambda: time_words(
                            audio,
                            speech.chunks,
                            method=request.timing_method,
                            language=request.language,
                            tools=self.tools,
                            cancelled=self.limits.is_nearly_over,
                        )
                    )
            return timings, answer | timing_fields(timings)
        except Exception as error:
            return None, answer | {"timing_error": self._timing_error(error)}

    async def _stored_timings(
        self, timings: WordTimings | None, audio: AudioChunk
    ) -> tuple[dict[str, Any], str | None]:
        files: dict[str, Any] = {}
        if timings is None:
            return files, None
        request, created = self.request, datetime.now(UTC)
        try:
            async with asyncio.timeout(self.limits.left_for_extras_s):
                for name in request.timing_format:
                    file = render(
                        name,
                        timings,
                        duration_s=audio.seconds,
                        job_id=self.job_id,
                        granularity=request.timing_granularity,
                        crlf=request.timing_crlf,
                        karaoke=request.timing_karaoke,
                        created=created,
                    )
                    key = keys.timing(self.job_id, file.suffix)
                    await self.threads.store(
                        lambda key=key, file=file: self.storage.put(  # type: ignore[misc]
                            key, file.data, content_type=file.content_type, filename=key.rpartition("/")[2]
                        )
                    )
                    files[name] = stored_file(key, file.content_type, file.data)
        except Exception as error:
            return files, self._timing_error(error)
        return files, None

    def _timing_error(self, error: Exception) -> str:
        failure = told(error)
        if failure.code == "CANCELLED" and self.limits.is_over():
            raise error
        if failure.code == "CANCELLED" or isinstance(error, TimeoutError):
            failure = JobError("TIMEOUT", "too little time was left for the word times")
        elif not isinstance(error, VoicepodError):
            log.error("job.timings_failed", job_id=self.job_id, **traced(error))
        return f"{failure.code}: {failure.message}"

    def _described(self, speech: Speech, audio: AudioChunk) -> dict[str, Any]:
        request, synth_s = self.request, self.watch.ms["synth"] / 1000
        return {
            "duration": round(audio.seconds, 3),
            "text": request.text,
            "sample_rate": 48_000 if request.output_format == "opus" else request.output_sample_rate,
            "format": request.output_format,
            "seed": speech.seed,
            "voice": voice_shown(request.local_voice),
            "speed": request.speed,
            "nfe_step": self.nfe_step,
            "watermarked": self.marker is not None,
            "rtf": round(synth_s / audio.seconds, 4) if audio.n_samples else None,
            "metrics": {
                "n_chunks": len(speech.chunks),
                "n_chars": len(request.text),
                "n_oom_retries": speech.n_oom_retries,
                "gpu_peak_mb": gpu_peak_mb(),
            },
        }

    @asynccontextmanager
    async def _heartbeat(self) -> AsyncGenerator[None, None]:
        async def beat() -> None:
            while True:
                await asyncio.sleep(HEARTBEAT_S)
                await self.threads.store(self.record.beat)

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()


def voice_shown(local_voice: str | None) -> str:
    """A voice as it may be told: a URL may hold a signature."""
    if local_voice is None:
        return "default"
    return "url" if "://" in local_voice else Path(local_voice).name


async def _both(first: Awaitable[T], second: Awaitable[Any]) -> tuple[T, Any]:
    """Both at once; the error of the first that fails, after both have come to an end."""
    results = await asyncio.gather(first, second, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results[0], results[1]  # type: ignore[return-value]


def _quietly(write: Callable[[], None]) -> Callable[[], None]:
    """A write whose failure costs nothing but itself."""

    def attempt() -> None:
        try:
            write()
        except VoicepodError as error:
            log.warning("job.progress_failed", code=error.code)

    return attempt
