"""Health: is the process alive, may talks begin here, how far is the start. Open to all; they show only a state.

What runs here, and why it does not, is told to those who may talk (`/api/startup`), in the log and in the metrics.

| route | 200 | else |
|---|---|---|
| `/health/live` | whenever the event loop answers | no answer: restart it |
| `/health/ready` | ready or degraded | 503: send nobody here |
| `/health/startup` | always; the body says loading, ready or failed | |
| `/api/health` | as `/health/ready` | 503 |
| `/ping` | ready or degraded | 204 while loading, 503 otherwise: what RunPod's load balancer asks for |
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse

from api.access.access import open_to_all, require
from api.readiness import Readiness

NO_STORE = {"Cache-Control": "no-store"}


def health_router(readiness: Readiness) -> APIRouter:
    """The health routes. None of them waits for anything."""
    router = APIRouter(tags=["health"], dependencies=[Depends(open_to_all)])

    async def live() -> JSONResponse:
        """The event loop answers."""
        return JSONResponse({"state": "live"}, headers=NO_STORE)

    async def ready() -> JSONResponse:
        """A new talk may begin here."""
        return JSONResponse({"state": readiness.state}, status_code=_status(readiness), headers=NO_STORE)

    async def startup() -> JSONResponse:
        """How far the start is."""
        return JSONResponse({"state": readiness.startup()["state"]}, headers=NO_STORE)

    async def ping() -> Response:
        """No body, only a status."""
        loading = readiness.state == "loading"
        return Response(status_code=204 if loading else _status(readiness), headers=NO_STORE)

    routes = {
        "/health/live": live,
        "/health/ready": ready,
        "/health/startup": startup,
        "/api/health": ready,
        "/ping": ping,
    }
    for path, answer in routes.items():
        router.add_api_route(path, answer, methods=["GET"], response_model=None)
        router.add_api_route(path, answer, methods=["HEAD"], response_model=None, include_in_schema=False)
    return router


def startup_router(readiness: Readiness) -> APIRouter:
    """`GET /api/startup`, for the loading screen of a page that is logged in."""
    router = APIRouter(tags=["health"])

    # Asked once a second while the models load: counted with what a page asks for, not with a program's requests.
    @router.get("/api/startup", dependencies=[Depends(require("talk", counts="page"))])
    async def startup(response: Response) -> dict[str, Any]:
        """How far each engine is."""
        response.headers["Cache-Control"] = "no-store"
        return readiness.startup()

    return router


def _status(readiness: Readiness) -> int:
    return 200 if readiness.is_ready else 503
