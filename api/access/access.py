"""The one place that knows who is asking. Every HTTP route, the page and the socket go through `Access`.

Three kinds of credentials: `Authorization: Bearer` with an API key (or the operator's token), the cookie of a browser
session, and, for a browser's socket, a one-time ticket. A credential that a browser adds by itself (a cookie, or
nothing at all in open mode) counts on unsafe methods only together with the page's own origin.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog
from starlette.requests import HTTPConnection, Request
from starlette.websockets import WebSocket

from api.access import audit, credentials, keys, sessions
from api.access.cookies import cookie_of
from api.access.forwarded import Forwarded
from api.access.guesses import Guesses
from api.access.limits import Kind, Limiter
from api.access.live import LiveCredentials
from api.access.operator_token import OPERATOR, is_token, write_token
from api.access.principal import PRINCIPAL, SCOPES, Principal, Reach, Scope
from api.access.tickets import Tickets
from api.origins import Origins
from api.store import Store
from pipeline.errors import Forbidden, RequestError, StorageError, Unauthorized
from settings import Settings

log = structlog.get_logger()

EVERYBODY: Final = Principal("local", "open", frozenset(SCOPES))
POLL_S: Final = 0.5  # a revoked key is out of all sockets within a second
TIME_CHECK_S: Final = 5.0  # expiry and idle time need no closer look
SWEEP_S: Final = 600.0
# What a page does by itself while nobody looks at it must not keep its login alive.
_BY_ITSELF: Final = "/gradio_api/"


class Access:
    """Credentials of one server. Of the event loop; the database is asked in the store's thread."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        on_rejected: Callable[[str], None] = lambda reason: None,
        on_auth_failed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        network, access = settings.network, settings.access
        self.store, self.now = store, now
        self.is_open = access.mode == "open"
        self.life = sessions.Life(access.session_idle_s, access.session_life_s)
        self.forwarded = Forwarded(access)
        # With keys a page under a foreign name has no cookie and no key, and a proxy on this machine keeps its name.
        host = network.host if self.is_open else "0.0.0.0"  # noqa: S104 - compared, not bound
        self.origins = Origins(host, network.allowed_origins if network.cors_enabled else ())
        self.limiter = Limiter(settings.security, clock=clock, on_rejected=on_rejected)
        self.tickets = Tickets(clock)
        self.live = LiveCredentials()
        self._guesses = Guesses(clock)
        self._clock, self._rejected, self._auth_failed = clock, on_rejected, on_auth_failed
        self._checked_s = self._swept_s = float("-inf")
        store.now(self._begin)

    # --- who is it

    async def principal(self, connection: HTTPConnection, *, cookies: bool = True) -> Principal:
        """Whoever this is, found once for each request. `Unauthorized` without a good credential."""
        found = connection.scope.get(PRINCIPAL)
        if found is None:
            found = connection.scope[PRINCIPAL] = await self._find(connection, cookies=cookies)
        assert isinstance(found, Principal)
        return found

    @staticmethod
    def found(connection: HTTPConnection) -> Principal | None:
        """The same where it was asked for already: behind a door."""
        found = connection.scope.get(PRINCIPAL)
        return found if isinstance(found, Principal) else None

    async def _find(self, connection: HTTPConnection, *, cookies: bool) -> Principal:
        if self.is_open:
            return EVERYBODY
        scheme, _, text = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return await self._by_bearer(connection, text.strip())
        shown = cookie_of(connection) if cookies else None
        if shown is None:
            self._rejected("unauthorized")
            raise Unauthorized("an API key or a login is needed")
        is_use = not connection.scope["path"].startswith(_BY_ITSELF)
        try:
            return await self.store.read(
                lambda db: sessions.verify(db, shown, self.life, now_s=self.now(), is_use=is_use)
            )
        except Unauthorized as error:
            self._auth_failed(error.code)
            raise

    async def _by_bearer(self, connection: HTTPConnection, text: str) -> Principal:
        if text.startswith(f"{credentials.OPERATOR}_"):
            if await self.store.call(lambda: is_token(self.store.directory, text)):
                return OPERATOR
            raise await self.failed(connection, Unauthorized("the operator's token is another one"), "operator")
        shown = credentials.parse(credentials.KEY, text)
        try:
            if shown is None:
                raise Unauthorized("this is no API key of this server", code="invalid_api_key")
            return await self.store.read(lambda db: keys.verify(db, shown, now_s=self.now()))
        except Unauthorized as error:
            raise await self.failed(connection, error, f"key:{shown.id}" if shown else "key") from None

    async def failed(self, connection: HTTPConnection, error: Unauthorized, credential: str) -> RequestError:
        """Count a wrong credential; gives what to answer. The address is counted, and told to nobody."""
        client = self.forwarded.client(connection)
        subjects = [credential, *([f"client:{client.address}"] if client.is_known else [])]
        answer, is_notable = self._guesses.failed(subjects, error)
        self._auth_failed(error.code)
        self._rejected(answer.code)
        if is_notable:
            log.info("auth.failed", reason=error.code, credential=credential.partition(":")[0])
            await self.record("", credential, "auth.failed", "", error.code)
        return answer

    # --- what may it do

    async def enter(self, connection: HTTPConnection, scope: Reach, method: str) -> Principal:
        """The principal of an HTTP request that asks for `scope`."""
        principal = await self.principal(connection)
        if self.is_open and not self.origins.host_allowed(connection.headers):
            raise Forbidden("this server does not go by that name", code="foreign_host")
        if self.is_open or principal.credential.startswith("browser:"):
            self.origins.check(connection.headers, method, is_cookie=not self.is_open)
        return self._checked(principal, scope)

    async def of_socket(self, websocket: WebSocket, ticket: str | None, key: str | None = None) -> Principal:
        """The principal of a WebSocket. A program needs its key, a browser's page an origin that may and a ticket.

        `key` is the one that OpenAI's clients offer as a subprotocol where they can set no header. A page that knows a
        key could get a ticket for it, so the key alone does.
        """
        headers = websocket.headers
        if not self.origins.host_allowed(headers):
            self._rejected("forbidden")
            raise Forbidden("this server does not go by that name", code="foreign_host")
        origin = headers.get("origin")
        may_come = origin is None or self.origins.allowed(origin, headers)
        if key is not None and may_come and "authorization" not in headers:
            principal = EVERYBODY if self.is_open else await self._by_bearer(websocket, key)
        elif origin is None or ("authorization" in headers and not self.is_open):  # no browser can send that one
            principal = await self.principal(websocket, cookies=False)
        else:
            owner = self.tickets.use(ticket) if ticket and may_come else None
            if owner is None or not await self.is_active(owner):
                self._rejected("forbidden")
                self._auth_failed("no_ticket")
                raise Forbidden("a page needs its own origin and a fresh ticket", code="no_ticket")
            principal = owner
        return self._checked(principal, "talk")

    def _checked(self, principal: Principal, scope: Reach) -> Principal:
        if scope != "any" and not principal.may(scope):
            self._rejected("forbidden")
            raise Forbidden(f"this credential does not reach so far: it lacks the scope {scope}")
        return principal

    async def is_active(self, principal: Principal) -> bool:
        """Whether the credential still opens anything."""
        return not await self.store.read(lambda db: self._ended(db, {principal.credential}))

    def _ended(self, connection: sqlite3.Connection, held: set[str]) -> list[str]:
        return [credential for credential in held if not self._lives(connection, credential)]

    def _lives(self, connection: sqlite3.Connection, credential: str) -> bool:
        kind, _, identifier = credential.partition(":")
        if kind == "key":
            return keys.is_active(connection, identifier, now_s=self.now())
        return kind != "browser" or sessions.is_active(connection, identifier, self.life, now_s=self.now())

    # --- records

    async def record(self, owner: str, credential: str, action: str, object_: str, result: str) -> None:
        """Write an audit record; the time is now."""
        await self.store.write(lambda db: audit.append(db, self.now(), owner, credential, action, object_, result))

    # --- in the background

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch the credentials of open sockets and answers while the block runs."""
        watching = asyncio.create_task(self._watch(), name="credentials")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _begin(self, connection: sqlite3.Connection) -> None:
        write_token(self.store.directory)
        for principal in (EVERYBODY, OPERATOR):  # they own things like everybody else
            row = (principal.owner, f"({principal.owner})", self.now())
            connection.execute("INSERT OR IGNORE INTO owners VALUES (?, ?, ?)", row)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.look()
            except StorageError:
                continue  # told by the store; what was let in stays until the disk answers again
            except Exception:  # boundary: without this watch no revoked key would leave a socket any more
                log.exception("credentials.watch_failed")

    async def look(self) -> None:
        """End the sockets and answers whose credential ended, in this process or by another one."""
        now_s = self._clock()
        is_due = now_s - self._checked_s >= TIME_CHECK_S
        if not (await self.store.changed_outside() or is_due):
            return
        held = self.live.credentials()
        for credential in await self.store.read(lambda db: self._ended(db, held)):
            log.info("auth.ended", credential=credential.partition(":")[0])
            self.live.end(credential)
        if is_due:
            self._checked_s = now_s
            in_use = self.live.in_use()
            await self.store.write(lambda db: self._keep_alive(db, in_use))
            await self.store.try_again()
        if now_s - self._swept_s >= SWEEP_S:
            self._swept_s = now_s
            await self.store.write(lambda db: sessions.sweep(db, self.life, now_s=self.now()))

    def _keep_alive(self, connection: sqlite3.Connection, in_use: set[str]) -> None:
        for credential in in_use:
            kind, _, identifier = credential.partition(":")
            if kind == "browser":
                sessions.touch(connection, identifier, now_s=self.now())


class Require:
    """The rule of a route: who may use it. A FastAPI dependency that gives the `Principal`."""

    def __init__(self, scope: Reach, counts: Kind = "api") -> None:
        self.scope, self._counts = scope, counts

    async def __call__(self, request: Request) -> Principal:
        """Let the caller in, and count the request."""
        access: Access = request.app.state.access
        principal = await access.enter(request, self.scope, request.method)
        await access.limiter.spend(principal, self._counts)
        return principal


def require(scope: Reach, *, counts: Kind = "api") -> Require:
    """The dependency for routes that need `scope`: `principal: Annotated[Principal, Depends(require("speech"))]`."""
    return Require(scope, counts)


class AsksItself:
    """The rule of a socket, whose handler asks `Access.of_socket` itself: `dependencies=[Depends(AsksItself(...))]`."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self) -> None:
        """Nothing: a refusal must be told as the handler tells it."""


async def open_to_all() -> None:
    """The rule of a route that everybody may use: `dependencies=[Depends(open_to_all)]`."""
