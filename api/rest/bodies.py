"""What a request brings: JSON, plain text or query parameters, checked, with the name of the field that is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from api.uploads import read_body
from pipeline.errors import InvalidInput

# The longest text is 5000 characters, and JSON may write each as two escapes of six bytes; the rest is for the others.
MAX_TEXT_BODY_BYTES: Final = 100_000


class Asked(BaseModel):
    """Base of all that callers ask for: what is not known is left alone, as OpenAI's clients expect."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


AskedT = TypeVar("AskedT", bound=Asked)


def content_type(request: Request) -> str:
    """The kind of the body, without parameters; empty when the caller does not say."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def refuse_unless(request: Request, kinds: Sequence[str]) -> None:
    """HTTP 415 for a body of another kind."""
    if content_type(request) not in kinds:
        raise HTTPException(415)


async def json_body(request: Request, form: type[AskedT]) -> AskedT:
    """The JSON body as `form`. HTTP 415 for other kinds, `TooLarge`, `InvalidInput`."""
    refuse_unless(request, ("application/json",))
    data = await read_body(request, max_bytes=MAX_TEXT_BODY_BYTES)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("the body is not valid JSON", code="invalid_json") from error
    if not isinstance(value, dict):
        raise InvalidInput("the body must be a JSON object")
    return checked(form, value)


async def text_body(request: Request) -> str:
    """A plain text body, in UTF-8."""
    try:
        return (await read_body(request, max_bytes=MAX_TEXT_BODY_BYTES)).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("the text is not UTF-8", param="input") from error


def query(request: Request, form: type[AskedT]) -> AskedT:
    """The query parameters as `form`."""
    return checked(form, dict(request.query_params))


def checked(form: type[AskedT], values: Mapping[str, Any]) -> AskedT:
    """`values` as `form`; `InvalidInput` names the first field that is wrong and does not repeat its value."""
    try:
        return form.model_validate(dict(values))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = str(fault["loc"][0]) if fault["loc"] else None
        raise InvalidInput(f"{param or 'the request'}: {fault['msg']}", param=param, code="invalid_value") from error
