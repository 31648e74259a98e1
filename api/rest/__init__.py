"""The HTTP API: OpenAI's audio routes under /v1, the administration guide's under /api. docs/api.md has them all."""

from __future__ import annotations

from fastapi import APIRouter

from api.rest.backend import Backend
from api.rest.clone import clone_router
from api.rest.converse import converse_router
from api.rest.jobs import jobs_router
from api.rest.model_list import models_router
from api.rest.openapi import openapi_router
from api.rest.sessions import sessions_router
from api.rest.speech import speech_router
from api.rest.transcriptions import transcriptions_router
from api.rest.voices import voices_router
from api.rest.watermark import watermark_router

__all__ = ["Backend", "rest_router"]


def rest_router(backend: Backend) -> APIRouter:
    """All routes of this package."""
    router = APIRouter()
    for part in (
        speech_router(backend),
        transcriptions_router(backend),
        watermark_router(backend),
        models_router(backend),
        converse_router(backend),
        jobs_router(backend.jobs),
        sessions_router(backend),
        clone_router(backend),
        voices_router(backend),
        openapi_router(),
    ):
        router.routes += part.routes
    return router
