"""Scripted conversations on virtual time."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import events
from pipeline.conversation import Item
from pipeline.errors import EngineFailed, InvalidInput, NotFound
from pipeline.options import ReplyOptions
from tests.support.scripted import ScriptedAsr
from tests.support.talk import IN_RATE, Talk

pytestmark = pytest.mark.looptime(noop_cycles=2)

LONG = (
    "Once upon a time there was a small house by the sea. An old man lived there with his dog. "
    "Every morning they walked along the beach, and every evening they watched the ships go by. "
    "One day a stranger came to the door and asked for a glass of water."
)


async def test_a_question_gets_a_spoken_answer() -> None:
    async with Talk(said=["what is the capital of france"], replies=["The capital of France is Paris."]) as talk:
        await talk.hush(0.5)
        await talk.say(1.0)
        await talk.quiet()
        assert talk.history() == [
            ("user", "what is the capital of france"),
            ("assistant", "The capital of France is Paris."),
        ]
        (done,) = talk.all(events.TurnDone)
        assert done.record.outcome == "completed"
        assert talk.player.played[1] == pytest.approx(len("The capital of France is Paris.") * 0.06 * 24000, abs=2000)
        assert talk.player.gaps == 0


async def test_the_parts_of_a_turn_sum_to_its_total() -> None:
    async with Talk(said=["hello there"], replies=["Nice to hear you, my friend. How are you today?"]) as talk:
        await talk.say(1.0)
        await talk.quiet()
        record = talk.all(events.TurnDone)[0].record
        assert sum(record.parts_ms.values()) == pytest.approx(record.total_ms, abs=0.2)
        assert record.parts_ms["endpointing"] == pytest.approx(600, abs=45)
        assert record.parts_ms["asr"] == pytest.approx(150, abs=5)
        assert record.parts_ms["llm_first_token"] == pytest.approx(100, abs=5)
        assert record.parts_ms["tts_first_audio"] == pytest.approx(120, abs=5)


async def test_audio_is_sent_at_most_a_second_beyond_what_was_played() -> None:
    async with Talk(said=["tell me a story"], replies=[LONG], network_s=0.05) as talk:
        await talk.say(0.6)
        await talk.quiet()
        assert 0.5 < talk.max_lead_s <= 1.0 + 1e-6
        assert talk.player.gaps == 0


async def test_captions_come_with_the_audio_and_not_ahead_of_it() -> None:
    async with Talk(said=["tell me a story"], replies=[LONG]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(0.5)
        text = "".join(caption.text for caption in talk.all(events.ReplyCaption))
        assert 0 < len(text) < len(LONG) / 2
        await talk.quiet()
        assert "".join(caption.text for caption in talk.all(events.ReplyCaption)) == LONG


async def test_speech_cuts_the_reply_and_the_history_keeps_what_was_heard() -> None:
    async with Talk(said=["tell me a story", "stop please now"], replies=[LONG, "All right."], network_s=0.03) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(3.0)
        await talk.say(0.8)
        await talk.quiet()
        kinds = [type(event).__name__ for event in talk.events]
        assert kinds.index("Flushed") > kinds.index("SpeechStarted")
        cancelled = talk.all(events.ReplyFinished)[0]
        assert (cancelled.status, cancelled.reason) == ("cancelled", "turn_detected")
        heard = talk.session.conversation.get(cancelled.item_id).heard
        assert heard is not None
        truth = talk.heard_text(1, LONG)
        assert abs(len(heard.split()) - len(truth.split())) <= 1
        assert LONG.startswith(heard)
        assert talk.player.stale == 0
        assert talk.history()[-1] == ("assistant", "All right.")
        assert talk.llm.asked[1][2].content == heard.rstrip() + "—"
        stop_s = talk.all(events.TurnDone)[0].record.barge_in_stop_s
        assert 0.2 <= stop_s <= 0.35


async def test_an_interruption_before_any_audio_answers_both_utterances() -> None:
    talk = Talk(said=["what is the capital", "of france"], replies=["Paris."])
    talk.asr.delay_s = 0.5
    async with talk:
        await talk.say(0.8)
        await talk.until(events.UtteranceCommitted)
        await talk.say(0.8)
        await talk.quiet()
        assert talk.history() == [("user", "what is the capital"), ("user", "of france"), ("assistant", "Paris.")]
        assert talk.llm.asked[-1][1].content == "what is the capital of france"


async def test_a_cough_while_the_assistant_thinks_does_not_lose_the_question() -> None:
    talk = Talk(said=["what is the capital of france", ""], replies=["Paris."])
    talk.asr.delay_s = 0.5
    async with talk:
        await talk.say(0.8)
        await talk.until(events.UtteranceCommitted)
        await talk.say(0.3)
        await talk.quiet()
        assert talk.history() == [("user", "what is the capital of france"), ("assistant", "Paris.")]


async def test_nothing_said_is_no_interruption_and_the_reply_goes_on() -> None:
    async with Talk(said=["tell me a story", ""], replies=[LONG]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(3.0)
        await talk.say(0.5)  # a cough
        await talk.quiet()
        assert [event.reason for event in talk.all(events.UtteranceDropped)] == ["no_speech"]
        cut, rest = (item for item in talk.session.conversation if item.role == "assistant")
        assert cut.heard is not None
        assert cut.heard + rest.content.lstrip() == LONG or f"{cut.heard.rstrip()} {rest.content.strip()}" == LONG
        assert rest.heard is None


@pytest.mark.parametrize("nod", ["Mm-hm.", "Okay.", "Yeah, right."])
async def test_a_hum_or_nod_of_the_listener_does_not_end_the_reply(nod: str) -> None:
    async with Talk(said=["tell me a story", nod], replies=[LONG, "What?"]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(2.0)
        await talk.say(0.5)
        await talk.quiet()
        assert [event.reason for event in talk.all(events.UtteranceDropped)] == ["no_speech"]
        assert [role for role, _ in talk.history()] == ["user", "assistant", "assistant"]
        cut, rest = (item for item in talk.session.conversation if item.role == "assistant")
        assert cut.heard is not None
        assert f"{cut.heard.rstrip()} {rest.content.strip()}" == LONG


async def test_a_yes_to_what_the_reply_asked_ends_it() -> None:
    reply = "Do you like it? " + LONG
    async with Talk(said=["ask me", "Yes."], replies=[reply, "Good."]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(1.5)
        await talk.say(0.5)
        await talk.quiet()
        assert [text for role, text in talk.history() if role == "user"] == ["ask me", "Yes."]
        assert talk.history()[-1] == ("assistant", "Good.")


async def test_a_yes_before_the_last_words_of_a_question_answers_it() -> None:
    """People answer while the end of a question is still heard; it was asked again, and the answer lost."""
    reply = "Well now, tell me, do you like the long story of the house by the sea?"
    async with Talk(said=["ask me", "Yes."], replies=[reply, "Good."]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(2.0)
        await talk.say(0.5)
        await talk.quiet()
        cut = next(item for item in talk.session.conversation if item.role == "assistant")
        assert cut.heard is not None
        assert not cut.heard.endswith("?")
        assert talk.history()[-1] == ("assistant", "Good.")


async def test_a_nod_during_a_reply_in_text_is_answered() -> None:
    async with Talk(said=["tell me a story", "Okay."], replies=[LONG, "Good."], options={"modality": "text"}) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyText, n=5)
        await talk.say(0.6)
        await talk.quiet()
        assert talk.history()[-2:] == [("user", "Okay."), ("assistant", "Good.")]


async def test_a_hum_that_interrupts_nothing_is_an_answer() -> None:
    async with Talk(said=["ask me", "Mm-hm."], replies=["Do you like it?", "Good."]) as talk:
        await talk.say(0.6)
        await talk.until(events.TurnDone)
        await talk.hush(1.5)
        await talk.say(0.5)
        await talk.quiet()
        assert [text for _, text in talk.history()] == ["ask me", "Do you like it?", "Mm-hm.", "Good."]


async def test_our_own_voice_is_no_interruption_unless_headphones_are_on() -> None:
    echo = "small house by the sea an old man"
    async with Talk(said=["tell me a story", echo], replies=[LONG]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(4.0)
        await talk.say(0.5)
        await talk.quiet()
        assert [event.reason for event in talk.all(events.UtteranceDropped)] == ["echo"]
    async with Talk(said=["tell me a story", echo], replies=[LONG, "Yes?"], options={"headphones": True}) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(4.0)
        await talk.say(0.5)
        await talk.quiet()
        assert talk.all(events.UtteranceDropped) == []
        assert talk.history()[-1] == ("assistant", "Yes?")


async def test_a_short_noise_while_the_assistant_speaks_changes_nothing() -> None:
    async with Talk(said=["tell me a story"], replies=[LONG]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.say(0.2)
        await talk.quiet()
        assert talk.all(events.Flushed) == []
        assert talk.all(events.TurnDone)[0].record.outcome == "completed"


async def test_a_button_interrupts_at_once_even_when_all_audio_was_made() -> None:
    async with Talk(said=["tell me a story"], replies=[LONG]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(5.0)
        assert talk.llm.open_streams == 0
        assert talk.session.cancel_replies() is True
        assert talk.session.cancel_replies() is False
        await talk.quiet()
        (finished,) = talk.all(events.ReplyFinished)
        assert (finished.status, finished.reason) == ("cancelled", "client_cancelled")


async def test_a_client_that_reports_nothing_is_timed_by_the_servers_clock() -> None:
    async with Talk(said=["tell me a story", "stop please now"], replies=[LONG, "Fine."], reports=False) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(3.0)
        await talk.say(0.8)
        await talk.quiet()
        heard = next(item.heard for item in talk.session.conversation if item.role == "assistant")
        assert heard is not None
        assert abs(len(heard.split()) - len(talk.heard_text(1, LONG).split())) <= 1


async def test_a_client_may_correct_what_was_heard() -> None:
    async with Talk(said=["tell me a story"], replies=[LONG], reports=False) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(3.0)
        item_id = talk.all(events.ReplyStarted)[0].item_id
        talk.session.truncate(item_id, 1000)
        assert talk.session.conversation.get(item_id).heard == "Once upon a time"
        await talk.quiet()
        with pytest.raises(InvalidInput):
            talk.session.truncate(item_id, 10_000_000)
        with pytest.raises(NotFound):
            talk.session.truncate("item_none", 1)


async def test_a_failing_stage_says_so_and_the_next_turn_works() -> None:
    broken = EngineFailed("no", stage="llm")
    async with Talk(said=[RuntimeError("boom"), "again", "again"], replies=[broken, "Here I am."]) as talk:
        for _ in range(3):
            await talk.say(0.6)
            await talk.hush(3.0)
        await talk.quiet()
        assert [event.error.code for event in talk.all(events.TurnFailed)] == ["engine_failed", "engine_failed"]
        assert len(talk.all(events.TranscriptFailed)) == 1
        assert talk.all(events.ReplyFinished)[0].status == "failed"
        assert talk.history()[-1] == ("assistant", "Here I am.")
        assert [event.record.outcome for event in talk.all(events.TurnDone)] == ["failed", "failed", "completed"]


async def test_a_stage_that_hangs_is_given_up() -> None:
    talk = Talk(said=["hello there"], turn={"first_token_timeout_s": 5})
    talk.llm.first_token_s = 1000
    async with talk:
        await talk.say(0.6)
        failed = await talk.until(events.TurnFailed)
        assert failed.error.code == "engine_timeout"
    slow = Talk(said=["hello there"], turn={"first_audio_timeout_s": 5})
    slow.tts.first_audio_s = 1000
    async with slow:
        await slow.say(0.6)
        failed = await slow.until(events.TurnFailed)
        assert failed.error.stage == "tts"


async def test_hold_to_talk_ends_when_the_client_says_so() -> None:
    async with Talk(said=["hello there"], replies=["Hello."], options={"turn_detection": None}) as talk:
        with pytest.raises(InvalidInput):
            talk.session.commit()
        await talk.say(1.0)
        talk.session.commit()
        talk.session.respond()
        with pytest.raises(InvalidInput):
            talk.session.commit()
        await talk.quiet()
        assert talk.history() == [("user", "hello there"), ("assistant", "Hello.")]
        assert talk.asr.utterances[0].seconds == pytest.approx(1.0, abs=0.1)


async def test_typed_text_runs_the_same_turn() -> None:
    async with Talk(replies=["Hello to you."]) as talk:
        talk.session.add_item(Item("item_a", "user", "hello"))
        talk.session.respond()
        with pytest.raises(InvalidInput):
            talk.session.respond()
        await talk.quiet()
        assert talk.history() == [("user", "hello"), ("assistant", "Hello to you.")]
        assert talk.player.played[1] > 0
        talk.session.respond(ReplyOptions(spoken=False, max_tokens=2))
        await talk.quiet()
        assert talk.all(events.ReplyFinished)[-1].status == "incomplete"
        assert talk.player.played.keys() == {1}
        assert "".join(event.delta for event in talk.all(events.ReplyText)) == "This is "


async def test_a_new_socket_gets_the_audio_that_the_old_one_lost() -> None:
    async with Talk(said=["tell me a story"], replies=[LONG]) as talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(2.0)
        turn = 1
        talk.player.ring.clear()  # the network dropped what was sent and not played
        heard = talk.player.played[turn]
        talk.session.replay(turn, heard)
        await talk.quiet()
        assert talk.player.gaps == 0
        assert talk.all(events.TurnDone)[0].record.outcome == "completed"


async def test_a_closed_session_leaves_no_task_and_refuses_work() -> None:
    talk = Talk(said=["tell me a story"], replies=[LONG])
    async with talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
    with pytest.raises(InvalidInput):
        talk.session.respond()


async def test_deleting_an_item_while_it_is_made_harms_nothing() -> None:
    async with Talk(said=["tell me a story"], replies=[LONG]) as talk:
        await talk.say(0.6)
        started = await talk.until(events.ReplyStarted)
        talk.session.delete_item(started.item_id)
        await talk.quiet()
        assert talk.history() == [("user", "tell me a story")]
        assert talk.all(events.TurnFailed) == []


async def test_a_muddle_of_languages_picks_a_voice_that_can_speak() -> None:
    async with Talk(said=["guten tag"], replies=["Hallo."], options={"language": "de"}) as talk:
        await talk.say(0.6)
        await talk.quiet()
        assert talk.llm.asked[0][0].content == "Be brief. Answer in German."


async def test_a_television_far_below_the_user_neither_holds_the_turn_open_nor_interrupts_the_reply() -> None:
    television, user = 0.06, 0.5  # 18 dB apart, both speech to the VAD
    sound = np.repeat(np.array([television, user, television], np.float32), [2 * IN_RATE, 2 * IN_RATE, 8 * IN_RATE])
    async with Talk(said=["tell me a story"], replies=["Once upon a time there was a small house."]) as talk:
        await talk.utter(sound)
        assert talk.history() == [
            ("user", "tell me a story"),
            ("assistant", "Once upon a time there was a small house."),
        ]
        assert not talk.all(events.Flushed)
        (stopped,) = talk.all(events.SpeechStopped)
        assert stopped.audio_s == pytest.approx(4.6, abs=0.05)


async def test_a_word_too_short_to_tell_its_language_is_in_that_of_the_talk() -> None:
    asr = ScriptedAsr(["Bonjour.", "Parlons de la mer.", "", "Dix.", "Let us speak English.", "Ten."], detected="fr")
    async with Talk(asr=asr) as talk:
        for seconds in (0.6, 2.0, 2.0, 0.6):
            asr.detected = "ja" if seconds < 1 else "fr"
            await talk.say(seconds)
            await talk.quiet()
        asr.detected = "en"
        for seconds in (2.0, 0.6):
            await talk.say(seconds)
            await talk.quiet()
        assert asr.languages == [None, None, None, "fr", None, "en"]


async def test_the_language_that_was_chosen_is_asked_for_at_any_length() -> None:
    async with Talk(options={"language": "de"}) as talk:
        for seconds in (2.0, 0.6):
            await talk.say(seconds)
            await talk.quiet()
        assert talk.asr.languages == ["de", "de"]
