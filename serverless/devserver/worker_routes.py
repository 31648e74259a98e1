"""What workers ask: for jobs, for what to stop, and where to put results. The real SDK is the other side.

A worker says its key in the query of every URL. The header is no place for it: the SDK fills that from the developer's
own configuration file, if there is one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serverless.devserver import bodies
from serverless.devserver.jobs import Jobs
from serverless.devserver.workers import Worker, Workers

log = structlog.get_logger()
Answer = Callable[[Request, Worker], Awaitable[Response]]
MAX_BATCH = 50


def worker_urls(base: str, key: str) -> dict[str, str]:
    """The environment that leads the SDK's loop here; `base` ends in /v2/{endpoint}."""
    query = f"?gpu=local&key={key}"
    return {
        "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID{query}",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID{query}",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID{query}",
        "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID{query}",
    }


class WorkerRoutes:
    """The routes, below /v2/{endpoint}."""

    def __init__(self, jobs: Jobs, workers: Workers) -> None:
        self._jobs = jobs
        self._workers = workers

    def routes(self) -> list[Route]:
        """For Starlette."""
        return [
            Route("/job-take/{worker}", self._known(self.take)),
            Route("/job-take-batch/{worker}", self._known(self.take_batch)),
            Route("/job-stop/{worker}", self._known(self.stop)),
            Route("/job-done/{worker}/{job}", self._known(self.done), methods=["POST"]),
            Route("/job-stream/{worker}/{job}", self._known(self.stream), methods=["POST"]),
            Route("/ping/{worker}", self._known(self.ping)),
        ]

    def _known(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def route(request: Request) -> Response:
            worker = self._workers.get(request.path_params["worker"])
            key = request.query_params.get("key", "").encode()
            if worker is None or not secrets.compare_digest(worker.key.encode(), key):
                return Response(status_code=401)
            worker.seen_s = self._jobs.clock()
            return await answer(request, worker)

        return route

    async def take(self, request: Request, worker: Worker) -> Response:
        """One job as an object, or 204."""
        jobs = await self._wait_for_work(request, worker, 1)
        return bodies.answer(jobs[0]) if jobs else Response(status_code=204)

    async def take_batch(self, request: Request, worker: Worker) -> Response:
        """A list of jobs, or 204."""
        asked = request.query_params.get("batch_size", "1")
        n = min(int(asked), MAX_BATCH) if asked.isascii() and asked.isdigit() and len(asked) < 5 else 1
        jobs = await self._wait_for_work(request, worker, max(n, 1))
        return bodies.answer(jobs) if jobs else Response(status_code=204)

    async def _wait_for_work(self, request: Request, worker: Worker, n: int) -> list[dict[str, Any]]:
        self._workers.is_ready(worker)
        worker.deaf_s = None
        await self._jobs.until(lambda: worker.leaves or self._jobs.has_queued(), self._jobs.limits.hold_s)
        if await request.is_disconnected() or worker.leaves:  # a job for nobody would be lost
            return []
        return [job.for_worker() for job in self._jobs.take(worker.id, n)]

    async def stop(self, request: Request, worker: Worker) -> Response:
        """Held open until there is something to stop, or for a while."""
        worker.deaf_s = None
        await self._jobs.until(lambda: worker.leaves or self._jobs.has_stops(worker.id), self._jobs.limits.hold_s)
        stops = self._jobs.stops(worker.id)
        worker.deaf_s = self._jobs.clock() if stops else None
        return bodies.answer({"jobsToStop": stops})

    async def done(self, request: Request, worker: Worker) -> Response:
        """A result, or with `"status": "IN_PROGRESS"` a report on the way; JSON under a form's content type."""
        job_id = request.path_params["job"]
        try:
            body = await bodies.read(request, self._jobs.limits.runsync_bytes)
        except bodies.BodyTooLarge:
            self._jobs.done(worker.id, job_id, {}, self._jobs.limits.runsync_bytes + 1)
            return Response(status_code=400)
        try:
            result = bodies.parse(body)
        except bodies.BodyWrong:
            wrong = "the worker's result is not JSON; is there a NaN or an Infinity in it?"
            self._jobs.done(worker.id, job_id, {"error": wrong}, 0)
            return Response(status_code=400)
        if result.get("status") == "IN_PROGRESS":
            self._jobs.progress(worker.id, job_id, result.get("output"), len(body))
            return Response(status_code=200)
        self._jobs.done(worker.id, job_id, result, len(body))
        if result.get("stopPod"):
            self._workers.replace(worker)
        return Response(status_code=200)

    async def stream(self, request: Request, worker: Worker) -> Response:
        """An item of a job that answers in parts."""
        try:
            body = await bodies.read(request, self._jobs.limits.stream_item_bytes)
            item = bodies.parse(body)
        except (bodies.BodyTooLarge, bodies.BodyWrong):
            return Response(status_code=400)
        self._jobs.stream(worker.id, request.path_params["job"], item, len(body))
        return Response(status_code=200)

    async def ping(self, request: Request, worker: Worker) -> Response:
        """A sign of life, or what keeps a worker from starting."""
        if request.query_params.get("status") == "unhealthy":
            check, reason = (request.query_params.get(name, "")[:256] for name in ("check", "reason"))
            log.error("devserver.worker_unhealthy", worker=worker.id, check=check, reason=json.dumps(reason))
        return Response(status_code=200)
