"""A session: one person's talk, from the first frame to the last, over as many sockets as it takes.

The socket (`api/realtime.py`) hands each frame of the microphone to `feed`, a plain call:

    feed -> _speech_ended -> _commit -> _take_turn (turn.transcribe) -> _answer
         -> _reply -> _run_response (Llm.reply) -> Response.run (turn.speak) -> outbox

Each utterance has a task, `_take_turn`, until its words are known; each reply has another, `_run_response`, until it
was heard. The socket's own task reads the outbox and writes.

The listener finds where speech begins and ends. Speech that begins while a reply is heard cuts it
(`_speech_started`, `Response.cut`); when it turns out to be no words, `_go_on` says the rest.
The session wires these parts and owns none of their logic.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pipeline import events
from pipeline.audio import AudioChunk
from pipeline.conversation import Conversation, Item
from pipeline.echo import HEARD_S, MAX_DELAY_S, is_echo, sounds_like
from pipeline.endpointing import EndpointRules
from pipeline.engines import lanes
from pipeline.engines.base import Engines, Message, Voice
from pipeline.errors import EngineError, EngineTimeout, InvalidInput, RateLimited, VoicepodError
from pipeline.events import AgentState, Event, ReplyReason, UserState
from pipeline.hums import goes_on
from pipeline.listening import Heard, Listener
from pipeline.options import ReplyOptions, SessionOptions
from pipeline.outbox import Outbox
from pipeline.prompt import Prompt, instructions_for, voice_for
from pipeline.records import TurnRecord
from pipeline.response import Parts, Response
from pipeline.turn import Waits, engine_failure, first_error, transcribe, work_of
from pipeline.utterance import Utterance

if TYPE_CHECKING:
    from settings import TurnSettings, VadSettings

# Responses whose playout is kept, for late reports and truncations of what was heard.
REMEMBERED_RESPONSES = 32
MIN_COMMIT_S = 0.1
# A client that commits faster than the ASR can follow is told so, instead of filling the lane that all talks share.
MAX_WAITING_UTTERANCES = 8
# Words that begin so soon after a reply and stand in it are its echo. Its sound is looked for longer (`MAX_DELAY_S`):
# the same words may be the user's own answer ("the red one or the blue one?"), which begins half a second later.
ECHO_TAIL_S = 0.4
# Of shorter speech Whisper cannot tell the language: it is right about 10 of 28 French words and 8 of 28 Spanish ones,
# and nearly all sentences (docs/measurements.md).
MIN_LANGUAGE_S = 1.3
# A player may be ahead of what we know of it.
PLAYER_AHEAD_S = 0.3


# What became of an utterance's audio.
Understood = Literal["words", "nothing"] | VoicepodError


def new_id(kind: str) -> str:
    """A fresh id, such as item_3f9a0c."""
    return f"{kind}_{secrets.token_hex(10)}"


class Session:
    """The conversation engine of one person. Every public method but `run` is a plain call on its event loop."""

    def __init__(
        self,
        session_id: str,
        engines: Engines,
        options: SessionOptions,
        *,
        turn: TurnSettings,
        vad: VadSettings,
        history_tokens: int,
        max_reply_tokens: int,
        max_lead_s: float,
        clock: Callable[[], float],
        new_id: Callable[[str], str] = new_id,
        observers: Sequence[Callable[[Session, Event], None]] = (),
        voices: Callable[[], Mapping[str, Voice]] | None = None,
    ) -> None:
        """`voices` gives those that may be chosen now, by id; None: the engine's. `options.voice` is always there."""
        self.id, self.options = session_id, options
        self._first_voice = options.voice
        self._voices = voices or (lambda: {voice.id: voice for voice in engines.tts.info.voices})
        self.conversation = Conversation()
        self.outbox = Outbox(clock, max_audio_s=turn.max_pending_audio_s, max_lead_s=max_lead_s)
        self.n_turns = 0
        self._engines, self._clock, self._new_id, self._observers = engines, clock, new_id, tuple(observers)
        self._turn, self._vad = turn, vad
        self._prompt = Prompt(engines.llm, self.conversation, max_tokens=history_tokens)
        self._max_reply_tokens = max_reply_tokens
        waits = Waits.from_settings(turn)
        self._parts = Parts(
            engines, self.conversation, self._add, self.outbox, self._tell, self._show_state, clock, new_id, turn, waits
        )
        self._latest: Response | None = None  # may have ended
        self._responses: OrderedDict[int, Response] = OrderedDict()  # by turn; the last ones, most of them ended
        self._speech: Utterance | None = None  # the one that is being spoken
        self._language: str | None = None  # that the user spoke last, where it could be told
        self._untranscribed: list[Utterance] = []
        self._state: tuple[UserState, AgentState] = ("silent", "idle")
        self._listener = Listener(
            engines.vad,
            self._rules(),
            input_rate=options.input_sample_rate,
            prefix_s=self._prefix_s(),
            max_utterance_s=turn.max_utterance_s,
        )
        self._listener.detects = options.turn_detection is not None
        self._tasks: asyncio.TaskGroup | None = None
        self._closed = asyncio.Event()

    # --- life

    async def run(self) -> None:
        """Own the session's tasks until `close`; leaves none behind."""
        with contextlib.suppress(_Closing):
            try:
                async with asyncio.TaskGroup() as self._tasks:
                    await self._closed.wait()
                    raise _Closing
            except BaseExceptionGroup as group:
                raise first_error(group) from None
            finally:
                self._tasks = None

    def close(self) -> None:
        """End the session: what is being said or made is stopped."""
        self.cancel_replies()
        self._closed.set()

    @property
    def state(self) -> tuple[UserState, AgentState]:
        """What the user and the agent do; a page derives what it shows."""
        return self._state

    # --- the way in

    def feed(self, chunk: AudioChunk) -> None:
        """Take a frame at the input rate, half a second at most. `TooLarge`: commit or clear the full buffer first."""
        self._listener.rules = self._rules()
        try:
            self._hear(chunk)
        except EngineError as error:
            self._ear_failed(error)

    def _hear(self, chunk: AudioChunk) -> None:
        for heard in self._listener.feed(chunk):
            if heard.endpoint.kind == "started" and self._is_our_voice():
                self._listener.disregard()
            elif heard.endpoint.kind == "started":
                self._speech_started(heard)
            elif heard.endpoint.kind == "ended":
                self._speech_ended(heard)
            self._listener.rules = self._rules()

    def _ear_failed(self, error: EngineError) -> None:
        """What was being said is lost; the words before it have their answer."""
        utterance, self._speech = self._speech or self._new_utterance(), None
        self._turn_failed(utterance, error)
        self._answer_overtaken(utterance, None)
        self._show_state()

    def commit(self) -> None:
        """The client ends the utterance itself; it asks for the reply with `respond`."""
        if self._listener.buffered_s < MIN_COMMIT_S:
            raise InvalidInput(
                "the audio buffer is too small to commit: at least 100 ms are needed",
                code="input_audio_buffer_commit_empty",
            )
        if len(self._untranscribed) >= MAX_WAITING_UTTERANCES:
            raise RateLimited("too many utterances wait to be transcribed", retry_after_s=1.0)
        utterance = self._speech or self._new_utterance()
        self._speech = None
        self._commit(utterance, self._listener.take(), respond=False)

    def clear(self) -> None:
        """Forget the audio that was not committed."""
        self._listener.clear()
        if self._speech is not None:
            utterance, self._speech = self._speech, None
            self._drop(utterance, "cleared")
            self._go_on(utterance)
        self._show_state()

    def cancel_replies(self, reason: ReplyReason = "client_cancelled", *, response_id: str | None = None) -> bool:
        """The client stops what is made, heard or about to be answered, now. False when there is nothing.

        With `response_id` only that one: a client that is told late of a response must not stop the next.
        """
        unfinished = [one for one in self._unfinished_responses() if response_id in (None, one.id)]
        for response in unfinished:
            response.cut(reason)
        awaited = [u for u in self._untranscribed if u.wants_reply and not u.superseded and response_id is None]
        for utterance in awaited:
            self._take_back(utterance, reason)
        self._show_state()
        return bool(unfinished or awaited)

    def _take_back(self, utterance: Utterance, reason: ReplyReason) -> None:
        """No reply to these words, which are not known yet and are kept."""
        utterance.wants_reply, utterance.cancelled = False, True
        utterance.overtook, utterance.cut = [], None  # noise that comes now brings back none of them
        self._cut_awaited(utterance, reason)

    def _cut_awaited(self, utterance: Utterance, reason: ReplyReason) -> None:
        """The response to words that are not known yet is over."""
        self._response_without_words(utterance).cut(reason)

    # --- the history, the options, a reply on request

    def update(self, options: SessionOptions) -> None:
        """Use these options from the next frame and the next turn on."""
        self.options = options
        self._listener.set_input_rate(options.input_sample_rate)
        self._listener.prefix_s = self._prefix_s()
        detects = options.turn_detection is not None
        if detects != self._listener.detects:
            self._listener.detects = detects
            self.clear()
        self._tell(events.OptionsChanged(at_s=self._clock()))

    def check_voice(self) -> None:
        """Go back to the voice that the session began with when the chosen one is no longer there."""
        voices = self._voices()
        if self.options.voice not in voices and self._first_voice in voices:
            self.update(replace(self.options, voice=self._first_voice))

    def add_item(self, item: Item, *, after: str | None = None) -> None:
        """Put a message into the history."""
        previous_item_id = self.conversation.add(item, after=after)
        now_s = self._clock()
        self._tell(events.ItemAdded(at_s=now_s, item=item, previous_item_id=previous_item_id))
        self._tell(events.ItemDone(at_s=now_s, item=item, previous_item_id=previous_item_id))

    def delete_item(self, item_id: str) -> None:
        """Take a message out of the history."""
        self.conversation.delete(item_id)
        self._tell(events.ItemDeleted(at_s=self._clock(), item_id=item_id))

    def truncate(self, item_id: str, audio_end_ms: int) -> None:
        """Fix how much of an assistant item was heard, by the client's word; what is still being heard is cut."""
        self.conversation.get(item_id)
        response = next((r for r in self._responses.values() if r.item_id == item_id), None)
        if response is None or not response.spoken:
            raise InvalidInput("this item has no audio that could be truncated", param="item_id")
        playout = response.playout
        sample = audio_end_ms * playout.sample_rate // 1000
        if not 0 <= sample <= playout.made_samples:
            made_ms = playout.made_samples * 1000 // playout.sample_rate
            raise InvalidInput(f"audio_end_ms is outside the item's {made_ms} ms of audio", param="audio_end_ms")
        if not response.finished.is_set():
            for unfinished in self._unfinished_responses():
                unfinished.cut("client_cancelled")
            self._show_state()
        response.keep_heard(sample)

    def respond(self, how: ReplyOptions | None = None) -> None:
        """Reply to the history as it stands, once all that was said is written there."""
        how = replace(how or ReplyOptions(), requested=True)
        waiting = [utterance for utterance in self._untranscribed if not utterance.superseded]
        is_active = self._latest is not None and self._latest.is_active
        if is_active or any(utterance.requested for utterance in waiting):
            raise InvalidInput("a response is active already", code="conversation_already_has_active_response")
        if waiting:  # committed a moment ago: its words come first, and its turn gets the reply
            utterance = waiting.pop()
            self._overtake(utterance, waiting)
            if utterance.cancelled:  # its turn was told to be over
                utterance.cancelled, utterance.record = False, self._record_from_now()
            utterance.wants_reply = True
            utterance.followed = self._has_messages_behind(utterance.item_id)
            utterance.asked = how
            self._show_state()
        else:
            self._reply(self._record_from_now(), how)

    # --- what the client tells of its playback

    def played(self, turn_id: int, played_samples: int, *, started_ago_s: float | None = None) -> None:
        """The client has played so many samples of a turn; its first sample sounded `started_ago_s` ago."""
        response = self._responses.get(turn_id)
        if response is None:
            return
        now_s, playout = self._clock(), response.playout
        if started_ago_s is not None and played_samples > 0:
            response.record.mark("first_heard", now_s - started_ago_s)
        if playout.cut_at is None:
            playout.report(played_samples, now_s)
        elif played_samples != playout.cut_at and 0 <= played_samples <= playout.sent_samples:
            playout.cut_at = played_samples  # the truth replaces our estimate
            response.keep_heard(played_samples)

    def hold(self) -> None:
        """The socket is gone: what was sent and not reported counts as not heard any further."""
        for response in self._unfinished_responses():
            response.playout.hold(self._clock())

    def replay(self, turn_id: int = 0, sample: int = -1) -> None:
        """A new socket took over: send again what the old one lost, from `sample` of `turn_id` on."""
        for response in reversed(self._unfinished_responses()):  # each goes in front of what waits
            response.playout.go_on(self._clock())
            known = turn_id == response.turn_id and sample >= 0
            self.outbox.rewind(response.playout, sample if known else response.playout.position(self._clock()))

    # --- from speech to words

    @property
    def _is_guarded(self) -> bool:
        """Whether the microphone may hear our loudspeaker."""
        return self._turn.echo_guard and not self.options.headphones

    def _is_our_voice(self) -> bool:
        """Whether what begins to sound like speech is a reply, come back through the microphone."""
        if not self._is_guarded:
            return False
        now_s, heard = self._clock(), self._listener.so_far
        return any(
            sounds_like(heard, response.playout.around(now_s, HEARD_S + MAX_DELAY_S, PLAYER_AHEAD_S))
            for response in self._responses.values()
            if response.has_audio and not self._has_died_away(response)
        )

    def _has_died_away(self, response: Response) -> bool:
        return response.finished.is_set() and self._clock() > response.finished_at_s + MAX_DELAY_S

    def _speech_started(self, heard: Heard) -> None:
        now_s = self._clock()
        self._speech = utterance = self._new_utterance()
        utterance.onset_s, utterance.onset_at_s = heard.endpoint.at_s, self._captured_at_s(heard.endpoint.at_s)
        self._tell(
            events.SpeechStarted(
                at_s=now_s,
                turn_id=utterance.record.turn_id,
                audio_s=heard.endpoint.at_s,
                item_id=utterance.item_id,
            )
        )
        detection = self.options.turn_detection
        if detection is not None and detection.interrupt_response:
            for response in self._unfinished_responses():
                response.record.barge_in_stop_s = now_s - self._captured_at_s(heard.endpoint.at_s)
                response.cut("turn_detected")
                utterance.cut = response  # the newest: of an older one nothing is said again
            waiting = [earlier for earlier in self._untranscribed if not earlier.superseded]
            self._overtake(utterance, waiting)
            for earlier in waiting:
                if earlier.requested:
                    self._cut_awaited(earlier, "turn_detected")
                    earlier.record = self._record_from_now()
        self._show_state()

    def _overtake(self, utterance: Utterance, waiting: Sequence[Utterance]) -> None:
        """It answers what these words ask as well."""
        for earlier in waiting:
            earlier.superseded = True
            utterance.overtook.append(earlier)

    def _speech_ended(self, heard: Heard) -> None:
        utterance, self._speech = self._speech, None
        if utterance is None or heard.utterance is None:
            return
        now_s = self._clock()
        utterance.record.mark("speech_ended", self._captured_at_s(heard.endpoint.at_s))
        utterance.record.mark("endpointed", now_s)
        utterance.speech_s = heard.endpoint.at_s - utterance.onset_s
        self._tell(
            events.SpeechStopped(
                at_s=now_s,
                turn_id=utterance.record.turn_id,
                audio_s=self._listener.audio_s,
                item_id=utterance.item_id,
            )
        )
        if utterance.speech_s < self._turn.min_utterance_ms / 1000:
            self._drop(utterance, "no_speech")
            self._go_on(utterance)
            self._show_state()
            return
        detection = self.options.turn_detection
        self._commit(utterance, heard.utterance, respond=detection is not None and detection.create_response)

    def _commit(self, utterance: Utterance, audio: AudioChunk, *, respond: bool) -> None:
        """The utterance becomes an item; its place in the history is fixed before its words are known."""
        now_s, turn_id = self._clock(), utterance.record.turn_id
        utterance.record.mark("speech_ended", now_s)  # the first mark stands: the endpoint's, where there was one
        utterance.record.utterance_s = audio.seconds
        utterance.wants_reply = respond
        item = Item(utterance.item_id, "user", "", status="in_progress", spoken=True)
        before = self._add(item)
        self._tell(events.UtteranceCommitted(at_s=now_s, turn_id=turn_id, item_id=item.id, previous_item_id=before))
        self._tell(events.ItemAdded(at_s=now_s, turn_id=turn_id, item=item, previous_item_id=before))
        earlier = tuple(self._untranscribed)  # taken now: a second commit may come before the task first runs
        self._untranscribed.append(utterance)
        self._spawn(self._take_turn(utterance, audio, earlier))
        self._show_state()

    async def _take_turn(self, utterance: Utterance, audio: AudioChunk, earlier: Sequence[Utterance]) -> None:
        """Transcribe, then begin the reply. An interruption stops no transcription: what was said is not lost."""
        # What the lanes of the engines read of the task that asks: somebody waits for it.
        lanes.job_priority.set(lambda: (lanes.FIRST_AUDIO, 0.0))
        lanes.work_told.set(utterance.record.note_work)
        outcome = await self._transcribe(utterance, audio)
        for other in earlier:  # their words stand before ours in the history
            await other.transcribed.wait()
        self._untranscribed.remove(utterance)
        utterance.transcribed.set()
        if self._closed.is_set():
            return
        if utterance.superseded:  # the later utterance answers both
            if isinstance(outcome, VoicepodError) and not utterance.cancelled:
                self._turn_failed(utterance, outcome)
        elif not utterance.cancelled:
            self._answer(utterance, outcome)
        self._show_state()

    def _answer(self, utterance: Utterance, outcome: Understood) -> None:
        """The transcription has ended: reply, or go on with what the utterance held up."""
        if outcome == "words" or utterance.followed:
            if utterance.wants_reply:
                self._reply(utterance.record, utterance.asked)
        elif isinstance(outcome, VoicepodError):
            if utterance.requested:
                self._fail_requested_reply(utterance, outcome)
            else:
                self._turn_failed(utterance, outcome)
            self._answer_overtaken(utterance, None)  # its own record has told the failure
        elif not utterance.requested:
            self._go_on(utterance)
        elif not self._answer_overtaken(utterance, utterance.record):
            self._fail_requested_reply(utterance, InvalidInput("no words were heard in the audio", code="no_speech"))

    async def _transcribe(self, utterance: Utterance, audio: AudioChunk) -> Understood:
        """Write the user's words into the history."""
        turn_id, item_id = utterance.record.turn_id, utterance.item_id
        is_long = min(utterance.speech_s, audio.seconds) >= MIN_LANGUAGE_S
        language = self.options.language or (None if is_long else self._language)
        try:
            transcript = await transcribe(self._engines.asr, audio, language=language, waits=self._parts.waits)
        except Exception as error:  # boundary: the turn fails, the session lives on
            failure = error if isinstance(error, VoicepodError) else engine_failure(error, "asr")
            utterance.wants_reply = utterance.followed
            self._end_item(turn_id, item_id, content="", completed=False)
            failed = events.TranscriptFailed(at_s=self._clock(), turn_id=turn_id, item_id=item_id, error=failure)
            self._tell(failed)
            return failure
        now_s = self._clock()
        utterance.record.mark("asr_done", now_s)
        reason = self._why_nothing(utterance, transcript.text)
        if reason is not None:
            with contextlib.suppress(VoicepodError):  # the client may have deleted it
                self.delete_item(item_id)
            self._drop(utterance, reason)
            return "nothing"
        utterance.said = True
        if is_long:
            self._language = transcript.language
        self._tell(events.TranscriptReady(at_s=now_s, turn_id=turn_id, item_id=item_id, transcript=transcript))
        self._end_item(turn_id, item_id, content=transcript.text, completed=True)
        return "words"

    def _turn_failed(self, utterance: Utterance, error: VoicepodError) -> None:
        now_s, record = self._clock(), utterance.record
        self._tell(events.TurnFailed(at_s=now_s, turn_id=record.turn_id, error=error))
        record.outcome, record.error_code = "failed", error.code
        self._tell(events.TurnDone(at_s=now_s, turn_id=record.turn_id, record=record))

    def _why_nothing(self, utterance: Utterance, text: str) -> events.DropReason | None:
        if not text.strip():
            return "no_speech"
        cut = utterance.cut
        if cut is not None and cut.spoken:  # of a reply in text nothing would be said again
            unheard = cut.unheard()
            if unheard.strip() and goes_on(text, cut.text.removesuffix(unheard), unheard):
                return "no_speech"
        if self._is_guarded and any(is_echo(text, reply.text) for reply in self._in_the_microphone(utterance)):
            return "echo"
        return None

    def _in_the_microphone(self, utterance: Utterance) -> Iterator[Response]:
        """Replies whose sound it may have picked up: still heard when the speech began, or only just ended."""
        for response in self._responses.values():
            end_s = response.finished_at_s if response.finished.is_set() else self._clock()
            if response.has_audio and utterance.onset_at_s < end_s + ECHO_TAIL_S:
                yield response

    def _drop(self, utterance: Utterance, reason: events.DropReason) -> None:
        self._tell(
            events.UtteranceDropped(
                at_s=self._clock(), turn_id=utterance.record.turn_id, item_id=utterance.item_id, reason=reason
            )
        )

    def _go_on(self, utterance: Utterance) -> None:
        """It was no interruption: answer the words that it held up, or say the rest of the reply that it cut."""
        if self._answer_overtaken(utterance, utterance.record):
            return
        both = (utterance, *utterance.all_overtaken())
        cut = next((other.cut for other in both if other.cut is not None), None)
        if cut is None or any(other.said for other in both):  # words cut it, and ask for no reply
            return
        if not cut.text:  # it was cut before its first word: made anew
            self._reply(utterance.record, replace(cut.asked.once_more(), spoken=cut.spoken))
        elif cut.spoken and cut.unheard().strip():
            self._reply(utterance.record, ReplyOptions(text=cut.unheard(), spoken=True))

    def _answer_overtaken(self, utterance: Utterance, record: TurnRecord | None) -> bool:
        """Reply to the words that waited for this utterance, or leave it to their own task when they are not known yet.

        None: a new record. False when no words waited.
        """
        overtaken = utterance.all_overtaken()
        for other in overtaken:
            if other in self._untranscribed:  # what it said is not known yet: it takes its place again
                other.superseded, other.cut = False, other.cut or utterance.cut
                return True
        waiting = [other for other in overtaken if (other.said or other.followed) and other.wants_reply]
        if waiting:
            asked = utterance.asked if utterance.requested else waiting[0].asked
            self._reply(record or self._record_from_now(), asked)
        return bool(waiting)

    def _fail_requested_reply(self, utterance: Utterance, error: VoicepodError) -> None:
        """The client asked for a reply to words that are none: its response ends, and says why."""
        self._latest = self._response_without_words(utterance)
        self._spawn(self._latest.fail(error))

    def _response_without_words(self, utterance: Utterance) -> Response:
        """What ends in the place of the reply; one that comes later was not asked for."""
        asked, utterance.asked = utterance.asked, utterance.asked.once_more()
        return Response(self._parts, utterance.record, asked, spoken=False, sample_rate=self.options.output_sample_rate)

    # --- from words to speech

    def _reply(self, record: TurnRecord, how: ReplyOptions) -> None:
        if self.outbox.is_stale(record.turn_id):  # a later turn was stopped while these words were being spoken
            record.turn_id = self._next_turn_id()
        spoken = self.options.modality == "audio" if how.spoken is None else how.spoken
        response = Response(self._parts, record, how, spoken=spoken, sample_rate=self.options.output_sample_rate)
        previous, self._latest = self._latest, response
        for earlier in self._responses.values():
            if self._has_died_away(earlier):
                earlier.playout.forget_heard()
        self._responses[record.turn_id] = response
        while len(self._responses) > REMEMBERED_RESPONSES:
            self._responses.popitem(last=False)
        response.task = self._spawn(self._run_response(response, previous))
        self._show_state()

    async def _run_response(self, response: Response, previous: Response | None) -> None:
        self.check_voice()
        options, how = self.options, response.asked
        limit = how.max_tokens or options.max_output_tokens
        max_tokens = limit if isinstance(limit, int) else self._max_reply_tokens
        try:
            if previous is not None:  # it may still be heard, when nothing interrupted it
                await previous.finished.wait()
                self.check_voice()
                options = replace(options, voice=self.options.voice)
            voice = voice_for(options, self._voices())
            if how.text is None:
                messages, response.n_input_tokens = await self._what_the_model_reads(
                    how.instructions or instructions_for(options, voice)
                )
                deltas = self._engines.llm.reply(messages, max_tokens=max_tokens)  # begins when `Response.run` reads it
            else:
                deltas = _one(how.text)
            await response.run(deltas, voice=voice, max_tokens=max_tokens)
        except Exception as error:  # boundary: the turn fails, the session lives on
            cause = first_error(error)
            await response.fail(cause if isinstance(cause, VoicepodError) else engine_failure(cause, "reply"))

    async def _what_the_model_reads(self, instructions: str) -> tuple[Sequence[Message], int]:
        """The history that fits, and its tokens."""
        try:
            async with asyncio.timeout(self._parts.waits.first_token_s):
                with work_of("llm"):
                    messages = await self._prompt.messages(instructions)
                    return messages, await self._prompt.n_tokens(messages)
        except TimeoutError as error:
            raise EngineTimeout("the language model took too long", stage="llm") from error

    # --- small things

    def _next_turn_id(self) -> int:
        self.n_turns += 1
        return self.n_turns

    def _new_record(self) -> TurnRecord:
        return TurnRecord(self._next_turn_id())

    def _record_from_now(self) -> TurnRecord:
        """For a reply that no utterance begins."""
        record = self._new_record()
        record.mark("speech_ended", self._clock())
        return record

    def _new_utterance(self) -> Utterance:
        return Utterance(self._new_id("item"), self._new_record())

    def _add(self, item: Item) -> str | None:
        """Write what is being said; a talk goes on when its history is full, and the oldest item makes room."""
        while self.conversation.is_full:
            self.delete_item(next(iter(self.conversation)).id)
        return self.conversation.add(item)

    def _has_messages_behind(self, item_id: str) -> bool:
        behind = itertools.dropwhile(lambda item: item.id != item_id, self.conversation)
        return any(item.role != "assistant" for item in behind if item.id != item_id)

    def _end_item(self, turn_id: int, item_id: str, *, content: str, completed: bool) -> None:
        with contextlib.suppress(VoicepodError):  # the client deleted it meanwhile
            item = self.conversation.write(item_id, content=content, status="completed" if completed else "incomplete")
            before = self.conversation.previous_id(item_id)
            self._tell(events.ItemDone(at_s=self._clock(), turn_id=turn_id, item=item, previous_item_id=before))

    def _captured_at_s(self, audio_s: float) -> float:
        """When the audio of `audio_s` came in, if it came in real time."""
        return self._clock() - (self._listener.audio_s - audio_s)

    def _prefix_s(self) -> float:
        detection = self.options.turn_detection
        return (self._vad.prefix_ms if detection is None else detection.prefix_ms) / 1000

    def _rules(self) -> EndpointRules:
        """What counts as speech now: more is asked while the assistant speaks and could hear itself."""
        detection, vad = self.options.turn_detection, self._vad
        threshold = vad.threshold if detection is None else detection.threshold
        end_wait_s = (self._turn.end_wait_ms if detection is None else detection.silence_ms) / 1000
        if self._is_guarded and self._agent_state() == "speaking":
            least_s = vad.speaking_min_speech_ms / 1000
            return EndpointRules(max(threshold, vad.speaking_threshold), least_s, end_wait_s)
        return EndpointRules(threshold, vad.min_speech_ms / 1000, end_wait_s)

    def _unfinished_responses(self) -> list[Response]:
        """What is made or heard, oldest first: usually one, two when a reply waits for the one before it to end."""
        return [response for response in self._responses.values() if not response.finished.is_set()]

    def _agent_state(self) -> AgentState:
        if unfinished := self._unfinished_responses():
            return "speaking" if any(response.has_audio for response in unfinished) else "thinking"
        return "thinking" if any(u.wants_reply and not u.superseded for u in self._untranscribed) else "idle"

    def _show_state(self) -> None:
        state: tuple[UserState, AgentState] = ("silent" if self._speech is None else "speaking", self._agent_state())
        if state != self._state:
            self._state = state
            self._tell(events.StateChanged(at_s=self._clock(), user=state[0], agent=state[1]))

    def _tell(self, event: Event, *, behind_audio: bool = False) -> None:
        self.outbox.put(event, behind_audio=behind_audio)
        for observer in self._observers:
            observer(self, event)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._tasks is None or self._closed.is_set():
            work.close()
            raise InvalidInput("the session is closed", code="session_closed")
        return self._tasks.create_task(work)


class _Closing(Exception):
    """Ends the session's task group."""


async def _one(text: str) -> AsyncIterator[str]:
    yield text
