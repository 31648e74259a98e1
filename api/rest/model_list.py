"""OpenAI's list of models: what this server runs, and `voicepod`, the talk of all of them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from api.access.access import require
from api.access.principal import Principal
from api.rest.backend import Backend
from api.rest.openapi import errors
from pipeline.errors import NotFound

TALK: Final = "voicepod"


class Model(BaseModel):
    """OpenAI's model object. `created` is 0: when weights were made is not known here. `kind` is ours."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "voicepod"
    kind: Literal["realtime", "vad", "asr", "llm", "tts"]


class ModelList(BaseModel):
    """OpenAI's list object."""

    object: Literal["list"] = "list"
    data: list[Model]


def models_router(backend: Backend) -> APIRouter:
    """The list and its entries."""
    router = APIRouter(tags=["models"])

    def known() -> list[Model]:
        engines = backend.engines.by_kind()
        return [Model(id=TALK, kind="realtime"), *(Model(id=e.info.model, kind=kind) for kind, e in engines.items())]

    @router.get("/v1/models", responses=errors())
    async def models(principal: Annotated[Principal, Depends(require("speech"))]) -> ModelList:
        """All models. Every route uses the one of its kind, whatever `model` a request names."""
        return ModelList(data=known())

    @router.get("/v1/models/{model}", responses=errors(404))
    async def model(model: str, principal: Annotated[Principal, Depends(require("speech"))]) -> Model:
        """One model."""
        for found in known():
            if found.id == model:
                return found
        raise NotFound("there is no such model", code="model_not_found", param="model")

    return router
