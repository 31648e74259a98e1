"""Calls to the URL that a job named: its status, once it is over."""

from __future__ import annotations

import asyncio
from typing import Any, TypeGuard

import httpx
import structlog

from serverless.devserver import bodies
from serverless.devserver.limits import Limits

log = structlog.get_logger()
TIMEOUT_S = 10.0
MAX_AT_ONCE = 100


def is_url(url: object) -> TypeGuard[str]:
    """Whether it can be called at all."""
    try:
        parts = httpx.URL(url) if isinstance(url, str) else httpx.URL()
    except httpx.InvalidURL:
        return False
    return parts.scheme in ("http", "https") and bool(parts.host) and (parts.port or 1) < 65536


class Webhooks:
    """Calls on their way; more than can be under way at once are dropped, with a line in the log."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._calls: set[asyncio.Task[None]] = set()

    def call(self, url: str, status: dict[str, Any]) -> None:
        """Post it in the background."""
        if len(self._calls) >= MAX_AT_ONCE:
            log.warning("devserver.webhook_dropped")
            return
        task = asyncio.create_task(self._post(url, status))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def close(self) -> None:
        """Forget those that are under way."""
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _post(self, url: str, status: dict[str, Any]) -> None:
        content = bodies.ascii_json(status)
        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as http:
            for attempt in range(self._limits.webhook_retries + 1):
                if attempt:
                    await asyncio.sleep(self._limits.webhook_pause_s)
                try:  # what it says beside its status is not read
                    async with http.stream("POST", url, content=content, headers=headers) as answer:
                        if answer.status_code == 200:
                            return
                except httpx.HTTPError as error:
                    log.warning("devserver.webhook_failed", reason=type(error).__name__)
                    continue
                log.warning("devserver.webhook_failed", status=answer.status_code)
