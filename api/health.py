"""Health: is the process alive, may talks begin here, how far is the start. Open to all; they show only a state.

| route | 200 | else |
|---|---|---|
| `/health/live` | whenever the event loop answers | no answer: restart it |
| `/health/ready` | ready or degraded | 503 with the reason: send nobody here |
| `/health/startup` | always; the body says loading, ready or failed | |
| `/api/health` | as `/health/ready`, with the version | 503 |
| `/ping` | ready or degraded | 204 while loading, 503 otherwise: what RunPod's load balancer asks for |
"""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from api.readiness import Readiness

NO_STORE = {"Cache-Control": "no-store"}


def health_router(readiness: Readiness, *, version: str) -> APIRouter:
    """The health routes. None of them waits for anything."""
    router = APIRouter(tags=["health"])

    async def live() -> JSONResponse:
        """The event loop answers."""
        return JSONResponse({"state": "live"}, headers=NO_STORE)

    async def ready() -> JSONResponse:
        """A new talk may begin here."""
        return JSONResponse(_state(readiness), status_code=_status(readiness), headers=NO_STORE)

    async def startup() -> JSONResponse:
        """How far each engine is."""
        return JSONResponse(readiness.startup(), headers=NO_STORE)

    async def health() -> JSONResponse:
        """State and version in one."""
        body = {**_state(readiness), "version": version}
        return JSONResponse(body, status_code=_status(readiness), headers=NO_STORE)

    async def ping() -> Response:
        """No body, only a status."""
        loading = readiness.state == "loading"
        return Response(status_code=204 if loading else _status(readiness), headers=NO_STORE)

    routes = {
        "/health/live": live,
        "/health/ready": ready,
        "/health/startup": startup,
        "/api/health": health,
        "/ping": ping,
    }
    for path, answer in routes.items():
        router.add_api_route(path, answer, methods=["GET"], response_model=None)
        router.add_api_route(path, answer, methods=["HEAD"], response_model=None, include_in_schema=False)
    return router


def _state(readiness: Readiness) -> dict[str, str]:
    return {"state": readiness.state, "reason": readiness.reason}


def _status(readiness: Readiness) -> int:
    return 200 if readiness.is_ready else 503
