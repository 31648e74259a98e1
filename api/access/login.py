"""Logging in and out with a browser, and the one-time ticket that its socket needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from api.access import credentials, first_start, keys, sessions
from api.access.access import Access, open_to_all, require
from api.access.cookies import cookie_of, drop_cookie, is_https, set_cookie
from api.access.login_page import CONTENT_SECURITY_POLICY, PAGE
from api.access.principal import Principal
from api.uploads import read_body
from pipeline.errors import InvalidInput, TooLarge, Unauthorized

MAX_BODY_BYTES: Final = 1024  # a key and its frame of JSON are about 100
NO_STORE: Final = {"Cache-Control": "no-store"}


def login_router(access: Access, *, on_ticket: Callable[[], None]) -> APIRouter:
    """`/login`, `/logout` and `/api/ticket`. `on_ticket` hears that somebody is about to talk."""
    router = APIRouter(tags=["access"])

    @router.get("/login", dependencies=[Depends(open_to_all)], include_in_schema=False)
    async def login_page() -> Response:
        """Where a key or a one-time link becomes a login."""
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY, **NO_STORE})

    @router.post("/login", dependencies=[Depends(open_to_all)])
    async def login(request: Request) -> Response:
        """Begin a browser session with an API key or the token of a one-time link."""
        access.origins.check(request.headers, request.method, is_cookie=True)
        cookie, is_setup = await _begin(access, request, await _credential(request))
        response = JSONResponse({"set_up": is_setup}, headers=NO_STORE)
        set_cookie(
            response,
            cookie,
            secure=is_https(request, access.forwarded),
            life_s=access.life.absolute_s,
        )
        return response

    @router.post("/logout", dependencies=[Depends(open_to_all)])
    async def logout(request: Request) -> Response:
        """End the browser's session and its sockets."""
        access.origins.check(request.headers, request.method, is_cookie=True)
        await _end(access, request)
        response = RedirectResponse("login", status_code=303, headers=NO_STORE)
        drop_cookie(response, secure=is_https(request, access.forwarded))
        return response

    @router.post("/api/ticket")
    async def ticket(principal: Annotated[Principal, Depends(require("talk"))]) -> Response:
        """A one-time ticket for `/v1/realtime`, to be used at once as subprotocol `voicepod.token.TICKET`."""
        on_ticket()
        return JSONResponse({"ticket": access.tickets.mint(principal)}, headers=NO_STORE)

    return router


async def _credential(request: Request) -> str:
    try:
        body = await read_body(request, max_bytes=MAX_BODY_BYTES)
    except TooLarge:
        raise TooLarge("this is too long to be a key or a link") from None
    try:
        sent: Any = json.loads(body)
    except (ValueError, RecursionError):
        sent = None
    credential = sent.get("credential") if isinstance(sent, dict) else None
    if not isinstance(credential, str):
        raise InvalidInput('the body is {"credential": "..."}', param="credential")
    return credential.strip()


async def _begin(access: Access, request: Request, text: str) -> tuple[str, bool]:
    """The new session's cookie, and whether this was the first login of all."""
    now_s = access.now()
    shown = credentials.parse(credentials.KEY, text)
    try:
        if shown is not None:
            principal = await access.store.read(lambda db: keys.verify(db, shown, now_s=now_s))
            cookie, _ = await access.store.write(
                lambda db: sessions.begin(db, owner=principal.owner, scopes=principal.scopes, now_s=now_s, key=shown.id)
            )
            is_setup = False
        elif not text.startswith(f"{credentials.LINK}_"):
            raise Unauthorized("this is neither an API key nor a link of this server", code="invalid_api_key")
        else:
            cookie, _, is_setup = await access.store.write(lambda db: sessions.use_link(db, text, now_s=now_s))
    except Unauthorized as error:
        raise await access.failed(request, error, f"key:{shown.id}" if shown else "link") from None
    await _end(access, request)  # the session that the browser came with, if any: it gets a new one
    if is_setup:
        await access.store.call(lambda: first_start.forget_link(access.store.directory))
    return cookie.text, is_setup


async def _end(access: Access, request: Request) -> None:
    shown = cookie_of(request)
    if shown is None:
        return
    try:
        principal = await access.store.read(
            lambda db: sessions.verify(db, shown, access.life, now_s=access.now(), is_use=False)
        )
    except Unauthorized:
        return
    await access.store.write(lambda db: sessions.end(db, shown.id, now_s=access.now(), why="logout"))
    access.live.end(principal.credential)
