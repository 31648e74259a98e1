"""/v1/realtime over real sockets, with scripted engines."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import websockets
from openai import AsyncOpenAI

from pipeline.options import ReplyOptions
from tests.support.client import Client, connected
from tests.support.live_server import Live, live_server, scripted_settings
from tests.support.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts

PAGE = ["voicepod.v1"]
HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LONG = (
    "Once upon a time there was a small house by the sea. An old man lived there with his dog. "
    "Every morning they walked along the beach, and every evening they watched the ships go by."
)


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    async with live_server() as running:
        yield running


async def test_a_stock_client_gets_a_turn_in_the_order_of_the_protocol(live: Live) -> None:
    live.asr.texts, live.llm.replies = ["what is the capital of france"], ["The capital of France is Paris."]
    async with connected(live.url) as client:
        created = await client.until("session.created")
        assert created["session"]["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}
        await client.say()
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        expected = [
            "session.created",
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.input_audio_transcription.delta",
            "conversation.item.input_audio_transcription.completed",
            "conversation.item.done",
            "response.created",
            "response.output_item.added",
            "conversation.item.added",
            "response.content_part.added",
            "response.output_audio_transcript.delta",
            "response.output_audio.delta",
            "conversation.item.done",
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.done",
        ]
        kinds = client.kinds()
        once = [k for i, k in enumerate(kinds) if k != "response.output_audio.delta" or kinds[i - 1] != k]
        assert once == expected
        transcript = client.all("response.output_audio_transcript.done")[0]["transcript"]
        assert transcript == "The capital of France is Paris."
        assert len(client.pcm) / 2 / 24000 == pytest.approx(len(transcript) * 0.06, abs=0.1)
        assert len({event["event_id"] for event in client.events}) == len(client.events)


async def test_the_stock_openai_client_talks_interrupts_and_truncates(live: Live) -> None:
    live.asr.texts, live.llm.replies = ["tell me a story", "stop please now"], [LONG, "All right."]
    openai = AsyncOpenAI(
        api_key="none", base_url=f"{live.http}/v1", websocket_base_url=f"ws://127.0.0.1:{live.port}/v1"
    )
    pcm = base64.b64encode(b"\x00\x40" * 14400).decode()
    silence = base64.b64encode(b"\x00\x00" * 19200).decode()
    seen: list[Any] = []
    async with openai, openai.realtime.connect(model="voicepod") as connection, asyncio.timeout(20):
        await connection.session.update(session={"type": "realtime", "instructions": "Be brief."})
        await connection.input_audio_buffer.append(audio=pcm)
        await connection.input_audio_buffer.append(audio=silence)
        n_done = 0
        async for event in connection:
            seen.append(event)
            if event.type == "response.output_audio.delta" and n_done == 0 and len(seen) < 10_000:
                deltas = [e for e in seen if e.type == "response.output_audio.delta"]
                if len(deltas) == 5:
                    await connection.input_audio_buffer.append(audio=pcm)
                    await connection.input_audio_buffer.append(audio=silence)
            if event.type == "response.done":
                n_done += 1
                if n_done == 1 and event.response.output:
                    item_id = event.response.output[0].id
                    await connection.conversation.item.truncate(item_id=str(item_id), content_index=0, audio_end_ms=400)
                if n_done == 2:
                    break
    done = [event.response for event in seen if event.type == "response.done"]
    assert [(response.status, response.status_details.reason) for response in done] == [
        ("cancelled", "turn_detected"),
        ("completed", None),
    ]
    truncated = [event for event in seen if event.type == "conversation.item.truncated"]
    assert truncated[-1].audio_end_ms == 400
    session = live.server.registry.sessions[0]
    assert session.conversation.get(truncated[-1].item_id).heard == "Once"
    assert not [event for event in seen if event.type == "error"]


async def test_the_page_gets_binary_frames_captions_state_and_metrics(live: Live) -> None:
    live.asr.texts, live.llm.replies = ["hello there"], ["Hello. How are you today, my friend?"]
    async with connected(live.url, protocols=PAGE) as client:
        assert client.socket.subprotocol == "voicepod.v1"
        await client.send(
            "session.update",
            session={"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
        )
        updated = await client.until("session.updated")
        assert "resume_token" not in updated["session"]["voicepod"]
        await client.say(rate=16000, binary=True)
        await client.until("response.done")
        assert not client.all("response.output_audio.delta")
        position = 0
        for turn, first_sample, pcm in client.frames:
            assert (turn, first_sample) == (1, position)
            position += len(pcm) // 2
        assert position > 24000
        assert (
            "".join(event["text"] for event in client.all("voicepod.caption")) == "Hello. How are you today, my friend?"
        )
        await client.send("voicepod.playback", turn=1, played_samples=position, started_ago_ms=500)
        metrics = await client.until("voicepod.turn_metrics")
        assert metrics["outcome"] == "completed"
        assert sum(metrics["parts_ms"].values()) == pytest.approx(metrics["total_ms"], abs=1)
        assert {"user": "silent", "agent": "idle"}.items() <= client.all("voicepod.state")[-1].items()
        await client.send("voicepod.ping", t=42)
        assert (await client.until("voicepod.pong"))["t"] == 42


async def test_a_lost_socket_is_resumed_with_history_and_the_lost_audio(live: Live) -> None:
    live.asr.texts, live.llm.replies = ["tell me a story"], [LONG]
    async with connected(live.url, protocols=PAGE) as client:
        token = (await client.until("session.created"))["session"]["voicepod"]["resume_token"]
        await client.say(binary=True)
        await client.until("voicepod.caption")
        while len(client.frames) < 8:
            await asyncio.sleep(0.01)
        heard = 4000
        await client.send("voicepod.playback", turn=1, played_samples=heard)
        client.socket.transport.abort()
        await client.closed()
    async with connected(live.url, protocols=PAGE) as client:  # as an event, for clients that do not use subprotocols
        await client.send("voicepod.resume", token=token, turn=1, sample=heard)
        created = await client.until("session.created", n=2)
        assert created["session"]["voicepod"]["resumed"] is True
        assert created["session"]["voicepod"]["received_samples"] == (0.6 + 0.8) * 24000
        assert created["session"]["id"] != client.all("session.created")[0]["session"]["id"]
        await client.until("conversation.item.added", n=2)
        shown = [event["item"]["content"][0] for event in client.all("conversation.item.added")]
        assert shown[0]["transcript"] == "tell me a story"
        while not client.frames:
            await asyncio.sleep(0.01)
        assert client.frames[0][:2] == (1, heard)
        assert len(live.server.registry.sessions) == 1
    async with connected(live.url, protocols=[*PAGE, f"voicepod.resume.{token}"]) as client:  # at the handshake
        assert (await client.until("session.created"))["session"]["voicepod"]["resumed"] is True
        async with connected(live.url, protocols=[*PAGE, f"voicepod.resume.{token}"]) as other:
            await other.until("session.created")
            assert await client.closed() == 4409
            await other.send("response.cancel")
            await other.until("voicepod.flush")
    async with connected(live.url) as client:
        await client.send("voicepod.resume", token="gone")
        assert (await client.until("error"))["error"]["code"] == "session_not_found"
        await client.send("voicepod.ping", t=1)
        await client.say()
        await client.until("input_audio_buffer.committed")


async def test_the_fifth_talk_is_refused_clearly_and_a_held_seat_can_still_be_resumed() -> None:
    async with live_server(scripted_settings(system={"max_concurrent_users": 2})) as live:
        async with connected(live.url) as one, connected(live.url) as two:
            token = (await one.until("session.created"))["session"]["voicepod"]["resume_token"]
            await two.until("session.created")
            async with connected(live.url) as third:
                error = (await third.until("error"))["error"]
                assert error["code"] == "server_busy"
                assert error["retry_after_s"] > 0
                assert await third.closed() == 1013
            one.socket.transport.abort()
            await one.closed()
            async with connected(live.url) as stranger:  # the seat is held for who lost it
                assert await stranger.closed() == 1013
            async with connected(live.url) as again:
                await again.send("voicepod.resume", token=token)
                assert (await again.until("session.created"))["session"]["voicepod"]["resumed"] is True
                await again.stop()  # a goodbye frees the seat at once
            async with connected(live.url) as new:
                await new.until("session.created")


async def test_a_late_cancellation_of_a_response_that_has_ended_leaves_the_next_one_alone(live: Live) -> None:
    async with connected(live.url) as client:
        await client.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
        await client.send("response.create")
        await client.send("response.cancel")
        first = await client.until("response.created")
        assert (await client.until("response.done"))["response"]["status"] == "cancelled"
        await client.send("response.create")
        await client.send("response.cancel", response_id=first["response"]["id"])  # LiveKit does, when it is told late
        assert (await client.until("error"))["error"]["code"] == "response_cancel_not_active"
        assert (await client.until("response.done", n=2))["response"]["status"] == "completed"


BAD = [
    ("{", "invalid_json"),
    ("[" * 100_000, "invalid_json"),
    ("[]", "invalid_event"),
    ('{"type": 5}', "unknown_event"),
    ('{"type": {"a": []}}', "unknown_event"),
    ('{"type": "no.such.event"}', "unknown_event"),
    ('{"type": "input_audio_buffer.append"}', "invalid_value"),
    ('{"type": "input_audio_buffer.append", "audio": "%%%"}', "invalid_audio"),
    ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "odd_byte_count"),
    ('{"type": "input_audio_buffer.commit"}', "input_audio_buffer_commit_empty"),
    ('{"type": "response.cancel"}', "response_cancel_not_active"),
    ('{"type": "response.cancel", "response_id": 5}', "invalid_value"),
    ('{"type": "conversation.item.retrieve", "item_id": "nope"}', "item_retrieve_invalid_item_id"),
    ('{"type": "conversation.item.delete", "item_id": "nope"}', "item_delete_invalid_item_id"),
    (
        '{"type": "conversation.item.truncate", "item_id": "nope", "content_index": 0, "audio_end_ms": 1}',
        "item_truncate_invalid_item_id",
    ),
    (
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "boss", "content": []}}',
        "invalid_value",
    ),
    ('{"type": "session.update"}', "invalid_value"),
    (
        '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 1}}}}}',
        "invalid_value",
    ),
    (
        '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}',
        "invalid_value",
    ),
    ('{"type": "session.update", "session": {"audio": {"output": {"voice": "nobody"}}}}', "voice_not_found"),
    ('{"type": "session.update", "session": {"audio": {"output": {"speed": NaN}}}}', "invalid_json"),
    ('{"type": "voicepod.playback", "turn": -1, "played_samples": 0}', "invalid_value"),
    ('{"type": "voicepod.resume", "token": "x"}', "session_not_found"),
]


@pytest.mark.parametrize(("text", "code"), BAD)
async def test_a_wrong_event_is_a_typed_error_and_changes_nothing(live: Live, text: str, code: str) -> None:
    async with connected(live.url) as client:
        before = (await client.until("session.created"))["session"]
        await client.socket.send(text)
        error = (await client.until("error"))["error"]
        assert error["code"] == code
        assert error["message"]
        await client.send("session.update", session={"type": "realtime"}, event_id="mine")
        after = (await client.until("session.updated"))["session"]
        assert {k: v for k, v in before.items() if k != "voicepod"} == {
            k: v for k, v in after.items() if k != "voicepod"
        }
        live.asr.texts, live.llm.replies = ["hello there"], ["Hello."]
        await client.say()
        await client.until("response.done")


@pytest.mark.parametrize("name", ["marin", "alloy", {"id": "ash"}])
async def test_a_name_of_openais_voices_stands_for_the_servers_own(live: Live, name: Any) -> None:
    async with connected(live.url) as client:
        own = (await client.until("session.created"))["session"]["audio"]["output"]["voice"]
        await client.send("session.update", session={"audio": {"output": {"voice": "bruno"}}})
        await client.send("session.update", session={"instructions": "Be brief.", "audio": {"output": {"voice": name}}})
        session = (await client.until("session.updated", 2))["session"]
        assert own != "bruno"
        assert (session["audio"]["output"]["voice"], session["instructions"]) == (own, "Be brief.")
        assert not client.all("error")


async def test_the_metadata_of_a_reply_that_was_asked_for_comes_back(live: Live) -> None:
    live.llm.replies = ["Yes.", "Indeed.", "No."]
    async with connected(live.url) as client:
        await client.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        await client.send("response.create", response={"output_modalities": ["text"], "metadata": {"asked_as": "one"}})
        await client.until("response.done")
        live.asr.texts = ["what else"]
        await client.speak(0.5)
        await client.send("input_audio_buffer.commit")  # the reply waits for the transcript
        await client.send("response.create", response={"output_modalities": ["text"], "metadata": {"asked_as": "two"}})
        await client.until("response.done", 2)
        live.asr.texts = [""]
        await client.speak(0.5)
        await client.send("input_audio_buffer.commit")
        await client.send("response.create", response={"metadata": {"asked_as": "three"}})
        await client.until("response.done", 3)
        await client.send("response.create", response={"output_modalities": ["text"]})
        await client.until("response.done", 4)
        for kind in ("response.created", "response.done"):
            told = [event["response"]["metadata"] for event in client.all(kind)]
            assert told == [{"asked_as": "one"}, {"asked_as": "two"}, {"asked_as": "three"}, None]
        await client.send("response.create", response={"metadata": {"x" * 65: ""}})
        assert (await client.until("error"))["error"]["code"] == "invalid_value"


async def test_the_limit_of_a_reply_that_was_asked_for_is_its_own(live: Live) -> None:
    live.llm.replies = ["one two three four five six"] * 3
    async with connected(live.url) as client:
        await client.send("session.update", session={"output_modalities": ["text"], "max_output_tokens": 3})
        for n, limit in enumerate(({"max_output_tokens": 2}, {}, {"max_output_tokens": "inf"}), start=1):
            await client.send("response.create", response=limit)
            await client.until("response.done", n)
        for kind in ("response.created", "response.done"):
            assert [event["response"]["max_output_tokens"] for event in client.all(kind)] == [2, 3, "inf"]
        assert [event["response"]["usage"]["output_tokens"] for event in client.all("response.done")] == [2, 3, 6]


async def test_of_a_language_with_its_region_the_language_counts(live: Live) -> None:
    async with connected(live.url) as client:
        for n, (asked, known) in enumerate([("en-US", "en"), ("zh-Hans-CN", "zh"), ("auto", None)], 1):
            await client.send("session.update", session={"audio": {"input": {"transcription": {"language": asked}}}})
            session = (await client.until("session.updated", n))["session"]
            assert session["audio"]["input"]["transcription"]["language"] == known
        await client.send("session.update", session={"audio": {"input": {"transcription": {"language": "english"}}}})
        assert (await client.until("error"))["error"]["code"] == "invalid_value"


async def test_odd_bytes_and_rubbish_by_the_score_do_no_harm(live: Live) -> None:
    async with connected(live.url, protocols=PAGE) as client:
        await client.socket.send(b"\x00\x01\x02")
        assert (await client.until("error"))["error"]["code"] == "odd_byte_count"
        await client.socket.send(b"")
        for _ in range(25):
            await client.socket.send("rubbish")
        assert await client.closed() == 1007
    async with connected(live.url) as client:
        await client.until("session.created")


async def test_an_oversize_message_closes_with_1009() -> None:
    async with (
        live_server(scripted_settings(network={"max_frame_bytes": 65_536})) as live,
        connected(live.url) as client,
    ):
        await client.until("session.created")
        await client.socket.send("x" * 70_000)
        assert await client.closed() == 1009


async def test_a_minute_in_one_append_is_taken_in_slices(live: Live) -> None:
    live.asr.texts = ["hello there"]
    async with connected(live.url) as client, connected(live.url) as other:
        await client.speak(59.0)
        await client.speak(1.0, level=0.0)
        await other.send("voicepod.ping", t=7)
        assert (await other.until("voicepod.pong"))["t"] == 7
        await client.until("conversation.item.input_audio_transcription.completed")
        assert live.asr.utterances[0].seconds == pytest.approx(59.6, abs=1.2)


async def test_a_hold_to_talk_buffer_is_bounded() -> None:
    async with live_server(scripted_settings(turn={"max_utterance_s": 5})) as live, connected(live.url) as client:
        await client.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        await client.until("session.updated")
        await client.speak(10.0)
        assert (await client.until("error"))["error"]["code"] == "input_audio_buffer_full"
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        await client.until("response.done")
        assert live.asr.utterances[0].seconds <= 5.0


async def test_text_runs_the_same_turn_and_items_can_be_deleted(live: Live) -> None:
    live.llm.replies = ["Hello to you.", "Yes."]
    async with connected(live.url) as client:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
        await client.send("conversation.item.create", item=item)
        await client.send("response.create", response={"output_modalities": ["text"]})
        done = await client.until("response.done")
        assert done["response"]["output"][0]["content"] == [{"type": "output_text", "text": "Hello to you."}]
        assert "".join(event["delta"] for event in client.all("response.output_text.delta")) == "Hello to you."
        for event in client.all("conversation.item.added"):
            await client.send("conversation.item.delete", item_id=event["item"]["id"])
        await client.until("conversation.item.deleted", n=2)
        await client.send("response.create")
        await client.until("response.done", n=2)
        assert len(live.llm.asked[-1]) == 1  # the instructions alone


async def test_a_client_that_never_reads_is_dropped_and_the_server_stays_well() -> None:
    settings = scripted_settings(network={"send_timeout_s": 0.5, "max_lead_s": 10})
    llm = ScriptedLlm([" ".join(["word"] * 4000)], first_token_s=0.01, token_s=0.0)
    tts = ScriptedTts(first_audio_s=0.0, real_time_factor=0.0)
    async with live_server(settings, llm=llm, tts=tts) as live:
        silent = socket.socket()
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect(("127.0.0.1", live.port))
        silent.sendall(HANDSHAKE)
        while not live.server.registry.sessions:
            await asyncio.sleep(0.01)
        session = live.server.registry.sessions[0]
        session.respond(ReplyOptions(max_tokens=4000))
        async with asyncio.timeout(60):
            while live.server.registry.n_resumable == 0:
                # a player that swallows everything at once, so that pacing does not hide the full pipe
                session.played(1, 10**9)
                await asyncio.sleep(0.01)
        assert session.outbox.pending_s <= 31
        silent.close()
        async with connected(live.url) as client:
            await client.until("session.created")
        async with httpx.AsyncClient(base_url=live.http) as http:
            assert "voicepod_slow_client_drops_total 1.0" in (await http.get("/metrics")).text


async def test_a_client_that_answers_no_ping_is_let_go() -> None:
    settings = scripted_settings(network={"ping_interval_s": 1, "ping_timeout_s": 1})
    async with live_server(settings) as live:
        _, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(HANDSHAKE)
        async with asyncio.timeout(20):
            while live.server.registry.n_resumable == 0:
                await asyncio.sleep(0.05)
        writer.close()


async def test_a_browser_needs_its_own_origin_and_a_token_that_works_once(live: Live) -> None:
    token = await live.ticket()
    for protocols, origin in [
        ([*PAGE, f"voicepod.token.{token}"], "http://evil.example"),
        ([*PAGE, "voicepod.token.wrong"], live.http),
        (PAGE, live.http),
    ]:
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with connected(live.url, protocols=protocols, origin=origin):
                pass
        assert refused.value.response.status_code == 403
    protocols = [*PAGE, f"voicepod.token.{token}"]
    async with connected(live.url, protocols=protocols, origin=live.http) as client:
        await client.until("session.created")
    with pytest.raises(websockets.InvalidStatus):
        async with connected(live.url, protocols=protocols, origin=live.http):
            pass


async def test_a_browser_with_openais_client_needs_an_allowed_origin_only(live: Live) -> None:
    protocols = ["realtime", "openai-insecure-api-key.none"]
    async with connected(live.url, protocols=protocols, origin=live.http) as client:
        await client.until("session.created")
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with connected(live.url, protocols=protocols, origin="http://evil.example"):
            pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    "asked",
    [
        {"additional_headers": {"OpenAI-Beta": "realtime=v1"}},
        {"protocols": ["realtime", "openai-beta.realtime-v1"]},
    ],
)
async def test_a_client_of_the_beta_is_told_that_it_will_not_understand(live: Live, asked: dict[str, Any]) -> None:
    async with connected(live.url, **asked) as client:
        await client.send("voicepod.ping", t=1)
        await client.until("voicepod.pong")
        assert client.kinds() == ["session.created", "error", "voicepod.pong"]
        assert client.all("error")[0]["error"]["code"] == "beta_not_supported"


async def test_a_foreign_name_for_loopback_is_refused(live: Live) -> None:
    with pytest.raises(websockets.InvalidStatus):
        async with connected(live.url, additional_headers={"Host": f"evil.example:{live.port}"}):
            pass


async def test_an_engine_that_fails_in_mid_turn_is_told_and_the_next_turn_works() -> None:
    asr = ScriptedAsr([RuntimeError("secret path"), "hello again"], delay_s=0.01)
    async with live_server(asr=asr) as live, connected(live.url, protocols=PAGE) as client:
        await client.say(binary=True)
        error = (await client.until("error"))["error"]
        assert error["code"] == "engine_failed"
        assert "secret" not in json.dumps(client.events)
        await client.until("conversation.item.input_audio_transcription.failed")
        await client.say(binary=True)
        await client.until("response.done")


@pytest.mark.parametrize(("protocols", "errors"), [(None, []), (PAGE, ["no_speech"])])
async def test_a_reply_that_fails_is_an_error_event_for_pages_only(
    live: Live, protocols: list[str] | None, errors: list[str]
) -> None:
    live.asr.texts = [""]
    async with connected(live.url, protocols=protocols) as client:
        await client.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        await client.speak(0.5)
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        failed = (await client.until("response.done"))["response"]
        assert (failed["status"], failed["status_details"]["error"]["code"]) == ("failed", "no_speech")
        assert [event["error"]["code"] for event in client.all("error")] == errors


async def test_four_talks_at_once_end_with_their_own_answers(live: Live) -> None:
    async def one(client: Client, name: str) -> str:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": f"I am {name}"}]}
        await client.send("conversation.item.create", item=item)
        await client.send("response.create")
        done = await client.until("response.done")
        return str(done["response"]["output"][0]["content"][0]["transcript"])

    names = ["Anna", "Bruno", "Clara", "David"]

    def echo(messages: Any, *, max_tokens: int | None = None) -> Any:
        return ScriptedLlm([f"Hello to {messages[-1].content.split()[-1]}."]).reply(messages, max_tokens=max_tokens)

    live.llm.reply = echo  # type: ignore[method-assign]
    async with (
        connected(live.url) as a,
        connected(live.url) as b,
        connected(live.url) as c,
        connected(live.url) as d,
    ):
        answers = await asyncio.gather(*(one(client, name) for client, name in zip((a, b, c, d), names, strict=True)))
    assert answers == [f"Hello to {name}." for name in names]


async def test_health_answers_while_talks_run(live: Live) -> None:
    async with connected(live.url) as client, httpx.AsyncClient(base_url=live.http) as http:
        await client.until("session.created")
        for path in ("/health/live", "/health/ready", "/health/startup", "/api/health", "/ping", "/metrics"):
            assert (await http.get(path)).status_code == 200, path
        assert "voicepod_sessions_active 1.0" in (await http.get("/metrics")).text


async def test_a_session_resumed_by_an_event_keeps_its_seat_and_its_socket(live: Live) -> None:
    async with connected(live.url) as client:
        token = (await client.until("session.created"))["session"]["voicepod"]["resume_token"]
        client.socket.transport.abort()
        await client.closed()
    async with connected(live.url) as client:
        await client.send("voicepod.resume", token=token)
        await client.until("session.created", n=2)
        await client.send("voicepod.ping", t=1)
        await client.until("voicepod.pong")
        seat = live.server.registry.find(token, "local")
        assert seat is not None
        assert seat.connection is not None
        assert seat.left_at_s is None
        assert live.server.registry.n_active == 1
    while live.server.registry.n_active:  # a goodbye frees it
        await asyncio.sleep(0.01)


HOSTILE = [
    '{"type": "session.update", "session": {"audio": {"output": {"voice": {"id": []}}}}}',
    '{"type": "voicepod.playback", "turn": 1, "played_samples": 1, "underruns": 1' + "0" * 400 + "}",
    '{"type": "voicepod.playback", "turn": 1' + "0" * 400 + ', "played_samples": 1}',
    '{"type": "\\ud800"}',
    '{"type": "session.update", "event_id": "\\ud800"}',
    '{"type": "voicepod.ping", "t": NaN}',
    '{"type": "voicepod.ping", "t": 1e999}',
    '{"type": "voicepod.ping", "t": {"deep": []}}',
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_values_are_typed_errors_and_the_socket_goes_on(live: Live, text: str) -> None:
    async with connected(live.url) as client:
        await client.socket.send(text)
        assert (await client.until("error"))["error"]["code"] in (
            "invalid_value",
            "voice_not_found",
            "unknown_event",
            "invalid_json",
        )
        await client.send("voicepod.ping", t=1)
        await client.until("voicepod.pong")


async def test_a_host_or_origin_that_is_no_name_is_refused_like_any_other(live: Live) -> None:
    for header in ("Host", "Origin"):
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with connected(live.url, additional_headers={header: "http://["}):
                pass
        assert refused.value.response.status_code in (400, 403)


async def test_a_flood_of_commits_and_items_is_bounded(live: Live) -> None:
    live.asr.delay_s = 0.5
    async with connected(live.url) as client:
        await client.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        for _ in range(12):
            await client.speak(0.2)
            await client.send("input_audio_buffer.commit")
        assert (await client.until("error"))["error"]["code"] == "rate_limited"
    async with connected(live.url) as client:
        content = [{"type": "input_text", "text": "x" * 20_000}]
        for _ in range(60):
            await client.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        assert (await client.until("error"))["error"]["code"] == "conversation_full"


async def test_the_history_may_change_while_its_tokens_are_counted(live: Live) -> None:
    async def slow_count(text: str) -> int:
        await asyncio.sleep(0.05)
        return len(text.split())

    live.llm.count_tokens = slow_count  # type: ignore[method-assign]
    async with connected(live.url) as client:
        content = [{"type": "input_text", "text": "hello"}]
        await client.send("response.create")
        await client.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        assert (await client.until("response.done"))["response"]["status"] == "completed"
