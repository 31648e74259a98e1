"""Where this worker's model comes from: the directory that F5_MODEL_DIR names, else the first place that has it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.models import load_manifest
from serverless.model_cache import FoundModel, find_model
from serverless.model_files import F5TTS_V1_BASE, ModelSpec
from serverless.settings import WorkerSettings
from serverless.storage import Storage

if TYPE_CHECKING:
    from pipeline.engines.f5_model import F5Files


def find_files(settings: WorkerSettings, storage: Storage) -> tuple[F5Files, str]:
    """The model's files and the place they came from; ConfigError lists all places that were looked at.

    A directory with weights in F5_MODEL_DIR is taken as it is, whatever its weights are called; an empty one, as in an
    image without weights, is passed over.
    """
    from pipeline.engines.f5_model import F5Files

    own = settings.f5_model_dir
    if own is not None:
        if not own.is_dir():
            raise ConfigError("F5_MODEL_DIR is no directory: set it to one with a model, or leave it out")
        if any(own.glob("*.safetensors")):
            return F5Files.in_directories(own, config=settings.f5_model), "F5_MODEL_DIR"
    if settings.f5_model != F5TTS_V1_BASE.name:
        raise ConfigError(f"F5_MODEL {settings.f5_model} needs F5_MODEL_DIR: only {F5TTS_V1_BASE.name} is downloaded")
    from serverless.model_hub import HubSource

    found: list[FoundModel] = []
    directory = find_model(
        pinned(F5TTS_V1_BASE),
        local_dir=settings.cache_dir / "models",
        baked_dir=own,
        hub_caches=(settings.volume_dir / "huggingface-cache" / "hub", settings.hf_hub_cache),
        storage=storage if settings.model_cache and settings.storage == "s3" else None,
        hub=HubSource(token=settings.hf_token.get_secret_value() if settings.hf_token else None),
        upload_to_s3=settings.model_cache,
        worker=settings.worker_id or "worker",
        noted=found.append,
    )
    return F5Files.in_directories(directory, config=settings.f5_model), found[0].source


def pinned(spec: ModelSpec) -> ModelSpec:
    """`spec` at the commits, sizes and hashes of configs/models.json, so that a branch of the hub may move."""
    known = {(f.hub.repository, f.hub.path): f for model in load_manifest().models for f in model.files if f.hub}
    files = []
    for file in spec.files:
        pin = known.get((file.repository, file.hub_path))
        if pin is not None and pin.hub is not None:
            file = dataclasses.replace(file, hub_revision=pin.hub.revision, size=pin.bytes, sha256=pin.sha256)
        files.append(file)
    return dataclasses.replace(spec, files=tuple(files))
