"""An HTTP answer that is under way ends with the credential that it was asked for with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from api.access import keys
from api.access.principal import USER_SCOPES
from api.store import Database
from pipeline.engines.base import SpeechChunk, SpeechPiece, Voice
from tests.support.closed_server import closed_server
from tests.support.live_server import Live, live_server, scripted_settings
from tests.support.rest import ToneTts, a_file, tone
from tests.support.scripted import TTS_RATE

TEXT = "A long story that takes its time."


class EndlessTts(ToneTts):
    """Speaks a second, and then nothing more: whoever waits for the rest waits until he is stopped."""

    async def synthesize(self, pieces: AsyncIterator[SpeechPiece], *, voice: Voice) -> AsyncIterator[SpeechChunk]:
        self.open_streams += 1
        try:
            async for piece in pieces:
                yield SpeechChunk(tone(1.0, TTS_RATE), piece.index, final=False)
                await asyncio.Event().wait()
        finally:
            self.open_streams -= 1


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    settings = scripted_settings(
        access={"mode": "keys"}, security={"rate_limiting": False}, system={"max_concurrent_users": 12}
    )
    async with live_server(settings, tts=EndlessTts()) as live:
        yield live


def new_key(live: Live, owner: str = "anna", **life: float) -> tuple[keys.Key, str]:
    """A key made by another connection, as `scripts.keys` makes them beside the server."""
    with changing(live) as connection:
        identifier = keys.owner_named(connection, owner, now_s=0.0, create=True)
        return keys.create(connection, owner=identifier, name="test", scopes=USER_SCOPES, now_s=0.0, **life)


@contextlib.contextmanager
def changing(live: Live) -> Any:
    with contextlib.closing(Database(live.server.store.directory)) as database, database.transaction() as connection:
        yield connection


def revoke(live: Live, key: keys.Key) -> None:
    with changing(live) as connection:
        keys.revoke(connection, key.id, now_s=live.server.access.now())


def expire(live: Live, key: keys.Key) -> None:
    access = live.server.access
    later_s = access.now() + 1000
    access.now = lambda: later_s
    access._checked_s = float("-inf")  # the watch looks at the time every few seconds


SPEECH = {"model": "x", "voice": "anna", "input": TEXT}
ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "speech": ("/v1/audio/speech", {"json": {**SPEECH, "response_format": "pcm"}}),
    "speech as events": ("/v1/audio/speech", {"json": {**SPEECH, "response_format": "pcm", "stream_format": "sse"}}),
    "speech of the guide": ("/api/tts", {"json": {"text": TEXT, "format": "pcm"}}),
    "a talk": ("/api/converse?format=pcm", {"content": a_file()}),
    "a talk as events": ("/api/converse?stream_format=sse&format=pcm", {"content": a_file()}),
}


@pytest.mark.parametrize("end", [revoke, expire])
async def test_answers_under_way_are_cut_when_their_key_ends(live: Live, end: Callable[[Live, keys.Key], None]) -> None:
    key, text = new_key(live, expires_s=live.server.access.now() + 1000)
    _, kept_text = new_key(live, "bert")
    async with httpx.AsyncClient(base_url=live.http, timeout=20, verify=False) as http:
        gone = [answering(http, text, name) for name in ANSWERS]
        other = answering(http, kept_text, "speech")
        for parts in (*gone, other):
            assert await anext(parts) > 0
        end(live, key)
        for parts in gone:
            with pytest.raises(httpx.RemoteProtocolError):  # cut: half an answer must not look whole
                async for _ in parts:
                    pass
        while live.tts.open_streams > 1:  # their work ends too
            await asyncio.sleep(0.01)
        assert len(live.server.access.live.credentials()) == 1  # that of the other one, which goes on
        await other.aclose()
    while live.tts.open_streams:
        await asyncio.sleep(0.01)


async def answering(http: httpx.AsyncClient, key: str, name: str) -> AsyncGenerator[int, None]:
    """The sizes of an answer's parts."""
    path, sent = ANSWERS[name]
    async with http.stream("POST", path, headers={"Authorization": f"Bearer {key}"}, **sent) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for part in answer.aiter_bytes():
            yield len(part)


async def test_answers_take_no_sockets_place_and_are_no_sign_of_use(live: Live) -> None:
    _, text = new_key(live)
    async with httpx.AsyncClient(base_url=live.http, timeout=20, verify=False) as http:
        path, sent = ANSWERS["speech"]
        async with http.stream("POST", path, headers={"Authorization": f"Bearer {text}"}, **sent) as answer:
            await anext(answer.aiter_bytes())
            watched = live.server.access.live
            assert (len(watched), watched.in_use(), len(watched.credentials())) == (0, set(), 1)


@pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'")
def test_the_pages_own_stream_ends_with_the_login() -> None:
    with closed_server() as server, server.browser() as browser:
        browser.post("/login", json={"credential": server.token})
        with browser.stream("GET", "/gradio_api/heartbeat/abc") as stream:
            parts = stream.iter_raw()
            assert next(parts)
            assert len(server.server.access.live.credentials()) == 1
            with server.browser() as same:
                same.post("/logout", headers={"Cookie": f"voicepod={browser.cookies['voicepod']}"})
            with contextlib.suppress(httpx.RemoteProtocolError):
                for _ in parts:  # else it lasts as long as the page is open
                    pass
        assert server.inside(server.server.access.live.credentials) == set()
