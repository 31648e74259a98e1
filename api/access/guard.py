"""The same door in front of what is no route of ours: the mounted Gradio page with its queue, config and files."""

from __future__ import annotations

import re
import secrets
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access.access import Access
from api.access.headers import page_policy
from api.access.principal import Scope as AccessScope
from pipeline.errors import Unauthorized

# Scripts of the page's own HTML; in the configuration, which is JSON inside one of them, `<` is written as \u003c.
_SCRIPT: Final = re.compile(rb"<script(?=[\s>])")


class Guard:
    """An ASGI application behind the access layer. `scope` is what its callers must be allowed."""

    def __init__(self, app: ASGIApp, access: Access, scope: AccessScope) -> None:
        self._app, self._access, self.scope = app, access, scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or raise what the application's error handlers tell."""
        if scope["type"] == "websocket":  # nothing behind this door speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            principal = await self._access.enter(request, self.scope, request.method)
        except Unauthorized:
            if not _is_navigation(request):
                raise
            await RedirectResponse("login", 303, {"Cache-Control": "no-store"})(scope, receive, send)
            return
        await self._access.limiter.spend(principal, "page")
        await self._app(_uncompressed(scope), receive, _Page(request.headers, send))


def _is_navigation(request: Request) -> bool:
    """Whether a person opens the page, who is better served with the login page than with an error."""
    is_page = request.headers.get("sec-fetch-mode", "navigate") == "navigate"
    return request.method == "GET" and is_page and "text/html" in request.headers.get("accept", "")


def _uncompressed(scope: Scope) -> Scope:
    """The page itself is changed on its way out, so it must not be compressed; its files may be."""
    if scope["path"] not in ("", "/"):
        return scope
    headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
    return {**scope, "headers": headers}


class _Page:
    """Sends an answer on; HTML gets a nonce on each of its scripts and the policy that goes with it."""

    def __init__(self, headers: Headers, send: Send) -> None:
        self._headers, self._send = headers, send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if headers.get("content-type", "").startswith("text/html"):
                self._start = message
                return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        nonce = secrets.token_urlsafe(16)
        body = _SCRIPT.sub(f'<script nonce="{nonce}"'.encode(), self._body)
        headers = MutableHeaders(scope=self._start)
        headers["Content-Security-Policy"] = page_policy(self._headers, nonce)
        headers["Content-Length"] = str(len(body))
        headers["Cache-Control"] = "no-store"
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})
