"""Random talks with interruptions at any moment: whatever happens, nothing stale is heard and nothing told is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline import events
from pipeline.errors import EngineFailed
from tests.support.scripted import SECONDS_PER_CHAR, ScriptedTts
from tests.support.talk import OUT_RATE, Talk

pytestmark = pytest.mark.looptime(noop_cycles=2)

REPLIES = (
    "Yes.",
    "The capital of France is Paris, and it lies on the river Seine.",
    "Once upon a time there was a small house by the sea. An old man lived there with his dog. He was happy.",
    "Sure, first boil some water. Then put the tea into the pot. Wait for four minutes, and pour it into a cup.",
)


@dataclass(frozen=True)
class Step:
    """Wait, then do something."""

    wait_s: float
    what: Literal["say", "cough", "button", "type", "delete"]
    seconds: float


STEPS = st.lists(
    st.builds(
        Step,
        wait_s=st.floats(0.0, 3.0).map(lambda s: round(s, 2)),
        what=st.sampled_from(["say", "say", "say", "cough", "button", "type", "delete"]),
        seconds=st.floats(0.1, 1.2).map(lambda s: round(s, 2)),
    ),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=210,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # one talk takes a tenth of a second: making a failure smaller, minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=STEPS,
    replies=st.lists(st.sampled_from(REPLIES), min_size=1, max_size=4),
    network_s=st.sampled_from([0.0, 0.03, 0.15]),
    real_time_factor=st.sampled_from([0.05, 0.3, 1.3]),
    reports=st.booleans(),
    tick_s=st.sampled_from([0.02, 0.05, 0.1]),
    fails=st.booleans(),
)
async def test_any_schedule_keeps_the_promises(
    steps: list[Step],
    replies: list[str],
    network_s: float,
    real_time_factor: float,
    reports: bool,
    tick_s: float,
    fails: bool,
) -> None:
    script: list[str | Exception] = [*replies, EngineFailed("no", stage="llm")] if fails else [*replies]
    tts = ScriptedTts(real_time_factor=real_time_factor)
    async with Talk(replies=script, network_s=network_s, reports=reports, tts=tts, tick_s=tick_s) as talk:
        for step in steps:
            await talk.hush(step.wait_s)
            if step.what in ("say", "cough"):
                talk.asr.texts.append("" if step.what == "cough" else f"words {len(talk.asr.utterances)}")
                await talk.say(step.seconds)
            elif step.what == "button":
                talk.session.cancel_replies()
            elif step.what == "type" and talk.session.state[1] == "idle":
                talk.session.respond()
            elif step.what == "delete" and len(talk.session.conversation):
                last_id = talk.session.conversation.last_id
                assert last_id is not None
                talk.session.delete_item(last_id)
        await talk.quiet()
        check_no_stale_audio(talk)
        check_no_lost_event(talk)
        check_history_is_what_was_heard(talk)


def check_no_stale_audio(talk: Talk) -> None:
    assert talk.player.stale == 0
    assert talk.player.gaps == 0
    assert talk.max_lead_s <= 1.0 + 1e-6


def check_no_lost_event(talk: Talk) -> None:
    told = [event for event in talk.told if not isinstance(event, events.ReplyCaption)]
    heard = [event for event in talk.events if not isinstance(event, events.ReplyCaption)]
    lost = [event for event in told if not any(event is other for other in heard)]
    # the end of a reply that was cut while its audio waited is told anew, as cancelled
    cut = {event.turn_id for event in talk.all(events.Flushed)}
    assert [e for e in lost if not (isinstance(e, events.ReplyFinished | events.ItemDone) and e.turn_id in cut)] == []
    started = [event.response_id for event in talk.all(events.ReplyStarted)]
    finished = [event.response_id for event in talk.all(events.ReplyFinished)]
    assert sorted(started) == sorted(finished)
    committed = {event.item_id for event in talk.all(events.UtteranceCommitted)}
    decided = {event.item_id for event in talk.all(events.TranscriptReady)}
    dropped = {event.item_id for event in talk.all(events.UtteranceDropped)}
    assert committed == decided | (dropped & committed)
    assert len(talk.all(events.SpeechStarted)) == len(talk.all(events.SpeechStopped))
    done = [event.turn_id for event in talk.all(events.TurnDone)]
    assert len(done) == len(set(done))


def check_history_is_what_was_heard(talk: Talk) -> None:
    turns = {event.item_id: event.turn_id for event in talk.all(events.ReplyStarted)}
    for item in talk.session.conversation:
        if item.role != "assistant":
            continue
        turn = turns[item.id]
        heard_chars = talk.player.played.get(turn, 0) / (SECONDS_PER_CHAR * OUT_RATE)
        if item.heard is not None:
            assert item.content.startswith(item.heard)
            truth = (item.content + " ")[: int(heard_chars + 1e-6)].rpartition(" ")[0]  # whole words only
            assert abs(len(item.heard.split()) - len(truth.split())) <= 1
        elif item.status == "completed":
            # the audio of the spaces between pieces is not spoken
            assert heard_chars >= len(item.content.strip()) - item.content.count(" ") / 3 - 2
