"""What a worker is put together from: storage, voices, the model, word times, the mark. Built once, at start."""

from __future__ import annotations

import importlib.util
import shutil
import time
from dataclasses import dataclass
from typing import Any, Final

import structlog

from pipeline.errors import ConfigError
from serverless import requests
from serverless.fetch import fetch
from serverless.local_storage import LocalStorage
from serverless.model_source import find_files
from serverless.s3 import S3Storage
from serverless.settings import WorkerSettings
from serverless.speech import ChunkEngine, default_reference, synthesize
from serverless.storage import Storage
from serverless.timings import Tools
from serverless.timings.credentials import GoogleCredentials, read_credentials
from serverless.transcribing import Transcriber
from serverless.tts_job import Marker
from serverless.voices import Voices

log = structlog.get_logger()

LICENCE: Final = (
    "The code is Apache-2.0 (F5-TTS: MIT). The published F5-TTS weights are CC-BY-NC 4.0: no commercial use. "
    "Point F5_MODEL_DIR at weights with another licence for that."
)
_MIN_GPU_BYTES: Final = 4 * 10**9


@dataclass(frozen=True, slots=True)
class Parts:
    """All that jobs need. `model` is what is told of the model: name, device, where its files came from."""

    storage: Storage
    voices: Voices
    engine: ChunkEngine
    tools: Tools
    watermarker: Marker | None
    model: dict[str, Any]


def make_storage(settings: WorkerSettings) -> Storage:
    """The bucket or the directory; costs nothing until it is used."""
    if settings.storage == "local":
        import secrets

        # URLs of a secret that nobody else has are of no use, but nothing else of the worker minds.
        given = settings.storage_secret
        secret = given.get_secret_value().encode() if given else secrets.token_bytes(32)
        return LocalStorage(settings.storage_dir, settings.storage_url, secret)
    assert settings.bucket is not None
    return S3Storage(
        bucket=settings.bucket,
        region=settings.region,
        endpoint_url=settings.endpoint_url,
        access_key_id=_shown(settings.access_key_id),
        secret_access_key=_shown(settings.secret_access_key),
        session_token=_shown(settings.session_token),
        request_timeout_s=settings.request_timeout_s,
        worker=settings.worker_id or "worker",
    )


def google_account(settings: WorkerSettings) -> GoogleCredentials | None:
    """The service account for word times, looked at without the network; ConfigError says what is wrong with it."""
    return read_credentials(
        json_text=_shown(settings.google_credentials_json),
        file=settings.google_credentials_file,
        project=settings.google_project,
    )


def device_of(settings: WorkerSettings) -> str:
    """The device that DEVICE stands for; loads torch.

    ConfigError when it is a CPU and ALLOW_CPU does not say that this is meant, and for a card that is too small.
    """
    from pipeline.engines.torch_device import import_torch, torch_device

    torch = import_torch("F5-TTS")
    device = torch_device(settings.device, torch, setting="DEVICE")
    if device == "cpu" and not settings.allow_cpu:
        raise ConfigError(
            "there is no card for CUDA, and on a CPU jobs take minutes: set ALLOW_CPU=true if that is meant"
        )
    if device != "cpu":
        total = int(torch.cuda.get_device_properties(device).total_memory)
        if total < _MIN_GPU_BYTES:
            raise ConfigError(f"the card has {total / 1e9:.1f} GB; the model and the aligner need 4 GB")
    return device


def watermarker(settings: WorkerSettings) -> Marker | None:
    """What marks speech, as WATERMARK says; ConfigError when it is true and the model is not there."""
    if settings.watermark == "false":
        return None
    from pipeline.watermark import Watermarker

    try:
        return Watermarker.installed(settings.models_dir)
    except ConfigError:
        if settings.watermark == "true":
            raise
        return None


def make_voices(settings: WorkerSettings, storage: Storage, transcribe: Transcriber | None) -> Voices:
    """The voices of the storage, with their cache on this disk."""

    async def fetched(url: str) -> bytes:
        return await fetch(
            url, timeout_s=settings.request_timeout_s, allow_private=settings.allow_private_urls, field="local_voice"
        )

    return Voices(
        storage,
        cache_dir=settings.cache_dir / "voices",
        max_cache_mb=settings.voice_cache_mb,
        transcribe=transcribe,
        fetch=fetched,
        default=default_reference(),
    )


def build(settings: WorkerSettings, *, storage: Storage | None = None) -> Parts:
    """Everything, the model read and warmed up. ConfigError says what is missing."""
    from pipeline.engines.f5_model import F5Model

    device = device_of(settings)
    storage = storage or make_storage(settings)
    started = time.perf_counter()
    files, source = find_files(settings, storage)
    found = time.perf_counter()
    engine = F5Model.load(files, device=device, attention=settings.attention, threads=settings.cpu_threads)
    loaded = time.perf_counter()
    if settings.warm_up:
        warm_up(engine)
    seconds = {
        "files_s": round(found - started, 2),
        "load_s": round(loaded - found, 2),
        "warm_up_s": round(time.perf_counter() - loaded, 2),
    }
    log.info("worker.model_ready", device=device, source=source, **seconds)
    return assembled(
        settings,
        storage,
        engine,
        device=device,
        model={
            "name": settings.f5_model,
            "weights": files.checkpoint.name,
            "device": device,
            "source": source,
            **seconds,
        },
    )


def assembled(
    settings: WorkerSettings, storage: Storage, engine: ChunkEngine, *, device: str, model: dict[str, Any]
) -> Parts:
    """The parts around a model that is loaded."""
    transcribe = None
    if settings.whisper_model_dir is not None:
        transcribe = Transcriber(settings.whisper_model_dir, device=device, threads=settings.cpu_threads or 4)
    return Parts(
        storage=storage,
        voices=make_voices(settings, storage, transcribe),
        engine=engine,
        tools=Tools(
            ctc_dir=settings.ctc_model_dir,
            google=google_account(settings),
            device=device,
            google_timeout_s=settings.request_timeout_s,
        ),
        watermarker=watermarker(settings),
        model=model,
    )


def warm_up(engine: ChunkEngine) -> None:
    """One short run: the first one of a process compiles kernels and takes many times as long."""
    synthesize(
        engine,
        default_reference(),
        "Ready to speak.",
        seed=0,
        nfe_step=4,
        cancelled=lambda: False,
        progress=lambda chunk, n_chunks, seconds: None,
    )


def information(settings: WorkerSettings, parts: Parts) -> dict[str, Any]:
    """The answer of the endpoint info."""
    return {
        "model": parts.model,
        "licence": LICENCE,
        "sample_rate": 24_000,
        "endpoints": list(requests.ENDPOINTS),
        "languages": {"speech": ["en", "zh"], "word_timings": list(requests.LANGUAGES)},
        "nfe_presets": requests.NFE_PRESETS,
        "limits": {
            "text_chars": settings.max_text_chars,
            "processing_timeout_s": settings.processing_timeout_s,
            "upload_base64_bytes": requests.MAX_UPLOAD_BYTES,
        },
        "features": features(settings),
        "storage": settings.storage,
        "region": settings.region if settings.storage == "s3" else None,
    }


def features(settings: WorkerSettings) -> dict[str, str]:
    """What this worker can do beside speaking, each `ready` or why not. Imports no model library."""

    def installed(module: str, name: str) -> str:
        return "ready" if importlib.util.find_spec(module) else f"not installed: {name}"

    ctc = settings.ctc_model_dir
    google = settings.google_credentials_json or settings.google_credentials_file
    return {
        "timing_ctc": "no model: set CTC_MODEL_DIR" if ctc is None else installed("transformers", "transformers"),
        "timing_phonetic": installed("pocketsphinx", "pocketsphinx"),
        "timing_dtw": "ready" if shutil.which("espeak-ng") else "not installed: espeak-ng",
        "timing_google": "no account: set GOOGLE_CREDENTIALS_JSON" if google is None else "ready",
        "timing_estimate": "ready",
        "transcription": "ready" if settings.whisper_model_dir else "no model: set WHISPER_MODEL_DIR, or give ref_text",
        "compressed_audio": "ready" if shutil.which("ffmpeg") else "not installed: ffmpeg",
        "watermark": _mark_state(settings),
        "flash_attn": "not asked for" if settings.attention == "torch" else installed("flash_attn", "flash-attn"),
    }


def _mark_state(settings: WorkerSettings) -> str:
    from pipeline.models import locate
    from pipeline.watermark import MODEL_ID

    if settings.watermark == "false":
        return "off: WATERMARK=false"
    try:
        locate(settings.models_dir, MODEL_ID)
    except ConfigError:
        return "off: no model below MODEL_CACHE_DIR"
    return "ready"


def _shown(secret: Any) -> str | None:
    return None if secret is None else str(secret.get_secret_value())
