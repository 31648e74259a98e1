"""The OpenAPI document of the HTTP API, and what the routes say in it beyond their types."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from api.access.access import require
from api.access.principal import Principal
from api.access.rules import doors

Json = dict[str, Any]

EXAMPLE_TEXT: Final = "The quick brown fox jumps over the lazy dog."
_BINARY: Final = {"type": "string", "format": "binary"}
# Each of the events that a stream of them has; what it tells is JSON in `data`.
_EVENT: Final = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
_AUDIO_TYPES: Final = ("audio/wav", "audio/pcm", "audio/mpeg", "audio/ogg", "audio/flac", "audio/aac")
# A file that is made while it is sent; events where they were asked for.
AUDIO_ANSWER: Final[Json] = {
    "description": "The speech, sent while it is made.",
    "content": {**{kind: {"schema": _BINARY} for kind in _AUDIO_TYPES}, "text/event-stream": {"schema": _EVENT}},
}
_MEANINGS: Final = {
    400: "Something in the request is wrong; `param` names it.",
    401: "No key, or one that is not known.",
    403: "The key does not reach so far.",
    404: "No such thing, or not yours.",
    413: "The body is larger than the limit.",
    415: "The body is of another kind than this route takes.",
    429: "Too much at once; `Retry-After` says when to come back.",
    503: "The engines are loading or busy; `Retry-After` says when to come back.",
}
_ERROR: Final[Json] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
                "retry_after_s": {"type": "number"},
            },
        }
    },
}


def errors(*statuses: int) -> dict[int | str, Json]:
    """The errors that a route may answer with, besides those of access that all routes have."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        status: {"description": _MEANINGS[status], "content": content} for status in sorted({401, 403, 429, *statuses})
    }


def body_of(form: type[BaseModel], example: Json, *, plain: str | None = None, is_required: bool = True) -> Json:
    """A JSON body, and the text that may come instead of it."""
    content: Json = {"application/json": {"schema": _schema(form), "example": example}}
    if plain is not None:
        content["text/plain"] = {"schema": {"type": "string", "minLength": 1}, "example": plain}
    return {"requestBody": {"required": is_required, "content": content}}


def form_of(form: type[BaseModel], *, without: Sequence[str] = ()) -> Json:
    """A multipart body: a file and fields."""
    schema = _schema(form)
    fields = {name: field for name, field in schema["properties"].items() if name not in without}
    required = ["file", *schema.get("required", ())]
    schema = {"type": "object", "required": required, "properties": {"file": _BINARY, **fields}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def either_body(*bodies: Json) -> Json:
    """One of several bodies, each of a kind of its own."""
    content = {kind: shape for body in bodies for kind, shape in body["requestBody"]["content"].items()}
    return {"requestBody": {"required": True, "content": content}}


def file_answer(kind: str, description: str) -> Json:
    """A file as the answer."""
    return {"description": description, "content": {kind: {"schema": _BINARY}}}


def audio_body(*, plain: str) -> Json:
    """A body that is a recording, whatever it is called, or a text such as `plain`."""
    kinds = ("audio/wav", "audio/webm", "audio/mp4", "application/octet-stream")
    content: Json = {kind: {"schema": _BINARY} for kind in kinds}
    content["text/plain"] = {"schema": {"type": "string", "minLength": 1}, "example": plain}
    return {"requestBody": {"required": True, "content": content}}


def parameters_of(form: type[BaseModel]) -> Json:
    """Query parameters."""
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in _schema(form)["properties"].items()
        ]
    }


def transcript_answer() -> Json:
    """A transcript in one of its forms."""
    verbose = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
    texts = ("text/plain", "application/x-subrip", "text/vtt")
    return {
        "description": "What was said.",
        "content": {
            "application/json": {"schema": verbose, "example": {"text": EXAMPLE_TEXT}},
            **{kind: {"schema": {"type": "string"}} for kind in texts},
            "text/event-stream": {"schema": _EVENT},
        },
    }


@cache  # by far the dearest part of a route; nobody changes what it gives
def _schema(form: type[BaseModel]) -> Json:
    """The form's schema in one piece: what its parts are stands where they are used."""
    schema = form.model_json_schema(ref_template="{model}")
    parts = schema.pop("$defs", {})

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return whole(parts[value["$ref"]]) if "$ref" in value else {key: whole(part) for key, part in value.items()}
        return [whole(part) for part in value] if isinstance(value, list) else value

    shown: Json = whole(schema)
    return shown


def document(app: FastAPI) -> Json:
    """The OpenAPI document of all routes that show themselves."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        description="Errors have OpenAI's form. docs/api.md has an example for every route.",
        routes=app.routes,
    )
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # the framework's own form, which is never sent
        schemas.pop(unused, None)
    schemas["Error"] = _ERROR
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}}
    rules = {(door.path, method): door.rule for door in doors(app) for method in door.methods}
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            rule = rules[path, method.upper()]
            operation["security"] = [] if rule == "open" else [{"key": []}]
            operation["description"] = f"{operation.get('description', '')}\n\nScope: `{rule}`.".strip()
    return found


def openapi_router() -> APIRouter:
    """Where the document lies."""
    router = APIRouter(tags=["about"])
    made: list[Json] = []

    @router.get("/api/openapi.json", response_class=JSONResponse, responses=errors())
    async def openapi(request: Request, principal: Annotated[Principal, Depends(require("speech"))]) -> JSONResponse:
        """This document."""
        if not made:
            made.append(document(request.app))
        return JSONResponse(made[0])

    return router
