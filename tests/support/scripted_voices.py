"""The routes of one's own voices, scripted: what the page shows can be tried without a model."""

from __future__ import annotations

import io
import secrets
from typing import Any

import numpy as np
import soundfile
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

RATE = 24_000
SPOKEN_S = 1.5
STOCK = (("af_heart", "Heart", "en"), ("am_adam", "Adam", "en"), ("ff_siwis", "Siwis", "fr"))


def voice(voice_id: str, name: str, language: str, kind: str = "stock", **more: Any) -> dict[str, Any]:
    """A voice as the server tells it."""
    return {
        "id": voice_id,
        "object": "voice",
        "name": name,
        "language": language,
        "languages": [language],
        "kind": kind,
        "created_at": None if kind == "stock" else 1_795_000_000,
        "seconds": None if kind == "stock" else 8.2,
        "transcript": None,
        "match": None,
        "watermarked": kind == "clone",
        "usable": True,
        **more,
    }


class ScriptedVoices:
    """The routes and the switches that a test turns."""

    def __init__(self) -> None:
        self.reset()
        self.router = APIRouter()
        add = self.router.add_api_route
        add("/api/clone", self._about)
        add("/api/clone", self._create, methods=["POST"])
        add("/api/clone/samples", self._sample, methods=["POST"])
        add("/api/clone/samples/{sample_id}", self._drop, methods=["DELETE"])
        add("/api/clone/phrase", self._phrase, methods=["POST"])
        add("/api/voices", self._list)
        add("/api/voices/{voice_id}", self._rename, methods=["PATCH"])
        add("/api/voices/{voice_id}", self._delete, methods=["DELETE"])
        add("/api/voices/{voice_id}/sample", self._recording)
        add("/api/tts", self._speak, methods=["POST"])

    def reset(self) -> None:
        """No voices of one's own, nothing refused."""
        self.about: dict[str, Any] = {
            "method": "match",
            "engine": "kokoro",
            "min_s": 3.0,
            "max_s": 30.0,
            "max_voices": 20,
            "max_upload_mb": 1,
            "statement": {"version": "1", "text": "This is my own voice, or I may use it."},
            "phrase_required": False,
            "languages": ["en", "fr"],
            "notice": None,
            "watermark": True,
        }
        self.own: list[dict[str, Any]] = []
        self.verdict: dict[str, Any] = {"usable": True, "grade": "good", "problems": []}
        self.phrase_heard: str | None = None
        self.refusals: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.uploads: list[dict[str, Any]] = []
        self.created: list[dict[str, Any]] = []
        self.spoken: list[dict[str, Any]] = []

    def refuse(self, route: str, status: int, **error: Any) -> None:
        """The next request of `METHOD /path` is answered so."""
        self.refusals.setdefault(route, []).append((status, error))

    def _refusal(self, route: str) -> JSONResponse | None:
        if not self.refusals.get(route):
            return None
        status, error = self.refusals[route].pop(0)
        return JSONResponse({"error": error}, status_code=status)

    async def _about(self) -> Any:
        return self._refusal("GET /api/clone") or {**self.about, "n_voices": len(self.own)}

    async def _list(self) -> Any:
        stock = [voice(*facts) for facts in STOCK]
        return self._refusal("GET /api/voices") or {"object": "list", "data": [*self.own, *stock]}

    async def _sample(self, request: Request) -> Any:
        async with request.form() as form:
            file = form["file"]
            assert not isinstance(file, str)
            sent = {name: form.get(name) for name in ("start_s", "end_s", "phrase_id")}
            self.uploads.append({**sent, "bytes": await file.read(), "name": file.filename})
        if refusal := self._refusal("POST /api/clone/samples"):
            return refusal
        measured = {"speech_seconds": 7.1, "snr_db": 34.0, "peak_db": -4.0, "clipped_share": 0.0}
        phrase = None
        if sent["phrase_id"]:
            phrase = {"matches": self.phrase_heard is None, "heard": self.phrase_heard or "river, candle"}
        sample = {
            "id": f"smp_{secrets.token_hex(8)}",
            "seconds": 8.2,
            "transcript": "Ask not what your country can do for you.",
            "language": "en",
            "verdict": {**measured, "several_speakers": False, **self.verdict},
            "phrase": phrase,
            "expires_at": 1_795_000_900,
        }
        return JSONResponse(sample, status_code=201)

    async def _drop(self, sample_id: str) -> Response:
        return Response(status_code=204)

    async def _phrase(self) -> Any:
        phrase = {"id": "phr_1", "text": "river, candle, mountain, silver", "expires_at": 1_795_000_900}
        return self._refusal("POST /api/clone/phrase") or JSONResponse(phrase, status_code=201)

    async def _create(self, request: Request) -> Any:
        self.created.append(await request.json())
        if refusal := self._refusal("POST /api/clone"):
            return refusal
        is_clone = self.about["method"] == "clone"
        match = None if is_clone else {"voice": "am_adam", "name": "Adam", "similarity": 0.71}
        kind, voice_id = "clone" if is_clone else "match", f"voice_{secrets.token_hex(12)}"
        made = voice(voice_id, self.created[-1]["name"], "en", kind, match=match)
        self.own.insert(0, made)
        return JSONResponse(made, status_code=201)

    async def _rename(self, voice_id: str, request: Request) -> Any:
        if refusal := self._refusal("PATCH /api/voices"):
            return refusal
        renamed = next(own for own in self.own if own["id"] == voice_id)
        renamed["name"] = (await request.json())["name"]
        return renamed

    async def _delete(self, voice_id: str) -> Any:
        if refusal := self._refusal("DELETE /api/voices"):
            return refusal
        self.own = [own for own in self.own if own["id"] != voice_id]
        return Response(status_code=204)

    async def _recording(self, voice_id: str) -> Response:
        return Response(wav(3.0), media_type="audio/wav")

    async def _speak(self, request: Request) -> Any:
        self.spoken.append(await request.json())
        return self._refusal("POST /api/tts") or Response(wav(SPOKEN_S), media_type="audio/wav")


def wav(seconds: float) -> bytes:
    """A tone as a WAV file."""
    file = io.BytesIO()
    tone = 0.2 * np.sin(2 * np.pi * 330 * np.arange(int(seconds * RATE)) / RATE)
    soundfile.write(file, tone, RATE, format="WAV")
    return file.getvalue()
