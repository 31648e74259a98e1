"""The administrator's self-test in the sidebar of the real page."""

from __future__ import annotations

import time

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from api.access import keys, sessions
from api.access.principal import USER_SCOPES
from api.selftest.measure import Plan
from tests.support.browser import VoicePage
from tests.support.closed_server import Closed, closed_server

pytestmark = pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'")


def test_an_administrator_measures_the_server_and_a_user_is_not_offered_it(
    silent_browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    tone = np.round(12_000 * np.sin(np.arange(8000) / 6)).astype(np.int16)
    monkeypatch.setattr("api.rest.selftest.load_clips", lambda: [tone])
    monkeypatch.setattr("api.rest.selftest.Plan", lambda _turns, talks, force: Plan(3, talks, force))
    with closed_server(turn={"end_wait_ms": 200}, system={"max_concurrent_users": 1}) as server:
        server.llm.replies = ["Yes."] * 40
        admin = opened(silent_browser, server, f"{server.url}/login#{server.token}")
        panel = admin.page.locator("#vp-selftest")
        panel.get_by_role("button", name="Measure this server").click()
        expect(panel.get_by_role("status")).to_contain_text("talks to itself")
        expect(panel.get_by_role("status")).to_contain_text("Not measured: interruption")
        expect(panel.get_by_text("Answer after")).to_be_visible()
        assert admin.problems == []
        user = opened(silent_browser, server, user_link(server))
        expect(user.page.locator("#vp-selftest")).to_be_hidden()
        assert user.problems == []
        for page in (admin, user):
            page.context.close()


def user_link(server: Closed) -> str:
    store = server.server.store
    owner = server.run(store.write(lambda db: keys.owner_named(db, "anna", now_s=time.time(), create=True)))
    link = sessions.make_link
    token = server.run(store.write(lambda db: link(db, owner=owner, scopes=USER_SCOPES, now_s=time.time())))
    return f"{server.url}/login#{token}"


def opened(browser: Browser, server: Closed, link: str) -> VoicePage:
    """The page behind a login link, on a screen that is wide enough for the sidebar."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = VoicePage(context, server.url)
    page.page.goto(link)
    talk, ready = page.page.get_by_role("link", name="Talk"), page.page.locator("[data-ready=true]")
    expect(talk.or_(ready).first).to_be_attached()
    if talk.count():  # the set-up link says more before it goes on
        talk.click()
    ready.wait_for(state="attached")
    return page
