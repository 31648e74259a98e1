"""A session that hears its own loudspeaker: nobody takes the echo out before it comes in."""

from __future__ import annotations

import itertools

import pytest

from pipeline import events
from pipeline.audio import Samples
from pipeline.conversation import Item
from tests.support.scripted import TTS_RATE, ScriptedTts, babble
from tests.support.talk import Talk

pytestmark = pytest.mark.looptime(noop_cycles=2)

REPLY = "Once upon a time there was a small house by the sea. An old man lived there with his dog."


def our_voice() -> ScriptedTts:
    seeds = itertools.count(100)

    def sound(n_samples: int) -> Samples:
        return babble(n_samples / TTS_RATE, seed=next(seeds))

    return ScriptedTts(sound=sound)


@pytest.mark.parametrize("late_s", [0.04, 0.3])
@pytest.mark.parametrize(("network_s", "reports"), [(0.0, True), (0.1, True), (0.1, False)])
async def test_our_own_voice_in_the_microphone_does_not_interrupt_us(
    late_s: float, network_s: float, reports: bool
) -> None:
    talk = Talk(
        said=["tell me a story", "once", "upon"],
        replies=[REPLY, "What?"],
        tts=our_voice(),
        echo=(late_s, 0.3),
        network_s=network_s,
        reports=reports,
    )
    async with talk:
        await talk.say(0.6)
        await talk.until(events.TurnDone)
        await talk.hush(2.0)
        await talk.quiet()
        assert not talk.all(events.Flushed)
        assert len(talk.all(events.SpeechStarted)) == 1
        assert talk.history() == [("user", "tell me a story"), ("assistant", REPLY)]


@pytest.mark.parametrize("reports", [True, False])
async def test_what_still_comes_back_of_a_reply_that_was_stopped_is_no_speech(reports: bool) -> None:
    talk = Talk(
        said=["tell me a story", "there was"],
        replies=[REPLY, "What?"],
        tts=our_voice(),
        echo=(0.8, 0.3),
        reports=reports,
    )
    async with talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(3.0)
        talk.session.cancel_replies()
        await talk.hush(1.5)
        await talk.quiet()
        assert len(talk.all(events.SpeechStarted)) == 1
        assert [text for role, text in talk.history() if role == "user"] == ["tell me a story"]


async def test_what_still_comes_back_of_a_reply_does_not_interrupt_the_answer_to_what_was_typed_over_it() -> None:
    talk = Talk(said=["tell me a story", "there was"], replies=[REPLY, REPLY], tts=our_voice(), echo=(0.8, 0.3))
    async with talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(3.0)
        talk.session.cancel_replies()
        talk.session.add_item(Item("item_typed", "user", "another one, please"))
        talk.session.respond()
        await talk.quiet()
        assert len(talk.all(events.SpeechStarted)) == 1
        assert talk.history()[-2:] == [("user", "another one, please"), ("assistant", REPLY)]


async def test_who_speaks_over_our_echo_interrupts_us() -> None:
    talk = Talk(said=["tell me a story", "stop"], replies=[REPLY, "Yes."], tts=our_voice(), echo=(0.1, 0.15))
    async with talk:
        await talk.say(0.6)
        await talk.until(events.ReplyCaption)
        await talk.hush(1.5)
        began_s = talk.heard_s
        await talk.utter(babble(1.2, seed=3))
        await talk.quiet()
        first, second = talk.all(events.SpeechStarted)
        assert second.audio_s == pytest.approx(began_s, abs=0.4)
        assert [flushed.turn_id for flushed in talk.all(events.Flushed)] == [first.turn_id]
        assert [text for role, text in talk.history() if role == "user"] == ["tell me a story", "stop"]
        assert talk.asr.utterances[1].seconds > 1.2  # nothing of the words is lost


async def test_with_headphones_there_is_no_echo_to_look_for() -> None:
    talk = Talk(
        said=["tell me a story"],
        replies=[REPLY],
        tts=our_voice(),
        echo=(0.1, 0.3),
        options={"headphones": True},
    )
    async with talk:
        await talk.say(0.6)
        await talk.until(events.Flushed)
