"""Scripted talks whose every event stands in a file. `pytest --update-golden` writes the files anew: read the diff."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import events
from pipeline.conversation import Item
from pipeline.errors import EngineFailed
from tests.support import golden
from tests.support.talk import Talk

pytestmark = pytest.mark.looptime(noop_cycles=2)

FOLDER = Path(__file__).parent / "golden"
STORY = "Once upon a time there was a small house by the sea. An old man lived there with his dog. He was happy."


async def plain_turn(talk: Talk) -> None:
    await talk.say(1.0)


async def speech_interrupts(talk: Talk) -> None:
    await talk.say(0.6)
    await talk.until(events.ReplyCaption)
    await talk.hush(2.5)
    await talk.say(0.8)


async def button_interrupts(talk: Talk) -> None:
    await talk.say(0.6)
    await talk.until(events.ReplyCaption)
    await talk.hush(2.0)
    talk.session.cancel_replies()


async def two_questions(talk: Talk) -> None:
    await talk.say(0.6)
    await talk.quiet()
    await talk.say(0.6)


async def typed_question(talk: Talk) -> None:
    talk.session.add_item(Item("item_typed", "user", "hello"))
    talk.session.respond()


async def lost_socket(talk: Talk) -> None:
    await talk.say(0.6)
    await talk.until(events.ReplyCaption)
    await talk.hush(1.5)
    talk.player.ring.clear()  # what was on its way is lost
    talk.session.replay(1, talk.player.played[1])


TALKS: dict[str, tuple[Callable[[Talk], Awaitable[None]], dict[str, Any]]] = {
    "plain_turn": (plain_turn, {"said": ["what is the capital"], "replies": ["It is Paris, on the Seine."]}),
    "barge_in": (speech_interrupts, {"said": ["a story", "stop please now"], "replies": [STORY, "All right."]}),
    "cough_and_go_on": (speech_interrupts, {"said": ["a story", ""], "replies": [STORY]}),
    "button": (button_interrupts, {"said": ["a story"], "replies": [STORY]}),
    "failure": (two_questions, {"said": ["one", "two"], "replies": [EngineFailed("no", stage="llm"), "Two it is."]}),
    "text_only": (typed_question, {"replies": ["Hello to you."], "options": {"modality": "text"}}),
    "resume_and_replay": (lost_socket, {"said": ["a story"], "replies": [STORY]}),
}


@pytest.mark.parametrize("name", TALKS)
async def test_a_scripted_talk_is_told_event_by_event_as_written_down(name: str, pytestconfig: pytest.Config) -> None:
    play, script = TALKS[name]
    since_s = asyncio.get_running_loop().time()
    async with Talk(**script) as talk:
        await play(talk)
        await talk.quiet()
        lines = golden.lines_of(talk.events, since_s=since_s)
        assert talk.player.stale == talk.player.gaps == 0
    golden.check(FOLDER / f"{name}.jsonl", lines, update=pytestconfig.getoption("--update-golden"))


def test_each_golden_file_belongs_to_a_talk() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == TALKS.keys()
