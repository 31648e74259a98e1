"""What is known of a stored voice: `voices/{name}.json`, or only the text of the original's `voices/{name}.txt`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serverless import keys
from serverless.storage import NotStored, Storage, StorageError

_MAX_BYTES: Final = 64_000


class Quality(BaseModel):
    """What `pipeline.sample_quality` found; levels in dB of full scale."""

    model_config = ConfigDict(extra="ignore")

    grade: str
    problems: list[str] = Field(default_factory=list)
    snr_db: float
    peak_db: float
    speech_s: float


class VoiceRecord(BaseModel):
    """The sidecar of a recording. `sha256` is of the WAV file that it belongs to."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int = 1
    ref_text: str = ""
    ref_text_source: str = "given"
    """given, or transcribed by a worker."""
    ref_text_of_cut: bool = False
    """Whether the text is of `serverless.speech.cut_reference` of the recording and not of all of it."""
    language: str | None = None
    duration: float | None = None
    """Seconds."""
    consent: bool = False
    created: str = ""
    sha256: str = ""
    quality: Quality | None = None

    def is_of(self, sha256: str) -> bool:
        """Whether it belongs to the recording with that sha256; one that names none belongs to any."""
        return self.sha256 in ("", sha256)


def read_record(storage: Storage, name: str) -> VoiceRecord | None:
    """The record of a voice, None when there is none; one that cannot be read counts as none."""
    data = _read(storage, keys.voice_meta(name))
    if data is not None:
        try:
            return VoiceRecord.model_validate_json(data)
        except ValidationError:
            return None
    text = _read(storage, keys.voice_text(name))
    return None if text is None else VoiceRecord(ref_text=text.decode("utf-8-sig", "replace").strip())


def write_record(storage: Storage, name: str, record: VoiceRecord) -> None:
    """Store the record of a voice."""
    storage.put(keys.voice_meta(name), record.model_dump_json(indent=1).encode(), content_type="application/json")


def _read(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.get(key, max_bytes=_MAX_BYTES)
    except StorageError as error:
        if error.code not in (NotStored.code, "object_too_large"):
            raise
        return None


def now() -> str:
    """The time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def facts(name: str, size: int, modified_s: float, record: VoiceRecord | None) -> dict[str, Any]:
    """One voice in a list, under the names of the original and a few more."""
    return {
        "name": name,
        "voice_file": f"{name}.wav",
        "size": size,
        "last_modified": datetime.fromtimestamp(modified_s, UTC).isoformat(timespec="seconds"),
        "duration": record.duration if record else None,
        "has_ref_text": bool(record and record.ref_text),
        "language": record.language if record else None,
    }
