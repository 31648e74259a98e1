"""What callers ask of an endpoint: /run, /runsync, /status, /stream, /cancel, /retry, /purge-queue, /health."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serverless.devserver import bodies
from serverless.devserver.job import Job
from serverless.devserver.jobs import Jobs, JobUnknown, NotRetryable, QueueFull
from serverless.devserver.limits import RATES
from serverless.devserver.webhooks import is_url
from serverless.devserver.workers import Workers

Answer = Callable[[Request], Awaitable[Response]]
LOOK_S = 0.5


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Rate:
    """So many calls in so many seconds."""

    def __init__(self, n: int, seconds: float) -> None:
        self._n, self._seconds = n, seconds
        self._at_s: deque[float] = deque()

    def allows(self, now_s: float) -> bool:
        """Whether one more call is within it; that call counts then."""
        while self._at_s and now_s - self._at_s[0] >= self._seconds:
            self._at_s.popleft()
        if len(self._at_s) >= self._n:
            return False
        self._at_s.append(now_s)
        return True


def _milliseconds(value: object, name: str, bounds_s: tuple[float, float]) -> float | None:
    """Seconds; None stays None."""
    if value is None:
        return None
    low, high = (int(bound * 1000) for bound in bounds_s)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refused(400, f"{name} is a number of milliseconds from {low} to {high}")
    return value / 1000


def _milliseconds_asked(request: Request, name: str, bounds_s: tuple[float, float]) -> float | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    return _milliseconds(int(text) if text.isascii() and text.isdigit() and len(text) < 12 else text, name, bounds_s)


class ClientRoutes:
    """The routes, below /v2/{endpoint}; with a key, every call must bring it."""

    def __init__(self, jobs: Jobs, workers: Workers, *, api_key: str | None) -> None:
        self._jobs = jobs
        self._workers = workers
        self._api_key = api_key
        self._rates = {name: Rate(*rate) for name, rate in RATES.items()}

    def routes(self) -> list[Route]:
        """For Starlette."""
        return [
            Route("/run", self._guarded(self.run, "run"), methods=["POST"]),
            Route("/runsync", self._guarded(self.runsync, "runsync"), methods=["POST"]),
            Route("/status/{job}", self._guarded(self.status, "status")),
            Route("/stream/{job}", self._guarded(self.stream, "stream")),
            Route("/cancel/{job}", self._guarded(self.cancel, "cancel"), methods=["POST"]),
            Route("/retry/{job}", self._guarded(self.retry, "run"), methods=["POST"]),
            Route("/purge-queue", self._guarded(self.purge, "purge-queue"), methods=["POST"]),
            Route("/health", self._guarded(self.health, "status")),
        ]

    def _guarded(self, answer: Answer, rate: str) -> Answer:
        async def route(request: Request) -> Response:
            try:
                if not self._may(request):
                    raise Refused(401, "the API key is missing or wrong")
                if not self._rates[rate].allows(time.monotonic()):
                    raise Refused(429, "too many requests; wait and try again")
                return await answer(request)
            except Refused as refused:
                return bodies.answer({"error": str(refused)}, refused.status)
            except JobUnknown:
                return bodies.answer(
                    {"error": "job not found; results of /run are kept 30 min, of /runsync 1 min"}, 404
                )

        return route

    def _may(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        return self._api_key is None or secrets.compare_digest(given.encode(), self._api_key.encode())

    async def _submit(self, request: Request, *, sync: bool, kept_s: float | None = None) -> Job:
        limits = self._jobs.limits
        max_bytes = limits.runsync_bytes if sync else limits.run_bytes
        # A page in a browser cannot send this type to another site without being asked first.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(400, "the content type must be application/json")
        try:
            raw = await bodies.read(request, max_bytes)
            body = bodies.parse(raw)
        except bodies.BodyTooLarge:
            raise Refused(413, f"the request is over {max_bytes} bytes; send URLs instead of data") from None
        except bodies.BodyWrong as wrong:
            raise Refused(400, str(wrong)) from None
        if not isinstance(body.get("input"), dict) or not body["input"]:
            raise Refused(400, "input must be an object with at least one field")
        policy = body.get("policy", {})
        if not isinstance(policy, dict):
            raise Refused(400, "policy must be an object")
        webhook = body.get("webhook")
        if webhook is not None and not is_url(webhook):
            raise Refused(400, "webhook must be an http or https URL")
        try:
            return self._jobs.submit(
                {name: body[name] for name in ("input", "policy", "webhook", "s3Config") if name in body},
                n_bytes=len(raw),
                n_workers=self._workers.n_wanted,
                sync=sync,
                kept_s=kept_s,
                execution_timeout_s=_milliseconds(
                    policy.get("executionTimeout"), "policy.executionTimeout", limits.execution_timeout_range_s
                ),
                ttl_s=_milliseconds(policy.get("ttl"), "policy.ttl", limits.ttl_range_s),
                webhook=webhook,
            )
        except QueueFull as full:
            raise Refused(429, f"the queue is full: {full}") from None

    async def run(self, request: Request) -> Response:
        """The name of a new job, at once."""
        job = await self._submit(request, sync=False)
        return bodies.answer({"id": job.id, "status": job.state})

    async def runsync(self, request: Request) -> Response:
        """The result; or how far the job is when the wait is over."""
        limits = self._jobs.limits
        wait_s = _milliseconds_asked(request, "wait", limits.sync_wait_range_s)
        job = await self._submit(request, sync=True, kept_s=max(wait_s, limits.sync_kept_s) if wait_s else None)
        left_s = wait_s or limits.sync_wait_s
        while left_s > 0 and not await self._jobs.until(lambda: job.is_final, min(LOOK_S, left_s)):
            left_s -= LOOK_S
            if await request.is_disconnected():
                break
        return bodies.answer(self._jobs.view(job))

    async def status(self, request: Request) -> Response:
        """How far a job is; its result once it is over."""
        job = self._jobs.get(request.path_params["job"])
        if ttl_s := _milliseconds_asked(request, "ttl", (0.001, self._jobs.limits.ttl_range_s[1])):
            job.ttl_s = ttl_s
        return bodies.answer(self._jobs.view(job))

    async def stream(self, request: Request) -> Response:
        """The items since the last call; waits a moment for the first."""
        job = self._jobs.get(request.path_params["job"])
        await self._jobs.until(lambda: bool(job.items) or job.is_final, self._jobs.limits.stream_hold_s)
        items: list[Any] = [item for item, _ in job.items]
        job.items.clear()
        return bodies.answer({"status": job.state, "stream": items})

    async def cancel(self, request: Request) -> Response:
        """CANCELLED, or what the job came to before."""
        job = self._jobs.cancel(request.path_params["job"])
        return bodies.answer({"id": job.id, "status": job.state})

    async def retry(self, request: Request) -> Response:
        """IN_QUEUE again."""
        try:
            job = self._jobs.retry(request.path_params["job"])
        except NotRetryable as state:
            raise Refused(400, f"only FAILED and TIMED_OUT jobs can be retried; this one is {state}") from None
        return bodies.answer({"id": job.id, "status": job.state})

    async def purge(self, request: Request) -> Response:
        """How many waiting jobs were cancelled."""
        return bodies.answer({"removed": self._jobs.purge(), "status": "completed"})

    async def health(self, request: Request) -> Response:
        """Numbers of jobs and workers."""
        await asyncio.sleep(0)
        return bodies.answer({"jobs": self._jobs.counts(), "workers": self._workers.counts()})
