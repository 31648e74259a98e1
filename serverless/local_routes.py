"""The signed URLs of `LocalStorage` as routes: reading with ranges, writing up to the signed size, nothing else."""

from __future__ import annotations

import asyncio
import os

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pipeline.errors import InvalidInput
from serverless import keys
from serverless.local_storage import URL_PREFIX, Grant, LocalStorage, headers_of
from serverless.storage import NotStored, StorageError, content_type_of


def serve_local(storage: LocalStorage) -> list[Route]:
    """Routes for GET, HEAD and PUT of signed URLs. A wrong signature, key or time is 403, whatever lies there."""

    async def read(request: Request) -> Response:
        grant = _grant(request, storage, "GET")
        if grant is None:
            return _refused()
        try:
            file = await asyncio.to_thread(storage.open, grant.key)
        except NotStored:
            return PlainTextResponse("there is no such object", 404)
        except StorageError as error:
            return PlainTextResponse(error.message, 500)
        return _OpenFile(file, media_type=content_type_of(grant.key), headers=headers_of(grant))

    async def write(request: Request) -> Response:
        grant = _grant(request, storage, "PUT")
        if grant is None or request.headers.get("content-type", "") != grant.content_type:
            return _refused()
        try:
            await _receive(request, storage, grant)
        except _TooLarge:
            return PlainTextResponse("the body is larger than was agreed", 413, headers={"Connection": "close"})
        except StorageError as error:
            return PlainTextResponse(error.message, 507 if error.code == "no_space" else 500)
        except ClientDisconnect:
            return PlainTextResponse("the body broke off", 400)
        return Response(status_code=200)

    path = URL_PREFIX + "{key:path}"
    return [Route(path, read, methods=["GET"]), Route(path, write, methods=["PUT"])]


class _OpenFile(FileResponse):
    """The file behind a descriptor, which is closed in the end: its path could be another file by now."""

    def __init__(self, file: int, *, media_type: str, headers: dict[str, str]) -> None:
        self._file = file
        path = f"/proc/self/fd/{file}"
        super().__init__(path, media_type=media_type, headers=headers, stat_result=os.fstat(file))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self._file)


class _TooLarge(Exception):
    pass


async def _receive(request: Request, storage: LocalStorage, grant: Grant) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > grant.max_bytes:
        raise _TooLarge
    received = bytearray()
    async for block in request.stream():
        received += block
        if len(received) > grant.max_bytes:
            raise _TooLarge
    await asyncio.to_thread(storage.put, grant.key, bytes(received), content_type=grant.content_type)


def _grant(request: Request, storage: LocalStorage, method: str) -> Grant | None:
    """What the URL allows, None when it does not allow this."""
    query = request.query_params
    try:
        grant = Grant(
            "PUT" if method == "PUT" else "GET",
            keys.checked(request.path_params["key"]),
            int(query.get("expires", "")),
            query.get("filename", ""),
            query.get("content_type", ""),
            int(query.get("max_bytes", "0")),
        )
    except (ValueError, InvalidInput):
        return None
    return grant if storage.is_granted(grant, query.get("signature", "")) else None


def _refused() -> Response:
    return PlainTextResponse("this URL is not signed for that, or no longer", 403)
