"""The page of a server without WebSockets: each question is a request, its answer comes back as a stream."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import VoicePage
from tests.support.closed_server import Closed, closed_server
from tests.support.speech_clips import SPEECH

LONG = "Once upon a time there was a small house by the sea. An old man lived there with his dog. " * 6


@pytest.fixture(scope="module")
def server() -> Iterator[Closed]:
    with closed_server(network={"websocket_enabled": False}, access={"mode": "open"}) as server:
        yield server


@pytest.fixture(scope="module")
def window_that_is_spoken_to(silent_browser: Browser) -> Iterator[VoicePage]:
    context = silent_browser.new_context()
    yield VoicePage(context, "about:blank", microphone=True)
    context.close()


@pytest.fixture
def page(server: Closed, window_that_is_spoken_to: VoicePage) -> Iterator[VoicePage]:
    page = window_that_is_spoken_to
    page.begin(server.url)
    sockets: list[str] = []
    page.page.on("websocket", lambda socket: sockets.append(socket.url))
    yield page.open()
    page.leave()
    assert sockets == page.problems == page.elsewhere == []


def test_a_typed_and_a_held_question_are_answered_aloud_in_one_talk(server: Closed, page: VoicePage) -> None:
    server.llm.replies = ["It is big.", "Smaller."]
    page.button("Start").click()
    page.wait_for_state("listening")
    page.open_settings()
    expect(page.page.get_by_role("radio", name="Hands-free")).to_be_disabled()
    page.page.locator("#settings > summary").click()
    page.type("How big is the sun?")
    expect(page.page.locator(".latency")).to_have_count(1)
    page.page.locator("h1").click()
    page.page.keyboard.down("Space")
    page.wait_for_state("hearing")
    page.speak(SPEECH / "question_capital.flac")
    page.wait_inside("voice.socket.frames.length > 75")
    page.page.keyboard.up("Space")
    expect(page.page.locator(".latency")).to_have_count(2)
    assert page.messages() == [
        ("You", "How big is the sun?"),
        ("Voicepod", "It is big."),
        ("You", "utterance 1"),
        ("Voicepod", "Smaller."),
    ]
    assert [message.content for message in server.llm.asked[-1]][1:] == [
        "How big is the sun?",
        "It is big.",
        "utterance 1",
    ]
    assert {piece["turn"] for piece in page.played()} == {1, 2}


def test_an_answer_that_is_interrupted_falls_silent_and_the_next_one_comes(server: Closed, page: VoicePage) -> None:
    server.llm.replies = [LONG, "Sure."]
    page.type("Tell me a story")
    page.wait_for_state("speaking")
    page.wait_inside("voice.player.position.played > 12000")
    page.button("Interrupt").click()
    page.wait_inside("voice.player.flushedTurn === 1 && voice.player.mode !== 'playing'")
    expect(page.page.locator(".note", has_text="interrupted")).to_be_visible()
    played = sum(piece["n"] for piece in page.played())
    page.type("Thank you")
    expect(page.page.locator(".message.assistant .words").nth(1)).to_have_text("Sure.")
    assert sum(piece["n"] for piece in page.played() if piece["turn"] == 1) == played
