"""The worker: one job in, one answer out, whatever happens in between.

Everything that blocks runs in threads (`work.Threads`), so that RunPod's stop signals and the other jobs go on. A
job that is cancelled or late raises a flag that the threads look at between two steps of the model; nothing of it is
written after that but its record.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog

from pipeline.errors import EngineError, VoicepodError
from serverless import checks, keys
from serverless.errors import JobError, invalid
from serverless.failures import traced
from serverless.fetch import fetch
from serverless.limits import Limits, Occupant, seconds_allowed
from serverless.manifests import Manifest, Manifests
from serverless.parts import Parts, information
from serverless.requests import (
    ConfirmRequest,
    DeleteVoiceRequest,
    DownloadRequest,
    GetVoiceRequest,
    HealthRequest,
    InfoRequest,
    ListVoicesRequest,
    Request,
    ResultRequest,
    StatusRequest,
    TtsRequest,
    UploadRequest,
    UploadUrlRequest,
    parse,
)
from serverless.results import failure_of, finished_answer, one_file, status_answer
from serverless.settings import WorkerSettings
from serverless.tts_job import TtsJob, voice_shown
from serverless.work import Stopwatch, Threads

log = structlog.get_logger()

STOP_GRACE_S: Final = 5.0  # that a step of the model takes at most; a thread that needs more hangs
_LOOK_EVERY_S: Final = 0.02
_STORAGE_THREADS: Final = 16

Tell = Callable[[Mapping[str, Any], Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class _Running:
    """The job that an endpoint works for."""

    job: Mapping[str, Any]
    job_id: str
    limits: Limits


class Worker:
    """Answers jobs. `make_parts` reads the models; it runs once, in the model's thread, before the first synthesis.

    `tell` posts progress to RunPod: it gets the job and the progress, and must not block.
    """

    def __init__(self, settings: WorkerSettings, make_parts: Callable[[], Parts], *, tell: Tell | None = None) -> None:
        self._settings, self._make_parts = settings, make_parts
        self._tell: Tell = tell or (lambda job, progress: None)
        self._threads = Threads(
            speech=ThreadPoolExecutor(1, "speech"),
            encoding=ThreadPoolExecutor(1, "encoding"),
            alignment=ThreadPoolExecutor(1, "alignment"),
            storage=ThreadPoolExecutor(_STORAGE_THREADS, "storage"),
        )
        self._parts: Parts | None = None
        self._occupant = Occupant()
        self._n_spoken = 0

    def load(self) -> Parts:
        """The models and the storage, read once; blocking, from any thread. ConfigError says what is missing."""
        return self._threads.speech.submit(self._load).result()

    def _load(self) -> Parts:
        if self._parts is None:
            self._parts = self._make_parts()
        return self._parts

    async def _ready(self) -> Parts:
        return self._parts if self._parts is not None else await self._threads.speak(self._load)

    def close(self) -> None:
        """Stop the threads; a step that runs ends first."""
        self._threads.close()

    @property
    def hangs(self) -> bool:
        """Whether the model's thread works for a job that is over."""
        return self._occupant.overdue() is not None

    async def handle(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a RunPod job; raises nothing but the cancellation of its task."""
        started = time.perf_counter()
        limits = Limits(seconds_allowed(job, self._settings.processing_timeout_s))
        logged: dict[str, Any] = {"job_id": str(job.get("id"))[:128]}
        try:
            request = parse(job.get("input"), max_text_chars=self._settings.max_text_chars)
            logged["endpoint"] = request.endpoint
            running = _Running(job, keys.job_id(job.get("id")), limits)
            if job.get("s3Config"):
                # Its keys would be needed for every later URL; its address may be one of our own network.
                raise invalid("s3Config", "results lie in the worker's own storage: leave it out", code="unsupported")
            async with asyncio.timeout(limits.seconds):
                answer = await self._answer(request, running)
            log.info("job.answered", **logged, seconds=round(time.perf_counter() - started, 3))
            return answer
        except Exception as error:
            failure, cause = limits.failure(error), error
        finally:
            limits.stop()
        if failure.code == "INTERNAL" and not isinstance(cause, VoicepodError):
            log.error("job.broke", **logged, **traced(cause))
        log.info("job.failed", **logged, code=failure.code, seconds=round(time.perf_counter() - started, 3))
        answer = failure.answer()
        if logged.get("endpoint") == "tts" and await self._needs_new_worker(failure, cause):
            answer["refresh_worker"] = True
        return answer

    async def _needs_new_worker(self, failure: JobError, cause: Exception) -> bool:
        """A card that ran full or broke, or a model that does not come back, serves no further job."""
        if failure.code == "OUT_OF_MEMORY":
            return True
        if failure.code == "TIMEOUT" and await self._model_hangs():
            log.error("worker.model_hangs")
            return True
        if isinstance(cause, EngineError):
            from pipeline.engines.process_host import is_poisoned

            return is_poisoned(cause)
        return False

    async def _model_hangs(self) -> bool:
        """Whether the model's thread works on for one and the same job that is over, be it this one or another."""
        overdue = self._occupant.overdue()
        waited_until = time.monotonic() + STOP_GRACE_S
        while overdue is not None and self._occupant.overdue() is overdue:
            if time.monotonic() >= waited_until:
                return True
            await asyncio.sleep(_LOOK_EVERY_S)
        return False

    async def _answer(self, request: Request, running: _Running) -> dict[str, Any]:
        store = self._threads.store
        match request:
            case TtsRequest():
                return await self._tts(request, running)
            case HealthRequest():
                return await store(lambda: checks.health(self._settings, self._parts))
        parts = await self._ready()
        match request:
            case InfoRequest():
                return await store(lambda: information(self._settings, parts))
            case UploadRequest():
                return await self._upload(parts, request)
            case UploadUrlRequest():
                return await parts.voices.request_upload(
                    request.voice_name, seconds=request.presign_seconds or self._settings.presign_seconds
                )
            case ConfirmRequest():
                return await parts.voices.confirm(
                    request.voice_name,
                    request.upload_id,
                    ref_text=request.ref_text,
                    language=request.language,
                    consent=request.consent,
                    overwrite=request.overwrite,
                )
            case ListVoicesRequest():
                return await store(partial(parts.voices.list, request.cursor, request.limit, request.prefix))
            case GetVoiceRequest():
                return await store(partial(parts.voices.get, request.voice_name))
            case DeleteVoiceRequest():
                return await store(partial(parts.voices.delete, request.voice_name))
            case StatusRequest():
                return status_answer(await store(partial(self._manifests(parts).read, request.job_id)))
            case ResultRequest() | DownloadRequest():
                return await self._result(parts, request)
        raise AssertionError(f"no code for the endpoint {request.endpoint}")

    def _manifests(self, parts: Parts) -> Manifests:
        return Manifests(parts.storage, namespace=self._settings.endpoint_id or "", worker=self._settings.worker_id)

    async def _result(self, parts: Parts, request: ResultRequest | DownloadRequest) -> dict[str, Any]:
        manifests = self._manifests(parts)
        manifest = await self._threads.store(partial(manifests.read, request.job_id))
        if manifest.state != "DONE":
            raise failure_of(manifest)
        if not await self._threads.store(partial(manifests.has_audio, manifest)):
            raise JobError("JOB_NOT_FOUND", "the files of this job were deleted")
        answer = await self._finished(parts, manifest, request.presign_seconds)
        return one_file(answer, manifest, request) if isinstance(request, DownloadRequest) else answer

    async def _finished(self, parts: Parts, manifest: Manifest, seconds: int | None) -> dict[str, Any]:
        return await self._threads.store(
            lambda: finished_answer(parts.storage, manifest, seconds=seconds or self._settings.presign_seconds)
        )

    async def _upload(self, parts: Parts, request: UploadRequest) -> dict[str, Any]:
        if not request.consent:
            raise invalid("consent", "the speaker's consent is needed: consent must be true", code="consent_required")
        data = request.voice_file
        if data is None:
            assert request.voice_file_url is not None
            data = await fetch(
                request.voice_file_url,
                timeout_s=self._settings.request_timeout_s,
                allow_private=self._settings.allow_private_urls,
                field="voice_file_url",
            )
        return await parts.voices.upload(
            request.voice_name,
            data=data,
            ref_text=request.ref_text,
            language=request.language,
            consent=request.consent,
            overwrite=request.overwrite,
        )

    async def _tts(self, request: TtsRequest, running: _Running) -> dict[str, Any]:
        watch, is_cold = Stopwatch(), self._n_spoken == 0
        self._n_spoken += 1
        with watch.step("total"):
            with watch.step("load"):
                parts = await self._ready()
            manifests, fingerprint = self._manifests(parts), request.fingerprint()
            log.info(
                "job.started",
                job_id=running.job_id,
                n_chars=len(request.text),
                text_sha256=hashlib.sha256(request.text.encode()).hexdigest()[:12],
                voice="named" if request.local_voice else voice_shown(None),
            )
            earlier = await self._threads.store(partial(manifests.find, running.job_id))
            if earlier is not None and earlier.state == "DONE" and earlier.fingerprint == fingerprint:
                return await self._finished(parts, earlier, request.presign_seconds)  # done, but its answer was lost
            record = manifests.begin(running.job_id, fingerprint)
            try:
                await self._threads.store(partial(record.update, "QUEUED"))
                result = await self._earlier_result(manifests, request, running.job_id, fingerprint)
                if result is None:
                    job = TtsJob(
                        request=request,
                        job_id=running.job_id,
                        limits=running.limits,
                        record=record,
                        storage=parts.storage,
                        engine=parts.engine,
                        marker=parts.watermarker,
                        tools=parts.tools,
                        threads=self._threads,
                        occupant=self._occupant,
                        tell=partial(self._tell, running.job),
                        nfe_step=request.nfe_step or self._settings.nfe_step,
                        watch=watch,
                    )
                    result = await job.run(parts.voices.resolve(request.local_voice, request.ref_text))
                    result["answer"]["cold_start"] = is_cold
                    result["answer"]["timings_ms"] = watch.rounded()
                done = await self._threads.store(partial(record.done, result))
            except asyncio.CancelledError:
                running.limits.stop()
                failure = running.limits.failure(JobError("CANCELLED", "the job was cancelled"))
                await self._threads.store(partial(record.failed, failure))
                raise
            except Exception as error:
                await self._threads.store(partial(record.failed, running.limits.failure(error)))
                raise
        answer = await self._finished(parts, done, request.presign_seconds)
        answer["timings_ms"] = watch.rounded()
        return answer

    async def _earlier_result(
        self, manifests: Manifests, request: TtsRequest, job_id: str, fingerprint: str
    ) -> dict[str, Any] | None:
        """The result of the finished job of the same idempotency key, for this job's record too."""
        if request.idempotency_key is None:
            return None
        key = request.idempotency_key
        earlier = await self._threads.store(lambda: manifests.claim(key, job_id, fingerprint))
        if earlier is None or earlier.result is None:
            return None
        return {**earlier.result, "answer": {**earlier.result["answer"], "idempotent_of": earlier.job_id}}
