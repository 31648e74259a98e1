"""Oneself: who one is here, everything that is kept about one, and how to have it deleted."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict

from api.access.access import Access, require
from api.access.principal import SCOPES, USER_SCOPES, Principal, Scope
from api.personal_data import PersonalData
from api.rest.bodies import Asked, json_body
from api.rest.openapi import body_of, errors, file_answer
from api.rest.streaming import Streamed
from pipeline.errors import Forbidden

KEPT: Final = (
    "your keys and logins, so that you can still get in",
    "the audit log, which nobody can change",
    "your consents, for voices.consent_days after the voice was deleted",
)


class Counts(BaseModel):
    """How many things of each kind are kept. `sessions` and `turns` are the record of past talks."""

    keys: int
    logins: int
    audit: int
    sessions: int
    turns: int
    talks: int
    jobs: int
    voices: int
    recordings: int


class Me(BaseModel):
    """An owner as they see themselves. `credential` is what was shown: its kind and its public id."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "object": "owner",
                "id": "own_0123456789ab",
                "name": "anna",
                "credential": "key:0123456789ab",
                "scopes": ["talk", "speech", "voices"],
                "counts": dict.fromkeys(Counts.model_fields, 1),
            }
        }
    )

    object: Literal["owner"] = "owner"
    id: str
    name: str
    credential: str
    scopes: list[Scope]
    counts: Counts


class Deleted(BaseModel):
    """What was deleted, and what was not."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "object": "deletion",
                "deleted": {"talks": 1, "jobs": 0, "voices": 1, "recordings": 0, "sessions": 4, "turns": 31},
                "kept": list(KEPT),
            }
        }
    )

    object: Literal["deletion"] = "deletion"
    deleted: dict[str, int]
    kept: list[str]


class Confirmation(Asked):
    """Nothing is deleted by accident."""

    confirm: Literal["delete"]


def me_router(data: PersonalData, access: Access) -> APIRouter:
    """`/api/me` for whoever is known, `/api/me/data` for a key that reaches all that is in it."""
    router = APIRouter(tags=["me"])

    @router.get("/api/me", responses=errors())
    async def me(response: Response, principal: Annotated[Principal, Depends(require("any"))]) -> Me:
        """Who you are here, and how much is kept about you."""
        response.headers["Cache-Control"] = "no-store"
        return Me(
            id=principal.owner,
            name=await data.name(principal.owner),
            credential=principal.credential,
            scopes=[scope for scope in SCOPES if principal.may(scope)],
            counts=Counts.model_validate(await data.counts(principal.owner)),
        )

    @router.get(
        "/api/me/data",
        response_class=Response,
        responses={200: file_answer("application/zip", "Everything about you, as JSON and WAV files."), **errors(429)},
    )
    async def export(principal: Annotated[Principal, Depends(require("voices"))]) -> Response:
        """Everything that is kept about you, in one archive. Needs the scopes `talk`, `speech` and `voices`."""
        _check_reach(principal)
        await access.limiter.spend(principal, "upload")
        await access.record(principal.owner, principal.credential, "data.exported", "", "ok")
        named = {"Content-Disposition": 'attachment; filename="voicepod-data.zip"'}
        return Streamed(data.archive(principal.owner), media_type="application/zip", headers=lambda: named)

    @router.delete(
        "/api/me/data",
        responses=errors(400, 413, 415),
        openapi_extra=body_of(Confirmation, {"confirm": "delete"}),
    )
    async def delete(request: Request, principal: Annotated[Principal, Depends(require("voices"))]) -> Deleted:
        """End your talks and delete them, your jobs, voices and history. Needs the same scopes."""
        _check_reach(principal)
        await json_body(request, Confirmation)
        deleted = await data.forget(principal.owner, credential=principal.credential)
        await access.record(principal.owner, principal.credential, "data.deleted", "", "ok")
        return Deleted(deleted=deleted, kept=list(KEPT))

    return router


def _check_reach(principal: Principal) -> None:
    """A key that may only speak must not read talks, nor delete voices."""
    missing = [scope for scope in SCOPES if scope in USER_SCOPES and not principal.may(scope)]
    if missing:
        raise Forbidden(f"all that is kept about you needs all of your scopes: this one lacks {', '.join(missing)}")
