"""What a job may ask for: one strict model an endpoint. Unknown fields, wrong types and wrong numbers are errors.

`python -m serverless.requests schema` prints the JSON schema of `input`.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from pipeline.encoding import SAMPLE_RATES
from serverless import keys
from serverless.clean_text import clean
from serverless.errors import FieldError, JobError, invalid
from settings_keys import one_line

MAX_UPLOAD_BYTES: Final = 7_000_000  # base64 makes 9.4 MB of it, and RunPod takes 10 MB
MAX_SEED: Final = 2**63 - 1
NFE_PRESETS: Final = {"fast": 7, "balanced": 16, "quality": 32}
LANGUAGES: Final = ("en", "fr", "de", "es", "it", "ja", "zh", "nl")

Language = Literal["en", "fr", "de", "es", "it", "ja", "zh", "nl"]
TimingMethod = Literal["whisperx", "auto", "ctc", "phonetic", "dtw", "google", "estimate"]
TimingFormat = Literal["srt", "vtt", "csv", "json", "ass"]
OutputFormat = Literal["wav", "flac", "mp3", "opus"]
_MAX_TEXT_CHARS: Final = 5000
_URL: Final = re.compile(r"https?://\S{1,2040}", re.IGNORECASE)


def _voice(value: str) -> str:
    try:
        return keys.voice_name(value)
    except JobError as error:
        raise ValueError(error.errors[0].message) from None


def _voice_or_url(value: str) -> str:
    return value if _URL.fullmatch(value) else _voice(value)


def _url(value: str) -> str:
    if not _URL.fullmatch(value):
        raise ValueError("an https URL of at most 2,048 characters")
    return value


def _text(value: str, info: ValidationInfo) -> str:
    stripped = value.strip()
    limit = (info.context or {}).get("max_text_chars", _MAX_TEXT_CHARS)
    if not stripped:
        raise ValueError("there is no text to speak")
    if len(stripped) > limit:
        raise ValueError(f"the text has {len(stripped)} characters, and {limit} are the most")
    return stripped


def _formats(value: object) -> object:
    """One format or several; each once, in the order asked for."""
    if isinstance(value, str):
        return [value]
    hashable = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return list(dict.fromkeys(value)) if hashable and isinstance(value, list) else value


def _steps(value: object) -> object:
    return NFE_PRESETS.get(value, value) if isinstance(value, str) else value


def _decoded(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("base64 text")
    text = value.partition(",")[2] if value.startswith("data:") else value
    text = "".join(text.split())  # base64 of a terminal comes in lines
    if len(text) > MAX_UPLOAD_BYTES * 4 // 3 + 4:
        raise ValueError(f"more than {MAX_UPLOAD_BYTES:,} bytes; use voice_file_url or request_upload")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("this is not base64") from None


Voice = Annotated[str, AfterValidator(_voice)]
JobId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
RefText = Annotated[str, Field(min_length=1, max_length=1000)]
PresignSeconds = Annotated[int, Field(ge=1, le=604_800)]
Steps = Annotated[int, Field(ge=4, le=64)]
TimingFormats = Annotated[list[TimingFormat], Field(min_length=1)]
_PRESET_OR_STEPS = BeforeValidator(_steps, json_schema_input_type=Steps | Literal["fast", "balanced", "quality"])
_ONE_OR_SEVERAL = BeforeValidator(_formats, json_schema_input_type=TimingFormats | TimingFormat)


class Request(BaseModel):
    """A job's input; what every endpoint has."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    endpoint: str


class TtsRequest(Request):
    """Speech of `text`; word times only when they are asked for."""

    endpoint: Literal["tts"] = "tts"
    text: Annotated[str, AfterValidator(_text)]
    local_voice: Annotated[str, AfterValidator(_voice_or_url)] | None = None
    ref_text: RefText | None = None
    language: Language | None = None
    speed: float = Field(1.0, ge=0.5, le=2.0)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    nfe_step: Annotated[Steps, _PRESET_OR_STEPS] | None = None
    cfg_strength: float = Field(2.0, ge=0.0, le=10.0)
    output_format: OutputFormat = "wav"
    output_sample_rate: int = Field(24_000, ge=8000, le=48_000)
    return_word_timings: bool = False
    timing_method: TimingMethod = "whisperx"
    timing_format: Annotated[TimingFormats, _ONE_OR_SEVERAL] = ["srt"]
    timing_granularity: Literal["words", "segments"] = "words"
    timing_crlf: bool = False
    timing_karaoke: bool = False
    presign_seconds: PresignSeconds | None = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    def fingerprint(self) -> str:
        """What the result depends on, as a hash: the same for two jobs that ask for the same speech and files."""
        content = self.model_dump(mode="json", exclude={"idempotency_key", "presign_seconds"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _NewVoice(Request):
    voice_name: Voice
    ref_text: RefText | None = None
    language: Language | None = None
    consent: bool = False
    overwrite: bool = False


class UploadRequest(_NewVoice):
    """A voice from a URL or, up to 7 MB, from base64."""

    endpoint: Literal["upload"]
    voice_file_url: Annotated[str, AfterValidator(_url)] | None = None
    voice_file: Annotated[bytes, BeforeValidator(_decoded)] | None = Field(None, json_schema_extra={"format": "base64"})


class UploadUrlRequest(Request):
    """A URL to PUT a voice to."""

    endpoint: Literal["request_upload"]
    voice_name: Voice
    presign_seconds: PresignSeconds | None = None


class ConfirmRequest(_NewVoice):
    """The voice that was PUT to the URL of `request_upload`."""

    endpoint: Literal["confirm"]
    upload_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class ListVoicesRequest(Request):
    """Names of voices, a page at a time."""

    endpoint: Literal["list_voices"]
    cursor: Annotated[str, Field(max_length=2048)] | None = None
    limit: int = Field(100, ge=1, le=1000)
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,64}$")] = ""


class GetVoiceRequest(Request):
    """What is known of one voice."""

    endpoint: Literal["get_voice"]
    voice_name: Voice


class DeleteVoiceRequest(Request):
    """Takes a voice away."""

    endpoint: Literal["delete_voice"]
    voice_name: Voice


class StatusRequest(Request):
    """How far a job is; any worker knows."""

    endpoint: Literal["status"]
    job_id: JobId


class ResultRequest(Request):
    """What a job gave, with fresh URLs."""

    endpoint: Literal["result"]
    job_id: JobId
    presign_seconds: PresignSeconds | None = None


class DownloadRequest(Request):
    """The result's files; `type` and `format` name one of them."""

    endpoint: Literal["download"]
    job_id: JobId
    type: Literal["audio", "timing"] | None = None
    format: Literal["wav", "flac", "mp3", "opus", "srt", "vtt", "csv", "json", "ass"] | None = None
    presign_seconds: PresignSeconds | None = None


class InfoRequest(Request):
    """What this worker is and can do."""

    endpoint: Literal["info"]


class HealthRequest(Request):
    """Whether all that a job needs works; looks at the storage."""

    endpoint: Literal["health"]


ENDPOINTS: Final[Mapping[str, type[Request]]] = {
    "tts": TtsRequest,
    "upload": UploadRequest,
    "request_upload": UploadUrlRequest,
    "confirm": ConfirmRequest,
    "list_voices": ListVoicesRequest,
    "get_voice": GetVoiceRequest,
    "delete_voice": DeleteVoiceRequest,
    "status": StatusRequest,
    "result": ResultRequest,
    "download": DownloadRequest,
    "info": InfoRequest,
    "health": HealthRequest,
}


def parse(job_input: object, *, max_text_chars: int = _MAX_TEXT_CHARS) -> Request:
    """The job's input as its endpoint's model. JobError UNKNOWN_ENDPOINT or INVALID_INPUT, with an entry a field."""
    if not isinstance(job_input, dict):
        raise invalid("input", "a JSON object with the job's fields is needed", code="not_an_object")
    name = job_input.get("endpoint", "tts")
    model = ENDPOINTS.get(name) if isinstance(name, str) else None
    if model is None:
        message = f"there is no such endpoint; the endpoints are {', '.join(ENDPOINTS)}"
        raise JobError("UNKNOWN_ENDPOINT", message, errors=[FieldError("endpoint", "unknown", message)])
    for field, value in job_input.items():
        if isinstance(value, str) and not _is_unicode(value):
            raise invalid(one_line(field), "half a surrogate pair is no character", code="not_unicode")
    try:
        request = model.model_validate({**job_input, "endpoint": name}, context={"max_text_chars": max_text_chars})
    except ValidationError as error:
        errors = [_field_error(detail, model) for detail in error.errors(include_input=False)][:20]
        first, more = errors[0], f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise JobError("INVALID_INPUT", f"{first.field}: {first.message}{more}", errors=errors) from None
    if isinstance(request, UploadRequest) and (request.voice_file is None) == (request.voice_file_url is None):
        raise invalid("voice_file_url", "exactly one of voice_file_url and voice_file is needed", code="missing")
    if isinstance(request, TtsRequest):
        _check_together(request)
    return request


def _check_together(request: TtsRequest) -> None:
    clean(request.text)
    if request.ref_text is not None and request.local_voice is None:
        raise invalid("ref_text", "it is what a voice says: local_voice is missing")
    if request.output_format == "mp3" and request.output_sample_rate not in SAMPLE_RATES:
        raise invalid("output_sample_rate", f"for mp3 one of {', '.join(map(str, SAMPLE_RATES))}")


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _field_error(detail: Any, model: type[Request]) -> FieldError:
    """Names the field and what it takes; nothing of its value is in it."""
    field = one_line(".".join(str(part) for part in detail["loc"][:2] if not str(part).startswith("literal[")))
    match detail["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(field, list(model.model_fields), 1, 0.6)
            return FieldError(field, "unknown", f"no such field{f'; did you mean {near[0]}?' if near else ''}")
        case "missing":
            return FieldError(field, "missing", "this field is required")
        case "value_error":
            return FieldError(field, "invalid", str(detail["ctx"]["error"]))
        case "string_pattern_mismatch":
            return FieldError(field, "invalid", "this is not of the form that such names have")
    return FieldError(field, detail["type"], detail["msg"].replace("Input should", "it should"))


def schema() -> dict[str, Any]:
    """The JSON schema of `input`, one alternative an endpoint."""
    parts = [model.model_json_schema(mode="validation") for model in ENDPOINTS.values()]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "input of a job", "oneOf": parts}


def main(argv: Sequence[str]) -> int:
    """`schema` prints the JSON schema and gives 0; anything else gives 2."""
    if list(argv) != ["schema"]:
        print("python -m serverless.requests schema", file=sys.stderr)
        return 2
    print(json.dumps(schema(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
