"""The local RunPod as one thing to start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import BaseRoute, Mount

from serverless.devserver.client_routes import ClientRoutes
from serverless.devserver.job import Job
from serverless.devserver.jobs import Jobs
from serverless.devserver.limits import Limits
from serverless.devserver.webhooks import Webhooks
from serverless.devserver.worker_routes import WorkerRoutes, worker_urls
from serverless.devserver.workers import Workers

HANDLER = (sys.executable, "-m", "serverless.handler")
SWEEP_S = 0.25
# Checks of the SDK that a laptop fails: a name server on the internet, 4 GB of free memory, a card.
WORKER_ENVIRON = {
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    "RUNPOD_SKIP_GPU_CHECK": "true",
    "RUNPOD_LOG_LEVEL": "INFO",
    "RUNPOD_PING_INTERVAL": "10000",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is served, and how."""

    command: Sequence[str] = HANDLER
    """Starts one worker."""
    n_workers: int = 1
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """Of the workers; what leads them to this server is added."""
    host: str = "127.0.0.1"
    port: int = 0
    endpoint: str = "local"
    api_key: str | None = None
    limits: Limits = field(default_factory=Limits)
    routes: Sequence[BaseRoute] = ()
    """More routes, such as the files of a local storage."""
    output: IO[bytes] | None = None
    """Where the workers write; None is where this program does."""
    grace_s: float = 30.0
    """How long a running job may take to end when the server stops."""


@dataclass(frozen=True)
class DevServer:
    """A server that runs."""

    url: str
    """Of the endpoint: http://HOST:PORT/v2/ENDPOINT."""
    jobs: Jobs
    workers: Workers
    closed: asyncio.Event
    """Set when the server ended by itself, as at Ctrl-C."""


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def serving(plan: Plan) -> AsyncIterator[DevServer]:
    """Serve until the block ends; its workers end with it."""
    bound = socket.socket(socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((plan.host, plan.port))
    except OSError:
        bound.close()
        raise
    port = bound.getsockname()[1]
    is_open = plan.host == "0.0.0.0"  # noqa: S104
    here = "127.0.0.1" if is_open else plan.host  # workers run on this machine
    url = f"http://{here}:{port}/v2/{plan.endpoint}"

    webhooks = Webhooks(plan.limits)

    def finished(job: Job) -> None:
        if job.webhook:
            webhooks.call(job.webhook, jobs.view(job))

    jobs = Jobs(plan.limits, finished=finished)
    environ = {**WORKER_ENVIRON, **plan.environ, "RUNPOD_ENDPOINT_ID": plan.endpoint}
    workers = Workers(
        jobs, command=plan.command, n=plan.n_workers, environ=environ, grace_s=plan.grace_s, output=plan.output
    )
    endpoint = [*ClientRoutes(jobs, workers, api_key=plan.api_key).routes(), *WorkerRoutes(jobs, workers).routes()]
    hosts = ["*"] if is_open else ["127.0.0.1", "localhost", plan.host]
    app = Starlette(
        routes=[Mount(f"/v2/{plan.endpoint}", routes=endpoint), *plan.routes],
        # Names that resolve to this machine but belong to a page elsewhere are refused.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
    )
    http = _Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
    closed = asyncio.Event()
    serve = asyncio.create_task(http.serve(sockets=[bound]))
    serve.add_done_callback(lambda _: closed.set())
    sweep = asyncio.create_task(_sweep(jobs, workers))
    try:
        bound.listen()  # who calls before the server runs waits a moment
        workers.start(lambda key: worker_urls(url, key))
        yield DevServer(url, jobs, workers, closed)
    finally:
        await workers.close()
        await webhooks.close()
        sweep.cancel()
        http.should_exit = True
        await serve
        bound.close()


async def _sweep(jobs: Jobs, workers: Workers) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        jobs.sweep()
        workers.sweep()
