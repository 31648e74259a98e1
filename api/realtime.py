"""/v1/realtime: one socket, from the handshake to the last byte.

Two loops per socket: `_receive` reads a message and calls the session, `_send` writes what the session's outbox gives.
Neither holds state of the talk: a new socket goes on where this one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import structlog
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from api.access.access import Access
from api.access.principal import Principal
from api.errors import close_code, error_response
from api.metrics import Metrics
from api.registry import Registry, Seat
from api.sockets import Sockets
from api.wire_in import Reader
from api.wire_out import Json, error_json
from pipeline.errors import Busy, EngineNotReady, InvalidInput, NotFound, Unauthorized, VoicepodError
from pipeline.options import TurnDetection
from settings import NetworkSettings

log = structlog.get_logger()

PROTOCOL = "voicepod.v1"
TOKEN_PREFIX, RESUME_PREFIX, KEY_PREFIX = "voicepod.token.", "voicepod.resume.", "openai-insecure-api-key."
STOCK_PROTOCOL = "realtime"
BETA_HEADER, BETA_PROTOCOL = ("openai-beta", "realtime=v1"), "openai-beta.realtime-v1"
# A client that resumes says where its player stopped as its first event; a talk waits this long for it.
RESUME_WAIT_S = 1.0
MAX_MALFORMED = 20
COUNTED_AT_ONCE = 50  # a second of microphone frames: the limit is for floods, and counting each one costs
CLOSED_BY_PEER = (1000,)
SLOW_CLIENT, TAKEN_OVER, INVALID_DATA, INTERNAL = 4408, 4409, 1007, 1011


@dataclass(frozen=True, slots=True)
class Door:
    """What the socket handler needs of the server."""

    registry: Registry
    access: Access
    network: NetworkSettings
    metrics: Metrics
    sockets: Sockets
    voices: Callable[[str], Collection[str]]  # the ids that an owner may choose now
    own_voice: str  # the server's
    turn_detection: TurnDetection
    why_not_ready: Callable[[], str]  # empty when talks may begin
    new_id: Callable[[str], str]


async def serve(websocket: WebSocket, door: Door) -> None:
    """The whole life of one socket. Never raises: what goes wrong is told to the client and to the log."""
    offered = list(websocket.scope.get("subprotocols", []))
    try:
        principal = await door.access.of_socket(websocket, _suffix(offered, TOKEN_PREFIX), _suffix(offered, KEY_PREFIX))
        _check_room(door, principal)
    except VoicepodError as error:
        await websocket.send_denial_response(error_response(error))
        return
    chosen = PROTOCOL if PROTOCOL in offered else STOCK_PROTOCOL if STOCK_PROTOCOL in offered else None
    with door.access.live.holding(principal) as ended:
        await websocket.accept(subprotocol=chosen)
        door.metrics.connected(+1)
        connection = _Connection(websocket, door, principal, ended, extended=chosen == PROTOCOL)
        try:
            with door.sockets.holding(connection.tell) if chosen == PROTOCOL else contextlib.nullcontext():
                await connection.run(_suffix(offered, RESUME_PREFIX))
        except VoicepodError as error:
            if isinstance(error, Busy | EngineNotReady):
                door.metrics.rejected(error.code)
            await _say_goodbye(websocket, error_json(error), close_code(error))
        except (WebSocketDisconnect, TimeoutError):
            return
        except Exception:  # boundary: the socket
            log.exception("socket.broken")
            await _say_goodbye(websocket, None, INTERNAL)
        finally:
            door.metrics.connected(-1)


def _check_room(door: Door, principal: Principal) -> None:
    """`Busy` when there are too many sockets, of all or of this owner."""
    network, live = door.network, door.access.live
    if len(live) >= network.max_sockets:
        door.metrics.rejected("too_many_sockets")
        raise Busy("the server has no room for another connection", retry_after_s=10.0)
    if live.of_owner(principal.owner) >= network.max_sockets_per_owner:
        door.metrics.rejected("too_many_sockets_of_owner")
        raise Busy("you have as many connections open as one may have", retry_after_s=10.0)


def _suffix(offered: list[str], prefix: str) -> str | None:
    return next((protocol.removeprefix(prefix) for protocol in offered if protocol.startswith(prefix)), None)


def _asks_for_beta(websocket: WebSocket) -> bool:
    name, value = BETA_HEADER
    return websocket.headers.get(name) == value or BETA_PROTOCOL in websocket.scope.get("subprotocols", [])


async def _say_goodbye(websocket: WebSocket, message: Json | None, code: int) -> None:
    """Tell why, then close; a client that does not read gets a second for it."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(1.0):
            if websocket.application_state is WebSocketState.CONNECTED:
                if message is not None:
                    await websocket.send_json({"event_id": "event_0", **message})
                await websocket.close(code)


class _GoOn(Exception):
    """The client's first event named another session."""

    def __init__(self, seat: Seat, message: Message) -> None:
        self.seat, self.message = seat, message


class _Connection:
    """One accepted socket."""

    def __init__(
        self, websocket: WebSocket, door: Door, principal: Principal, ended: asyncio.Event, *, extended: bool
    ) -> None:
        self._websocket, self._door, self._extended = websocket, door, extended
        self._principal, self._credential_ended = principal, ended
        self._is_greeted = False

    async def run(self, resume_token: str | None) -> None:
        """Take a seat and talk until either side ends."""
        registry = self._door.registry
        if reason := self._door.why_not_ready():
            raise EngineNotReady(f"no talk can begin now: {reason}", stage="server")
        seat, first = await self._take_seat(resume_token)
        resumed = first is not None or seat.token == resume_token
        goodbye = False
        try:
            while True:
                try:
                    goodbye = await self._talk(seat, first, resumed=resumed)
                    return
                except _GoOn as other:
                    registry.end(seat)
                    seat, first, resumed = other.seat, other.message, True
                    registry.attach(seat, self)
        finally:
            registry.detach(seat, self, goodbye=goodbye)

    async def _take_seat(self, resume_token: str | None) -> tuple[Seat, Message | None]:
        """A seat, and the first message if it had to be read to know which."""
        registry = self._door.registry
        known = self._known(resume_token) if resume_token else None
        if known is not None:
            registry.attach(known, self)
            return known, None
        try:
            seat = registry.open(self, self._principal.owner)
            log.info("session.created", session_id=seat.session.id, client="page" if self._extended else "api")
            return seat, None
        except Busy:
            if not registry.n_resumable:
                raise
            first = await self._first_message()  # it may own one of the seats that are held
            event = _resume_event(first)
            known = self._known(event["token"]) if event is not None else None
            if known is None:
                raise
            registry.attach(known, self)
            return known, first

    def _known(self, token: str) -> Seat | None:
        seat = self._door.registry.find(token, self._principal.owner)
        self._door.metrics.resumed("ok" if seat is not None else "unknown")
        return seat

    async def _talk(self, seat: Seat, first: Message | None, *, resumed: bool) -> bool:
        """Greet, then receive and send until one of the two ends. True: the client said goodbye."""
        writer, session, taken_over = seat.writer, seat.session, seat.taken_over
        writer.extended = self._extended
        await self._send(
            writer.created(resumed=resumed, resume_token=seat.token, received_samples=seat.received_samples)
        )
        self._is_greeted = True
        if _asks_for_beta(self._websocket):
            told = InvalidInput(
                "this server sends the events of OpenAI's GA protocol; a client of the beta (OpenAI-Beta: realtime=v1) "
                "does not know them",
                code="beta_not_supported",
            )
            await self._send(writer.text(error_json(told)))
        if resumed:
            for message in (*writer.history(), *([writer.state()] if self._extended else [])):
                await self._send(message)
            if first is None:
                first = await self._first_message()
            event = _resume_event(first)
            if event is None:
                session.replay()
            else:
                session.replay(event["turn"], event["sample"])
                first = None
        replaced = asyncio.create_task(taken_over.wait(), name="taken over")
        locked_out = asyncio.create_task(self._credential_ended.wait(), name="credential ended")
        receiving = asyncio.create_task(self._receive(seat, first), name="receive")
        sending = asyncio.create_task(self._write(seat), name="send")
        tasks = {replaced, locked_out, receiving, sending}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if replaced.done():
                receiving.cancel()  # the new socket reads the outbox now, this one must not
                sending.cancel()
                await asyncio.gather(receiving, sending, return_exceptions=True)
                await _say_goodbye(self._websocket, None, INTERNAL if seat.is_over else TAKEN_OVER)
                return False
            if locked_out.done():
                receiving.cancel()
                sending.cancel()
                await asyncio.gather(receiving, sending, return_exceptions=True)
                self._door.registry.end(seat)  # nobody goes on with it under another credential
                raise Unauthorized("your login or key has ended", code="login_ended")
            if receiving.done():
                return receiving.result()
            sending.result()
            return False
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self, seat: Seat, first: Message | None) -> bool:
        """Read messages until the client leaves. True: it closed in good order."""
        answers: list[Json] = []
        reader = Reader(
            seat.session,
            send=answers.append,
            voices=partial(self._door.voices, self._principal.owner),
            own_voice=self._door.own_voice,
            default=self._door.turn_detection,
            on_underruns=partial(self._count_underruns, seat),
            pause=lambda: asyncio.sleep(0),
            new_id=self._door.new_id,
        )
        may_resume = first is None
        n_messages = 0
        while True:
            n_messages += 1
            message = first or await self._websocket.receive()
            first = None
            if n_messages % COUNTED_AT_ONCE == 0:
                await self._door.access.limiter.spend(self._principal, "message", COUNTED_AT_ONCE)
            if message["type"] == "websocket.disconnect":
                return message.get("code") in CLOSED_BY_PEER
            if message.get("bytes") is not None:
                seat.received_samples += len(message["bytes"]) // 2
                await reader.audio(message["bytes"])
            elif may_resume and (event := _resume_event(message)) is not None:
                if not self._go_on(seat, event, message):
                    answers.append(error_json(NotFound("this session is over", code="session_not_found")))
            else:
                await reader.text(message.get("text") or "")
            may_resume = False
            for answer in answers:
                await self._send(seat.writer.text(answer))
            answers.clear()
            if reader.n_malformed >= MAX_MALFORMED:
                await _say_goodbye(self._websocket, None, INVALID_DATA)
                return False

    def _go_on(self, seat: Seat, event: Json, message: Message) -> bool:
        """Change to the session that the event names. False: there is none."""
        known = self._known(event["token"])
        if known is seat:
            seat.session.replay(event["turn"], event["sample"])
        elif known is not None:
            raise _GoOn(known, message)
        return known is not None

    def _count_underruns(self, seat: Seat, total: int) -> None:
        self._door.metrics.underruns(max(total - seat.n_underruns, 0))
        seat.n_underruns = total

    async def _write(self, seat: Seat) -> None:
        """Write what the session has to say; a client that does not read is dropped."""
        outbox, writer = seat.session.outbox, seat.writer
        while True:
            entry = await outbox.get()
            try:
                for message in writer.messages(entry):
                    await self._send(message)
            except BaseException:
                outbox.put_back(entry)  # a socket that is taken over or broken; the next one tells it
                raise

    async def _send(self, message: str | bytes) -> None:
        try:
            async with asyncio.timeout(self._door.network.send_timeout_s):
                if isinstance(message, bytes):
                    await self._websocket.send_bytes(message)
                else:
                    await self._websocket.send_text(message)
        except TimeoutError:
            self._door.metrics.slow_client()
            log.info("socket.slow_client")
            await _say_goodbye(self._websocket, None, SLOW_CLIENT)
            raise

    async def tell(self, notice: Json) -> None:
        """A notice to everybody, for a page that was greeted; whoever calls sets the time for it."""
        if self._is_greeted:
            await self._websocket.send_json(notice)

    async def _first_message(self) -> Message | None:
        """What the client sends within a moment, if anything."""
        try:
            async with asyncio.timeout(RESUME_WAIT_S):
                return await self._websocket.receive()
        except TimeoutError:
            return None


def _resume_event(message: Message | None) -> Json | None:
    """The message as a voicepod.resume event with a token, or None."""
    with contextlib.suppress(ValueError, RecursionError):
        event = json.loads((message or {}).get("text") or "null")
        if isinstance(event, dict) and event.get("type") == "voicepod.resume":
            fields = {"token": "", "turn": 0, "sample": -1}
            return {name: event[name] if type(event.get(name)) is type(no) else no for name, no in fields.items()}
    return None
