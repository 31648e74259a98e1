"""A scripted server, a browser with a question for a microphone, a page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, expect, sync_playwright

from tests.support.browser import CHROMIUM, VoicePage, chromium, write_microphone
from tests.support.scripted_server import Running, running_server
from tests.support.server_process import ServerProcesses
from tests.support.speech_clips import SPEECH
from tests.support.widget_page import PATH as WIDGET

expect.set_options(timeout=60_000)  # only a fault waits this long; five seconds were too few on a busy machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder is e2e, and needs Chromium."""
    here = os.path.dirname(__file__) + os.sep
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Debian's chromium"))


@pytest.fixture(scope="package")
def playwright_sync() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    with running_server() as server:
        yield server


@pytest.fixture
def server(servers: ServerProcesses) -> Iterator[str]:
    """The address of `python app.py --profile cpu`, ready to talk."""
    server = servers.ready()
    yield server.page
    assert "Traceback" not in server.output, server.output[-4000:]
    assert server.errors == ""


@pytest.fixture
def scripted(running: Running) -> Running:
    """The scripted server with every switch turned back."""
    running.server.reset()
    return running


@pytest.fixture(scope="package")
def speaking_browser(playwright_sync: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser into whose microphone somebody asks one question."""
    clip = SPEECH / "question_capital.flac"
    microphone = write_microphone(tmp_path_factory.mktemp("mic") / "question.wav", [(clip, 20.0)])
    with chromium(playwright_sync, microphone=microphone) as browser:
        yield browser


@pytest.fixture(scope="package")
def silent_browser(playwright_sync: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser whose microphone hears nothing."""
    microphone = write_microphone(tmp_path_factory.mktemp("mic") / "silence.wav", [], lead_in_s=30.0)
    with chromium(playwright_sync, microphone=microphone) as browser:
        yield browser


@pytest.fixture(scope="package")
def denied_browser(playwright_sync: Playwright) -> Iterator[Browser]:
    """A browser that gives nobody the microphone, and that knows this machine by a second name."""
    with chromium(
        playwright_sync, microphone=None, args=("--host-resolver-rules=MAP voicepod.test 127.0.0.1",)
    ) as browser:
        yield browser


@pytest.fixture(scope="package")
def window(silent_browser: Browser) -> Iterator[VoicePage]:
    """One window for all tests that need none of their own: a new one for each costs half a second of computing."""
    context = silent_browser.new_context(viewport={"width": 1280, "height": 860})
    yield VoicePage(context, "about:blank")
    context.close()


@pytest.fixture
def page(window: VoicePage, scripted: Running) -> Iterator[VoicePage]:
    """The page in a browser with a silent microphone."""
    with opened(window, scripted.url) as page:
        yield page


@pytest.fixture
def widget(window: VoicePage, scripted: Running) -> Iterator[VoicePage]:
    """The same without Gradio around it, which is loaded in a moment: for what concerns the widget alone."""
    with opened(window, scripted.url + WIDGET) as page:
        yield page


@contextmanager
def opened(window: VoicePage, url: str) -> Iterator[VoicePage]:
    """The page in a window that remembers nothing; it must not complain and must stay on its own origin."""
    window.begin(url)
    yield window.open()
    window.leave()
    assert window.problems == []
    assert window.elsewhere == []
