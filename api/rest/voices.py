"""Voices that may be chosen: the engine's, and one's own."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from api.access.access import require
from api.access.principal import Principal
from api.rest.backend import Backend
from api.rest.bodies import Asked, json_body
from api.rest.openapi import body_of, errors, file_answer
from api.voices.records import OwnVoice
from api.voices.workshop import checked_name
from pipeline.engines.base import Voice
from pipeline.errors import InvalidInput


class MatchShown(BaseModel):
    """The stock voice that a match stands for; `similarity` 1 is the same voice."""

    voice: str
    name: str
    similarity: float


class VoiceShown(BaseModel):
    """A voice; `created_at`, `seconds` and `transcript` are of one's own. `reason` says why it is not `usable`."""

    id: str
    object: Literal["voice"] = "voice"
    name: str
    language: str
    languages: list[str]
    kind: Literal["stock", "clone", "match"]
    created_at: int | None
    seconds: float | None
    transcript: str | None
    match: MatchShown | None
    watermarked: bool
    usable: bool
    reason: str | None


class VoiceList(BaseModel):
    """All voices that an owner may choose."""

    object: Literal["list"] = "list"
    data: list[VoiceShown]


class NewName(Asked):
    """Another name for a voice."""

    name: Annotated[str, Field(min_length=1, max_length=240)]


def voices_router(backend: Backend) -> APIRouter:
    """List, look at, rename, hear and delete."""
    router = APIRouter(tags=["voices"])
    book = backend.voices

    @router.get("/api/voices", responses=errors())
    async def voices(response: Response, principal: Annotated[Principal, Depends(require("voices"))]) -> VoiceList:
        """Your own voices, then those of the engine."""
        _not_stored(response)
        own = [own_shown(backend, voice) for voice in book.own(principal.owner)]
        return VoiceList(data=[*own, *(_stock_shown(backend, voice) for voice in backend.engines.tts.info.voices)])

    @router.get("/api/voices/{voice_id}", responses=errors(404))
    async def voice(
        voice_id: str, response: Response, principal: Annotated[Principal, Depends(require("voices"))]
    ) -> VoiceShown:
        """One voice."""
        _not_stored(response)
        stock = _stock(backend, voice_id)
        return (
            own_shown(backend, book.get(principal.owner, voice_id)) if stock is None else _stock_shown(backend, stock)
        )

    @router.patch(
        "/api/voices/{voice_id}",
        responses=errors(400, 404, 413, 415),
        openapi_extra=body_of(NewName, {"name": "My voice"}),
    )
    async def rename_voice(
        voice_id: str, request: Request, response: Response, principal: Annotated[Principal, Depends(require("voices"))]
    ) -> VoiceShown:
        """Give your voice another name."""
        _not_stored(response)
        asked = await json_body(request, NewName)
        _refuse_stock(backend, voice_id)
        return own_shown(backend, await book.rename(principal.owner, voice_id, checked_name(asked.name)))

    @router.delete("/api/voices/{voice_id}", status_code=204, responses=errors(400, 404))
    async def delete_voice(voice_id: str, principal: Annotated[Principal, Depends(require("voices"))]) -> None:
        """Forget your voice and its recording. Your talks that use it go on with the server's own voice."""
        _refuse_stock(backend, voice_id)
        await book.delete(principal.owner, voice_id, credential=principal.credential)
        for seat in backend.registry.of_owner(principal.owner):
            seat.session.check_voice()

    @router.get(
        "/api/voices/{voice_id}/sample",
        response_class=Response,
        responses={200: file_answer("audio/wav", "The recording."), **errors(404)},
    )
    async def voice_sample(voice_id: str, principal: Annotated[Principal, Depends(require("voices"))]) -> Response:
        """The recording that your voice was made from, as WAV."""
        wav = await book.recording(principal.owner, voice_id)
        return Response(wav, media_type="audio/wav", headers={"Cache-Control": "no-store"})

    return router


def own_shown(backend: Backend, voice: OwnVoice) -> VoiceShown:
    """What its owner is shown of a voice of theirs."""
    problem = backend.voices.problem(voice)
    known = backend.voices.find(voice.owner, voice.id)
    stock = _stock(backend, voice.match_voice or "")
    match = None
    if voice.match_voice is not None and voice.match_similarity is not None:
        name = voice.match_voice if stock is None else stock.name
        match = MatchShown(voice=voice.match_voice, name=name, similarity=round(voice.match_similarity, 3))
    return VoiceShown(
        id=voice.id,
        name=voice.name,
        language=voice.language if known is None else known.language,
        languages=[] if known is None else _languages(known),
        kind=voice.kind,
        created_at=int(voice.created_s),
        seconds=round(voice.seconds, 2),
        transcript=voice.transcript,
        match=match,
        watermarked=backend.is_marked(is_cloned=voice.kind == "clone"),
        usable=problem is None,
        reason=problem,
    )


def _stock_shown(backend: Backend, voice: Voice) -> VoiceShown:
    return VoiceShown(
        id=voice.id,
        name=voice.name,
        language=voice.language,
        languages=_languages(voice),
        kind="stock",
        created_at=None,
        seconds=None,
        transcript=None,
        match=None,
        watermarked=backend.is_marked(is_cloned=False),
        usable=True,
        reason=None,
    )


def _stock(backend: Backend, voice_id: str) -> Voice | None:
    return next((voice for voice in backend.engines.tts.info.voices if voice.id == voice_id), None)


def _refuse_stock(backend: Backend, voice_id: str) -> None:
    if _stock(backend, voice_id) is not None:
        raise InvalidInput("this voice belongs to the server", code="stock_voice", param="voice_id")


def _languages(voice: Voice) -> list[str]:
    return list(dict.fromkeys((voice.language, *voice.languages)))


def _not_stored(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"
