"""The way into a closed server with a browser: the set-up link, a talk, and out again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from scripts.keys import main as keys_program
from tests.support.browser import VoicePage
from tests.support.closed_server import Closed, closed_server
from tests.support.speech_clips import SPEECH
from tests.support.voices import PitchSpeakers

pytestmark = pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'")


@pytest.fixture(scope="module")
def server() -> Iterator[Closed]:
    with closed_server(speakers=PitchSpeakers()) as running:
        yield running


@pytest.fixture
def page(window: VoicePage, server: Closed) -> Iterator[VoicePage]:
    window.begin(server.url)
    yield window
    window.leave()
    assert window.elsewhere == []


def test_the_setup_link_leads_to_a_talk_and_logging_out_ends_it(page: VoicePage, server: Closed) -> None:
    server.llm.replies = ["Welcome to your server."]
    page.page.goto(server.url)
    expect(page.page).to_have_url(f"{server.url}/login")
    page.page.goto(server.link.replace("localhost:7860", f"127.0.0.1:{server.port}"))
    expect(page.page.get_by_role("heading", name="This server is yours")).to_be_visible()
    expect(page.page.get_by_text("scripts.keys create")).to_be_visible()
    assert server.token not in page.page.url  # nor in the history
    assert page.page.evaluate("document.cookie") == ""
    page.page.get_by_role("link", name="Talk").click()
    page.page.locator("[data-ready=true]").wait_for(state="attached")
    page.button("Start").click()
    page.wait_for_state("listening")
    page.type("Hello")
    page.page.get_by_text("Welcome to your server.").wait_for()
    page.wait_inside("voice.player.position.played > 0")  # the worklets run under the page's policy
    page.wait_inside("voice.mic !== null")
    page.page.get_by_role("tab", name="My voices").click()
    page.page.locator("#drop").wait_for()
    page.page.locator("#file").set_input_files(SPEECH / "jfk.flac")
    expect(page.page.get_by_role("slider", name="End of the selection")).to_have_attribute("aria-valuetext", "11.0 s")
    page.button("Check this recording").click()
    expect(page.page.locator("#grade")).to_be_visible()
    page.page.get_by_text("Voices of this server").click()
    page.button("Listen to Anna").click()
    page.wait_inside("voice.voicesTab.sounds.playing === 'anna'")
    assert page.problems == []  # no script, no socket, no sound and no upload was blocked
    page.button("Log out").click()
    expect(page.page).to_have_url(f"{server.url}/login")
    page.page.goto(server.url)
    expect(page.page).to_have_url(f"{server.url}/login")


def said(capsys: pytest.CaptureFixture[str], server: Closed, *command: str) -> str:
    """The key or link that `python -m scripts.keys` prints; a server in this process may print its log beside it."""
    assert keys_program(["--data", str(server.directory), *command]) == 0
    return next(word for word in capsys.readouterr().out.split() if word.startswith(("vp_", "http")))


def test_an_api_key_pasted_into_the_form_logs_in_and_a_wrong_one_is_told(
    page: VoicePage, server: Closed, capsys: pytest.CaptureFixture[str]
) -> None:
    key = said(capsys, server, "create", "--name", "phone")
    page.page.goto(f"{server.url}/login")
    field = page.page.get_by_label("API key or link")
    field.fill(key[:-1])
    page.button("Log in").click()
    expect(page.page.get_by_role("alert")).to_have_text("this is neither an API key nor a link of this server")
    field.fill(key)
    page.button("Log in").click()
    page.page.locator("[data-ready=true]").wait_for(state="attached")


def test_a_page_whose_login_has_ended_goes_to_the_login_page(
    page: VoicePage, server: Closed, capsys: pytest.CaptureFixture[str]
) -> None:
    link = said(capsys, server, "login-link")
    page.page.goto(f"{server.url}/login#{link.partition('#')[2]}")
    page.page.locator("[data-ready=true]").wait_for(state="attached")
    page.context.clear_cookies()
    page.button("Start").click()
    expect(page.page).to_have_url(f"{server.url}/login")
