"""The session's one ordered way out: control and audio entries.

Control entries are never dropped and overtake audio that waits for its turn to be played. Audio entries are bounded
in seconds, paced to the player, refused for a turn that was flushed, and dropped by `flush`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.audio import AudioChunk
from pipeline.events import Event, ReplyCaption
from pipeline.playout import Playout

FRAME_S = 0.08  # audio leaves in frames of this length; FireRedTTS-2 makes the same


@dataclass(frozen=True, slots=True)
class ControlEntry:
    """An event to tell."""

    event: Event


@dataclass(frozen=True, slots=True, eq=False)
class AudioEntry:
    """A frame to play; `caption` is told just before it."""

    playout: Playout
    first_sample: int
    audio: AudioChunk
    caption: ReplyCaption | None = None


Entry = ControlEntry | AudioEntry


class Outbox:
    """Entries for one reader. `put`, `flush` and `rewind` are plain calls: no await stands between cause and order."""

    def __init__(self, clock: Callable[[], float], *, max_audio_s: float, max_lead_s: float) -> None:
        self._clock = clock
        self._max_audio_s, self._max_lead_s = max_audio_s, max_lead_s
        self._control: deque[ControlEntry] = deque()
        self._paced: deque[Entry] = deque()
        self._pending_s = 0.0
        self._flushed_turn = 0  # audio of this and all earlier turns is stale
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def pending_s(self) -> float:
        """Seconds of audio that wait."""
        return self._pending_s

    @property
    def n_pending(self) -> int:
        """Entries that wait."""
        return len(self._control) + len(self._paced)

    def is_stale(self, turn_id: int) -> bool:
        """Whether the turn was flushed."""
        return turn_id <= self._flushed_turn

    def put(self, event: Event, *, behind_audio: bool = False) -> None:
        """Tell an event: at once, or behind all audio that waits now."""
        if behind_audio and self._paced:
            self._paced.append(ControlEntry(event))
        else:
            self._control.append(ControlEntry(event))
        self._wake.set()

    async def put_audio(self, playout: Playout, audio: AudioChunk, caption: ReplyCaption | None = None) -> bool:
        """Queue audio of a turn, in frames; waits while too much is pending. False: the turn was flushed."""
        frame_samples = round(FRAME_S * audio.sample_rate)
        for start in range(0, max(audio.n_samples, 1), frame_samples):
            while self._pending_s >= self._max_audio_s and not self.is_stale(playout.turn_id):
                self._room.clear()
                await self._room.wait()
            if self.is_stale(playout.turn_id):
                return False
            frame = audio.slice(start, start + frame_samples)
            first_sample = playout.add(frame.n_samples)
            self._paced.append(AudioEntry(playout, first_sample, frame, caption))
            self._pending_s += frame.seconds
            self._wake.set()
            caption = None
        return True

    def flush(self, turn_id: int) -> list[Event]:
        """Drop all audio of this and earlier turns, and the events of this one that stood behind it: gives these."""
        self._flushed_turn = max(self._flushed_turn, turn_id)
        kept: deque[Entry] = deque()
        dropped: list[Event] = []
        for entry in self._paced:
            if isinstance(entry, ControlEntry):
                if entry.event.turn_id == turn_id:
                    dropped.append(entry.event)
                else:
                    kept.append(entry)
            elif self.is_stale(entry.playout.turn_id):
                self._pending_s -= entry.audio.seconds
            else:
                kept.append(entry)
        self._paced = kept
        if not any(isinstance(entry, AudioEntry) for entry in kept):
            self._pending_s = 0.0
        self._room.set()
        self._wake.set()
        return dropped

    def rewind(self, playout: Playout, sample: int) -> None:
        """Queue again what was sent of a turn from `sample` on, with its captions, in front of what waits."""
        if self.is_stale(playout.turn_id) or playout.cut_at is not None:
            return
        frames = playout.rewind(sample, self._clock())
        for frame in reversed(frames):
            self._paced.appendleft(AudioEntry(playout, frame.first_sample, frame.audio, frame.caption))
            self._pending_s += frame.audio.seconds
        self._wake.set()

    def put_back(self, entry: Entry) -> None:
        """An entry that could not be sent, to be the next one again. Audio is sent again by `rewind` instead."""
        if isinstance(entry, ControlEntry):
            self._control.appendleft(entry)
            self._wake.set()

    async def get(self) -> Entry:
        """The next entry; audio waits here until the player is less than `max_lead_s` behind."""
        while True:
            self._wake.clear()
            if self._control:
                return self._control.popleft()
            if not self._paced:
                await self._wake.wait()
                continue
            head = self._paced[0]
            if isinstance(head, ControlEntry):
                self._paced.popleft()
                return head
            wait_s = self._wait_s(head)
            if wait_s <= 0:
                self._paced.popleft()
                self._pending_s -= head.audio.seconds
                self._room.set()
                head.playout.sent(head.first_sample, head.audio, self._clock(), head.caption)
                return head
            head.playout.changed.clear()
            await self._sleep(wait_s, head.playout.changed)

    def _wait_s(self, entry: AudioEntry) -> float:
        """Seconds until the entry may leave; an empty player is never kept waiting."""
        lead_s = entry.playout.lead_s(self._clock())
        return lead_s + entry.audio.seconds - self._max_lead_s if lead_s > 0 else 0.0

    async def _sleep(self, seconds: float, changed: asyncio.Event) -> None:
        """Wait until something is put, the player reports, or the time is over."""
        waits = [asyncio.ensure_future(self._wake.wait()), asyncio.ensure_future(changed.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


Gate = Literal["held", "released", "dropped"]


class TurnOutput:
    """One turn's way to the outbox, behind a gate.

    A reply that is prepared before its turn is certain is `held`; `release` lets out what waited, `drop` forgets it.
    Without speculation the gate is open from the start. Nothing is written to the history before release: what does
    so goes through `when_released`.
    """

    def __init__(self, outbox: Outbox, playout: Playout, tell: Callable[..., None], *, gate: Gate = "released") -> None:
        self.gate: Gate = gate
        self._outbox, self._playout, self._tell = outbox, playout, tell
        self._held: list[Callable[[], None]] = []
        self._decided = asyncio.Event()
        if gate != "held":
            self._decided.set()

    def when_released(self, action: Callable[[], None]) -> None:
        """Do it now, or in order at the release, or never."""
        if self.gate == "held":
            self._held.append(action)
        elif self.gate == "released":
            action()

    def event(self, event: Event, *, behind_audio: bool = False) -> None:
        """Tell an event of this turn."""
        self.when_released(lambda: self._tell(event, behind_audio=behind_audio))

    async def audio(self, audio: AudioChunk, caption: ReplyCaption | None = None) -> bool:
        """Play audio of this turn; waits while the gate is held or too much is pending. False: the turn is over."""
        await self._decided.wait()
        return self.gate == "released" and await self._outbox.put_audio(self._playout, audio, caption)

    def release(self) -> None:
        """Let out what was held, in order, and all that follows."""
        if self.gate == "held":
            self.gate = "released"
            for action in self._held:
                action()
            self._held.clear()
            self._decided.set()

    def drop(self) -> None:
        """Forget what was held and refuse all that follows."""
        self.gate = "dropped"
        self._held.clear()
        self._decided.set()
