"""Bodies of requests, read no further than they may be long, and JSON as it is sent back."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

_SPARE_DEPTH = 100


class BodyTooLarge(ValueError):
    """More bytes than allowed; the rest is not read."""


class BodyWrong(ValueError):
    """Not a JSON object."""


async def read(request: Request, max_bytes: int) -> bytes:
    """The body; raises BodyTooLarge as soon as it is known to be."""
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length) > max_bytes:
        raise BodyTooLarge
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise BodyTooLarge
    return bytes(body)


def parse(body: bytes) -> dict[str, Any]:
    """A JSON object, without NaN, Infinity (no JSON) and 1e999 (which is read as one); raises BodyWrong."""
    try:
        value = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise BodyWrong("the body is not JSON") from None
    if not isinstance(value, dict):
        raise BodyWrong("the body is not a JSON object")
    deeper: Any = value
    for _ in range(_SPARE_DEPTH):
        deeper = [deeper]
    try:
        json.dumps(deeper, allow_nan=False)
    except ValueError:
        raise BodyWrong("the body is not JSON that can be passed on: a number in it is too large") from None
    except RecursionError:
        raise BodyWrong("the body is not JSON that can be passed on: it is nested too deep") from None
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def ascii_json(value: object) -> bytes:
    """JSON in ASCII: half a surrogate pair, which a caller may send, has no UTF-8."""
    return json.dumps(value, allow_nan=False).encode()


def answer(value: object, status: int = 200) -> Response:
    """A response with JSON."""
    return Response(ascii_json(value), status, media_type="application/json")
