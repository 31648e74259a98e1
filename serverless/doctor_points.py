"""What the doctor looks at: the points of the troubleshooting list, each a function of the ground it stands on.

A point gives a sentence when all is well, raises `Wrong` with what was found, or `Skipped` with why it says nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

from pipeline import cgroup
from pipeline.audio import AudioChunk
from pipeline.errors import ConfigError, StorageError
from serverless import keys
from serverless.checks import cache_is_writable
from serverless.parts import device_of, features, google_account, make_storage
from serverless.settings import WorkerSettings, load
from serverless.storage import Storage

_SPEED_BYTES: Final = 4 << 20
_MIN_MB_PER_S: Final = 5.0
_MIN_MEMORY_BYTES: Final = 4 * 10**9
_SLOW_GOOGLE_S: Final = 5.0


class Skipped(Exception):
    """The point cannot be looked at here; the text says why."""


class Wrong(Exception):
    """The point is the problem; the text says what was found."""


class Ground:
    """What the points look at; each thing is looked at once."""

    def __init__(self, environ: Mapping[str, str], *, asks_google: bool = False) -> None:
        self._environ, self._asks_google = environ, asks_google

    @cached_property
    def _loaded(self) -> WorkerSettings | ConfigError:
        try:
            return load(self._environ)
        except ConfigError as error:
            return error

    @property
    def settings(self) -> WorkerSettings:
        """The settings; `Skipped` when they are wrong, which is a point of its own."""
        if isinstance(self._loaded, ConfigError):
            raise Skipped("the settings are wrong")
        return self._loaded

    def require_settings(self) -> WorkerSettings:
        """The settings; `Wrong` when they are."""
        if isinstance(self._loaded, ConfigError):
            raise Wrong(self._loaded.message)
        return self._loaded

    @cached_property
    def storage(self) -> Storage:
        """The storage as the worker makes it."""
        return make_storage(self.settings)

    @cached_property
    def storage_error(self) -> StorageError | None:
        """What writing, reading and deleting a tiny object ends with."""
        try:
            self.storage.check()
        except StorageError as error:
            return error
        return None

    @cached_property
    def cuda(self) -> Any:
        """`torch.cuda`; `Skipped` where the worker is meant for a CPU."""
        if self.settings.allow_cpu:
            raise Skipped("ALLOW_CPU is set")
        try:
            import torch
        except ImportError:
            raise Wrong("torch is not installed") from None
        if not torch.cuda.is_available():
            raise Wrong("torch sees no card")
        return torch.cuda

    @cached_property
    def google(self) -> tuple[str, float]:
        """Google's answer to a second of silence, and the seconds it took."""
        account = _right_account(self.settings)
        if not self._asks_google:
            raise Skipped("asked only with --google")
        from serverless.timings.google import align
        from serverless.timings.words import NotAligned

        started = time.perf_counter()
        timeout_s = self.settings.request_timeout_s
        try:
            align(AudioChunk.silence(1.0, 16_000), ["silence"], "en", credentials=account, timeout_s=timeout_s)
            answer = "OK"
        except NotAligned as error:
            answer = "OK" if "no words" in str(error) else str(error)
        return answer, time.perf_counter() - started


# --- S3 Connection Failed


def variables_are_set(ground: Ground) -> str:
    """The settings as a whole."""
    settings = ground.require_settings()
    return "a directory is the storage" if settings.storage == "local" else f"the bucket is {settings.bucket}"


def bucket_is_allowed(ground: Ground) -> str:
    """Writing, reading and deleting."""
    error = ground.storage_error
    if error is not None and error.code != "s3_wrong_region":
        raise Wrong(error.message)
    return "an object was written, read and deleted"


def region_is_right(ground: Ground) -> str:
    """The region of the bucket."""
    if ground.settings.storage == "local":
        raise Skipped("a directory has no region")
    error = ground.storage_error
    if error is not None:
        raise Wrong(error.message) if error.code == "s3_wrong_region" else Skipped("the bucket does not answer")
    return ground.settings.region


# --- Model Loading Failed


def card_is_there(ground: Ground) -> str:
    """What the driver says."""
    if ground.settings.allow_cpu:
        raise Skipped("ALLOW_CPU is set")
    if shutil.which("nvidia-smi") is None:
        raise Wrong("there is no nvidia-smi: the container has no driver")
    try:
        asked = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        raise Wrong("nvidia-smi fails") from None
    cards = "; ".join(done.stdout.split("\n")).strip("; ")
    if not cards:
        raise Wrong("the driver shows no card")
    return cards[:200]


def caches_are_writable(ground: Ground) -> str:
    """The directories of Hugging Face and of ours."""
    return cache_is_writable(ground.settings)


def memory_is_enough(ground: Ground) -> str:
    """Main memory that is free while the model is read."""
    import psutil

    left = cgroup.memory_left_bytes(cgroup.ROOT)
    free = min(int(psutil.virtual_memory().available), left if left is not None else sys.maxsize)
    if free < _MIN_MEMORY_BYTES:
        raise Wrong(f"{free / 1e9:.1f} GB of main memory are free")
    return f"{free / 1e9:.0f} GB of main memory are free"


# --- Word timings


def cuda_fits(ground: Ground) -> str:
    """Whether torch can compute on the card."""
    cuda = ground.cuda
    try:
        device_of(ground.settings)
        number = cuda.current_device()
        major, minor = cuda.get_device_capability(number)
        name = f"compute capability {major}.{minor}"
        if not any(arch.startswith(f"sm_{major}") for arch in cuda.get_arch_list()):
            raise Wrong(f"torch has no kernels for {name}")
    except RuntimeError:
        raise Wrong("torch cannot use the card") from None
    return name


def disk_has_room(ground: Ground) -> str:
    """For models: 2 GB."""
    try:
        directory = ground.settings.cache_dir
        while not directory.exists():
            directory = directory.parent
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise Wrong(f"the disk cannot be asked: {error.strerror}") from None
    if free < 2 * 10**9:
        raise Wrong(f"{free / 1e9:.1f} GB are free")
    return f"{free / 1e9:.0f} GB are free"


def methods_are_installed(ground: Ground) -> str:
    """The methods of word times that need no model and no account."""
    found = features(ground.settings)
    lacking = [found[name] for name in ("timing_phonetic", "timing_dtw") if found[name] != "ready"]
    if lacking:
        raise Wrong("; ".join(lacking))
    return "phonetic and dtw work without a download"


def ctc_model_is_there(ground: Ground) -> str:
    """The CTC aligner's model, on this disk."""
    directory = ground.settings.ctc_model_dir
    if directory is None:
        raise Skipped("CTC_MODEL_DIR is not set: English is timed by phonetic, the rest by dtw")
    if not directory.is_dir():
        raise Wrong("CTC_MODEL_DIR is no directory")
    if not any(directory.rglob("config.json")):
        raise Wrong("CTC_MODEL_DIR holds no model: no config.json")
    return "it is there"


def card_has_memory(ground: Ground) -> str:
    """4 GB."""
    total = int(ground.cuda.get_device_properties(0).total_memory)
    if total < _MIN_MEMORY_BYTES:
        raise Wrong(f"the card has {total / 1e9:.1f} GB")
    return f"the card has {total / 1e9:.0f} GB"


# --- Google Cloud Speech API Failed


def _right_account(settings: WorkerSettings) -> Any:
    try:
        account = google_account(settings)
    except ConfigError as error:
        raise Wrong(error.message) from None
    if account is None:
        raise Skipped("no account is given")
    return account


def account_is_whole(ground: Ground) -> str:
    """The key file, without the network."""
    return f"project {_right_account(ground.settings).project_id}"


def google_answers(ground: Ground, *codes: str) -> str:
    """`Wrong` when Google's answer is one of `codes`; with none, when it is any error that no other point names."""
    answer, _ = ground.google
    if answer == "OK":
        return "Google answers"
    is_ours = any(code in answer for code in codes) if codes else not any(code in answer for code in _NAMED)
    if is_ours:
        raise Wrong(answer)
    raise Skipped(answer)


_NAMED: Final = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "FAILED_PRECONDITION")


# --- Performance Issues


def allocator_is_set(ground: Ground) -> str:
    """Options of the allocator."""
    if ground.settings.allocator is None:
        if ground.settings.allow_cpu:
            raise Skipped("ALLOW_CPU is set")
        raise Wrong("PYTORCH_ALLOC_CONF is not set")
    return ground.settings.allocator


def storage_is_fast(ground: Ground) -> str:
    """4 MB there and back."""
    if ground.storage_error is not None:
        raise Skipped("the storage does not answer")
    key, data = f"{keys.health('doctor')}-speed", os.urandom(_SPEED_BYTES)
    started = time.perf_counter()
    try:
        ground.storage.put(key, data, content_type="application/octet-stream")
        ground.storage.get(key, max_bytes=_SPEED_BYTES)
        rate = 2 * _SPEED_BYTES / 1e6 / (time.perf_counter() - started)
        ground.storage.delete(key)
    except StorageError as error:
        raise Wrong(error.message) from None
    if rate < _MIN_MB_PER_S:
        raise Wrong(f"{rate:.1f} MB/s")
    return f"{rate:.0f} MB/s"


def scaling_is_set(ground: Ground) -> str:
    """Jobs of one worker."""
    settings = ground.settings
    return f"{settings.concurrency} jobs a worker, of which one speaks; {settings.processing_timeout_s:g} s for each"


def google_is_fast(ground: Ground) -> str:
    """The time of one call."""
    answer, seconds = ground.google
    if answer != "OK":
        raise Skipped(answer)
    if seconds > _SLOW_GOOGLE_S:
        raise Wrong(f"one second of audio took {seconds:.1f} s")
    return f"one second of audio took {seconds:.1f} s"
