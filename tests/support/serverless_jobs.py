"""A worker around a voice that is no model: for tests of what surrounds the model."""

from __future__ import annotations

import io
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from pipeline.audio import AudioChunk, Samples
from serverless.errors import JobError
from serverless.local_storage import LocalStorage
from serverless.parts import Parts, assembled
from serverless.settings import WorkerSettings, load
from serverless.storage import Storage
from serverless.worker import Worker

RATE = 24_000
SECRET = b"signs-the-urls-of-tests"
WAIT_S = 20.0


@dataclass
class Talker:
    """Noise by seed, or espeak-ng's speech. `held` makes each chunk wait until it is set, or until it is cancelled."""

    speaks: bool = False
    held: threading.Event | None = None
    failures: list[Exception] = field(default_factory=list)
    ignores_cancel: bool = False
    texts: list[str] = field(default_factory=list)
    began: threading.Event = field(default_factory=threading.Event)
    at_work: int = 0
    most_at_work: int = 0
    n_cancelled: int = 0

    def speak_chunk(
        self,
        reference: AudioChunk,
        reference_text: str,
        text: str,
        *,
        seed: int,
        speed: float,
        nfe_step: int,
        cfg_strength: float,
        cancelled: Callable[[], bool],
    ) -> Samples:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            self.texts.append(text)
            self.began.set()
            while self.held is not None and not self.held.wait(0.005):
                if cancelled() and not self.ignores_cancel:
                    self.n_cancelled += 1
                    raise JobError("CANCELLED", "the job was cancelled")
            if self.failures:
                raise self.failures.pop(0)
            if self.speaks:
                return _espeak(text)
            n_samples = int(RATE * (0.2 + len(text) / 15) / speed)
            return np.random.default_rng(seed).uniform(-0.3, 0.3, n_samples).astype(np.float32)
        finally:
            self.at_work -= 1


def _espeak(text: str) -> Samples:
    done = subprocess.run(["espeak-ng", "--stdout", text], capture_output=True, check=True, timeout=WAIT_S)
    samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    return AudioChunk(samples, rate).resampled(RATE).samples


class Watched(LocalStorage):
    """Keeps the keys in the order in which they were written; `broken` fails what is written below a prefix."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "http://127.0.0.1:1", SECRET)
        self.written: list[str] = []
        self.broken: dict[str, Exception] = {}

    def put(
        self, key: str, data: bytes | Path, *, content_type: str, filename: str | None = None, if_absent: bool = False
    ) -> None:
        for prefix, error in self.broken.items():
            if key.startswith(prefix):
                raise error
        super().put(key, data, content_type=content_type, filename=filename, if_absent=if_absent)
        self.written.append(key)


def worker_settings(root: Path, **variables: str) -> WorkerSettings:
    """A laptop's settings, everything below `root`."""
    environ = {
        "STORAGE": "local",
        "STORAGE_DIR": str(root / "storage"),
        "CACHE_DIR": str(root / "cache"),
        "MODEL_CACHE_DIR": str(root / "models"),
        "ALLOW_CPU": "true",
        "ALLOW_PRIVATE_URLS": "true",
        "REQUEST_TIMEOUT": "5",
    }
    return load(environ | variables)


@dataclass
class Workplace:
    """A worker and what it works with. `told` holds the progress that RunPod was told."""

    worker: Worker
    storage: Watched
    engine: Talker
    settings: WorkerSettings
    told: list[dict[str, Any]]

    async def run(self, job_id: str = "job-1", /, **fields: Any) -> dict[str, Any]:
        """The answer to one job."""
        return await self.worker.handle({"id": job_id, "input": fields})


def workplace(root: Path, engine: Talker | None = None, *, storage: Watched | None = None, **more: Any) -> Workplace:
    """A worker on `root`; `more` are variables in upper case, or fields of Parts to replace in lower case."""
    settings = worker_settings(root, **{name: value for name, value in more.items() if name.isupper()})
    talker, place = engine or Talker(), storage or Watched(root / "storage")
    told: list[dict[str, Any]] = []

    def make() -> Parts:
        return parts_of(settings, place, talker, **{name: value for name, value in more.items() if name.islower()})

    worker = Worker(settings, make, tell=lambda job, progress: told.append(dict(progress)))
    return Workplace(worker, place, talker, settings, told)


def parts_of(settings: WorkerSettings, storage: Storage, engine: Talker, **replaced: Any) -> Parts:
    """The real parts around a voice that is no model."""
    from dataclasses import replace

    model = {"name": "talker", "weights": "none", "device": "cpu", "source": "test"}
    return replace(assembled(settings, storage, engine, device="cpu", model=model), **replaced)
