"""A talk on virtual time: a session, a microphone, a network with delay, and a player that knows what was heard."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from pipeline import events
from pipeline.audio import AudioChunk, Samples
from pipeline.engines.base import Engines
from pipeline.events import Event
from pipeline.options import SessionOptions, TurnDetection
from pipeline.outbox import AudioEntry
from pipeline.session import Session
from settings import TurnSettings, VadSettings
from tests.support.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedVad

IN_RATE = OUT_RATE = 24000
TICK_S = 0.02
REPORT_S = 0.1


@dataclass
class Player:
    """Plays what arrives in real time and reports it every 100 ms, like the page."""

    reports: bool = True
    ring: deque[list[int]] = field(default_factory=deque)  # [turn, next sample, samples left]
    played: dict[int, int] = field(default_factory=dict)  # turn -> samples heard
    first_heard_at: dict[int, float] = field(default_factory=dict)
    stale: int = 0  # samples of a flushed turn that came after its flush; the page throws them away as well
    gaps: int = 0  # samples that are missing or doubled
    flushed: int = 0

    def take(self, turn: int, first_sample: int, n_samples: int) -> None:
        if turn > self.flushed:
            self.ring.append([turn, first_sample, n_samples])
        else:
            self.stale += n_samples

    def flush(self, turn: int) -> None:
        self.flushed = max(self.flushed, turn)
        self.ring = deque(segment for segment in self.ring if segment[0] > self.flushed)

    def play(self, n_samples: int, now: float) -> None:
        while n_samples and self.ring:
            segment = self.ring[0]
            turn, sample, left = segment
            if sample != self.played.get(turn, 0):
                self.gaps += abs(sample - self.played.get(turn, 0))
            n = min(n_samples, left)
            self.first_heard_at.setdefault(turn, now)
            self.played[turn] = sample + n
            segment[1], segment[2] = sample + n, left - n
            n_samples -= n
            if not segment[2]:
                self.ring.popleft()


class Talk:
    """`async with Talk(...) as talk`, then `say`, `hush`, `until`; `talk.events` holds what the client was told."""

    def __init__(
        self,
        *,
        replies: Sequence[str | Exception] = (),
        said: Sequence[str | Exception] = (),
        vad: ScriptedVad | None = None,
        asr: ScriptedAsr | None = None,
        llm: ScriptedLlm | None = None,
        tts: ScriptedTts | None = None,
        network_s: float = 0.0,
        reports: bool = True,
        options: dict[str, Any] | None = None,
        turn: dict[str, Any] | None = None,
        tick_s: float = TICK_S,
        echo: tuple[float, float] | None = None,
    ) -> None:
        """`echo` is how late, in seconds, and how loud the player is in the microphone."""
        self.tick_s = tick_s  # between two chunks of the microphone, and of what the player plays
        self.vad = vad or ScriptedVad()
        self.asr = asr or ScriptedAsr(list(said))
        self.llm = llm or ScriptedLlm(list(replies))
        self.tts = tts or ScriptedTts()
        self.network_s = network_s
        self.player = Player(reports)
        self.events: list[Event] = []
        self.told: list[Event] = []
        self.max_lead_s = 0.0
        self._options, self._turn = options or {}, turn or {}
        self._microphone: deque[float | Samples] = deque()  # a level, or the sound itself, for each tick
        self._echo = echo
        self._sent: dict[int, list[tuple[int, Samples]]] = {}  # by turn: first sample and sound of each frame
        self._sounded: deque[Samples] = deque(maxlen=50)  # of the last ticks, oldest first
        self._tasks: list[asyncio.Task[None]] = []
        self._wire: asyncio.Queue[tuple[float, Any, tuple[Any, ...]]] = asyncio.Queue()  # keeps the order, as TCP does

    async def __aenter__(self) -> Talk:
        loop = asyncio.get_running_loop()
        counter = iter(range(1, 10**6))
        chosen: dict[str, Any] = {
            "instructions": "Be brief.",
            "voice": "anna",
            "turn_detection": TurnDetection(0.5, 300, 600),
            "input_sample_rate": IN_RATE,
            "output_sample_rate": OUT_RATE,
        }
        self.session = Session(
            "sess_test",
            Engines(self.vad, self.asr, self.llm, self.tts),
            SessionOptions(**{**chosen, **self._options}),
            turn=TurnSettings(**self._turn),
            vad=VadSettings(),
            history_tokens=2048,
            max_reply_tokens=400,
            max_lead_s=1.0,
            clock=loop.time,
            new_id=lambda kind: f"{kind}_{next(counter)}",
            observers=[lambda session, event: self.told.append(event)],
        )
        self._started_at = loop.time()
        self._run = asyncio.create_task(self.session.run())
        self._tasks = [asyncio.create_task(work) for work in (self._mic(), self._read(), self._play(), self._carry())]
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.session.close()
        await asyncio.wait_for(self._run, 60)
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        if error is None:
            assert self.llm.open_streams == 0, "the language model was left running"
            assert self.tts.open_streams == 0, "the synthesis was left running"

    # --- what a test does

    async def say(self, seconds: float) -> None:
        """Speak for so long."""
        self._microphone.extend([0.5] * round(seconds / self.tick_s))
        await self._heard()

    async def utter(self, sound: Samples) -> None:
        """Speak this, at the microphone's rate."""
        n_samples = round(self.tick_s * self.session.options.input_sample_rate)
        self._microphone.extend(sound[i : i + n_samples] for i in range(0, sound.size - n_samples + 1, n_samples))
        await self._heard()

    async def hush(self, seconds: float) -> None:
        """Be silent for so long."""
        await asyncio.sleep(seconds)

    async def until(self, kind: type[Event], *, n: int = 1, timeout_s: float = 60.0) -> Any:
        """The nth event of a kind that the client was told."""
        async with asyncio.timeout(timeout_s):
            while len(found := self.all(kind)) < n:
                await asyncio.sleep(self.tick_s)
        return found[n - 1]

    async def quiet(self, timeout_s: float = 120.0) -> None:
        """Wait until nothing is being said, made or heard."""
        await asyncio.sleep(5 * self.tick_s)  # what was just said is on its way
        async with asyncio.timeout(timeout_s):
            while self.session.state != ("silent", "idle") or self.player.ring or self.session.outbox.n_pending:
                await asyncio.sleep(self.tick_s)
            await asyncio.sleep(2 * self.network_s + 0.2)

    def all(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def history(self) -> list[tuple[str, str]]:
        return [(item.role, item.remembered) for item in self.session.conversation]

    def heard_text(self, turn: int, reply: str) -> str:
        """What of `reply` the player sounded whole words of, with the script's linear timing."""
        chars = self.player.played.get(turn, 0) / (0.06 * OUT_RATE)
        return reply[: int(chars + 1e-6)]

    @property
    def heard_s(self) -> float:
        """Seconds that the microphone has been open."""
        return asyncio.get_running_loop().time() - self._started_at

    # --- the world around the session

    async def _heard(self) -> None:
        while self._microphone:
            await asyncio.sleep(self.tick_s)

    async def _mic(self) -> None:
        n_samples = round(self.tick_s * self.session.options.input_sample_rate)
        while True:
            level = self._microphone.popleft() if self._microphone else 0.0
            samples = np.broadcast_to(np.asarray(level, np.float32), n_samples) + self._loudspeaker(n_samples)
            self.session.feed(AudioChunk(samples, self.session.options.input_sample_rate))
            await asyncio.sleep(self.tick_s)

    def _loudspeaker(self, n_samples: int) -> Samples:
        if self._echo is None:
            return np.zeros(n_samples, np.float32)
        late_s, level = self._echo
        n_late = round(late_s / self.tick_s)
        return self._sounded[-1 - n_late] * level if n_late < len(self._sounded) else np.zeros(n_samples, np.float32)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            entry = await self.session.outbox.get()
            if isinstance(entry, AudioEntry):
                playout = entry.playout
                self.max_lead_s = max(self.max_lead_s, playout.lead_s(loop.time()))
                if entry.caption is not None:
                    self._later(self.events.append, entry.caption)
                self._later(self.player.take, playout.turn_id, entry.first_sample, entry.audio.n_samples)
                if self._echo is not None:
                    self._sent.setdefault(playout.turn_id, []).append((entry.first_sample, entry.audio.samples))
            else:
                self._later(self._told, entry.event)

    def _told(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, events.Flushed):
            self.player.flush(event.turn_id)
            self._report(event.turn_id)

    def _report(self, turn: int) -> None:
        if self.player.reports and turn in self.player.played:
            self._later(self.session.played, turn, self.player.played[turn])

    async def _play(self) -> None:
        loop = asyncio.get_running_loop()
        tick, ticks_a_report = 0, round(REPORT_S / self.tick_s)
        while True:
            before = dict(self.player.played)
            self.player.play(round(self.tick_s * OUT_RATE), loop.time())
            self._sound(before)
            tick += 1
            for turn, samples in self.player.played.items():
                ended = not self.player.ring and before.get(turn) != samples
                if ended or (tick % ticks_a_report == 0 and before.get(turn) != samples):
                    self._report(turn)
            await asyncio.sleep(self.tick_s)

    def _sound(self, before: dict[int, int]) -> None:
        if self._echo is None:
            return
        sound = np.zeros(round(self.tick_s * OUT_RATE), np.float32)
        for turn, end in self.player.played.items():
            start = before.get(turn, 0)
            for first, samples in self._sent[turn] if end > start else ():
                part = samples[max(start - first, 0) : max(end - first, 0)]
                sound[max(first - start, 0) :][: part.size] += part
        self._sounded.append(sound)

    def _later(self, call: Any, *args: Any) -> None:
        if self.network_s:
            self._wire.put_nowait((asyncio.get_running_loop().time() + self.network_s, call, args))
        else:
            call(*args)

    async def _carry(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            at, call, args = await self._wire.get()
            await asyncio.sleep(max(at - loop.time(), 0))
            call(*args)
