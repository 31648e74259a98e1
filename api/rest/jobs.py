"""Long work as jobs: taken at once, done one after the other, asked for later. A proxy cuts every request after 100 s.

Jobs live in memory and belong to their owner; who asks for another's job is told that there is none. A result is kept
for `KEEP_S` after the end.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import structlog
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from api.access.access import require
from api.access.principal import Principal
from api.errors import error_object
from api.rest.openapi import errors
from pipeline.errors import Busy, EngineFailed, NotFound, RateLimited, VoicepodError

log = structlog.get_logger()

Status = Literal["queued", "running", "done", "failed"]
# A step of a job's work: the share that is done, and at the end the result.
Progress = float | dict[str, Any] | str

KEEP_S: Final = 3600.0
# A waiting job holds up to 77 MB: twenty minutes of samples.
MAX_WAITING, MAX_WAITING_OF_OWNER = 4, 2
MAX_KEPT_OF_OWNER: Final = 32  # ended ones; the oldest goes first
RETRY_FULL_S: Final = 30.0
POLL_S: Final = 2  # how often a client should look


@dataclass(slots=True, eq=False)
class Job:
    """One piece of work. `at_s` are Unix times."""

    id: str
    kind: str
    owner: str
    created_at_s: float
    work: AsyncGenerator[Progress, None] | None
    status: Status = "queued"
    progress: float = 0.0
    ended_at_s: float | None = None
    result: dict[str, Any] | str | None = None
    error: dict[str, Any] | None = None
    task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it waits or runs."""
        return self.ended_at_s is None


class Jobs:
    """All jobs of the server; `run` works on them, one at a time. Everything is on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._waiting: asyncio.Queue[Job] = asyncio.Queue()

    async def run(self) -> None:
        """Work on jobs until cancelled."""
        while True:
            job = await self._waiting.get()
            if job.work is None:  # deleted while it waited
                continue
            job.task = asyncio.create_task(self._work_on(job, job.work), name=job.id)
            try:
                await asyncio.wait([job.task])
            finally:
                job.task.cancel()

    def check_room(self, owner: str) -> None:
        """`RateLimited` when this owner has enough open jobs, `Busy` when the server has."""
        open_jobs = [job for job in self._jobs.values() if job.is_open]
        if sum(job.owner == owner for job in open_jobs) >= MAX_WAITING_OF_OWNER:
            raise RateLimited("your other jobs have to end first", retry_after_s=RETRY_FULL_S)
        if len(open_jobs) >= MAX_WAITING:
            raise Busy("too many jobs are waiting", retry_after_s=RETRY_FULL_S)

    def add(self, kind: str, owner: str, work: AsyncGenerator[Progress, None]) -> Job:
        """A new job; `work` yields its progress from 0 to 1 and last its result. Raises as `check_room`."""
        self._forget_old()
        self.check_room(owner)
        job = Job(f"job_{secrets.token_hex(12)}", kind, owner, self._clock(), work)
        self._jobs[job.id] = job
        self._waiting.put_nowait(job)
        return job

    def get(self, job_id: str, owner: str) -> Job:
        """The owner's job, or `NotFound`."""
        self._forget_old()
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise NotFound("there is no such job", code="job_not_found", param="job_id")
        return job

    def of_owner(self, owner: str) -> list[Job]:
        """The owner's jobs, the oldest first."""
        self._forget_old()
        return [job for job in self._jobs.values() if job.owner == owner]

    async def delete(self, job_id: str, owner: str) -> None:
        """Stop and forget the owner's job, or `NotFound`."""
        job = self.get(job_id, owner)
        del self._jobs[job.id]
        if job.task is not None:
            job.task.cancel()
        elif job.work is not None:
            await job.work.aclose()
        job.work = None
        if job.is_open:  # whoever holds it, or was cancelled before it began, must not take it for one that runs
            job.status, job.ended_at_s = "failed", self._clock()

    async def _work_on(self, job: Job, work: AsyncGenerator[Progress, None]) -> None:
        job.status = "running"
        try:
            async with aclosing(work) as steps:
                async for step in steps:
                    if isinstance(step, float):
                        job.progress = step
                    else:
                        job.result = step
            job.status, job.progress = "done", 1.0
        except Exception as error:  # boundary: one job that fails must not end the others
            if not isinstance(error, VoicepodError):
                log.exception("job.crashed", kind=job.kind)
                error = EngineFailed("the job failed unexpectedly", stage=job.kind)
            job.status, job.error = "failed", error_object(error)
        finally:
            job.work, job.ended_at_s = None, self._clock()
            log.info("job.done", kind=job.kind, status=job.status)

    def _forget_old(self) -> None:
        ended = [job for job in self._jobs.values() if not job.is_open]
        kept_of: dict[str, int] = {}
        for job in reversed(ended):  # newest first
            kept_of[job.owner] = kept_of.get(job.owner, 0) + 1
            if self._clock() - (job.ended_at_s or 0.0) > KEEP_S or kept_of[job.owner] > MAX_KEPT_OF_OWNER:
                del self._jobs[job.id]


# --- the routes


class JobShown(BaseModel):
    """A job as its owner sees it."""

    id: str
    object: Literal["job"] = "job"
    kind: str
    status: Status
    progress: float
    created_at: int
    expires_at: int | None
    result: dict[str, Any] | str | None
    error: dict[str, Any] | None


def shown(job: Job) -> JobShown:
    """What the routes give of a job."""
    return JobShown(
        id=job.id,
        kind=job.kind,
        status=job.status,
        progress=round(job.progress, 3),
        created_at=int(job.created_at_s),
        expires_at=None if job.ended_at_s is None else int(job.ended_at_s + KEEP_S),
        result=job.result,
        error=job.error,
    )


def jobs_router(jobs: Jobs) -> APIRouter:
    """Look at a job, or stop and forget it."""
    router = APIRouter(tags=["jobs"])

    @router.get("/api/jobs/{job_id}", responses=errors(404))
    async def job(
        job_id: str, response: Response, principal: Annotated[Principal, Depends(require("speech"))]
    ) -> JobShown:
        """How far the job is, and its result. `Retry-After` says when to look again while it is open."""
        found = jobs.get(job_id, principal.owner)
        response.headers["Cache-Control"] = "no-store"
        if found.is_open:
            response.headers["Retry-After"] = str(POLL_S)
        return shown(found)

    @router.delete("/api/jobs/{job_id}", status_code=204, responses=errors(404))
    async def delete_job(job_id: str, principal: Annotated[Principal, Depends(require("speech"))]) -> None:
        """Stop the job and forget what it gave."""
        await jobs.delete(job_id, principal.owner)

    return router
