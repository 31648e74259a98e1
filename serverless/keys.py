"""The names of everything in the bucket, and the only place where a caller's word becomes part of a key.

    voices/{name}.wav .json .txt      output/{job}.{suffix}    timings/{job}.{suffix}    jobs/{job}.json
    uploads/{name}/{upload}           jobs/idempotency/{sha256}.json                     healthz/{worker}
    models/{name}/{revision}/{path}   models/{name}/{revision}/MANIFEST.json, LEASE.json

Every function checks what it is given and raises `JobError("INVALID_INPUT")` with the field at fault: no key ever holds
a slash, a dot segment, a space, a control character or a letter outside ASCII that a caller wrote.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from pipeline.errors import InvalidInput
from serverless.errors import invalid

VOICES, OUTPUT, TIMINGS, JOBS, UPLOADS, HEALTHZ, MODELS = (
    "voices/",
    "output/",
    "timings/",
    "jobs/",
    "uploads/",
    "healthz/",
    "models/",
)
TEMPORARY: Final = (OUTPUT, TIMINGS, JOBS, UPLOADS, HEALTHZ)
"""The prefixes whose objects a lifecycle rule may delete after some days."""
MAX_KEY: Final = 512
MAX_IDEMPOTENCY_KEY: Final = 256

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_JOB: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,127}", re.ASCII)
_SUFFIX: Final = re.compile(r"[a-z0-9]{1,8}", re.ASCII)
_SEGMENT: Final = re.compile(r"[\w@+=,-][\w.@+=,-]*", re.ASCII)


def voice_name(name: object, *, field: str = "voice_name") -> str:
    """The name of a voice without its optional `.wav`."""
    if not isinstance(name, str):
        raise invalid(field, "it must be a string")
    bare = name[:-4] if name[-4:].lower() == ".wav" else name
    if not _NAME.fullmatch(bare) or bare[-4:].lower() == ".wav":
        raise invalid(
            field,
            "a voice is named by 1 to 64 ASCII letters, digits, dots, dashes or underscores, a letter or digit first",
        )
    return bare


def job_id(job_id: object) -> str:
    """An id of a job as RunPod gives it."""
    if not isinstance(job_id, str) or not _JOB.fullmatch(job_id):
        raise invalid("job_id", "this is no id of a job")
    return job_id


def voice_audio(name: str) -> str:
    """The recording: 24 kHz mono PCM16 WAV."""
    return f"{VOICES}{voice_name(name)}.wav"


def voice_meta(name: str) -> str:
    """What is known of the recording: text, language, consent, sha256."""
    return f"{VOICES}{voice_name(name)}.json"


def voice_text(name: str) -> str:
    """The text alone, as the original kept it."""
    return f"{VOICES}{voice_name(name)}.txt"


def upload(name: str, upload_id: object) -> str:
    """Where a caller's own PUT of a recording lies until it is confirmed."""
    if not isinstance(upload_id, str) or not re.fullmatch(r"[0-9a-f]{32}", upload_id):
        raise invalid("upload_id", "this is no id of an upload")
    return f"{UPLOADS}{voice_name(name)}/{upload_id}"


def output(job: str, suffix: str) -> str:
    """The audio of a job; `suffix` with or without its dot."""
    return f"{OUTPUT}{job_id(job)}.{_suffix(suffix)}"


def timing(job: str, suffix: str) -> str:
    """The subtitles or word times of a job in one format."""
    return f"{TIMINGS}{job_id(job)}.{_suffix(suffix)}"


def manifest(job: str) -> str:
    """What became of a job; written last, so it is the truth."""
    return f"{JOBS}{job_id(job)}.json"


def idempotency(key: object) -> str:
    """Which job answered an idempotency key. The key is any text of up to 256 characters; only its hash is stored."""
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY:
        raise invalid("idempotency_key", f"it must be a string of 1 to {MAX_IDEMPOTENCY_KEY} characters")
    return f"{JOBS}idempotency/{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}.json"


def health(worker: str) -> str:
    """The tiny object that a start-up check writes; any other character of `worker` becomes a dash."""
    return f"{HEALTHZ}{re.sub(r'[^A-Za-z0-9_-]', '-', worker)[:64] or 'worker'}"


def model(name: str, revision: str, path: str) -> str:
    """A file of a model; `path` is relative to the model's directory."""
    for word in (name, revision):
        if not _NAME.fullmatch(word):
            raise invalid("model", "a model's name and revision are words of ASCII")
    return checked(f"{MODELS}{name}/{revision}/{path}")


def model_manifest(name: str, revision: str) -> str:
    """The list of a model's files; uploaded last, so a model without it is not there."""
    return model(name, revision, "MANIFEST.json")


def model_lease(name: str, revision: str) -> str:
    """Who uploads the model now."""
    return model(name, revision, "LEASE.json")


def checked(key: str) -> str:
    """The key if each of its segments is a plain file name, else `InvalidInput`; storage calls it for every key."""
    segments = key.split("/")
    if len(key) > MAX_KEY or not all(_SEGMENT.fullmatch(s) for s in segments):
        raise InvalidInput("this is no key of an object")
    return key


def _suffix(suffix: str) -> str:
    bare = suffix.removeprefix(".")
    if not _SUFFIX.fullmatch(bare):
        raise invalid("format", "a suffix is 1 to 8 small letters or digits")
    return bare
