"""Answers that are made while they are sent, and work that ends when its client goes away."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Final, TypeVar

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.errors import error_object, route_of
from pipeline.errors import VoicepodError
from pipeline.turn import first_error

log = structlog.get_logger()

T = TypeVar("T")

EVENT_STREAM: Final = "text/event-stream"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. The request's body was read before."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Streamed(Response):
    """A body that is made while it is sent, closed however the answer ends.

    Nothing is sent before the first part of the body is there, so an error until then is a proper answer. A later one
    cuts the connection: the client must not take half an answer for a whole one. `headers` is asked at the first part.
    """

    def __init__(
        self,
        body: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        super().__init__(media_type=media_type)
        self._body, self._late_headers = body, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until the client goes away."""
        begun = False

        async def sending() -> None:
            nonlocal begun
            async with aclosing(self._body) as body:
                part = await anext(body, None)
                self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no", **self._late_headers()})
                del self.headers["content-length"]
                begun = True
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                while part is not None:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                    part = await anext(body, None)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await unless_gone(receive, sending())
        except VoicepodError as error:
            if not begun:
                raise
            log.warning("response.cut", route=route_of(scope), code=error.code)


async def after_first(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same items, once the first one is there: errors before it are raised here, by the call."""
    first = await anext(items, None)

    async def all_of_them() -> AsyncGenerator[T, None]:
        async with aclosing(items):
            if first is not None:
                yield first
                async for item in items:
                    yield item

    return all_of_them()


# --- server-sent events


def event(value: Mapping[str, Any]) -> bytes:
    """One event, as OpenAI writes them: the type stands in the JSON."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def audio_event(kind: str, audio: bytes) -> bytes:
    """An event with audio in base64."""
    return event({"type": kind, "audio": base64.b64encode(audio).decode()})


async def events_with_errors(events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The same events; an error after the first one is told as a last event instead of cutting the connection."""
    begun = False
    async with aclosing(events) as closing:  # type: ignore[type-var]
        try:
            async for item in closing:
                yield item
                begun = True
        except VoicepodError as error:
            if not begun:
                raise
            cause = first_error(error)
            yield event({"type": "error", "error": error_object(cause)})
