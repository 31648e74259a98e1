"""`POST /api/watermark`: whether a recording carries the inaudible mark of speech that was generated here."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from api.access.access import require
from api.access.principal import Principal
from api.rest.backend import Backend
from api.rest.bodies import Asked, refuse_unless
from api.rest.openapi import errors, form_of
from api.rest.streaming import unless_gone
from api.rest.transcriptions import MAX_DIRECT_S
from api.uploads import read_upload
from pipeline.audio import AudioChunk
from pipeline.errors import ConfigError, EngineNotReady
from pipeline.untrusted_audio import decode
from pipeline.watermark import STRETCH_S, THRESHOLD, Watermarker

log = structlog.get_logger()

_LISTEN_S: Final = 4 * STRETCH_S  # in one go: talks get their turn in between


class Detection(BaseModel):
    """What the detector says of a recording; it counts as marked from a `confidence` of 0.9 on."""

    watermarked: bool
    confidence: float = Field(ge=0, le=1)

    model_config = {"json_schema_extra": {"examples": [{"watermarked": True, "confidence": 0.9996}]}}


class Detector:
    """The watermark's weights, read when they are first asked for. One recording at a time."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._free = asyncio.Lock()
        self._watermarker: Watermarker | None = None

    async def confidence(self, audio: AudioChunk) -> float:
        """How sure it is that some stretch is marked, in [0, 1]. `EngineNotReady` when the weights are not here."""
        async with self._free:
            watermarker = await asyncio.to_thread(self._loaded)
            # Parts of about one length: a short rest, heard for itself, would be judged on too little.
            n_parts = max(1, round(audio.seconds / _LISTEN_S))
            ends = [audio.n_samples * i // n_parts for i in range(n_parts + 1)]
            found = 0.0
            for start, end in itertools.pairwise(ends):
                part = audio.slice(start, end)
                found = max(found, await asyncio.to_thread(watermarker.detect, part))
            return found

    def _loaded(self) -> Watermarker:
        if self._watermarker is None:
            try:
                self._watermarker = Watermarker.installed(self._models_dir)
            except ConfigError as error:
                log.warning("watermark.missing", reason=error.message)
                raise EngineNotReady("this server has no watermark model", stage="watermark") from error
        return self._watermarker


def watermark_router(backend: Backend) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["speech"])
    detector = Detector(backend.settings.models.dir)

    @router.post("/api/watermark", responses=errors(400, 413, 415, 429, 503), openapi_extra=form_of(Asked))
    async def watermark(
        request: Request, response: Response, principal: Annotated[Principal, Depends(require("speech"))]
    ) -> Detection:
        """Whether a recording of up to four minutes carries the watermark."""
        refuse_unless(request, ("multipart/form-data",))
        await backend.limiter.spend(principal, "upload")
        upload = await read_upload(request, max_bytes=backend.max_upload_bytes)
        audio = await unless_gone(request.receive, decode(upload.data, max_seconds=MAX_DIRECT_S))
        await backend.limiter.spend(principal, "audio_s", audio.seconds)
        with backend.slots.one():
            confidence = await unless_gone(request.receive, detector.confidence(audio))
        response.headers["Cache-Control"] = "no-store"
        return Detection(watermarked=confidence >= THRESHOLD, confidence=round(confidence, 4))

    return router
