"""An HTTP answer lasts no longer than the credential it was asked for with.

To the application a caller whose key was revoked looks like one who went away: whatever makes an answer while it is
sent (speech, events, an export, the page's own streams) watches for that already, and stops its work.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access.live import LiveCredentials
from api.access.principal import PRINCIPAL, Principal

_GONE: Final[Message] = {"type": "http.disconnect"}


class EndsWithCredential:
    """Tells the application of a disconnect as soon as the request's credential has ended."""

    def __init__(self, app: ASGIApp, live: LiveCredentials) -> None:
        self._app, self._live = app, live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with ExitStack() as held:
            await self._app(scope, _Watched(scope, receive, self._live, held), send)


class _Watched:
    """`receive` of one request. Who asks is known by the time that its body, or its end, is waited for."""

    def __init__(self, scope: Scope, receive: Receive, live: LiveCredentials, held: ExitStack) -> None:
        self._scope, self._receive, self._live, self._held = scope, receive, live, held
        self._watching: asyncio.Task[bool] | None = None

    async def __call__(self) -> Message:
        principal = self._scope.get(PRINCIPAL)
        if self._watching is None and isinstance(principal, Principal):
            ended = self._held.enter_context(self._live.answering(principal))
            self._watching = asyncio.create_task(ended.wait(), name="credential ended")
            self._held.callback(self._watching.cancel)
        if self._watching is None:
            return await self._receive()
        if self._watching.done():
            return _GONE
        return await _unless(self._watching, self._receive)


async def _unless(watching: asyncio.Task[bool], receive: Receive) -> Message:
    """The next message. Not in a task of its own: callers look for one that is there already, and do not wait."""
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as limit:

            def stop(_: asyncio.Task[bool]) -> None:
                with suppress(RuntimeError):  # the message came in the same moment
                    limit.reschedule(asyncio.get_running_loop().time())

            watching.add_done_callback(stop)
            try:
                return await receive()
            finally:
                watching.remove_done_callback(stop)
    return _GONE
