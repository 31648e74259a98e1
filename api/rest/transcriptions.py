"""Speech to text: OpenAI's `POST /v1/audio/transcriptions`, and the same as a job for long files."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from api.access.access import require
from api.access.principal import Principal
from api.rest.backend import Backend
from api.rest.bodies import Asked, checked, refuse_unless
from api.rest.jobs import JobShown, Progress, shown
from api.rest.openapi import errors, form_of, transcript_answer
from api.rest.streaming import EVENT_STREAM, Streamed, event, events_with_errors, unless_gone
from api.rest.transcript_formats import MEDIA_TYPES, Granularity, TranscriptFormat, Whole, as_json, body, needs_words
from api.uploads import Upload, read_upload
from pipeline.audio import AudioChunk
from pipeline.errors import InvalidInput
from pipeline.transcription import Stretch, transcribe_all
from pipeline.untrusted_audio import decode

# What is answered at once must be done before a proxy gives up (100 s). Two slow cores, busy with a talk as well, hear
# three seconds of speech in one.
MAX_DIRECT_S: Final = 240.0
# What is streamed or done as a job. The decoder's child may take 5 s of a core, which is 25 minutes of MP3.
MAX_FILE_S: Final = 1200.0
_LIST: Final = "timestamp_granularities"


class TranscriptionRequest(Asked):
    """The fields beside the file. `model`, `prompt` and `temperature` are accepted and not looked at."""

    model: str = Field("", max_length=256)
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] | None = None
    prompt: str | None = Field(None, max_length=20_000)
    response_format: TranscriptFormat = "json"
    temperature: float = Field(0.0, ge=0, le=1)
    timestamp_granularities: Annotated[tuple[Granularity, ...], Field(max_length=2)] = ("segment",)
    stream: bool = False


def transcriptions_router(backend: Backend) -> APIRouter:
    """The two routes."""
    router = APIRouter(tags=["transcription"])

    @router.post(
        "/v1/audio/transcriptions",
        response_class=Response,
        responses={200: transcript_answer(), **errors(400, 413, 415, 429, 503)},
        openapi_extra=form_of(TranscriptionRequest),
    )
    async def transcription(request: Request, principal: Annotated[Principal, Depends(require("speech"))]) -> Response:
        """What is said in a file, as OpenAI's clients ask for it. Files of more than four minutes: stream, or a job."""
        asked, audio = await _taken(backend, request, principal)
        if not asked.stream and audio.seconds > MAX_DIRECT_S:
            raise InvalidInput(
                f"the audio is longer than {MAX_DIRECT_S:g} s: ask with stream=true, or POST it to /api/transcriptions",
                code="too_long",
                param="file",
            )
        stretches = backend.slots.held(_heard(backend, asked, audio))
        if asked.stream:
            return Streamed(events_with_errors(_events(stretches, audio.seconds)), media_type=EVENT_STREAM)
        whole = await unless_gone(request.receive, _whole(stretches, audio.seconds))
        kind = asked.response_format
        return Response(
            body(whole, kind, asked.timestamp_granularities),
            media_type=MEDIA_TYPES[kind],
            headers={"Cache-Control": "no-store"},
        )

    @router.post(
        "/api/transcriptions",
        status_code=202,
        responses=errors(400, 413, 415, 429, 503),
        openapi_extra=form_of(TranscriptionRequest, without=("stream",)),
    )
    async def transcription_job(
        request: Request, response: Response, principal: Annotated[Principal, Depends(require("speech"))]
    ) -> JobShown:
        """The same as a job, for files of up to twenty minutes: `Location` says where to ask for the result."""
        backend.jobs.check_room(principal.owner)
        asked, audio = await _taken(backend, request, principal)
        job = backend.jobs.add("transcription", principal.owner, _steps(backend, asked, audio))
        response.headers["Location"] = f"/api/jobs/{job.id}"
        response.headers["Cache-Control"] = "no-store"
        return shown(job)

    return router


async def _taken(backend: Backend, request: Request, principal: Principal) -> tuple[TranscriptionRequest, AudioChunk]:
    """The request and its audio, once the caller's limits allow them."""
    refuse_unless(request, ("multipart/form-data",))
    backend.check_ready()
    await backend.limiter.spend(principal, "upload")
    upload = await read_upload(request, max_bytes=backend.max_upload_bytes)
    asked = checked(TranscriptionRequest, _fields(upload))
    languages = backend.engines.asr.info.languages
    if asked.language is not None and languages and asked.language not in languages:
        raise InvalidInput("the speech recogniser does not know this language", param="language")
    audio = await unless_gone(request.receive, decode(upload.data, max_seconds=MAX_FILE_S))
    await backend.limiter.spend(principal, "audio_s", audio.seconds)
    return asked, audio


def _fields(upload: Upload) -> dict[str, Any]:
    """Form fields by the names of the request; an empty one counts as absent. OpenAI sends a list as `name[]`."""
    fields: dict[str, Any] = {
        name: value for name in TranscriptionRequest.model_fields if name != _LIST and (value := upload.text(name))
    }
    if granularities := (*upload.fields.get(f"{_LIST}[]", ()), *upload.fields.get(_LIST, ())):
        fields[_LIST] = granularities
    return fields


def _heard(backend: Backend, asked: TranscriptionRequest, audio: AudioChunk) -> AsyncGenerator[Stretch, None]:
    """What was said."""
    setting = backend.settings.asr.language
    language = asked.language or (None if setting == "auto" else setting)
    words = needs_words(asked.response_format)
    return transcribe_all(backend.engines.asr, audio, language=language, words=words, waits=backend.waits)


async def _whole(stretches: AsyncGenerator[Stretch, None], audio_s: float) -> Whole:
    async with aclosing(stretches):
        return Whole([stretch async for stretch in stretches], audio_s)


async def _events(stretches: AsyncGenerator[Stretch, None], audio_s: float) -> AsyncGenerator[bytes, None]:
    """OpenAI's events: text as it is heard, and all of it at the end."""
    heard: list[Stretch] = []
    async with aclosing(stretches):
        async for stretch in stretches:
            text = stretch.transcript.text.strip()
            space = " " if Whole(heard, 0).text else ""
            heard.append(stretch)
            # Without words as well: a proxy must see something within its 100 s.
            yield event({"type": "transcript.text.delta", "delta": space + text if text else ""})
    whole = Whole(heard, audio_s)
    yield event({"type": "transcript.text.done", "text": whole.text, "usage": whole.usage})


async def _steps(backend: Backend, asked: TranscriptionRequest, audio: AudioChunk) -> AsyncGenerator[Progress, None]:
    """A job's work: how far it is, and at the end the transcript."""
    heard: list[Stretch] = []
    async with aclosing(_heard(backend, asked, audio)) as stretches:
        async for stretch in stretches:
            heard.append(stretch)
            yield min(stretch.end_s / audio.seconds, 1.0)
    yield as_json(Whole(heard, audio.seconds), asked.response_format, asked.timestamp_granularities)
