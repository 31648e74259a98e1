"""The access layer in front of a small application, with clocks that a test sets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI

from api import errors
from api.access import keys, sessions
from api.access.access import Access, require
from api.access.headers import SecurityHeaders
from api.access.login import login_router
from api.access.principal import SCOPES, USER_SCOPES, Principal, Scope
from api.store import Store
from settings import Settings

ORIGIN = "http://voicepod.test"


class Clock:
    """Both clocks: wall time, and the one that only goes forward."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0
        self.monotonic_s = 5000.0

    def now(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.monotonic_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds
        self.monotonic_s += seconds


class Doors:
    """Routes `/scope/NAME` that need one scope each, behind a real `Access`."""

    def __init__(self, directory: Path, **sections: dict[str, Any]) -> None:
        self.clock = Clock()
        self.settings = Settings.model_validate(
            {"storage": {"dir": directory}, "network": {"host": "0.0.0.0"}, **sections}
        )
        self.store = Store(directory)
        self.rejected: list[str] = []
        self.access = Access(
            self.settings,
            self.store,
            now=self.clock.now,
            clock=self.clock.monotonic,
            on_rejected=self.rejected.append,
        )
        self.n_tickets = 0
        self.app = FastAPI()
        errors.install(self.app)
        self.app.add_middleware(SecurityHeaders)
        self.app.state.access = self.access
        self.app.include_router(login_router(self.access, on_ticket=self._count))
        for scope in SCOPES:
            self._add_route(scope)

    def _count(self) -> None:
        self.n_tickets += 1

    def _add_route(self, scope: Scope) -> None:
        async def who(principal: Annotated[Principal, Depends(require(scope))]) -> dict[str, str]:
            return {"owner": principal.owner, "credential": principal.credential}

        who.__annotations__["principal"] = Annotated[Principal, Depends(require(scope))]
        for path in (f"/scope/{scope}", f"/gradio_api/{scope}"):  # what a person asks for, and what the page does
            self.app.add_api_route(path, who, methods=["GET", "POST"])

    def owner(self, name: str = "anna") -> str:
        return self.store.now(lambda db: keys.owner_named(db, name, now_s=self.clock.now(), create=True))

    def new_key(
        self, owner: str = "anna", scopes: frozenset[Scope] = USER_SCOPES, *, life_s: float | None = None
    ) -> tuple[keys.Key, str]:
        identifier, now_s = self.owner(owner), self.clock.now()
        expires_s = None if life_s is None else now_s + life_s
        return self.store.now(
            lambda db: keys.create(db, owner=identifier, name="test", scopes=scopes, now_s=now_s, expires_s=expires_s)
        )

    def new_link(self, owner: str = "anna", scopes: frozenset[Scope] = USER_SCOPES) -> str:
        identifier = self.owner(owner)
        return self.store.now(
            lambda db: sessions.make_link(db, owner=identifier, scopes=scopes, now_s=self.clock.now())
        )

    def client(self, key: str | None = None, *, origin: str | None = ORIGIN) -> httpx.AsyncClient:
        """A client with a cookie jar; with `key` a program, which names no origin."""
        headers = {"Authorization": f"Bearer {key}"} if key else {"Origin": origin} if origin else {}
        transport = httpx.ASGITransport(self.app, client=("192.0.2.7", 1234))
        return httpx.AsyncClient(transport=transport, base_url=ORIGIN, headers=headers)

    @asynccontextmanager
    async def logged_in(self, owner: str = "anna") -> AsyncIterator[httpx.AsyncClient]:
        """A browser after its login."""
        async with self.client() as client:
            answer = await client.post("/login", json={"credential": self.new_link(owner)})
            assert answer.status_code == 200, answer.text
            yield client
