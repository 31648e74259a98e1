"""One response: the generation of one assistant item, its way out, and what of it was heard."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import events
from pipeline.audio import AudioChunk
from pipeline.conversation import Conversation, Item
from pipeline.engines import lanes
from pipeline.engines.base import Engines, SpeechPiece, Voice, Word
from pipeline.errors import VoicepodError
from pipeline.events import ReplyReason, ReplyStatus
from pipeline.options import ReplyOptions
from pipeline.outbox import Gate, Outbox, TurnOutput
from pipeline.playout import Playout
from pipeline.pressure import SHORT_FIRST_CLAUSE_CHARS, SHORT_FIRST_PIECE_CHARS
from pipeline.records import Outcome, TurnRecord
from pipeline.sentences import FIRST_PIECE_MAX_CHARS, PieceSplitter
from pipeline.turn import ReplySink, Waits, speak, write

if TYPE_CHECKING:
    from settings import TurnSettings


@dataclass(frozen=True, slots=True)
class Parts:
    """What the parts of one session share.

    `add` writes a new item into the history and gives the id of the one before it; `tell(event, behind_audio=False)`
    reaches the outbox and all observers.
    """

    engines: Engines
    conversation: Conversation
    add: Callable[[Item], str | None]
    outbox: Outbox
    tell: Callable[..., None]
    show_state: Callable[[], None]
    clock: Callable[[], float]
    new_id: Callable[[str], str]
    turn: TurnSettings
    waits: Waits


class Response:
    """Made by `run` in a task of its own; `cut` ends it from outside with plain calls."""

    def __init__(
        self,
        parts: Parts,
        record: TurnRecord,
        asked: ReplyOptions,
        *,
        spoken: bool,
        sample_rate: int,
        gate: Gate = "released",
    ) -> None:
        self.id, self.item_id = parts.new_id("resp"), parts.new_id("item")
        self.turn_id, self.record, self.spoken = record.turn_id, record, spoken
        self.asked = asked
        self.playout = Playout(record.turn_id, sample_rate, replay_s=parts.turn.replay_s)
        self.output = TurnOutput(parts.outbox, self.playout, parts.tell, gate=gate)
        self.text = ""
        self.is_open = True  # the end of the response was not told yet
        self.has_audio = False
        self.finished = asyncio.Event()  # heard to the end, cut, or failed
        self.finished_at_s = 0.0
        self.n_input_tokens = 0  # of what the model was given to read
        self.task: asyncio.Task[None] | None = None
        self._parts = parts
        self._begun = False
        self._n_deltas = 0
        self._caption: events.ReplyCaption | None = None

    @property
    def is_active(self) -> bool:
        """Whether it is being made, or audio of it still waits to leave."""
        return self.is_open or (not self.finished.is_set() and self.playout.sent_samples < self.playout.made_samples)

    async def run(self, deltas: AsyncIterator[str], *, voice: Voice, max_tokens: int) -> None:
        """Make the reply, hand it to the outbox, and wait until it was heard."""
        lanes.job_priority.set(self._priority)
        lanes.work_told.set(self.record.note_work)
        self._mark("llm_started")
        self.output.when_released(self.begin)
        sink = ReplySink(self._add_text, self._begin_piece, self._end_piece, self._play, self._mark)
        if self.spoken:
            splitter = self._splitter(voice)
            tts, rate = self._parts.engines.tts, self.playout.sample_rate
            await speak(
                deltas, sink, tts=tts, voice=voice, splitter=splitter, output_rate=rate, waits=self._parts.waits
            )
        else:
            await write(deltas, sink, waits=self._parts.waits)
        self.playout.finish()
        at_limit = self._n_deltas >= max_tokens
        status: ReplyStatus = "incomplete" if at_limit else "completed"
        reason: ReplyReason = "max_output_tokens" if at_limit else ""
        self.output.when_released(lambda: self._end(status, reason, behind_audio=True))
        await self._played_out()
        self.close("completed")

    def _splitter(self, voice: Voice) -> PieceSplitter:
        """Cuts the reply into pieces; a shorter first one where the engines are pressed."""
        turn, pressure = self._parts.turn, self._parts.engines.pressure
        least, most = turn.first_clause_min_chars, FIRST_PIECE_MAX_CHARS
        if pressure is not None and pressure.at_least("first_clause"):
            least, most = min(least, SHORT_FIRST_CLAUSE_CHARS), SHORT_FIRST_PIECE_CHARS
        return PieceSplitter(
            language=voice.language,
            first_clause_min_chars=least,
            piece_max_chars=turn.piece_max_chars,
            first_piece_max_chars=most,
        )

    def cut(self, reason: ReplyReason) -> None:
        """Stop at once: no sample of it leaves any more, the history keeps what was heard."""
        now_s = self._parts.clock()
        if self.asked.requested and not self._begun:  # a client that waits for its end gets one
            self.begin()
        untold = self._parts.outbox.flush(self.turn_id)
        sample = self.playout.cut(now_s)
        was_open = self.is_open or any(isinstance(event, events.ReplyFinished) for event in untold)
        self.output.drop()
        self._parts.tell(events.Flushed(at_s=now_s, turn_id=self.turn_id))
        was_spoken = self._cut_history(sample)
        if was_open and self._begun:
            self._end("cancelled", reason)
        if was_spoken:
            self._tell_truncated(sample)
        self.close("interrupted")
        if self.task is not None:
            self.task.cancel()

    async def fail(self, error: VoicepodError) -> None:
        """End with an error; what was made before it is still heard."""
        self._parts.tell(
            events.TurnFailed(at_s=self._parts.clock(), turn_id=self.turn_id, error=error, by_response=self.is_open)
        )
        self.record.error_code = error.code
        self.playout.finish()
        if not self._begun:  # a client that waits for the end of the response gets one
            self.output.when_released(self.begin)
        if self.is_open:
            self.output.when_released(lambda: self._end("failed", "error", error=error, behind_audio=True))
        self.is_open = False
        await self._played_out()
        if self.playout.made_samples or self.text:  # the text was ahead of the voice
            self.keep_heard(self.playout.made_samples)
        self.close("failed")

    def keep_heard(self, sample: int) -> None:
        """Cut the history to the first `sample` samples of this response's audio, and tell so."""
        if self._cut_history(sample):
            self._tell_truncated(sample)

    def _cut_history(self, sample: int) -> bool:
        if not self.spoken:
            return False
        heard = self.text[: self.playout.heard_chars(sample, self.text)]
        self.record.heard_s = sample / self.playout.sample_rate
        with contextlib.suppress(VoicepodError):  # deleted meanwhile, or never begun
            self._parts.conversation.cut(self.item_id, heard)
            return True
        return False

    def _tell_truncated(self, sample: int) -> None:
        self._parts.tell(
            events.ItemTruncated(
                at_s=self._parts.clock(),
                turn_id=self.turn_id,
                item_id=self.item_id,
                audio_end_ms=sample * 1000 // self.playout.sample_rate,
            )
        )

    def unheard(self) -> str:
        """The text that was made and not heard."""
        return self.text[self.playout.heard_chars(self.playout.cut_at or 0, self.text) :]

    def close(self, outcome: Outcome) -> None:
        """Tell the turn's record, once."""
        if self.finished.is_set():
            return
        self.finished.set()
        self.finished_at_s = self._parts.clock()
        self.is_open = False
        self.playout.forget_sent()
        playout, record = self.playout, self.record
        record.outcome = outcome
        record.n_output_tokens, record.reply_chars = self._n_deltas, len(self.text)
        record.spoken_s = playout.made_samples / playout.sample_rate
        if playout.cut_at is None:
            record.heard_s = record.spoken_s
        if playout.first_sent_at_s is not None:
            record.mark("first_sent", playout.first_sent_at_s)
        self._parts.tell(events.TurnDone(at_s=self._parts.clock(), turn_id=self.turn_id, record=record))
        self._parts.show_state()

    # --- the sink that turn.speak and turn.write fill

    def begin(self) -> None:
        """Tell that the response is being made, and give it its place in the history."""
        self._begun = True
        now_s = self._parts.clock()
        item = Item(self.item_id, "assistant", "", status="in_progress", spoken=self.spoken)
        previous_item_id = self._parts.add(item)
        self._parts.tell(
            events.ReplyStarted(
                at_s=now_s,
                turn_id=self.turn_id,
                response_id=self.id,
                item_id=self.item_id,
                spoken=self.spoken,
                metadata=self.asked.metadata,
                max_tokens=self.asked.max_tokens,
            )
        )
        self._parts.tell(
            events.ItemAdded(at_s=now_s, turn_id=self.turn_id, item=item, previous_item_id=previous_item_id)
        )

    def _add_text(self, delta: str) -> None:
        self._n_deltas += 1
        if not delta:  # a token that is only part of a character
            return
        self.text += delta

        def write_down() -> None:
            with contextlib.suppress(VoicepodError):  # the client deleted the item meanwhile
                self._parts.conversation.write(self.item_id, content=self.text)

        self.output.when_released(write_down)
        if not self.spoken:
            self.output.event(
                events.ReplyText(
                    at_s=self._parts.clock(),
                    turn_id=self.turn_id,
                    response_id=self.id,
                    item_id=self.item_id,
                    delta=delta,
                )
            )

    def _begin_piece(self, piece: SpeechPiece) -> None:
        self.playout.begin_piece(piece)
        self._caption = events.ReplyCaption(
            at_s=self._parts.clock(),
            turn_id=self.turn_id,
            response_id=self.id,
            item_id=self.item_id,
            piece=piece,
            text=self.text[piece.reply_start : piece.reply_end],
            first_sample=self.playout.made_samples,
        )

    def _end_piece(self, piece: SpeechPiece) -> None:
        self.playout.end_piece()
        if self._caption is not None:  # nothing of it is spoken (a code block, say): it is shown all the same
            self.output.event(self._caption, behind_audio=True)
            self._caption = None

    async def _play(self, audio: AudioChunk, words: tuple[Word, ...]) -> bool:
        self.playout.add_words(words)
        caption, self._caption = self._caption, None
        if not self.has_audio:
            self.has_audio = True
            self._parts.show_state()
        return await self.output.audio(audio, caption)

    def _mark(self, name: str) -> None:
        self.record.mark(name, self._parts.clock())

    # --- the end

    def _end(
        self,
        status: ReplyStatus,
        reason: ReplyReason,
        *,
        behind_audio: bool = False,
        error: VoicepodError | None = None,
    ) -> None:
        """Tell that the item and the response are done, and write their final status."""
        now_s = self._parts.clock()
        self.is_open = False
        finished = events.ReplyFinished(
            at_s=now_s,
            turn_id=self.turn_id,
            response_id=self.id,
            item_id=self.item_id,
            spoken=self.spoken,
            status=status,
            reason=reason,
            text=self.text,
            n_input_tokens=self.n_input_tokens,
            n_output_tokens=self._n_deltas,
            error=error,
            metadata=self.asked.metadata,
            max_tokens=self.asked.max_tokens,
        )
        with contextlib.suppress(VoicepodError):  # the item was deleted, or never begun
            conversation = self._parts.conversation
            item = conversation.write(self.item_id, status="completed" if status == "completed" else "incomplete")
            done = events.ItemDone(
                at_s=now_s,
                turn_id=self.turn_id,
                item=item,
                previous_item_id=conversation.previous_id(self.item_id),
            )
            self._parts.tell(done, behind_audio=behind_audio)
        self._parts.tell(finished, behind_audio=behind_audio)

    async def _played_out(self) -> None:
        """Wait until the audio was heard, by the client's reports or our clock."""
        playout, clock = self.playout, self._parts.clock
        while not playout.is_done(clock()):
            playout.changed.clear()
            waits_for_reader = playout.sent_samples < playout.made_samples
            timeout_s = None if waits_for_reader else max(playout.seconds_left(clock()), 0.02)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(playout.changed.wait(), timeout_s)

    def _priority(self) -> tuple[int, float]:
        if not self.has_audio:
            return (lanes.FIRST_AUDIO, 0.0)
        return (lanes.LATER_AUDIO, self.playout.ahead_s(self._parts.clock()))
