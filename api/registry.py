"""Who talks: sessions with their seats, their owners and resume tokens.

The registry lives as long as the server. A session outlives its socket: for `seat_hold_s` it keeps its seat, for
`session_resume_s` it can be resumed. A new socket with the token wins; the old one is closed with 4409.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from api.wire_out import Writer
from pipeline.errors import Busy
from pipeline.session import Session
from settings import NetworkSettings

log = structlog.get_logger()

RETRY_PRESSED_S = 10.0  # in this time the engines have caught up, or a talk has ended


@dataclass(slots=True, eq=False)
class Seat:
    """A session in the registry. `connection` is set while a socket is attached; `taken_over` ends that socket."""

    session: Session
    writer: Writer
    token: str
    owner: str
    connection: object | None = None
    taken_over: asyncio.Event = field(default_factory=asyncio.Event)
    left_at_s: float | None = None  # when the last socket went
    gave_up_seat: bool = False  # the client said goodbye
    is_over: bool = False  # the session ended by itself
    n_underruns: int = 0  # the page's count, which outlives its sockets
    received_samples: int = 0  # of binary frames, over all sockets


class Registry:
    """All sessions of the server; `run` owns their tasks. Any thread may read the counts, the rest is the loop's."""

    def __init__(
        self,
        network: NetworkSettings,
        *,
        max_sessions: int,
        create: Callable[[str, str], tuple[Session, Writer]],
        clock: Callable[[], float],
        on_ended: Callable[[str], None] = lambda session_id: None,
        why_not: Callable[[int], str] = lambda n_active: "",
    ) -> None:
        """`create` makes the session of an id for an owner; `on_ended` hears the id of each that is over.

        `why_not(n_active)` says in words why a free seat cannot be given away beside so many talks, or nothing.
        """
        self.max_sessions = max_sessions
        self._network, self._create, self._clock, self._on_ended = network, create, clock, on_ended
        self._why_not = why_not
        self._seats: dict[str, Seat] = {}  # resume token -> seat
        self._tasks: asyncio.TaskGroup | None = None
        self._stopping = asyncio.Event()

    async def run(self, started: asyncio.Event) -> None:
        """Own all session tasks and remove sessions that nobody resumed, until `stop`."""
        async with asyncio.TaskGroup() as self._tasks:
            started.set()
            while not self._stopping.is_set():
                self._sweep()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), 1.0)
            for seat in self._seats.values():
                seat.session.close()
        self._tasks = None

    def stop(self) -> None:
        """End all sessions; `run` returns when they are gone."""
        self._stopping.set()

    @property
    def sessions(self) -> list[Session]:
        """All sessions, those that wait to be resumed included."""
        return [seat.session for seat in list(self._seats.values())]

    @property
    def n_active(self) -> int:
        """Seats that are taken."""
        return sum(self._holds_seat(seat) for seat in list(self._seats.values()))

    @property
    def n_resumable(self) -> int:
        """Sessions without a socket that still hold their seat."""
        return sum(seat.connection is None and self._holds_seat(seat) for seat in list(self._seats.values()))

    def check_free(self) -> None:
        """`Busy` when every seat is taken."""
        n_active = self.n_active
        if n_active < self.max_sessions:
            if reason := self._why_not(n_active):
                raise Busy(f"{reason}; please try again in a moment", retry_after_s=RETRY_PRESSED_S)
            return
        waits = [
            self._network.seat_hold_s - (self._clock() - seat.left_at_s)
            for seat in self._seats.values()
            if seat.left_at_s is not None and self._holds_seat(seat)
        ]
        retry_after_s = max(min(waits, default=10.0), 1.0)
        raise Busy(
            f"all {self.max_sessions} talks are taken; please try again in a moment", retry_after_s=retry_after_s
        )

    def open(self, connection: object, owner: str) -> Seat:
        """A new session of `owner` in a free seat, attached to `connection`. `Busy` when there is none."""
        self.check_free()
        if self._tasks is None or self._stopping.is_set():
            raise Busy("the server is shutting down", retry_after_s=5.0)
        session, writer = self._create(f"sess_{secrets.token_hex(12)}", owner)
        token = secrets.token_urlsafe(24)
        seat = Seat(session, writer, token, owner, connection)
        self._seats[token] = seat
        self._tasks.create_task(self._own(seat), name=session.id)
        return seat

    def find(self, token: str, owner: str) -> Seat | None:
        """The session of `owner` with this resume token, if it still lives. A token of somebody else finds nothing."""
        seat = self._seats.get(token)
        return seat if seat is not None and seat.owner == owner else None

    def of_owner(self, owner: str) -> list[Seat]:
        """All sessions of `owner`, the oldest first, those that wait to be resumed included."""
        return [seat for seat in self._seats.values() if seat.owner == owner]

    def owner_of(self, session_id: str) -> str | None:
        """Whose session it is; None when there is none. From any thread."""
        return next((seat.owner for seat in list(self._seats.values()) if seat.session.id == session_id), None)

    def attach(self, seat: Seat, connection: object) -> None:
        """A new socket goes on with the session; the old one is told to end. `Busy` when the seat was lost."""
        if not self._holds_seat(seat):
            self.check_free()
        if seat.connection is not None:
            seat.taken_over.set()
            seat.taken_over = asyncio.Event()
        seat.connection, seat.left_at_s, seat.gave_up_seat = connection, None, False

    def detach(self, seat: Seat, connection: object, *, goodbye: bool) -> None:
        """The socket is gone; the session waits to be resumed. `goodbye` frees the seat at once."""
        if seat.connection is connection:
            seat.connection, seat.left_at_s, seat.gave_up_seat = None, self._clock(), goodbye
            seat.session.hold()

    def end(self, seat: Seat) -> None:
        """The session is over for good."""
        seat.session.close()
        self._seats.pop(seat.token, None)

    def _holds_seat(self, seat: Seat) -> bool:
        if seat.left_at_s is None:
            return True
        return not seat.gave_up_seat and self._clock() - seat.left_at_s < self._network.seat_hold_s

    def _sweep(self) -> None:
        for seat in list(self._seats.values()):
            if seat.left_at_s is not None and self._clock() - seat.left_at_s >= self._network.session_resume_s:
                log.info("session.expired", session_id=seat.session.id)
                self.end(seat)

    async def _own(self, seat: Seat) -> None:
        try:
            await seat.session.run()
        except Exception:  # boundary: one broken session must not end the others
            log.exception("session.broken", session_id=seat.session.id)
        finally:
            self._on_ended(seat.session.id)
            seat.is_over = self._seats.pop(seat.token, None) is not None  # else `end` took it out
            seat.taken_over.set()  # a socket that is still attached must not wait for a session that is gone
