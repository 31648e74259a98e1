"""What the HTTP routes work with: the engines, when they may be used, and in whose voice."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from api.access.limits import Limiter
from api.registry import Registry
from api.rest.jobs import Jobs
from api.session_json import means_the_servers_own
from api.voices.book import VoiceBook
from api.voices.workshop import Workshop
from pipeline.engines.base import Engines, Voice
from pipeline.errors import Busy, InvalidInput
from pipeline.sentences import PieceSplitter
from pipeline.turn import Waits
from settings import Settings

T = TypeVar("T")

# Loading takes seconds to a minute, a generation seconds: who comes back after this time meets something new.
RETRY_LOADING_S, RETRY_BUSY_S = 5.0, 3.0


class Slots:
    """How many requests may use the engines at once; the next one is told to come back."""

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        self.n_taken = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a slot; `Busy` when none is free."""
        if self.n_taken >= self.n_slots:
            raise Busy(f"{self.n_slots} requests are being served; please try again", retry_after_s=RETRY_BUSY_S)
        self.n_taken += 1
        try:
            yield
        finally:
            self.n_taken -= 1

    async def held(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The same items, with a slot from the first one on until the stream is closed."""
        with self.one():
            async with aclosing(items):
                async for item in items:
                    yield item


@dataclass(frozen=True, slots=True)
class Backend:
    """One for the server. `why_not_ready` is empty when engines may be used; asking makes them load."""

    settings: Settings
    engines: Engines
    registry: Registry
    limiter: Limiter
    slots: Slots
    jobs: Jobs
    why_not_ready: Callable[[], str]
    default_voice: Callable[[], str]
    voices: VoiceBook
    workshop: Workshop

    def check_ready(self) -> None:
        """`Busy` while the engines load or the server drains."""
        if reason := self.why_not_ready():
            raise Busy(reason, retry_after_s=RETRY_LOADING_S)

    @property
    def waits(self) -> Waits:
        """How long each stage may take."""
        return Waits.from_settings(self.settings.turn)

    @property
    def max_upload_bytes(self) -> int:
        """Largest file that is taken."""
        return int(self.settings.security.max_upload_size_mb * 1_000_000)

    def splitter(self, voice: Voice) -> PieceSplitter:
        """Cuts a text for this voice as a turn does."""
        turn = self.settings.turn
        return PieceSplitter(
            language=voice.language,
            first_clause_min_chars=turn.first_clause_min_chars,
            piece_max_chars=turn.piece_max_chars,
        )

    def voice_id(self, owner: str, wanted: str | None) -> str:
        """The id of a voice that `owner` may use; the server's own for None and for OpenAI's names. `InvalidInput`."""
        voices = self.voices.by_id(owner)
        if wanted is None or means_the_servers_own(wanted, voices):
            wanted = self.default_voice()
        if wanted not in voices:
            for voice in self.voices.own(owner):
                if voice.id == wanted and (problem := self.voices.problem(voice)) is not None:
                    raise InvalidInput(f"this voice cannot be used: {problem}", code="voice_not_usable", param="voice")
            raise InvalidInput("this voice does not exist", code="voice_not_found", param="voice")
        return wanted

    def voice(self, owner: str, wanted: str | None, *, speed: float = 1.0, seed: int | None = None) -> Voice:
        """The voice of this id as the engine speaks it. `InvalidInput` as `voice_id`."""
        chosen = self.voices.by_id(owner)[self.voice_id(owner, wanted)]
        return replace(chosen, speed=speed, seed=seed)

    def is_marked(self, *, is_cloned: bool) -> bool:
        """Whether what a voice says carries the watermark."""
        wanted = self.settings.voices.watermark
        return wanted == "all" or (wanted == "cloned" and is_cloned)
