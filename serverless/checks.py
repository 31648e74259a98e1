"""Checks at start and for the endpoint health: each with its time and one sentence, and none raises."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import ConfigError, VoicepodError
from serverless.parts import Parts, device_of, features, google_account, make_storage, watermarker
from serverless.settings import WorkerSettings

_MIN_FREE_BYTES: Final = 2 * 10**9


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must work; `run` gives a sentence, or raises VoicepodError with what to change."""

    name: str
    run: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check went."""

    name: str
    ok: bool
    seconds: float
    message: str

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        return {"name": self.name, "ok": self.ok, "seconds": self.seconds, "message": self.message}


def outcome_of(check: Check) -> Outcome:
    """Runs one check; what it did not raise on purpose is told by its kind only."""
    started = time.perf_counter()
    try:
        ok, message = True, check.run()
    except VoicepodError as error:
        ok, message = False, error.message
    except Exception as error:
        ok, message = False, f"failed with {type(error).__name__}"
    return Outcome(check.name, ok, round(time.perf_counter() - started, 3), message)


def start_checks(settings: WorkerSettings, load: Callable[[], Parts]) -> tuple[Check, ...]:
    """What must be right before the first job, the cheapest first; the last one reads the model and speaks."""
    return (
        Check("storage", lambda: storage_works(settings)),
        Check("google", lambda: google_is_right(settings)),
        Check("watermark", lambda: watermark_is_there(settings)),
        Check("device", lambda: f"on {device_of(settings)}"),
        Check("model", lambda: _told_of(load())),
    )


def storage_works(settings: WorkerSettings) -> str:
    """Writes, reads and deletes a tiny object."""
    make_storage(settings).check()
    return f"{settings.storage} storage can be written and read"


def google_is_right(settings: WorkerSettings) -> str:
    """The account's file or JSON, without the network."""
    return "not configured" if google_account(settings) is None else "the service account's key is whole"


def watermark_is_there(settings: WorkerSettings) -> str:
    """The mark's model, where it is asked for."""
    return "speech is marked" if watermarker(settings) else "speech is not marked"


def cache_is_writable(settings: WorkerSettings) -> str:
    """The directories of downloads, and the room on their disk."""
    import shutil
    import tempfile

    for directory in (settings.cache_dir, settings.hf_home):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
            free = shutil.disk_usage(directory).free
        except OSError as error:
            raise ConfigError(f"a cache directory cannot be written: {error.strerror}") from None
        if free < _MIN_FREE_BYTES:
            raise ConfigError(f"{free / 1e9:.1f} GB are free on the disk of the caches; models need 2 GB")
    return "the caches can be written, and there is room"


def report(settings: WorkerSettings, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What `--check` prints."""
    return {
        "ok": all(outcome.ok for outcome in outcomes),
        "checks": [outcome.as_dict() for outcome in outcomes],
        "features": features(settings),
    }


def health(settings: WorkerSettings, parts: Parts | None) -> dict[str, Any]:
    """The answer of the endpoint health."""

    def model() -> str:
        if parts is None:
            raise ConfigError("the model is not loaded yet")
        return _told_of(parts)

    checks = (Check("storage", lambda: storage_works(settings)), Check("model", model))
    outcomes = [outcome_of(check) for check in checks]
    return {
        "status": "ok" if all(outcome.ok for outcome in outcomes) else "failing",
        "checks": [outcome.as_dict() for outcome in outcomes],
    }


def _told_of(parts: Parts) -> str:
    return f"{parts.model.get('weights')} on {parts.model.get('device')}"
