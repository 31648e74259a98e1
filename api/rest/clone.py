"""A voice of one's own: send a recording and see what it is worth, then agree and name it.

Where the engine cannot clone, the nearest stock voice is chosen, and every answer says that it is a match.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException

from api.access.access import require
from api.access.principal import Principal
from api.rest.backend import Backend
from api.rest.bodies import MAX_TEXT_BODY_BYTES, checked, content_type, json_body, refuse_unless
from api.rest.clone_forms import (
    CloneForm,
    CloneRequest,
    CloningShown,
    HeardShown,
    PhraseShown,
    PhraseWish,
    ProblemShown,
    SampleFields,
    SampleShown,
    StatementShown,
    Trimmed,
    VerdictShown,
)
from api.rest.openapi import body_of, either_body, errors, form_of
from api.rest.streaming import unless_gone
from api.rest.voices import VoiceShown, own_shown
from api.uploads import Upload, read_body, read_upload
from api.voices.consent import ENGINE_NOTICES, STATEMENT, STATEMENT_VERSION
from api.voices.recordings import Recording
from api.voices.workshop import Agreement
from pipeline.errors import InvalidInput

EXAMPLE: dict[str, Any] = {
    "sample_id": "smp_0123456789abcdef01234567",
    "name": "My voice",
    "consent": {"agreed": True, "statement": STATEMENT_VERSION, "name": "Ada Lovelace"},
}


def clone_router(backend: Backend) -> APIRouter:
    """What there is, recordings, phrases, and the voice itself."""
    router = APIRouter(tags=["voices"])
    workshop = backend.workshop

    @router.get("/api/clone", responses=errors())
    async def cloning(response: Response, principal: Annotated[Principal, Depends(require("voices"))]) -> CloningShown:
        """What this server makes of a recording: a clone, or the choice of the nearest stock voice."""
        response.headers["Cache-Control"] = "no-store"
        method, voices = await workshop.method(), backend.settings.voices
        info = backend.engines.tts.info
        return CloningShown(
            method=method,
            engine=info.name,
            min_s=voices.min_reference_s,
            max_s=voices.max_reference_s,
            max_voices=voices.max_voices,
            n_voices=len(backend.voices.own(principal.owner)),
            max_upload_mb=backend.settings.security.max_upload_size_mb,
            statement=StatementShown(version=STATEMENT_VERSION, text=STATEMENT),
            phrase_required=voices.phrase_required,
            languages=list(workshop.languages),
            notice=ENGINE_NOTICES.get(info.name) if method == "clone" else None,
            watermark=backend.is_marked(is_cloned=method == "clone"),
        )

    @router.post(
        "/api/clone/samples",
        status_code=201,
        responses=errors(400, 404, 413, 415, 429, 503),
        openapi_extra=form_of(SampleFields),
    )
    async def add_sample(
        request: Request, response: Response, principal: Annotated[Principal, Depends(require("voices"))]
    ) -> SampleShown:
        """Send a recording of one person: what it is worth, and what is said in it. It is kept for 15 minutes."""
        response.headers["Cache-Control"] = "no-store"
        upload, asked = await _upload(backend, request, principal, SampleFields)
        return _shown(await _taken(backend, request, principal, upload, asked))

    @router.delete("/api/clone/samples/{sample_id}", status_code=204, responses=errors(404))
    async def delete_sample(sample_id: str, principal: Annotated[Principal, Depends(require("voices"))]) -> None:
        """Forget a recording at once."""
        workshop.recordings.drop(sample_id, principal.owner)

    @router.post(
        "/api/clone/phrase",
        status_code=201,
        responses=errors(400, 413, 415),
        openapi_extra=body_of(PhraseWish, {"language": "en"}, is_required=False),
    )
    async def new_phrase(
        request: Request, response: Response, principal: Annotated[Principal, Depends(require("voices"))]
    ) -> PhraseShown:
        """Words to read aloud, which show that the voice is that of the one who agrees."""
        response.headers["Cache-Control"] = "no-store"
        asked = PhraseWish() if await _is_empty(request) else await json_body(request, PhraseWish)
        phrase = workshop.new_phrase(principal.owner, asked.language)
        return PhraseShown(id=phrase.id, text=phrase.text, expires_at=int(phrase.expires_s))

    @router.post(
        "/api/clone",
        status_code=201,
        responses=errors(400, 404, 413, 415, 429, 503),
        openapi_extra=either_body(body_of(CloneRequest, EXAMPLE), form_of(CloneForm)),
    )
    async def clone(
        request: Request, response: Response, principal: Annotated[Principal, Depends(require("voices"))]
    ) -> VoiceShown:
        """Make the voice, with the consent of the person whose it is. A form brings the recording along."""
        refuse_unless(request, ("application/json", "multipart/form-data"))
        if content_type(request) == "application/json":
            asked = await json_body(request, CloneRequest)
            recording = workshop.recordings.get(asked.sample_id, principal.owner)
            given = asked.consent
            agreement = Agreement(given.agreed, given.name, given.statement, given.phrase_sample_id)
            wish: CloneRequest | CloneForm = asked
        else:
            upload, form = await _upload(backend, request, principal, CloneForm)
            agreement = Agreement(form.agreed, form.consent_name, form.statement, form.phrase_sample_id)
            workshop.check(agreement)
            recording = await _taken(backend, request, principal, upload, form)
            wish = form
        backend.check_ready()
        await backend.limiter.spend(principal, "generation")
        making = workshop.make(
            principal,
            recording,
            name=wish.name,
            agreement=agreement,
            transcript=wish.transcript,
            language=wish.language,
        )
        with backend.slots.one():
            voice = await unless_gone(request.receive, making)
        response.headers["Location"] = f"/api/voices/{voice.id}"
        response.headers["Cache-Control"] = "no-store"
        return own_shown(backend, voice)

    return router


TrimmedT = TypeVar("TrimmedT", bound=Trimmed)


async def _upload(
    backend: Backend, request: Request, principal: Principal, form: type[TrimmedT]
) -> tuple[Upload, TrimmedT]:
    """The file and the fields, once the caller's limits allow them."""
    refuse_unless(request, ("multipart/form-data",))
    backend.check_ready()
    await backend.limiter.spend(principal, "upload")
    upload = await read_upload(request, max_bytes=backend.max_upload_bytes)
    asked = checked(form, {name: value for name in form.model_fields if (value := upload.text(name))})
    known = backend.engines.asr.info.languages
    if asked.language is not None and known and asked.language not in known:
        raise InvalidInput("the speech recogniser does not know this language", param="language")
    return upload, asked


async def _taken(backend: Backend, request: Request, principal: Principal, upload: Upload, asked: Trimmed) -> Recording:
    """The recording, judged. The client that goes away ends it."""
    workshop = backend.workshop
    workshop.recordings.check_room(principal.owner)
    audio = await unless_gone(request.receive, workshop.decoded(upload.data, start_s=asked.start_s, end_s=asked.end_s))
    await backend.limiter.spend(principal, "audio_s", audio.seconds)
    phrase_id = asked.phrase_id if isinstance(asked, SampleFields) else None
    with backend.slots.one():
        taking = workshop.take(principal.owner, audio, language=asked.language, phrase_id=phrase_id)
        return await unless_gone(request.receive, taking)


async def _is_empty(request: Request) -> bool:
    """Whether the request has no body. HTTP 415 for one that does not say what it is."""
    if content_type(request):
        return False
    if await read_body(request, max_bytes=MAX_TEXT_BODY_BYTES):
        raise HTTPException(415)
    return True


def _shown(recording: Recording) -> SampleShown:
    verdict, phrase = recording.verdict, recording.phrase
    return SampleShown(
        id=recording.id,
        seconds=round(recording.seconds, 2),
        transcript=recording.transcript,
        language=recording.language,
        verdict=VerdictShown(
            usable=verdict.usable,
            grade=verdict.grade,
            problems=[ProblemShown(code=p.code, severity=p.severity, message=p.message) for p in verdict.problems],
            speech_seconds=round(verdict.speech_s, 2),
            snr_db=round(verdict.snr_db, 1),
            peak_db=round(verdict.peak_db, 1),
            clipped_share=round(verdict.clipped_share, 5),
            several_speakers=verdict.several_speakers,
        ),
        phrase=None if phrase is None else HeardShown(matches=phrase.matches, heard=phrase.heard),
        expires_at=int(recording.expires_s),
    )
