"""Decides at every frame edge which streams get a slot, which prompt is read, and which streams get a frame.

Streams stand in the slots 0..n-1 without a gap: when one leaves, the last one moves into its place, so that a batch is
always a prefix of the slots. A new stream's first audio goes before later audio of streams that are comfortably ahead
of their listeners. For one thread; nothing here waits, and time comes from the caller.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from firered.errors import FireRedError, GenerationError, InputError
from firered.guards import GuardLimits
from firered.prompt import MAX_ROWS, MAX_SEGMENTS, Rows, eos_row, trim_history
from firered.slot import StreamSlot
from firered.stream import SpeechStream, StreamEnd, StreamFailed

if TYPE_CHECKING:
    from firered.codec_decoder import DecoderState
    from firered.language_model import LanguageModel, SlotState
    from firered.segments import TextSegment
    from firered.step_runner import Frame, StepRunner

logger = logging.getLogger(__name__)

# A stream with this much audio ahead sits out while another is behind: half a second is six frames, which outlasts
# several prompts being read.
_COMFORT_S = 0.5
# With less than two frames ahead a stream cannot wait for more than one prompt at a time.
_RESERVE_S = 0.16
# Rows kept free behind a segment: its end-of-speech row and the frame that may be under way when it ends.
_SPARE_ROWS = 2
_CACHED_VOICES = 16
# Segments that a trimmed history keeps at most: half of what the model was trained on.
_KEPT_SEGMENTS = MAX_SEGMENTS // 2


@dataclass(frozen=True, slots=True)
class _Launched:
    """A frame under way: who it is for (slot index at launch, slot, segment)."""

    frame: Frame
    seats: list[tuple[int, StreamSlot, TextSegment]]


@dataclass(slots=True)
class SchedulerStats:
    """Counters since the start, for metrics."""

    n_frames: int = 0  # frames of all streams
    n_steps: int = 0  # batches
    n_prefilled_rows: int = 0
    n_trims: int = 0  # times a history was cut to make room
    ends: dict[str, int] = field(default_factory=dict)  # segments by reason of their end


class Scheduler:
    """Continuous batching of streams over the slots of one device."""

    def __init__(
        self,
        model: LanguageModel,
        state: SlotState,
        codec_state: DecoderState,
        runner: StepRunner,
        *,
        voice_rows: Callable[[SpeechStream], list[Rows]],
        limits: GuardLimits,
    ) -> None:
        self._model, self._state, self._codec_state, self._runner = model, state, codec_state, runner
        self._voice_rows, self._limits = voice_rows, limits
        self._n_slots = len(state.position)
        self._max_rows = min(MAX_ROWS, state.capacity)
        self._slots: list[StreamSlot] = []
        self._waiting: deque[SpeechStream] = deque()
        self._launched: _Launched | None = None
        self._voices: OrderedDict[tuple[tuple[str, bytes], ...], Tensor] = OrderedDict()
        self.stats = SchedulerStats()

    @property
    def n_streams(self) -> int:
        """Streams with a slot and streams that wait for one."""
        return len(self._slots) + len(self._waiting)

    def add(self, stream: SpeechStream) -> None:
        """Takes over a stream; it gets a slot when one is free, in order of arrival."""
        self._waiting.append(stream)

    def tick(self, now_s: float) -> float | None:
        """One frame edge. Gives the seconds until there is work again: 0 for at once, None for not before a wake-up."""
        self._leave()
        self._seat_waiting()
        self._read_prompts(now_s)
        launched = self._launch(now_s)
        previous, self._launched = self._launched, launched
        if previous is not None:
            self._deliver(previous, now_s)
        if self._launched is not None and not self._runner.asynchronous:
            self._deliver(self._launched, now_s)
            self._launched = None
        return self._idle_s(now_s)

    def fail_all(self, error: FireRedError) -> None:
        """Ends every stream with `error`."""
        streams = [slot.stream for slot in self._slots] + list(self._waiting)
        self._slots.clear()
        self._waiting.clear()
        self._launched = None
        for stream in streams:
            stream.emit(StreamFailed(error))

    # --- who is in

    def _leave(self) -> None:
        """Streams that were cancelled or have said everything give up their slots."""
        for stream in [stream for stream in self._waiting if stream.cancelled or _is_done(stream)]:
            self._waiting.remove(stream)
            stream.emit(StreamEnd(stream.cancelled))
        for index in reversed(range(len(self._slots))):
            slot = self._slots[index]
            if slot.stream.cancelled or (slot.segment is None and _is_done(slot.stream)):
                self._free(index)
                slot.stream.emit(StreamEnd(slot.stream.cancelled))

    def _free(self, index: int) -> None:
        """Closes the gap at `index` with the last slot."""
        last, moved = len(self._slots) - 1, self._slots[-1]
        if index < last:
            self._state.move(last, index, moved.rows_in_flight)
            self._codec_state.move(last, index, moved.n_tokens)
            self._slots[index] = moved
        self._slots.pop()  # last of all: a device that fails here must not take a stream away from `fail_all`

    def _fail(self, slot: StreamSlot, error: FireRedError) -> None:
        """Ends one stream with `error`; the others go on."""
        slot.segment = None  # frames of it that are under way are nobody's
        self._free(self._slots.index(slot))
        slot.stream.emit(StreamFailed(error))

    def _seat_waiting(self) -> None:
        """Free slots go to waiting streams that have something to say."""
        ready = [stream for stream in self._waiting if stream.segments]
        for stream in ready[: self._n_slots - len(self._slots)]:
            options, index = stream.options, len(self._slots)
            self._state.begin(
                index,
                seed=stream.seed,
                temperature=options.temperature,
                top_k=min(options.top_k, self._model.config.codebook_size),
                greedy=options.greedy,
            )
            voice_rows = [] if options.mode == "continuation" else self._voice_rows(stream)
            self._slots.append(StreamSlot(stream, voice_rows, self._limits))
            self._waiting.remove(stream)

    # --- prompts

    def _read_prompts(self, now_s: float) -> None:
        """Feeds the next segment of each stream that has none; only one a tick while somebody is short of audio."""
        is_short = any(slot.speaking and slot.lead_s(now_s) < _RESERVE_S for slot in self._slots)
        needy = [slot for slot in self._slots if slot.segment is None and slot.stream.segments]
        needy = sorted((slot for slot in needy if not _is_paused(slot, now_s)), key=lambda slot: slot.lead_s(now_s))
        for slot in needy[: 1 if is_short else None]:
            segment = slot.stream.segments.popleft()
            try:
                self._read_prompt(self._slots.index(slot), slot, segment)
            except InputError as error:
                self._fail(slot, error)
            except RuntimeError as error:  # out of memory, mostly: the other streams go on
                logger.exception("a prompt of %d rows could not be read", len(segment.rows))
                self._fail(slot, GenerationError(f"the prompt could not be read: {error}"))

    def _read_prompt(self, index: int, slot: StreamSlot, segment: TextSegment) -> None:
        """Appends the segment's rows to the slot's cache, after the voice and as much history as fits."""
        n_new = len(segment.rows) + segment.frame_limit + slot.n_dropped + _SPARE_ROWS
        budget_rows = self._max_rows - n_new
        parts: list[Rows] = []
        if slot.stream.options.mode == "continuation":
            start, slot.history = 0, slot.history[-1:]  # nobody reads it
        elif slot.rows == 0:
            start = self._read_voice(index, slot)
        elif len(trim_history(slot.voice_rows, slot.history, budget_rows)) == len(slot.history):
            start, parts = slot.rows, [eos_row()] if slot.owes_end_row else []
        else:
            # The voice is still in the cache. Half of the room is left free, or every further segment would trim again.
            start = sum(map(len, slot.voice_rows))
            slot.history = trim_history(slot.voice_rows, slot.history[-_KEPT_SEGMENTS:], (start + budget_rows) // 2)
            parts = slot.history
            self.stats.n_trims += 1
        rows = Rows.concat([*parts, segment.rows])
        if start + len(rows) - len(segment.rows) + n_new > self._state.capacity:
            raise InputError(f"a slot of {self._state.capacity} rows is too small for the voices and this text")
        self._model.prefill(self._state, index, rows, start)
        self.stats.n_prefilled_rows += len(rows)
        self._codec_state.reset(index)
        slot.begin(segment, start + len(rows))

    def _read_voice(self, index: int, slot: StreamSlot) -> int:
        """Puts the voices' keys and values into the slot, from memory if they were read before. Gives their rows."""
        n_rows = sum(map(len, slot.voice_rows))
        if n_rows == 0:
            return 0
        key = tuple((speaker, voice.digest) for speaker, voice in sorted(slot.stream.options.voices.items()))
        cached = self._voices.pop(key, None)  # (layers, 2, K, n_rows, D)
        if cached is None:
            self._model.prefill(self._state, index, Rows.concat(slot.voice_rows), 0)
            self.stats.n_prefilled_rows += n_rows
            cached = self._state.cache[:, index, :, :, :n_rows].clone()
        else:
            self._state.cache[:, index, :, :, :n_rows] = cached
        self._voices[key] = cached  # the newest last
        if len(self._voices) > _CACHED_VOICES:
            self._voices.popitem(last=False)
        return n_rows

    # --- frames

    def _launch(self, now_s: float) -> _Launched | None:
        """Launches a frame for all who want one; who is comfortably ahead sits out while somebody is not."""
        wanting = [(i, s) for i, s in enumerate(self._slots) if s.speaking and not _is_paused(s, now_s)]
        behind = [(i, s) for i, s in wanting if s.lead_s(now_s) < _COMFORT_S]
        chosen = behind or wanting
        if not chosen:
            return None
        for index, slot in chosen:
            if slot.n_dropped and slot.n_launched == slot.n_dropped:
                self._codec_state.reset(index)  # what follows is decoded as if the dropped frames had never been
        frame = self._runner.launch(
            [index for index, _ in chosen],
            n_rows=max(slot.rows_in_flight for _, slot in chosen) + 1,
            n_tokens=max(slot.n_tokens for _, slot in chosen) + 1,
        )
        seats = [(index, slot, slot.segment) for index, slot in chosen if slot.segment is not None]
        for _, slot in chosen:
            slot.n_launched += 1
        self.stats.n_frames += len(chosen)
        self.stats.n_steps += 1
        return _Launched(frame, seats)

    def _deliver(self, launched: _Launched, now_s: float) -> None:
        """Passes a computed frame on to its streams."""
        codes, samples = launched.frame.result()
        for index, slot, segment in launched.seats:
            if slot.segment is not segment or slot.stream.cancelled:
                continue  # it ended or was cancelled while this frame was under way
            if not np.isfinite(samples[index]).all():
                logger.error("a stream failed: its samples are not numbers")
                self._fail(slot, GenerationError("the model's output is not a number"))
                continue
            reason = slot.take(codes[index], samples[index], now_s)
            if reason is not None:
                slot.finish(reason, now_s)
                self._state.rewind(self._slots.index(slot), slot.rows, slot.n_drawn)
                self.stats.ends[reason] = self.stats.ends.get(reason, 0) + 1
                if reason != "end_of_speech":
                    logger.warning("a segment of %d characters was ended: %s", len(segment.text), reason)

    def _idle_s(self, now_s: float) -> float | None:
        """How long nothing has to be done."""
        if self._launched is not None or any(_wants_frame(slot, now_s) for slot in self._slots):
            return 0.0
        if any(stream.segments for stream in self._waiting) and len(self._slots) < self._n_slots:
            return 0.0
        if any(_is_leaving(slot) for slot in self._slots) or any(map(_is_gone, self._waiting)):
            return 0.0
        paused = [_pause_s(slot, now_s) for slot in self._slots if slot.speaking or slot.stream.segments]
        return min(paused, default=None)


def _is_done(stream: SpeechStream) -> bool:
    return stream.text_ended and not stream.segments


def _is_gone(stream: SpeechStream) -> bool:
    return stream.cancelled or _is_done(stream)


def _is_leaving(slot: StreamSlot) -> bool:
    return slot.stream.cancelled or (slot.segment is None and _is_done(slot.stream))


def _wants_frame(slot: StreamSlot, now_s: float) -> bool:
    has_work = slot.speaking or (slot.segment is None and bool(slot.stream.segments))
    return has_work and not _is_paused(slot, now_s)


def _pause_s(slot: StreamSlot, now_s: float) -> float:
    """Seconds until the stream's lead is down to what it may be."""
    limit = slot.stream.options.max_lead_s
    return 0.0 if limit is None else max(0.0, slot.lead_s(now_s) - limit)


def _is_paused(slot: StreamSlot, now_s: float) -> bool:
    return _pause_s(slot, now_s) > 0
