"""The whole self-test: one talk with interruptions, the engines' speed, then more and more talks at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from websockets.asyncio.client import ClientConnection

from api.selftest.report import Fit, Memory, Report, Speeds, Spread
from api.selftest.talker import RATE, Heard, Pcm, Talker, talking
from pipeline.audio import AudioChunk, decode_file
from pipeline.errors import Busy, ConfigError

SPEECH: Final = Path(__file__).resolve().parents[2] / "configs" / "selftest"
LOUD: Final = 300  # of 32768: where the voice begins and ends, so that every clock starts at a word
MAX_CLIP_S: Final = 15.0

INSTRUCTIONS: Final = "Answer in two short sentences of plain spoken language."
MAX_TOKENS: Final = 60
READ_ALOUD: Final = (
    "The quick brown fox jumps over the lazy dog. It does so every morning, and the dog has given up barking."
)

# A talk among others may answer so much later than a talk alone, and must not stop in the middle.
SLOWER: Final = 1.5
GAP_MS: Final = 150.0
MAX_FAILURES: Final = 2  # of questions in the single talk; then the rest would fail as well
SEAT_FREED_S: Final = 3.0
LOOK_S: Final = 0.1
RETRY_S: Final = 60.0

# Opens a socket to /v1/realtime with a credential, subprotocol voicepod.v1.
Connect = Callable[[], AbstractAsyncContextManager[ClientConnection]]


class Machine(Protocol):
    """What is asked of the server beside the talks; None where it does not say."""

    async def n_talks(self) -> int | None:
        """Seats that are taken, by the self-test too."""
        ...

    async def memory(self) -> Memory:
        """What is in use now."""
        ...

    async def speeds(self, clip: AudioChunk, text: str) -> Speeds:
        """How fast the recogniser hears `clip` and the voice says `text`, alone."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is tried. `max_talks` bounds the talks at once; `force` measures while people talk."""

    n_turns: int = 8
    max_talks: int = 8
    force: bool = False


def load_clips(directory: Path = SPEECH) -> list[Pcm]:
    """The questions, cut to where the voice begins and ends."""
    clips = []
    for path in sorted(directory.glob("*.flac")):
        pcm = np.frombuffer(decode_file(path.read_bytes(), max_seconds=MAX_CLIP_S).resampled(RATE).to_pcm16(), "<i2")
        loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > LOUD)
        clips.append(pcm[loud[0] : loud[-1] + 1])
    if not clips:
        raise ConfigError("the self-test has no speech: configs/selftest is empty")
    return clips


async def check_nobody_talks(machine: Machine, plan: Plan) -> None:
    """`Busy` while people talk, unless it is forced."""
    if not plan.force and await machine.n_talks():
        raise Busy("people are talking; the self-test would disturb them and measure them", retry_after_s=RETRY_S)


async def run(
    connect: Connect, machine: Machine, plan: Plan, clips: Sequence[Pcm]
) -> AsyncGenerator[float | Report, None]:
    """The share that is done, again and again, and last the report. `Busy` while people talk, or without a seat."""
    await check_nobody_talks(machine, plan)
    n_steps = plan.n_turns + plan.max_talks
    heard: list[Heard] = []
    async with AsyncExitStack() as stack:
        talker = await _talk(stack, connect)
        engines = dict(talker.session.get("voicepod", {}).get("engines", {}))
        while len(heard) < plan.n_turns and sum(bool(one.failure) for one in heard) < MAX_FAILURES:
            heard += await _turn(talker, clips, len(heard), plan.n_turns)
            yield min(len(heard), plan.n_turns) / n_steps
    alone = Spread.of([one.v2v_ms for one in heard if one.v2v_ms is not None])
    first = AudioChunk.from_pcm16(clips[0].tobytes(), RATE)
    speeds = await machine.speeds(first, READ_ALOUD)
    fit, memory = Fit(1 if alone else 0, "bound"), await machine.memory()
    while alone and fit.n < plan.max_talks and fit.limit == "bound":
        fit = await _one_more(connect, machine, clips, fit.n + 1, SLOWER * alone.p95)
        memory = await machine.memory()
        yield (plan.n_turns + fit.n) / n_steps
    yield Report(
        engines=engines,
        v2v_ms=alone,
        parts_ms=_parts(heard),
        stop_ms=Spread.of([one.stop_ms for one in heard if one.stop_ms is not None]),
        longest_gap_ms=round(max((one.gap_ms for one in heard), default=0.0), 1),
        rtf=speeds,
        talks=fit,
        memory=memory,
        failures=tuple(one.failure for one in heard if one.failure),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


async def _turn(talker: Talker, clips: Sequence[Pcm], n_asked: int, n_turns: int) -> list[Heard]:
    """The second of each three questions is interrupted by the third."""
    question, other = clips[n_asked % len(clips)], clips[(n_asked + 1) % len(clips)]
    is_cut = n_asked % 3 == 1 and n_asked + 1 < n_turns
    return await talker.ask(question, interrupt_with=other if is_cut else None)


def _parts(heard: Sequence[Heard]) -> dict[str, Spread]:
    names = dict.fromkeys(name for one in heard for name in one.parts_ms)
    spreads = {name: Spread.of([one.parts_ms[name] for one in heard if name in one.parts_ms]) for name in names}
    return {name: spread for name, spread in spreads.items() if spread is not None}


async def _one_more(connect: Connect, machine: Machine, clips: Sequence[Pcm], n: int, limit_ms: float) -> Fit:
    """Whether `n` talks at once are answered in time; all ask in the same moment, which is the worst that happens."""
    async with AsyncExitStack() as stack:
        try:
            talkers = [await _talk(stack, connect) for _ in range(n)]
        except Busy:
            return Fit(n - 1, "seats")
        if (await machine.n_talks() or 0) > n:
            return Fit(n - 1, "people")
        asked = [talker.ask(clips[i % len(clips)]) for i, talker in enumerate(talkers)]
        answers = [one for heard in await asyncio.gather(*asked) for one in heard]
    in_time = all(
        one.v2v_ms is not None and one.v2v_ms <= limit_ms and one.gap_ms <= GAP_MS and not one.failure
        for one in answers
    )
    return Fit(n, "bound") if in_time else Fit(n - 1, "behind")


async def _talk(stack: AsyncExitStack, connect: Connect) -> Talker:
    """A talk until the stack is closed. The seat of one that just ended is free in a moment."""
    ends_at = time.monotonic() + SEAT_FREED_S
    while True:
        async with AsyncExitStack() as opening:
            try:
                socket = await opening.enter_async_context(connect())
                talker = await opening.enter_async_context(talking(socket, INSTRUCTIONS, MAX_TOKENS))
            except Busy:
                if time.monotonic() > ends_at:
                    raise
            else:
                stack.push_async_exit(opening.pop_all())
                return talker
        await asyncio.sleep(LOOK_S)
