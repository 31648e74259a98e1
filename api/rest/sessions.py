"""One's own talks: those that run or wait to be resumed."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from api.access.access import require
from api.access.principal import Principal
from api.registry import Seat
from api.rest.backend import Backend
from api.rest.openapi import errors
from pipeline.errors import NotFound


class SessionShown(BaseModel):
    """A talk as its owner sees it."""

    id: str
    object: Literal["session"] = "session"
    connected: bool
    user: Literal["silent", "speaking"]
    agent: Literal["idle", "thinking", "speaking"]
    n_turns: int
    n_items: int


class SessionList(BaseModel):
    """All talks of an owner."""

    object: Literal["list"] = "list"
    data: list[SessionShown]


def sessions_router(backend: Backend) -> APIRouter:
    """List and end one's own talks."""
    router = APIRouter(tags=["talk"])

    @router.get("/api/sessions", responses=errors())
    async def sessions(response: Response, principal: Annotated[Principal, Depends(require("talk"))]) -> SessionList:
        """Your talks, the oldest first."""
        response.headers["Cache-Control"] = "no-store"
        return SessionList(data=[_shown(seat) for seat in backend.registry.of_owner(principal.owner)])

    @router.delete("/api/sessions/{session_id}", status_code=204, responses=errors(404))
    async def end_session(session_id: str, principal: Annotated[Principal, Depends(require("talk"))]) -> None:
        """End a talk and forget its history; a socket that is attached is closed."""
        for seat in backend.registry.of_owner(principal.owner):
            if seat.session.id == session_id:
                backend.registry.end(seat)
                return
        raise NotFound("there is no such session of yours", code="session_not_found", param="session_id")

    return router


def _shown(seat: Seat) -> SessionShown:
    user, agent = seat.session.state
    return SessionShown(
        id=seat.session.id,
        connected=seat.connection is not None,
        user=user,
        agent=agent,
        n_turns=seat.session.n_turns,
        n_items=len(seat.session.conversation),
    )
