"""Talks at the edges: engines that misbehave, calls that come at a bad moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from api.wire_out import Writer
from pipeline import events
from pipeline.audio import AudioChunk, Samples
from pipeline.conversation import MAX_ITEMS, Item
from pipeline.engines.base import Message, SpeechChunk, SpeechPiece, Transcript, Voice
from pipeline.errors import EngineFailed, EngineTimeout, InvalidInput, TooLarge
from pipeline.options import ReplyOptions, TurnDetection
from tests.support.scripted import (
    SECONDS_PER_CHAR,
    TTS_RATE,
    ScriptedAsr,
    ScriptedLlm,
    ScriptedTts,
    ScriptedVad,
    ScriptedVadStream,
)
from tests.support.talk import IN_RATE, Talk

pytestmark = pytest.mark.looptime(noop_cycles=2)

STORY = (
    "Once upon a time there was a small house by the sea. An old man lived there with his dog. "
    "Every morning they walked along the beach, and every evening they watched the ships go by."
)
SLOW_TO_END = TurnDetection(0.5, 300, 600, interrupt_response=False)


class SlowAsr(ScriptedAsr):
    """Takes as long as the script says for each utterance."""

    def __init__(self, *script: tuple[str, float]) -> None:
        super().__init__()
        self.script = list(script)
        self.error: Exception | None = None

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        self.utterances.append(utterance)
        text, seconds = self.script.pop(0)
        await asyncio.sleep(seconds)
        if self.error is not None:
            raise self.error
        return Transcript(text, "en", audio_seconds=utterance.seconds)


class ListedLlm(ScriptedLlm):
    """Gives the deltas of a list as they are."""

    deltas: Sequence[str] = ()

    async def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncIterator[str]:
        self.asked.append(tuple(messages))
        for delta in self.deltas:
            yield delta


class OddTts(ScriptedTts):
    """Half a second for each piece, with one thing wrong."""

    samples = np.full(TTS_RATE // 2, 0.25, np.float32)
    rate = TTS_RATE
    shift = 0
    marks = True

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        async for piece in pieces:
            yield SpeechChunk(AudioChunk(self.samples, self.rate), piece.index + self.shift)
            if self.marks:
                yield SpeechChunk(AudioChunk.silence(0, self.rate), piece.index + self.shift, final=True)


def spoken_audio(seconds: float) -> AudioChunk:
    return AudioChunk(np.full(round(seconds * IN_RATE), 0.5, np.float32), IN_RATE)


def the_reply(talk: Talk) -> Item:
    return next(item for item in talk.session.conversation if item.role == "assistant")


# --- calls at a bad moment


async def test_two_utterances_committed_in_one_tick_both_get_their_words() -> None:
    async with Talk(said=["one", "two"], replies=["Three."], options={"turn_detection": None}) as talk:
        for _ in range(2):
            talk.session.feed(spoken_audio(0.5))
            talk.session.commit()
        talk.session.respond()
        await talk.quiet(20)
        assert talk.history() == [("user", "one"), ("user", "two"), ("assistant", "Three.")]


async def test_the_button_stops_the_reply_that_is_heard_and_the_one_that_waits_behind_it() -> None:
    talk = Talk(said=["tell me a story", "and then"], replies=[STORY, "Then."], options={"turn_detection": SLOW_TO_END})
    async with talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(1.0)
        await talk.say(0.6)
        await talk.hush(1.0)
        assert talk.session.state == ("silent", "speaking")
        assert talk.session.cancel_replies() is True
        await talk.quiet()
        assert {done.turn_id: done.record.outcome for done in talk.all(events.TurnDone)} == {
            1: "interrupted",
            2: "interrupted",
        }
        assert [(e.turn_id, e.status) for e in talk.all(events.ReplyFinished)] == [(1, "cancelled")]
        assert the_reply(talk).heard is not None
        assert talk.player.stale == 0


async def test_speech_that_may_not_interrupt_is_answered_after_the_reply() -> None:
    talk = Talk(said=["tell me a story", "and then"], replies=[STORY, "Then."], options={"turn_detection": SLOW_TO_END})
    async with talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(1.0)
        await talk.say(0.6)
        await talk.quiet()
        assert talk.history()[-1] == ("assistant", "Then.")
        assert [done.record.outcome for done in talk.all(events.TurnDone)] == ["completed", "completed"]
        assert talk.all(events.Flushed) == []


async def test_what_was_asked_for_one_reply_does_not_reach_the_next() -> None:
    async with Talk(said=["", "hello"]) as talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        talk.session.respond(ReplyOptions(instructions="Answer like a pirate."))
        await talk.quiet()
        await talk.say(0.6)
        await talk.quiet()
        assert [asked[0].content for asked in talk.llm.asked] == ["Be brief."]


async def test_what_was_asked_while_words_were_on_their_way_counts_for_their_reply() -> None:
    async with Talk(said=["hello"], options={"turn_detection": None}) as talk:
        talk.session.feed(spoken_audio(0.5))
        talk.session.commit()
        talk.session.respond(ReplyOptions(instructions="Answer like a pirate."))
        await talk.quiet()
        assert [asked[0].content for asked in talk.llm.asked] == ["Answer like a pirate."]


async def test_a_second_cough_before_the_first_was_understood_still_lets_the_reply_go_on() -> None:
    asr = SlowAsr(("tell me a story", 0.15), ("", 1.5), ("", 1.5))
    async with Talk(asr=asr, replies=[STORY]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(3.0)
        await talk.say(0.4)
        await talk.hush(0.8)
        await talk.say(0.4)
        await talk.quiet()
        assert len(talk.llm.asked) == 1
        cut, rest = (item for item in talk.session.conversation if item.role == "assistant")
        assert f"{(cut.heard or '').rstrip()} {rest.content.strip()}" == STORY


async def test_two_coughs_out_of_nothing_get_no_reply() -> None:
    asr = SlowAsr(("", 1.5), ("", 1.5))
    async with Talk(asr=asr) as talk:
        await talk.say(0.4)
        await talk.hush(0.8)
        await talk.say(0.4)
        await talk.quiet()
        assert talk.llm.asked == []


async def test_words_then_two_coughs_get_the_reply_to_the_words() -> None:
    asr = SlowAsr(("what is the capital", 1.0), ("", 2.0), ("", 2.0))
    async with Talk(asr=asr, replies=["Paris."]) as talk:
        await talk.say(0.4)
        for _ in range(2):
            await talk.hush(0.8)
            await talk.say(0.3)
        await talk.quiet()
        assert talk.history() == [("user", "what is the capital"), ("assistant", "Paris.")]


async def test_a_session_closed_while_it_transcribes_ends_at_once() -> None:
    talk = Talk(said=["tell me a story"])
    talk.asr.delay_s = 50
    async with talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        loop = asyncio.get_running_loop()
        closed_at = loop.time()
        talk.session.close()
        await asyncio.wait_for(talk._run, 5)
        assert loop.time() - closed_at < 0.1


async def test_a_closing_session_refuses_a_reply_instead_of_breaking() -> None:
    async with Talk() as talk:
        talk.session.close()
        with pytest.raises(InvalidInput, match="closed"):
            talk.session.respond()


async def test_a_reply_asked_for_and_cut_before_it_began_is_told_as_cancelled_and_has_one_record() -> None:
    async with Talk(said=["hello"]) as talk:
        talk.session.add_item(Item("item_a", "user", "hello"))
        talk.session.respond()
        assert talk.session.cancel_replies() is True
        await talk.quiet()
        assert [done.record.outcome for done in talk.all(events.TurnDone)] == ["interrupted"]
        assert [event.status for event in talk.all(events.ReplyFinished)] == ["cancelled"]
        assert len(talk.all(events.ReplyStarted)) == 1
        await talk.say(0.6)
        await talk.quiet()
        assert talk.all(events.TurnDone)[-1].record.outcome == "completed"


async def test_the_button_stops_a_reply_whose_question_is_not_understood_yet() -> None:
    asr = SlowAsr(("hello", 2.0), ("and now", 0.1))
    async with Talk(asr=asr, replies=["To both."]) as talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        assert talk.session.state == ("silent", "thinking")
        assert talk.session.cancel_replies() is True
        assert talk.session.state == ("silent", "idle")
        assert talk.session.cancel_replies() is False
        assert [done.record.outcome for done in talk.all(events.TurnDone)] == []
        await talk.until(events.TranscriptReady)
        await talk.quiet()
        assert talk.history() == [("user", "hello")]
        assert [done.record.outcome for done in talk.all(events.TurnDone)] == ["interrupted"]
        assert talk.all(events.ReplyStarted) == []
        await talk.say(0.6)
        await talk.quiet()
        assert talk.history() == [("user", "hello"), ("user", "and now"), ("assistant", "To both.")]


async def test_a_reply_asked_for_and_taken_back_before_the_words_are_known_is_told_as_cancelled() -> None:
    asr = SlowAsr(("hello", 2.0))
    async with Talk(asr=asr, replies=["Hi."], options={"turn_detection": None}) as talk:
        talk.session.feed(spoken_audio(0.5))
        talk.session.commit()
        talk.session.respond(ReplyOptions(metadata={"asked_as": "one"}))
        assert talk.session.cancel_replies() is True
        await talk.until(events.ReplyFinished)
        (finished,) = talk.all(events.ReplyFinished)
        assert (finished.status, finished.reason) == ("cancelled", "client_cancelled")
        assert finished.metadata == {"asked_as": "one"}
        assert [e.response_id for e in talk.all(events.ReplyStarted)] == [finished.response_id]
        talk.session.respond()  # and wanted again, as with a typed message behind the spoken words
        assert talk.session.state == ("silent", "thinking")
        await talk.quiet()
        assert talk.history()[0] == ("user", "hello")
        assert talk.history()[-1] == ("assistant", "Hi.")
        assert [(e.turn_id, e.record.outcome) for e in talk.all(events.TurnDone)] == [
            (1, "interrupted"),
            (2, "completed"),
        ]


async def test_a_cancellation_that_names_a_response_stops_no_other_and_no_words_that_wait_for_one() -> None:
    options = {"turn_detection": None, "modality": "text"}
    async with Talk(asr=SlowAsr(("hello", 2.0)), replies=["One.", "Two."], options=options) as talk:
        talk.session.add_item(Item("item_a", "user", "hi"))
        talk.session.respond()
        await talk.until(events.ReplyStarted)
        stopped = talk.all(events.ReplyStarted)[0].response_id
        assert talk.session.cancel_replies(response_id="resp_unknown") is False
        assert talk.session.cancel_replies(response_id=stopped) is True
        talk.session.feed(spoken_audio(0.5))
        talk.session.commit()
        talk.session.respond()
        assert talk.session.cancel_replies(response_id=stopped) is False
        await talk.quiet()
        assert [event.status for event in talk.all(events.ReplyFinished)] == ["cancelled", "completed"]


async def test_the_rest_of_a_reply_is_not_said_when_the_button_was_pressed_after_the_noise() -> None:
    async with Talk(asr=SlowAsr(("tell me a story", 0.1), ("", 2.0)), replies=[STORY]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(1.0)
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted, n=2)
        assert talk.session.cancel_replies() is True
        await talk.until(events.UtteranceDropped)
        await talk.quiet()
        assert len(talk.all(events.ReplyStarted)) == 1
        assert [(e.turn_id, e.record.outcome) for e in talk.all(events.TurnDone)] == [
            (1, "interrupted"),
            (2, "interrupted"),
        ]


async def test_noise_after_the_button_brings_back_neither_the_reply_that_was_cut_nor_an_answer() -> None:
    asr = SlowAsr(("tell me a story", 0.1), ("stop it", 1.5), ("", 2.0))
    async with Talk(asr=asr, replies=[STORY, "Why?"]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(1.0)
        await talk.say(0.6)  # words, which cut the reply
        await talk.until(events.UtteranceCommitted, n=2)
        talk.session.cancel_replies()
        await talk.say(0.4)
        await talk.until(events.UtteranceDropped)
        await talk.quiet()
        assert talk.history()[2:] == [("user", "stop it")]


async def test_noise_after_the_button_answers_nothing_that_was_said_before_it() -> None:
    asr = SlowAsr(("what is the capital", 1.0), ("", 1.5), ("", 2.0))
    async with Talk(asr=asr, replies=["Paris."]) as talk:
        await talk.say(0.4)
        await talk.hush(0.8)
        await talk.say(0.4)
        await talk.until(events.UtteranceCommitted, n=2)
        talk.session.cancel_replies()
        await talk.say(0.4)
        await talk.until(events.UtteranceDropped, n=2)
        await talk.quiet()
        assert talk.history() == [("user", "what is the capital")]


async def test_a_reply_that_was_taken_back_does_not_fail_as_well() -> None:
    asr = SlowAsr(("hello", 1.0))
    async with Talk(asr=asr) as talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        asr.error = EngineFailed("no", stage="asr")
        talk.session.cancel_replies()
        await talk.until(events.TranscriptFailed)
        await talk.quiet()
        assert [done.record.outcome for done in talk.all(events.TurnDone)] == ["interrupted"]
        assert talk.all(events.TurnFailed) == []


@pytest.mark.parametrize("taken_back", [True, False])
@pytest.mark.parametrize("fails", [True, False])
async def test_a_message_typed_while_noise_is_being_understood_is_answered(fails: bool, taken_back: bool) -> None:
    asr = SlowAsr(("", 1.0))
    async with Talk(asr=asr, replies=["Paris."]) as talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        asr.error = EngineFailed("no", stage="asr") if fails else None
        if taken_back:  # as the page does
            talk.session.cancel_replies()
        talk.session.add_item(Item("item_typed", "user", "what is the capital of France"))
        talk.session.respond()
        await talk.quiet()
        assert talk.history()[-2:] == [("user", "what is the capital of France"), ("assistant", "Paris.")]
        assert talk.all(events.TurnDone)[-1].record.outcome == "completed"
        assert talk.all(events.TurnFailed) == []
        assert talk.session.state == ("silent", "idle")


async def test_a_turn_that_was_taken_back_then_overtaken_and_fails_is_over_only_once() -> None:
    asr = SlowAsr(("hello", 1.5), ("and now", 2.0))
    async with Talk(asr=asr, replies=["Yes."]) as talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        talk.session.cancel_replies()
        await talk.say(0.6)
        asr.error = EngineFailed("no", stage="asr")
        await talk.until(events.TranscriptFailed)
        asr.error = None
        await talk.quiet()
        assert [(e.turn_id, e.record.outcome) for e in talk.all(events.TurnDone)] == [
            (1, "interrupted"),
            (2, "completed"),
        ]


async def test_a_message_typed_between_two_noises_is_answered() -> None:
    asr = SlowAsr(("", 1.0), ("", 1.0))
    async with Talk(asr=asr, replies=["Paris."]) as talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        talk.session.add_item(Item("item_typed", "user", "what is the capital of France"))
        talk.session.respond()
        await talk.say(0.8)
        await talk.quiet()
        assert talk.history()[0] == ("user", "what is the capital of France")
        assert talk.history()[-1] == ("assistant", "Paris.")
        assert [event.status for event in talk.all(events.ReplyFinished)] == ["cancelled", "completed"]


async def test_words_that_were_being_spoken_when_a_later_turn_was_stopped_get_a_reply_that_is_heard() -> None:
    async with Talk(said=["and what about this"], replies=[STORY, "That too."]) as talk:
        talk._microphone.extend([0.5] * 200)
        await talk.until(events.SpeechStarted)
        talk.session.add_item(Item("item_typed", "user", "tell me a story"))
        talk.session.respond()
        await talk.until(events.ReplyCaption)
        assert talk.session.cancel_replies() is True
        await talk.quiet()
        assert talk.history()[-1] == ("assistant", "That too.")
        last = talk.all(events.TurnDone)[-1].record
        assert (last.outcome, last.heard_s > 0) == ("completed", True)
        assert talk.player.stale == 0


@pytest.mark.parametrize(("second", "answered"), [("", "Paris."), ("of France", "Of France.")])
async def test_words_that_wait_for_a_reply_and_those_committed_behind_them_get_one_response(
    second: str, answered: str
) -> None:
    asr = SlowAsr(("what is the capital", 1.5), (second, 0.1))
    async with Talk(asr=asr, replies=["Paris." if not second else "Of France."]) as talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        await talk.hush(0.2)
        talk.session.commit()
        talk.session.respond(ReplyOptions(metadata={"asked_as": "one"}))
        await talk.quiet()
        (finished,) = talk.all(events.ReplyFinished)
        assert (finished.status, finished.text, finished.metadata) == ("completed", answered, {"asked_as": "one"})


async def test_a_second_reply_to_words_that_are_not_known_yet_is_refused() -> None:
    async with Talk(said=["one", "two"], options={"turn_detection": None}) as talk:
        for reply in range(2):
            talk.session.feed(spoken_audio(0.5))
            talk.session.commit()
            if reply:
                with pytest.raises(InvalidInput, match="active") as refused:
                    talk.session.respond()
                assert refused.value.code == "conversation_already_has_active_response"
            else:
                talk.session.respond()
        await talk.quiet()
        assert len(talk.all(events.ReplyFinished)) == 1


async def test_a_reply_asked_for_in_the_last_second_of_another_and_taken_back_is_told_as_cancelled() -> None:
    async with Talk(replies=["Yes."]) as talk:
        talk.session.respond()
        await talk.until(events.ReplyFinished)
        talk.session.respond(ReplyOptions(metadata={"asked_as": "two"}))
        assert talk.session.cancel_replies() is True
        await talk.quiet()
        assert [(e.status, e.metadata) for e in talk.all(events.ReplyFinished)] == [
            ("completed", None),
            ("cancelled", {"asked_as": "two"}),
        ]


@pytest.mark.parametrize("second", ["", "of France"])
async def test_a_reply_asked_for_and_interrupted_before_the_words_are_known_is_told_as_cancelled(second: str) -> None:
    asr = SlowAsr(("what is the capital", 1.5), (second, 0.1))
    async with Talk(asr=asr, replies=["Paris."]) as talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        talk.session.respond(ReplyOptions(instructions="Answer like a pirate.", metadata={"asked_as": "one"}))
        await talk.say(0.6)
        await talk.quiet()
        cut, made = talk.all(events.ReplyFinished)
        assert (cut.status, cut.reason, cut.metadata) == ("cancelled", "turn_detected", {"asked_as": "one"})
        assert (made.status, made.text, made.metadata) == ("completed", "Paris.", None)
        instructions = "Be brief." if second else "Answer like a pirate."  # noise brings back the reply that was meant
        assert talk.llm.asked[0][0].content == instructions


async def test_a_reply_asked_for_and_cut_before_its_first_word_is_made_anew_as_it_was_asked_for() -> None:
    async with Talk(said=[""], replies=["Arr.", "Arr."]) as talk:
        talk.llm.first_token_s = 1.0
        talk.session.add_item(Item("item_typed", "user", "hello"))
        talk.session.respond(ReplyOptions(instructions="Answer like a pirate.", metadata={"asked_as": "one"}))
        await talk.say(0.4)
        await talk.quiet()
        assert [asked[0].content for asked in talk.llm.asked] == ["Answer like a pirate."] * 2
        assert [e.metadata for e in talk.all(events.ReplyFinished)] == [{"asked_as": "one"}, None]


async def test_words_that_cut_a_reply_and_get_none_end_it_also_when_noise_follows() -> None:
    asr = SlowAsr(("tell me a story", 0.1), ("stop it please", 2.0), ("", 0.1))
    async with Talk(asr=asr, replies=[STORY]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(1.0)
        talk.session.update(replace(talk.session.options, turn_detection=TurnDetection(0.5, 300, 600, False)))
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted, n=2)
        await talk.say(0.4)
        await talk.until(events.TranscriptReady, n=2)
        await talk.quiet()
        assert talk.history()[2:] == [("user", "stop it please")]


async def test_a_truncation_of_what_is_heard_takes_back_no_reply_to_what_was_said_since() -> None:
    asr = SlowAsr(("tell me a story", 0.1), ("and then", 2.0))
    async with Talk(asr=asr, replies=[STORY, "Then."], options={"turn_detection": SLOW_TO_END}) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(1.0)
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted, n=2)
        talk.session.truncate(the_reply(talk).id, 500)
        await talk.quiet()
        assert talk.history()[-1] == ("assistant", "Then.")


async def test_a_talk_goes_on_when_its_history_is_full() -> None:
    async with Talk(said=["one more"], replies=["Good."]) as talk:
        for n in range(MAX_ITEMS):
            talk.session.conversation.add(Item(f"filler_{n}", "user", "filler"))
        await talk.say(0.6)
        await talk.quiet()
        assert talk.history()[-2:] == [("user", "one more"), ("assistant", "Good.")]
        assert [gone.item_id for gone in talk.all(events.ItemDeleted)] == ["filler_0", "filler_1"]
        assert len(talk.session.conversation) == MAX_ITEMS
        with pytest.raises(TooLarge, match="full"):
            talk.session.add_item(Item("item_typed", "user", "what a client adds is the client's to make room for"))


async def test_a_model_that_never_counts_fails_its_turn_and_not_the_talk() -> None:
    llm = ScriptedLlm(["Fine."])
    async with Talk(llm=llm, said=["hello", "again"], turn={"first_token_timeout_s": 2}) as talk:
        llm.counts = False
        await talk.say(0.6)
        failed = await talk.until(events.TurnFailed)
        assert (type(failed.error), failed.error.stage) == (EngineTimeout, "llm")
        llm.counts = True
        await talk.say(0.6)
        await talk.quiet()
        assert talk.history()[-1] == ("assistant", "Fine.")


async def test_an_utterance_deleted_while_it_is_transcribed_is_answered_from_what_is_left() -> None:
    async with Talk(said=["secret"], replies=["Yes?"]) as talk:
        talk.asr.delay_s = 0.5
        await talk.say(0.6)
        committed = await talk.until(events.UtteranceCommitted)
        assert isinstance(committed, events.UtteranceCommitted)
        talk.session.delete_item(committed.item_id)
        await talk.quiet()
        assert talk.history() == [("assistant", "Yes?")]
        assert talk.all(events.TurnFailed) == []


async def test_an_item_that_is_deleted_while_its_end_waits_behind_its_audio_is_not_told_as_done() -> None:
    async with Talk(replies=[STORY]) as talk:
        talk.session.respond()
        await talk.until(events.ReplyCaption)
        await talk.hush(6.0)  # all was made by now
        talk.session.delete_item(the_reply(talk).id)
        done = await talk.until(events.ItemDone)
        assert list(Writer(talk.session, dict).of_event(done)) == []


async def test_an_endless_utterance_is_taken_in_parts_and_answered_as_one() -> None:
    async with Talk(said=["first half", "second half"], replies=["Yes."], turn={"max_utterance_s": 2}) as talk:
        talk.asr.delay_s = 0.5
        await talk.say(3.5)
        await talk.quiet()
        assert talk.history() == [("user", "first half"), ("user", "second half"), ("assistant", "Yes.")]
        assert talk.asr.utterances[0].seconds == pytest.approx(2.0, abs=0.05)
        loud = sum(float((u.samples > 0.05).mean()) * u.seconds for u in talk.asr.utterances)
        assert loud == pytest.approx(3.5, abs=0.05)


async def test_a_long_utterance_reaches_the_ear_from_its_first_sample_to_its_last() -> None:
    async with Talk(said=["a long question"]) as talk:
        await talk.hush(1.0)
        await talk.say(5.0)
        await talk.quiet()
        samples = talk.asr.utterances[0].samples
        assert (samples > 0.25).sum() / 16000 == pytest.approx(5.0, abs=0.01)


async def test_words_cleared_by_the_client_hold_nothing_up() -> None:
    async with Talk(said=["what is the capital"], replies=["Paris."]) as talk:
        talk.asr.delay_s = 1.5
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        await talk.say(0.3)
        talk.session.clear()
        await talk.quiet()
        assert talk.history() == [("user", "what is the capital"), ("assistant", "Paris.")]


async def test_the_client_chooses_how_much_before_the_onset_is_kept() -> None:
    lengths = []
    for prefix_ms in (0, 300, 600):
        options = {"turn_detection": TurnDetection(0.5, prefix_ms, 600)}
        async with Talk(said=["hi"], options=options) as talk:
            await talk.hush(2.0)
            await talk.say(0.6)
            await talk.quiet()
            samples = talk.asr.utterances[0].samples
            lengths.append(int(np.argmax(samples > 0.05)) / 16000)
    assert lengths == [pytest.approx(s, abs=0.045) for s in (0.0, 0.3, 0.6)]


# --- engines that misbehave


async def test_empty_deltas_are_no_first_token_and_no_text() -> None:
    llm = ListedLlm()
    llm.deltas = ["", "", "Hello", "", " there."]
    async with Talk(llm=llm, options={"modality": "text"}) as talk:
        talk.session.add_item(Item("item_a", "user", "hi"))
        talk.session.respond()
        await talk.quiet()
        assert [event.delta for event in talk.all(events.ReplyText)] == ["Hello", " there."]
    async with Talk(llm=llm) as talk:
        talk.session.add_item(Item("item_a", "user", "hi"))
        talk.session.respond()
        await talk.quiet()
        assert talk.history()[-1] == ("assistant", "Hello there.")


@pytest.mark.parametrize("deltas", [[], [""], ["```\nprint(1)\n```"], ["🙂"]])
async def test_a_reply_with_nothing_to_say_ends_and_the_next_turn_works(deltas: list[str]) -> None:
    llm = ListedLlm()
    llm.deltas = deltas
    async with Talk(llm=llm) as talk:
        for _ in range(2):
            await talk.say(0.6)
            await talk.quiet()
        assert [done.record.outcome for done in talk.all(events.TurnDone)] == ["completed", "completed"]
        assert [event.text for event in talk.all(events.ReplyFinished)] == ["".join(deltas)] * 2
        assert talk.player.played == {}


async def test_audio_that_is_not_a_number_never_reaches_the_client() -> None:
    tts = OddTts()
    tts.samples = np.array([0.1, np.nan] * 100, np.float32)
    async with Talk(tts=tts, replies=["Hello."]) as talk:
        await talk.say(0.6)
        await talk.quiet()
        (failed,) = talk.all(events.TurnFailed)
        assert (type(failed.error), failed.error.stage) == (EngineFailed, "tts")
        assert talk.player.played == {}


@pytest.mark.parametrize("fault", ["rate", "piece"])
async def test_audio_at_a_wrong_rate_or_of_an_unknown_piece_is_the_engines_failure(fault: str) -> None:
    tts = OddTts()
    tts.rate, tts.shift = (8000, 0) if fault == "rate" else (TTS_RATE, 7)
    async with Talk(tts=tts, replies=["Hello."]) as talk:
        await talk.say(0.6)
        await talk.quiet()
        (failed,) = talk.all(events.TurnFailed)
        assert (type(failed.error), failed.error.stage) == (EngineFailed, "tts")
        assert talk.all(events.ReplyFinished)[0].status == "failed"


async def test_a_voice_that_forgets_the_end_marks_still_gives_a_true_history() -> None:
    tts = OddTts()
    tts.marks = False
    reply = "The first sentence is here now. The second sentence is here now. The third sentence is here now."
    async with Talk(tts=tts, replies=[reply]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption, n=3)
        await talk.hush(1.1)
        talk.session.cancel_replies()
        await talk.quiet()
        heard = the_reply(talk).heard
        assert heard is not None
        assert heard.startswith("The first sentence is here now. The second sentence is here now.")


async def test_what_a_failed_voice_never_said_is_not_remembered() -> None:
    tts = ScriptedTts(fail_on=lambda piece: EngineFailed("no", stage="tts") if piece.index == 1 else None)
    async with Talk(tts=tts, said=["tell me a story"], replies=[STORY]) as talk:
        await talk.say(0.6)
        await talk.quiet()
        captions = "".join(caption.text for caption in talk.all(events.ReplyCaption))
        assert STORY.startswith(captions)
        assert captions != STORY
        assert the_reply(talk).remembered == captions.rstrip() + "—"
        (done,) = talk.all(events.TurnDone)
        assert (done.record.outcome, done.record.error_code) == ("failed", "engine_failed")
        assert done.record.heard_s == pytest.approx(talk.player.played[1] / 24000, abs=0.01)


# --- what is passed on, and for how long is waited


async def test_language_and_speed_reach_the_engines() -> None:
    class NotingAsr(ScriptedAsr):
        language: str | None = "never asked"

        async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
            self.language = language
            return await super().transcribe(utterance, language=language)

    class NotingTts(ScriptedTts):
        voice: Voice | None = None

        def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
            self.voice = voice
            return super().synthesize(pieces, voice=voice)

    asr, tts = NotingAsr(["guten tag"]), NotingTts()
    async with Talk(asr=asr, tts=tts, options={"language": "de", "speed": 1.2}) as talk:
        await talk.say(0.6)
        await talk.quiet()
        assert asr.language == "de"
        assert tts.voice is not None
        assert (tts.voice.id, tts.voice.speed) == ("bruno", 1.2)


async def test_each_stage_that_hangs_in_the_middle_is_given_up_in_its_own_time() -> None:
    slow_asr = ScriptedAsr(delay_s=1000)
    async with Talk(asr=slow_asr, turn={"asr_timeout_s": 5}) as talk:
        await talk.say(0.6)
        failed = await talk.until(events.TranscriptFailed, timeout_s=8)
        assert isinstance(failed, events.TranscriptFailed)
        assert failed.error.code == "engine_timeout"
    slow_llm = ScriptedLlm(token_s=1000)
    async with Talk(llm=slow_llm, turn={"token_timeout_s": 5}) as talk:
        await talk.say(0.6)
        failed = await talk.until(events.TurnFailed, timeout_s=8)
        assert isinstance(failed, events.TurnFailed)
        assert failed.error.code == "engine_timeout"
    slow_tts = ScriptedTts(real_time_factor=5000)
    async with Talk(tts=slow_tts, turn={"audio_timeout_s": 5}) as talk:
        await talk.say(0.6)
        failed = await talk.until(events.TurnFailed, timeout_s=10)
        assert isinstance(failed, events.TurnFailed)
        assert failed.error.code == "engine_timeout"


class EmptyLlm(ScriptedLlm):
    """Goes on with deltas that hold nothing."""

    async def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncIterator[str]:
        for delta in self.replies:
            yield str(delta)
        while True:
            await asyncio.sleep(0.5)
            yield ""


class EmptyTts(ScriptedTts):
    """Goes on with chunks that hold nothing."""

    final = False

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        async for piece in pieces:
            while True:
                await asyncio.sleep(0.5)
                yield SpeechChunk(AudioChunk.silence(0, TTS_RATE), piece.index, final=self.final)


@pytest.mark.parametrize("modality", ["audio", "text"])
@pytest.mark.parametrize(("begins_with", "setting"), [([], "first_token_timeout_s"), (["Hello "], "token_timeout_s")])
async def test_a_model_that_gives_nothing_for_ever_is_given_up(
    begins_with: list[str | Exception], setting: str, modality: str
) -> None:
    async with Talk(llm=EmptyLlm(begins_with), turn={setting: 5}, options={"modality": modality}) as talk:
        await talk.say(0.6)
        failed = await talk.until(events.TurnFailed, timeout_s=8)
        assert (type(failed.error), failed.error.stage) == (EngineTimeout, "llm")


async def test_a_voice_that_gives_nothing_for_ever_is_given_up() -> None:
    async with Talk(tts=EmptyTts(), turn={"first_audio_timeout_s": 5}) as talk:
        await talk.say(0.6)
        failed = await talk.until(events.TurnFailed, timeout_s=8)
        assert (type(failed.error), failed.error.stage) == (EngineTimeout, "tts")


async def test_a_voice_that_ends_a_piece_again_and_again_is_given_up() -> None:
    tts = EmptyTts()
    tts.final = True
    async with Talk(tts=tts) as talk:
        await talk.say(0.6)
        failed = await talk.until(events.TurnFailed, timeout_s=8)
        assert (type(failed.error), failed.error.stage) == (EngineFailed, "tts")


@pytest.mark.parametrize("rate", [16000, 48000])
async def test_all_audio_arrives_at_the_rate_the_client_asked_for(rate: int) -> None:
    reply = "The capital of France is Paris."
    async with Talk(replies=[reply], options={"output_sample_rate": rate}) as talk:
        talk.session.add_item(Item("item_a", "user", "hi"))
        talk.session.respond()
        await talk.until(events.TurnDone)
        sent = talk.session._responses[1].playout.sent_samples
        assert sent == pytest.approx(len(reply) * SECONDS_PER_CHAR * rate, abs=2)


async def test_engines_are_closed_at_the_interruption_and_not_some_time_later() -> None:
    async with Talk(said=["tell me a story"], replies=[STORY]) as talk:
        talk.tts.real_time_factor = 0.9
        talk.llm.token_s = 0.2
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        assert (talk.llm.open_streams, talk.tts.open_streams) == (1, 1)
        talk.session.cancel_replies()
        for _ in range(20):
            await asyncio.sleep(0)
        assert (talk.llm.open_streams, talk.tts.open_streams) == (0, 0)


async def test_a_voice_that_fails_stops_the_model_that_writes_for_it() -> None:
    tts = ScriptedTts(fail_on=lambda piece: EngineFailed("no", stage="tts"))
    async with Talk(tts=tts, replies=[STORY]) as talk:
        talk.llm.token_s = 0.5
        await talk.say(0.6)
        await talk.until(events.TurnFailed)
        assert (talk.llm.open_streams, talk.tts.open_streams) == (0, 0)


async def test_a_report_that_comes_after_the_cut_replaces_our_estimate() -> None:
    async with Talk(said=["tell me a story"], replies=[STORY], reports=False) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(2.0)
        talk.session.cancel_replies()
        talk.session.played(1, round(1.0 * 24000))
        assert the_reply(talk).heard == "Once upon a time"
        talk.session.played(1, round(1.4 * 24000))
        assert the_reply(talk).heard == "Once upon a time there"
        talk.session.played(1, 10**9)
        talk.session.played(99, 5)
        assert the_reply(talk).heard == "Once upon a time there"


async def test_a_client_that_reported_once_and_fell_silent_does_not_stop_the_talk() -> None:
    async with Talk(replies=[STORY], reports=False) as talk:
        talk.session.add_item(Item("item_a", "user", "hi"))
        talk.session.respond()
        await talk.until(events.ReplyCaption)
        talk.session.played(1, 100)
        await talk.quiet(60)
        assert talk.all(events.TurnDone)[0].record.outcome == "completed"


class OddVad(ScriptedVad):
    """Gives out ears of which the listed ones fail at a frame of speech; counts those that it gave."""

    def __init__(self, *failing: int) -> None:
        self.n_ears, self._failing = 0, failing

    def stream(self) -> ScriptedVadStream:
        self.n_ears += 1
        return _FailingEar() if self.n_ears in self._failing else ScriptedVadStream()


class _FailingEar(ScriptedVadStream):
    def probability(self, frame: Samples) -> float:
        if super().probability(frame):
            raise RuntimeError("a secret of the inside")
        return 0.0


async def test_each_utterance_is_judged_by_a_fresh_ear() -> None:
    vad = OddVad()
    async with Talk(vad=vad, said=["one", "two"]) as talk:
        assert vad.n_ears == 1
        await talk.say(0.6)
        await talk.quiet()
        assert vad.n_ears == 2


async def test_an_ear_that_breaks_is_told_and_made_anew() -> None:
    async with Talk(vad=OddVad(1, 2, 3), said=["hello"], replies=["Hi."]) as talk:
        await talk.say(0.6)  # three frames are lost, of which one is told
        await talk.quiet()
        (failed,) = talk.all(events.TurnFailed)
        assert (type(failed.error), failed.error.stage) == (EngineFailed, "vad")
        assert "secret" not in failed.error.message
        assert talk.history() == [("user", "hello"), ("assistant", "Hi.")]


async def test_an_ear_that_breaks_under_words_ends_their_turn_and_what_they_held_up_is_answered() -> None:
    asr = SlowAsr(("what is the capital", 2.0), ("of France", 0.1))
    async with Talk(vad=OddVad(), asr=asr, replies=["Paris.", "Of France."]) as talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        talk._microphone.extend([0.5] * 20)
        await talk.until(events.SpeechStarted, n=2)
        talk.session._listener._vad = _FailingEar()
        await talk.until(events.TurnFailed)
        talk._microphone.clear()
        await talk.quiet()
        assert talk.history() == [("user", "what is the capital"), ("assistant", "Paris.")]
        assert [(e.turn_id, e.record.outcome) for e in talk.all(events.TurnDone)] == [(2, "failed"), (1, "completed")]
        await talk.say(0.6)
        await talk.quiet()
        assert talk.history()[2:] == [("user", "of France"), ("assistant", "Of France.")]


async def test_words_that_arrive_in_the_moment_of_closing_break_nothing() -> None:
    class ClosingAsr(ScriptedAsr):
        async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
            talk.session.close()
            return Transcript("hello", "en")

    talk = Talk(asr=ClosingAsr(), options={"turn_detection": None})
    async with talk:
        talk.session.feed(spoken_audio(0.5))
        talk.session.commit()
        talk.session.respond()
        await asyncio.wait_for(talk._run, 5)
        assert talk.llm.asked == []


async def test_a_new_socket_gets_the_lost_end_of_a_reply_while_the_next_one_waits_behind_it() -> None:
    talk = Talk(said=["tell me a story"], replies=["The capital of France is Paris.", "Yes."])
    async with talk:
        await talk.say(0.6)
        await talk.until(events.ReplyFinished)
        talk.session.respond()
        await talk.hush(0.2)
        talk.player.ring.clear()
        talk.session.replay(1, talk.player.played[1])
        await talk.quiet()
        assert talk.player.gaps == 0
        assert talk.player.played[1] == pytest.approx(31 * SECONDS_PER_CHAR * 24000, abs=2000)
        assert talk.history()[-1] == ("assistant", "Yes.")


async def test_a_voice_that_waits_for_room_is_closed_by_the_interruption_and_not_by_the_garbage_collector() -> None:
    class HeldTts(ScriptedTts):
        held: AsyncIterator[SpeechChunk] | None = None

        def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
            self.held = super().synthesize(pieces, voice=voice)  # a reference, so that nothing else ends it
            return self.held

    async with Talk(tts=HeldTts(), replies=[STORY], turn={"max_pending_audio_s": 1}) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(1.5)
        assert talk.session.outbox.pending_s >= 0.9
        assert talk.tts.open_streams == 1
        talk.session.cancel_replies()
        for _ in range(20):
            await asyncio.sleep(0)
        assert talk.tts.open_streams == 0


async def test_a_truncation_of_the_reply_that_is_heard_stops_it() -> None:
    async with Talk(said=["tell me a story"], replies=[STORY]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(2.0)
        talk.session.truncate(the_reply(talk).id, 1000)
        assert talk.session.state == ("silent", "idle")
        await talk.quiet()
        assert [done.record.outcome for done in talk.all(events.TurnDone)] == ["interrupted"]


async def test_words_stand_in_the_order_in_which_they_were_said_even_when_the_later_are_understood_first() -> None:
    asr = SlowAsr(("what is the capital", 4.0), ("of france", 0.1))
    async with Talk(asr=asr, replies=["Paris."]) as talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        await talk.say(0.6)
        await talk.quiet()
        assert talk.llm.asked[0][1].content == "what is the capital of france"


async def test_a_blip_shorter_than_an_utterance_is_dropped_unheard() -> None:
    async with Talk(turn={"min_utterance_ms": 400}) as talk:
        await talk.say(0.2)
        await talk.quiet()
        assert [event.reason for event in talk.all(events.UtteranceDropped)] == ["no_speech"]
        assert talk.asr.utterances == []


async def test_a_reply_asked_for_words_that_were_none_ends_with_a_reason() -> None:
    async with Talk(said=[""], options={"turn_detection": None}) as talk:
        await talk.say(0.5)
        talk.session.commit()
        talk.session.respond()
        finished = await talk.until(events.ReplyFinished)
        assert (finished.status, finished.error.code) == ("failed", "no_speech")
        assert len(talk.all(events.ReplyStarted)) == 1
        await talk.quiet()


async def test_a_reply_that_fails_before_it_begins_still_ends() -> None:
    async with Talk(said=["hello there"], options={"voice": "nobody"}) as talk:
        await talk.say(0.6)
        finished = await talk.until(events.ReplyFinished)
        assert (finished.status, finished.error.code) == ("failed", "voice_not_found")
        assert talk.all(events.ReplyStarted)[0].response_id == finished.response_id


async def test_nobody_hears_anything_while_no_socket_is_attached() -> None:
    async with Talk(said=["tell me a story"], replies=["One two three four five six seven eight nine ten."]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(0.5)
        talk.session.hold()
        heard = talk.player.played[1]
        talk.player.ring.clear()
        await talk.hush(20.0)
        assert talk.all(events.TurnDone) == []
        talk.session.replay(1, heard)
        await talk.quiet()
        assert talk.player.gaps == 0
        assert talk.all(events.TurnDone)[0].record.outcome == "completed"


async def test_a_synthesis_that_ends_before_the_text_is_a_failure() -> None:
    class Lazy(ScriptedTts):
        async def synthesize(self, pieces: Any, *, voice: Any) -> Any:
            async for piece in pieces:
                yield SpeechChunk(AudioChunk.silence(0.1, 24000), piece.index, final=True)
                return

    async with Talk(said=["hello"], replies=["One two three four. Five six seven eight nine ten."], tts=Lazy()) as talk:
        await talk.say(0.6)
        failed = await talk.until(events.TurnFailed)
        assert (failed.error.code, failed.error.stage) == ("engine_failed", "tts")


async def test_an_echo_of_the_last_words_is_no_utterance_even_when_the_reply_has_just_ended() -> None:
    reply = "The house by the sea is old."
    async with Talk(said=["tell me", "by the sea is old"], replies=[reply]) as talk:
        await talk.say(0.6)
        await talk.until(events.TurnDone)
        await talk.say(0.5)
        await talk.quiet()
        assert [event.reason for event in talk.all(events.UtteranceDropped)] == ["echo"]


async def test_an_echo_of_a_reply_that_may_not_be_interrupted_is_no_utterance() -> None:
    said = ["tell me a story", "an old man lived there with his dog"]
    async with Talk(said=said, replies=[STORY, "What?"], options={"turn_detection": SLOW_TO_END}) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption, n=2)
        await talk.hush(1.0)
        await talk.say(0.8)
        await talk.quiet()
        assert [dropped.reason for dropped in talk.all(events.UtteranceDropped)] == ["echo"]
        assert talk.history() == [("user", "tell me a story"), ("assistant", STORY)]


async def test_words_are_answered_when_those_that_overtook_them_could_not_be_transcribed() -> None:
    failure = EngineFailed("no", stage="asr")
    talk = Talk(said=["what is the capital", failure], replies=["Paris."])
    talk.asr.delay_s = 1.0
    async with talk:
        await talk.say(0.4)
        await talk.hush(0.8)
        await talk.say(0.4)
        await talk.quiet()
        assert [failed.error for failed in talk.all(events.TranscriptFailed)] == [failure]
        assert talk.history() == [("user", "what is the capital"), ("user", ""), ("assistant", "Paris.")]
        told = [done.turn_id for done in talk.all(events.TurnDone)]
        assert sorted(told) == sorted(set(told))


async def test_a_reply_asked_for_words_that_failed_is_told_once_and_those_before_them_are_answered() -> None:
    asr = SlowAsr(("what is the capital", 1.0), ("of France", 2.0))
    async with Talk(asr=asr, replies=["Paris."]) as talk:
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted)
        await talk.say(0.6)
        await talk.until(events.UtteranceCommitted, n=2)
        asr.error = EngineFailed("no", stage="asr")
        talk.session.respond(ReplyOptions(metadata={"asked_as": "one"}))
        await talk.quiet()
        assert [(e.status, e.metadata) for e in talk.all(events.ReplyFinished)] == [
            ("failed", {"asked_as": "one"}),
            ("completed", None),
        ]


async def test_a_reply_asked_for_words_that_could_not_be_transcribed_ends_as_failed() -> None:
    async with Talk(said=[EngineFailed("no", stage="asr")], options={"turn_detection": None}) as talk:
        talk.session.feed(spoken_audio(0.5))
        talk.session.commit()
        talk.session.respond()
        await talk.quiet()
        assert [finished.status for finished in talk.all(events.ReplyFinished)] == ["failed"]
        assert [done.record.outcome for done in talk.all(events.TurnDone)] == ["failed"]
        assert len(talk.all(events.TurnFailed)) == 1


async def test_a_cut_text_reply_is_not_repeated_after_a_cough() -> None:
    talk = Talk(said=["tell me", ""], replies=["word " * 60], options={"modality": "text"})
    async with talk:
        await talk.say(0.6)
        await talk.until(events.ReplyText)
        await talk.say(0.4)
        await talk.quiet()
        assert len(talk.all(events.ReplyStarted)) == 1


class OddAsr(ScriptedAsr):
    """Gives no transcript at first, or has lost the task that made it; the next one is whole."""

    def __init__(self, *odd: object) -> None:
        super().__init__()
        self.odd = list(odd)

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        if not self.odd:
            return await super().transcribe(utterance, language=language)
        odd = self.odd.pop(0)
        if isinstance(odd, asyncio.CancelledError):
            raise odd
        return cast(Transcript, odd)


@pytest.mark.parametrize("odd", [None, Transcript(None, "en"), asyncio.CancelledError()], ids=str)  # type: ignore[arg-type]
async def test_an_ear_that_gives_no_transcript_costs_its_turn_and_the_next_one_works(odd: object) -> None:
    async with Talk(asr=OddAsr(odd), replies=["Paris."]) as talk:
        await talk.say(0.6)
        await talk.quiet()
        (failed,) = talk.all(events.TurnFailed)
        assert (type(failed.error), failed.error.stage) == (EngineFailed, "asr")
        await talk.say(0.6)
        await talk.quiet()
        assert talk.history()[-1] == ("assistant", "Paris.")


class LostLlm(ScriptedLlm):
    """Loses the task that makes the reply, after its first word."""

    async def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncIterator[str]:
        yield "Hello "
        raise asyncio.CancelledError


@pytest.mark.parametrize("modality", ["audio", "text"])
async def test_a_model_that_lost_its_own_task_is_told_as_such_at_once(modality: str) -> None:
    async with Talk(llm=LostLlm(), options={"modality": modality}) as talk:
        await talk.say(0.6)
        failed = await talk.until(events.TurnFailed, timeout_s=3)
        assert (type(failed.error), failed.error.stage) == (EngineFailed, "llm")


async def test_a_voice_that_lost_its_own_task_costs_its_turn_and_the_next_one_works() -> None:
    """A cancellation that nobody asked for: the reply would else never end, and the next one waits for it."""
    tts = ScriptedTts(fail_on=lambda piece: asyncio.CancelledError() if piece.spoken == "One." else None)  # type: ignore[arg-type, return-value]
    async with Talk(tts=tts, replies=["One.", "Two."]) as talk:
        await talk.say(0.6)
        await talk.quiet()
        (failed,) = talk.all(events.TurnFailed)
        assert (type(failed.error), failed.error.stage) == (EngineFailed, "tts")
        await talk.say(0.6)
        await talk.quiet()
        assert talk.history()[-1] == ("assistant", "Two.")
