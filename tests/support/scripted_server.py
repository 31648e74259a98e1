"""A small server that speaks the wire protocol with tones for a voice: the page's tests need no model.

`python -m tests.support.scripted_server --port 7870` serves it for a look by eye.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse

import ui
from tests.support.scripted_voices import ScriptedVoices
from tests.support.widget_page import PATH as WIDGET
from tests.support.widget_page import widget_page

RATE = 24000
LEAD_S = 1.0
LOUD = 0.02
REPLY = (
    "The sun is a star, and it is very large.",
    "More than a million Earths would fit inside.",
    "Its light takes eight minutes to reach us.",
)
SENTENCE_S = 1.2
PERSONAS = {"Friendly": "You are a friendly voice assistant.", "Pirate": "You are a pirate."}
EXAMPLES = ("How big is the sun?", "Tell me a short story.", "What can you help me with?")


class Talk:
    """One conversation and everything the page sent in it."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.id = f"sess_{secrets.token_hex(4)}"
        self.resume_token = secrets.token_urlsafe(8)
        self.received: list[dict[str, Any]] = []
        self.items: list[dict[str, Any]] = []
        self.session = self._defaults()
        self.socket: WebSocket | None = None
        self.agent = "idle"
        self.turn = 0
        self.audio: np.ndarray = np.zeros(0, np.int16)
        self.sent = 0
        self.played = 0
        self.flushed = 0
        self.paused = False  # until the page has said where its sound stopped
        self.moved = asyncio.Event()  # more may be sent, or all was heard
        self.n_mic_samples = 0
        self.mic_rms = 0.0
        self.loud_ms = self.quiet_ms = 0.0
        self.user_speaking = False
        self.reply: asyncio.Task[None] | None = None
        self.reply_item = ""

    def _defaults(self) -> dict[str, Any]:
        turn_detection = {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 600}
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self.id,
            "model": "voicepod",
            "instructions": "You are a voice assistant.",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24000},
                    "transcription": {"model": "base", "language": None},
                    "turn_detection": turn_detection,
                },
                "output": {"format": {"type": "audio/pcm", "rate": RATE}, "voice": "af_heart", "speed": 1.0},
            },
            "voicepod": {
                "resume_token": self.resume_token,
                "resumed": False,
                "resume_s": 300,
                "headphones": False,
                "voices": [
                    {"id": "af_heart", "name": "Heart", "language": "en"},
                    {"id": "am_adam", "name": "Adam", "language": "en"},
                    {"id": "ff_siwis", "name": "Siwis", "language": "fr"},
                ],
                "languages": ["auto", "en", "fr", "de"],
                "engines": {"vad": "silero", "asr": "scripted", "llm": "scripted", "tts": "scripted"},
            },
        }

    async def send(self, event_type: str, **fields: Any) -> None:
        if self.socket is not None:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await self.socket.send_json({"type": event_type, "event_id": secrets.token_hex(4), **fields})

    async def state(self, agent: str) -> None:
        self.agent = agent
        await self.send("voicepod.state", user="speaking" if self.user_speaking else "silent", agent=agent)

    # ---- what comes in

    async def handle(self, event: dict[str, Any]) -> None:
        self.received.append(event)
        kind = event["type"]
        if kind == "voicepod.ping":
            await self.send("voicepod.pong", t=event["t"])
        elif kind == "voicepod.playback" and event["turn"] == self.turn:
            self.played = event["played_samples"]
        elif kind == "session.update":
            _merge(self.session, event["session"])
            await self.send("session.updated", session=self.session)
        elif kind == "response.cancel":
            await self.stop_reply()
        elif kind == "conversation.item.create":
            await self.add_item("user", event["item"]["content"][0]["text"], event["item"].get("id"))
        elif kind == "input_audio_buffer.commit":
            await self.add_spoken(self.server.heard_text)
        elif kind == "response.create":
            self.start_reply()
        elif kind == "conversation.item.delete":
            self.items = [item for item in self.items if item["id"] != event["item_id"]]
            await self.send("conversation.item.deleted", item_id=event["item_id"])
        elif kind == "voicepod.resume":
            self.sent = event["sample"] if event["turn"] == self.turn else len(self.audio)
            self.paused = False
        self.moved.set()

    async def hear(self, pcm: bytes) -> None:
        samples = np.frombuffer(pcm, np.int16)
        self.n_mic_samples += samples.size
        frame_ms = samples.size / self.session["audio"]["input"]["format"]["rate"] * 1000
        self.mic_rms = float(np.sqrt(np.mean((samples / 32768.0) ** 2))) if samples.size else 0.0
        detection = self.session["audio"]["input"]["turn_detection"]
        if detection is None:
            return
        loud = self.mic_rms > LOUD
        self.loud_ms = self.loud_ms + frame_ms if loud else 0.0
        self.quiet_ms = 0.0 if loud else self.quiet_ms + frame_ms
        if not self.user_speaking and self.loud_ms >= 100:
            self.user_speaking = True
            await self.send("input_audio_buffer.speech_started", item_id="item_next", audio_start_ms=0)
            await self.stop_reply()
            await self.state("idle")
        elif self.user_speaking and self.quiet_ms >= detection["silence_duration_ms"]:
            self.user_speaking = False
            await self.send("input_audio_buffer.speech_stopped", item_id="item_next", audio_end_ms=0)
            await self.add_spoken(self.server.heard_text)
            self.start_reply()

    # ---- what goes out

    async def add_item(self, role: str, text: str, item_id: str | None = None) -> str:
        part = {"type": "input_text", "text": text} if role == "user" else {"type": "output_audio", "transcript": text}
        item_id = item_id or f"item_{secrets.token_hex(4)}"
        item = {"id": item_id, "type": "message", "role": role, "status": "completed"}
        self.items.append({**item, "content": [part]})
        await self.send("conversation.item.added", item=self.items[-1], previous_item_id=None)
        await self.send("conversation.item.done", item=self.items[-1], previous_item_id=None)
        return item_id

    async def add_spoken(self, text: str) -> None:
        item_id = f"item_{secrets.token_hex(4)}"
        content = [{"type": "input_audio", "transcript": None}]
        item = {"id": item_id, "type": "message", "role": "user", "status": "completed", "content": content}
        await self.send("conversation.item.added", item=item, previous_item_id=None)
        await self.send("conversation.item.input_audio_transcription.delta", item_id=item_id, delta=text[:10])
        content[0]["transcript"] = text
        self.items.append(item)
        await self.send("conversation.item.input_audio_transcription.completed", item_id=item_id, transcript=text)

    def start_reply(self) -> None:
        if self.reply is not None:
            self.reply.cancel()
        self.reply = asyncio.create_task(self._reply())

    async def _reply(self) -> None:
        self.turn += 1
        self.sent = self.played = 0
        turn, item_id, response_id = self.turn, f"item_{secrets.token_hex(4)}", f"resp_{secrets.token_hex(4)}"
        self.reply_item = item_id
        part: dict[str, Any] = {"type": "output_audio", "transcript": ""}
        item = {"id": item_id, "type": "message", "role": "assistant", "status": "in_progress", "content": [part]}
        self.items.append(item)
        await self.state("thinking")
        await asyncio.sleep(self.server.think_s)
        await self.send("conversation.item.added", item=item, previous_item_id=None)
        sentences = self.server.reply
        n = int(self.server.sentence_s * RATE)
        self.audio = np.concatenate([tone(330 + 110 * i, n) for i in range(len(sentences))])
        for index, text in enumerate(sentences):
            caption = {"turn": turn, "item_id": item_id, "response_id": response_id, "first_sample": index * n}
            await self.send("voicepod.caption", **caption, text=text if index == 0 else f" {text}")
        part["transcript"] = " ".join(sentences)
        item["status"] = "completed"
        await self.send("conversation.item.done", item=item, previous_item_id=None)
        await self.state("speaking")
        while self.played < len(self.audio):
            ahead = (self.sent - self.played) / RATE
            if self.socket is not None and not self.paused and self.sent < len(self.audio) and ahead < LEAD_S:
                block = self.audio[self.sent : self.sent + RATE // 25]
                with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                    await self.socket.send_bytes(struct.pack("<II", turn, self.sent) + block.tobytes())
                self.sent += block.size
            else:
                self.moved.clear()
                await self.moved.wait()
        await self._over("completed")

    async def _over(self, outcome: str) -> None:
        parts = {
            "endpointing": 600,
            "asr": 140,
            "llm_first_token": 90,
            "tts_first_audio": 120,
            "send": 4,
            "playout": 76,
        }
        await self.send(
            "voicepod.turn_metrics",
            turn=self.turn,
            outcome=outcome,
            total_ms=sum(parts.values()),
            parts_ms=parts,
            heard_s=self.played / RATE,
        )
        await self.state("idle")

    def forget(self) -> None:
        """Say no more, asked by any thread: the page is gone, and nobody comes back to this talk."""
        if self.reply is not None:
            self.reply.get_loop().call_soon_threadsafe(self.reply.cancel)

    async def stop_reply(self) -> None:
        if self.reply is None or self.reply.done():
            return
        self.reply.cancel()
        self.flushed = self.turn
        await self.send("voicepod.flush", turn=self.turn)
        audio_end_ms = int(self.played / RATE * 1000)
        await self.send(
            "conversation.item.truncated", item_id=self.reply_item, content_index=0, audio_end_ms=audio_end_ms
        )
        await self._over("interrupted")


def tone(hz: float, n_samples: int) -> np.ndarray:
    """A tone with soft ends, PCM16."""
    t = np.arange(n_samples) / RATE
    soft = np.minimum(1.0, np.minimum(t, t[::-1]) / 0.02)
    return np.asarray(np.sin(2 * np.pi * hz * t) * soft * 9000, dtype=np.int16)


def _merge(into: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


class ScriptedServer:
    """The app and the switches that a test turns."""

    def __init__(self) -> None:
        self.voices = ScriptedVoices()
        self.talks: list[Talk] = []
        self.reset()
        self.tokens: set[str] = set()
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self.app.add_api_route("/api/startup", self._startup)
        self.app.add_api_route("/api/me", lambda: {"scopes": ["talk", "speech", "voices"]})
        self.app.add_api_route("/api/ticket", self._ticket, methods=["POST"])
        self.app.add_api_websocket_route("/v1/realtime", self._realtime)
        self.app.include_router(self.voices.router)
        self.app.add_api_route(WIDGET, self._widget, response_class=HTMLResponse)
        self.demo = ui.mount(self.app, self._page())

    def reset(self) -> None:
        """Forget the talks and turn every switch back."""
        for talk in self.talks:
            talk.forget()
        self.talks = []
        self.heard_text = "How big is the sun?"
        self.reply: tuple[str, ...] = REPLY
        self.sentence_s = SENTENCE_S
        self.think_s = 0.2
        self.busy_retry_s: float | None = None
        self.busy_code = "server_busy"
        self.startup: dict[str, Any] = {"state": "ready", "engines": []}
        self.n_refused = 0
        self.voices.reset()

    @property
    def talk(self) -> Talk:
        """The newest conversation."""
        return self.talks[-1]

    def _page(self) -> ui.PageContext:
        return ui.PageContext(
            metrics=lambda: {
                "cpu_percent": 37.0,
                "memory_used_bytes": 3 * 1024**3,
                "memory_total_bytes": 8 * 1024**3,
                "gpus": [],
                "sessions_active": len([talk for talk in self.talks if talk.socket]),
                "max_sessions": 4,
            },
            session_figures=self._figures,
            examples=EXAMPLES,
            personas=PERSONAS,
        )

    async def _widget(self) -> str:
        return widget_page({"examples": list(EXAMPLES), "personas": PERSONAS})

    async def _ticket(self) -> dict[str, str]:
        ticket = secrets.token_urlsafe(16)
        self.tokens.add(ticket)
        return {"ticket": ticket}

    def _figures(self, session_id: str, request: Request) -> dict[str, Any] | None:
        for talk in self.talks:
            if talk.id == session_id:
                return {
                    "turns": talk.turn,
                    "v2v_p50_ms": 1030,
                    "v2v_last_ms": 990,
                    "interruptions": int(talk.flushed > 0),
                }
        return None

    async def _startup(self) -> dict[str, Any]:
        return self.startup

    async def _realtime(self, socket: WebSocket) -> None:
        offered = [name.strip() for name in socket.headers.get("sec-websocket-protocol", "").split(",")]
        named = {name.split(".")[1]: name.split(".", 2)[2] for name in offered if name.count(".") >= 2}
        if named.get("token") not in self.tokens:
            self.n_refused += 1
            await socket.close(1008)
            return
        self.tokens.discard(named["token"])
        await socket.accept(subprotocol="voicepod.v1")
        if self.busy_retry_s is not None:
            error = {
                "type": "server_error",
                "code": self.busy_code,
                "message": "busy",
                "retry_after_s": self.busy_retry_s,
            }
            await socket.send_json({"type": "error", "error": error})
            await socket.close(1013)
            return
        await self._serve(socket, named.get("resume"))

    async def _serve(self, socket: WebSocket, resume: str | None) -> None:
        talk = next((talk for talk in self.talks if resume and talk.resume_token == resume), None)
        if talk is None:
            talk = Talk(self)
            self.talks.append(talk)
        elif talk.socket is not None:
            with contextlib.suppress(RuntimeError):
                await talk.socket.close(4409)
        resumed = talk.socket is not None or bool(talk.received)
        talk.session["voicepod"] |= {"resumed": resumed, "received_samples": talk.n_mic_samples}
        talk.paused = resumed
        talk.socket = socket
        await talk.send("session.created", session=talk.session)
        for item in talk.items if resumed else []:
            await talk.send("conversation.item.added", item=item, previous_item_id=None)
            await talk.send("conversation.item.done", item=item, previous_item_id=None)
        if resumed:
            await talk.state(talk.agent)
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                if message.get("bytes"):
                    await talk.hear(message["bytes"])
                else:
                    await talk.handle(json.loads(message["text"]))
        finally:
            if talk.socket is socket:
                talk.socket = None


class Running:
    """A scripted server on a free loopback port, in its own thread."""

    def __init__(self, server: ScriptedServer, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.url = url
        self._loop = loop

    def tell(self, event_type: str, **fields: Any) -> None:
        """Send an event to the newest conversation's page."""
        asyncio.run_coroutine_threadsafe(self.server.talk.send(event_type, **fields), self._loop).result(5)

    def close_socket(self, code: int) -> None:
        """Close the newest conversation's socket with this code."""
        talk = self.server.talk
        assert talk.socket is not None
        asyncio.run_coroutine_threadsafe(talk.socket.close(code), self._loop).result(5)


@contextmanager
def running_server(port: int = 0) -> Iterator[Running]:
    """Serve until the block ends."""
    scripted = ScriptedServer()
    config = uvicorn.Config(scripted.app, host="127.0.0.1", port=port, log_level="warning", ws="websockets-sansio")
    server = uvicorn.Server(config)
    started: dict[str, asyncio.AbstractEventLoop] = {}

    async def serve() -> None:
        started["loop"] = asyncio.get_running_loop()
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
        assert thread.is_alive(), "the scripted server did not start"
    bound = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(scripted, f"http://127.0.0.1:{bound}", started["loop"])
    finally:
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=7870)
    with running_server(parser.parse_args().port) as running:
        print(running.url, flush=True)
        threading.Event().wait()
