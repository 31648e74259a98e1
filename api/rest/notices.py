"""A word of the operator's to everybody who is connected."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from api.access.access import Access, require
from api.access.principal import Principal
from api.rest.bodies import Asked, json_body
from api.rest.openapi import body_of, errors
from api.sockets import Sockets
from pipeline.untrusted_text import clean_user_text

MAX_CHARS: Final = 300


class NoticeWish(Asked):
    """What to tell, and why."""

    kind: Literal["restart", "maintenance"]
    message: Annotated[str, Field(min_length=1, max_length=4 * MAX_CHARS)]


class Told(BaseModel):
    """How many pages were told."""

    object: Literal["notice"] = "notice"
    told: int


def notices_router(sockets: Sockets, access: Access) -> APIRouter:
    """The one route."""
    router = APIRouter(tags=["talk"])

    @router.post(
        "/api/notices",
        responses=errors(400, 413, 415),
        openapi_extra=body_of(NoticeWish, {"kind": "maintenance", "message": "The server restarts at noon."}),
    )
    async def notice(request: Request, principal: Annotated[Principal, Depends(require("admin"))]) -> Told:
        """Tell all pages that are connected. One that does not read holds up nobody."""
        wish = await json_body(request, NoticeWish)
        message = clean_user_text(wish.message, max_characters=MAX_CHARS).strip()
        await access.record(principal.owner, principal.credential, "notice.sent", wish.kind, "ok")
        return Told(told=await sockets.broadcast(wish.kind, message))

    return router
