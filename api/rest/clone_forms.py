"""What the routes of `/api/clone` take and show."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StrictBool

from api.rest.bodies import Asked
from api.voices.workshop import MAX_FILE_S
from pipeline.sample_quality import Code, Grade, Severity

Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
Seconds = Annotated[float, Field(ge=0, le=MAX_FILE_S)]
ThingId = Annotated[str, Field(min_length=1, max_length=64)]


class StatementShown(BaseModel):
    """What is agreed to."""

    version: str
    text: str


class CloningShown(BaseModel):
    """What this server makes of a recording, and what it asks for."""

    method: Literal["clone", "match", "none"]
    engine: str
    min_s: float
    max_s: float
    max_voices: int
    n_voices: int
    max_upload_mb: float
    statement: StatementShown
    phrase_required: bool
    languages: list[str]
    notice: str | None
    watermark: bool


class Trimmed(Asked):
    """`start_s` and `end_s` trim the file."""

    start_s: Seconds | None = None
    end_s: Seconds | None = None
    language: Language | None = None


class SampleFields(Trimmed):
    """The fields beside the file. `phrase_id`: the recording is the reading of a phrase."""

    phrase_id: ThingId | None = None


class ProblemShown(BaseModel):
    """Something that is wrong with a recording; with an error it cannot be used."""

    code: Code
    severity: Severity
    message: str


class VerdictShown(BaseModel):
    """What a recording is worth. Levels are in dB of full scale."""

    usable: bool
    grade: Grade
    problems: list[ProblemShown]
    speech_seconds: float
    snr_db: float
    peak_db: float
    clipped_share: float
    several_speakers: bool


class PhraseShown(BaseModel):
    """Words to read aloud."""

    id: str
    object: Literal["phrase"] = "phrase"
    text: str
    expires_at: int


class HeardShown(BaseModel):
    """What was heard where a phrase was to be read."""

    matches: bool
    heard: str


class SampleShown(BaseModel):
    """A recording that waits to become a voice."""

    id: str
    object: Literal["sample"] = "sample"
    seconds: float
    transcript: str
    language: str
    verdict: VerdictShown
    phrase: HeardShown | None
    expires_at: int


class PhraseWish(Asked):
    """The language of the phrase."""

    language: Language = "en"


class ConsentFields(Asked):
    """The tick, the version of the statement that was shown, a typed name, and the reading of a phrase if asked for."""

    agreed: StrictBool
    statement: Annotated[str, Field(min_length=1, max_length=32)]
    name: Annotated[str, Field(max_length=400)]
    phrase_sample_id: ThingId | None = None


class CloneRequest(Asked):
    """A voice from a recording that was sent before. `transcript` corrects what was heard."""

    sample_id: ThingId
    name: Annotated[str, Field(min_length=1, max_length=240)]
    transcript: Annotated[str, Field(min_length=1, max_length=4800)] | None = None
    language: Language | None = None
    consent: ConsentFields


class CloneForm(Trimmed):
    """The same in one call, with the file beside it. `agreed` is true, `consent_name` the typed name."""

    name: Annotated[str, Field(min_length=1, max_length=240)]
    transcript: Annotated[str, Field(min_length=1, max_length=4800)] | None = None
    agreed: bool
    consent_name: Annotated[str, Field(max_length=400)]
    statement: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    phrase_sample_id: ThingId | None = None
