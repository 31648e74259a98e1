"""A word of the operator's reaches whoever talks."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.support.browser import VoicePage
from tests.support.scripted_server import Running


def test_a_word_of_the_operator_stands_in_the_talk_once(widget: VoicePage, scripted: Running) -> None:
    widget.button("Start").click()
    widget.wait_for_state("listening")
    for _ in range(2):
        scripted.tell("voicepod.notice", kind="maintenance", message="The server restarts at <b>noon</b>.")
    word = widget.page.locator("#chat").get_by_text("The server restarts at <b>noon</b>.")
    expect(word).to_be_visible()
    expect(word).to_have_count(1)
