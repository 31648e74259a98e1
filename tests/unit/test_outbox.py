from __future__ import annotations

import asyncio

import numpy as np
import pytest

from pipeline.audio import AudioChunk
from pipeline.engines.base import SpeechPiece
from pipeline.events import Event, Flushed, ReplyCaption
from pipeline.outbox import FRAME_S, AudioEntry, ControlEntry, Outbox, TurnOutput
from pipeline.playout import Playout

pytestmark = pytest.mark.looptime(noop_cycles=2)

RATE = 24000


def audio(seconds: float) -> AudioChunk:
    return AudioChunk((np.arange(round(seconds * RATE)) / RATE).astype(np.float32), RATE)


def outbox(*, max_audio_s: float = 30.0, max_lead_s: float = 1.0) -> Outbox:
    return Outbox(asyncio.get_running_loop().time, max_audio_s=max_audio_s, max_lead_s=max_lead_s)


async def taken(box: Outbox, n: int) -> list[AudioEntry | ControlEntry]:
    return [await box.get() for _ in range(n)]


def event(turn_id: int = 1) -> Event:
    return Event(at_s=0.0, turn_id=turn_id)


async def test_audio_leaves_whole_and_in_order_in_frames() -> None:
    box, playout = outbox(), Playout(1, RATE)
    assert await box.put_audio(playout, audio(0.2))
    entries = await taken(box, 3)
    assert [round(entry.audio.seconds, 3) for entry in entries if isinstance(entry, AudioEntry)] == [0.08, 0.08, 0.04]
    samples = np.concatenate([entry.audio.samples for entry in entries if isinstance(entry, AudioEntry)])
    assert np.array_equal(samples, audio(0.2).samples)
    assert box.n_pending == 0
    assert box.pending_s == pytest.approx(0.0)
    assert playout.sent_samples == playout.made_samples == round(0.2 * RATE)


async def test_audio_of_no_samples_carries_its_caption_and_harms_nothing() -> None:
    box, playout = outbox(), Playout(1, RATE)
    caption = ReplyCaption(
        at_s=0.0, response_id="r", item_id="i", piece=SpeechPiece(0, "", 0, 1), text="x", first_sample=0
    )
    assert await box.put_audio(playout, AudioChunk.silence(0, RATE), caption)
    assert await box.put_audio(playout, audio(0.05))
    empty, frame = await taken(box, 2)
    assert isinstance(empty, AudioEntry)
    assert isinstance(frame, AudioEntry)
    assert (empty.caption, empty.audio.n_samples, frame.first_sample) == (caption, 0, 0)
    box.rewind(playout, 0)
    again = await box.get()
    assert isinstance(again, AudioEntry)
    assert again.audio.n_samples == round(0.05 * RATE)


async def test_the_caption_is_told_once_with_the_first_frame() -> None:
    box, playout = outbox(), Playout(1, RATE)
    caption = ReplyCaption(
        at_s=0.0, response_id="r", item_id="i", piece=SpeechPiece(0, "x", 0, 1), text="x", first_sample=0
    )
    await box.put_audio(playout, audio(0.24), caption)
    entries = await taken(box, 3)
    assert [entry.caption for entry in entries if isinstance(entry, AudioEntry)] == [caption, None, None]


async def test_a_frame_that_is_sent_again_brings_its_caption_unless_part_of_it_had_arrived() -> None:
    box, playout = outbox(), Playout(1, RATE)
    pieces = [SpeechPiece(n, "x", n, n + 1) for n in range(2)]
    first, second = (
        ReplyCaption(at_s=0.0, response_id="r", item_id="i", piece=piece, text="x", first_sample=0) for piece in pieces
    )
    await box.put_audio(playout, audio(0.08), first)
    await box.put_audio(playout, audio(0.08), second)
    await taken(box, 2)
    box.rewind(playout, 1)
    entries = await taken(box, 2)
    assert [entry.caption for entry in entries if isinstance(entry, AudioEntry)] == [None, second]


async def test_control_overtakes_audio_and_keeps_its_own_order() -> None:
    box, playout = outbox(), Playout(1, RATE)
    await box.put_audio(playout, audio(0.08))
    last, first, second = event(), event(), event()
    box.put(last, behind_audio=True)
    box.put(first)
    box.put(second)
    entries = await taken(box, 4)
    assert [entry.event for entry in entries if isinstance(entry, ControlEntry)] == [first, second, last]
    assert isinstance(entries[2], AudioEntry)


async def test_an_event_behind_audio_leaves_at_once_when_no_audio_waits() -> None:
    box = outbox()
    told = event()
    box.put(told, behind_audio=True)
    entry = await box.get()
    assert isinstance(entry, ControlEntry)
    assert entry.event is told


async def test_audio_waits_until_the_player_is_less_than_the_lead_behind() -> None:
    loop = asyncio.get_running_loop()
    box, playout = outbox(max_lead_s=0.4), Playout(1, RATE)
    await box.put_audio(playout, audio(0.8))
    started = loop.time()
    times = []
    for _ in range(10):
        await box.get()
        times.append(round(loop.time() - started, 2))
    assert times == [0.0] * 5 + [0.08, 0.16, 0.24, 0.32, 0.4]


async def test_a_report_and_an_event_wake_a_reader_that_waits_for_the_player() -> None:
    loop = asyncio.get_running_loop()
    box, playout = outbox(max_lead_s=0.4), Playout(1, RATE)
    await box.put_audio(playout, audio(0.8))
    await taken(box, 5)
    playout.report(0, loop.time())
    reading = asyncio.create_task(box.get())
    await asyncio.sleep(0.01)
    told = event()
    box.put(told)
    await asyncio.sleep(0)
    entry = await asyncio.wait_for(reading, 0.01)
    assert isinstance(entry, ControlEntry)
    reading = asyncio.create_task(box.get())
    await asyncio.sleep(0.01)
    playout.report(round(0.4 * RATE), loop.time())
    entry = await asyncio.wait_for(reading, 0.01)
    assert isinstance(entry, AudioEntry)


async def test_a_reader_that_was_cancelled_loses_nothing() -> None:
    box, playout = outbox(max_lead_s=0.4), Playout(1, RATE)
    await box.put_audio(playout, audio(0.8))
    await taken(box, 5)
    reading = asyncio.create_task(box.get())
    await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.wait([reading])
    assert box.n_pending == 5
    entry = await box.get()
    assert isinstance(entry, AudioEntry)
    assert entry.first_sample == round(0.4 * RATE)


async def test_who_makes_audio_waits_when_too_much_is_pending() -> None:
    box, playout = outbox(max_audio_s=0.4), Playout(1, RATE)
    putting = asyncio.create_task(box.put_audio(playout, audio(2.0)))
    await asyncio.sleep(0.01)
    assert box.pending_s == pytest.approx(0.4)
    assert not putting.done()
    for _ in range(25):
        await box.get()
        await asyncio.sleep(0)
        assert box.pending_s <= 0.4 + FRAME_S
    assert await putting is True


async def test_a_flush_drops_the_audio_of_the_turn_and_frees_who_waits_to_put_more() -> None:
    box, playout, later = outbox(max_audio_s=0.4), Playout(1, RATE), Playout(2, RATE)
    putting = asyncio.create_task(box.put_audio(playout, audio(2.0)))
    await asyncio.sleep(0.01)
    assert box.flush(1) == []
    assert await asyncio.wait_for(putting, 0.01) is False
    assert (box.pending_s, box.n_pending) == (0.0, 0)
    assert await box.put_audio(playout, audio(0.08)) is False
    assert await box.put_audio(later, audio(0.08)) is True
    assert box.is_stale(1)
    assert not box.is_stale(2)


async def test_a_flush_keeps_control_and_what_belongs_to_later_turns() -> None:
    box, one, two = outbox(), Playout(1, RATE), Playout(2, RATE)
    await box.put_audio(one, audio(0.08))
    end_of_one, end_of_two, told = event(1), event(2), event(1)
    box.put(end_of_one, behind_audio=True)
    await box.put_audio(two, audio(0.16))
    box.put(end_of_two, behind_audio=True)
    box.put(told)
    assert box.flush(1) == [end_of_one]
    assert box.pending_s == pytest.approx(0.16)
    entries = await taken(box, 4)
    assert [entry.event for entry in entries if isinstance(entry, ControlEntry)] == [told, end_of_two]
    assert [entry.playout for entry in entries if isinstance(entry, AudioEntry)] == [two, two]


async def test_an_older_flush_does_not_let_a_flushed_turn_in_again() -> None:
    box = outbox()
    box.flush(3)
    box.flush(1)
    assert await box.put_audio(Playout(2, RATE), audio(0.08)) is False


async def test_a_rewind_goes_in_front_of_what_waits_and_not_for_a_turn_that_is_over() -> None:
    box, playout = outbox(), Playout(1, RATE)
    await box.put_audio(playout, audio(0.24))
    await taken(box, 2)
    box.rewind(playout, round(0.1 * RATE))
    assert box.pending_s == pytest.approx(0.14)
    entries = await taken(box, 2)
    samples = np.concatenate([entry.audio.samples for entry in entries if isinstance(entry, AudioEntry)])
    assert np.array_equal(samples, audio(0.24).samples[round(0.1 * RATE) :])
    playout.cut(0.0)
    box.rewind(playout, 0)
    assert box.n_pending == 0
    box.flush(1)
    box.rewind(playout, 0)
    assert box.n_pending == 0


# --- the gate


class Gate:
    def __init__(self, gate: str) -> None:
        self.box, self.playout, self.told = outbox(), Playout(1, RATE), list[Event]()
        self.output = TurnOutput(self.box, self.playout, self._tell, gate=gate)  # type: ignore[arg-type]

    def _tell(self, event: Event, *, behind_audio: bool = False) -> None:
        self.told.append(event)


async def test_an_open_gate_lets_all_through_at_once() -> None:
    gate = Gate("released")
    done: list[int] = []
    gate.output.when_released(lambda: done.append(1))
    gate.output.event(event())
    assert (done, len(gate.told)) == ([1], 1)
    assert await gate.output.audio(audio(0.08)) is True


async def test_a_held_reply_is_let_out_in_order_at_its_release() -> None:
    gate = Gate("held")
    done: list[int] = []
    for i in range(3):
        gate.output.when_released(lambda i=i: done.append(i))  # type: ignore[misc]
    gate.output.event(event())
    playing = asyncio.create_task(gate.output.audio(audio(0.08)))
    await asyncio.sleep(0.1)
    assert (done, gate.told, playing.done(), gate.box.n_pending) == ([], [], False, 0)
    gate.output.release()
    assert (done, len(gate.told)) == ([0, 1, 2], 1)
    assert await playing is True
    gate.output.release()
    assert done == [0, 1, 2]


async def test_a_dropped_reply_leaves_nothing() -> None:
    gate = Gate("held")
    done: list[int] = []
    gate.output.when_released(lambda: done.append(1))
    playing = asyncio.create_task(gate.output.audio(audio(0.08)))
    await asyncio.sleep(0)
    gate.output.drop()
    assert await playing is False
    gate.output.release()
    gate.output.event(Flushed(at_s=0.0))
    assert (done, gate.told, gate.box.n_pending) == ([], [], 0)
    assert await gate.output.audio(audio(0.08)) is False
