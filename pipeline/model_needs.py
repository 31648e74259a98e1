"""Which models of the manifest a configuration runs on, and one command for those that are not here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pipeline.errors import ConfigError
from pipeline.models import CUSTOM_LLM_ID, Manifest, Model, load_manifest, read_mark
from settings import Settings

# The likeness of a cloned voice, and the watermark: every profile has them.
ALWAYS: Final = ("resemblyzer", "perth-implicit")
_TTS: Final = {
    "kokoro": ("kokoro-82m",),
    "piper": ("piper-joe",),
    "firered": ("fireredtts-2",),
    "f5": ("f5-tts-v1-base", "vocos-mel-24khz"),
}
_WITH_TTS_PATH: Final = ("firered", "f5")
# Other names that `models.llm_model` takes, by engine; the adapters have the same.
_LLAMACPP: Final = {
    "local": "qwen2.5-coder-0.5b-instruct",
    "quality": "qwen2.5-coder-1.5b-instruct",
    "custom": CUSTOM_LLM_ID,
}
_TRANSFORMERS: Final = {"local": "qwen3-4b-instruct-2507", "quality": "qwen2.5-7b-instruct"}


def needed_ids(settings: Settings) -> tuple[str, ...]:
    """Manifest ids that `settings` run on; what has a path of its own or runs elsewhere is not among them."""
    return (*_engine_ids(settings), *ALWAYS)


def needed_models(settings: Settings, manifest: Manifest) -> list[Model]:
    """The models that `settings` run on, in the manifest's order; ConfigError for one that the manifest lacks."""
    wanted = needed_ids(settings)
    for model_id in wanted:
        if manifest.model(model_id) is None and model_id != CUSTOM_LLM_ID:
            raise ConfigError(f"the manifest has no model {model_id!r}, which the configuration names")
    return [model for model in manifest.models if model.id in wanted]


def require_models(settings: Settings, manifest: Manifest | None = None) -> None:
    """ConfigError with the one command that gets all that is missing, where an engine's model was never downloaded.

    Only looks for marks: damage is found by the engine that loads the model.
    """
    known = [model.id for model in (manifest or load_manifest()).models]

    def absent(ids: Sequence[str]) -> list[str]:
        return [i for i in ids if i in known and read_mark(settings.models.dir / i) is None]

    missing = absent(_engine_ids(settings))
    if missing:
        command = " ".join(f"--model {model_id}" for model_id in absent(needed_ids(settings)))
        raise ConfigError(
            f"Models that this configuration runs on are not in {settings.models.dir}: {', '.join(missing)}. "
            f"Run: python -m scripts.download_models {command} --models-dir {settings.models.dir}"
        )


def _engine_ids(settings: Settings) -> tuple[str, ...]:
    models, ids = settings.models, []
    if settings.vad.engine == "silero":
        ids.append("silero-vad")
    if settings.asr.engine in ("faster_whisper", "whisper"):
        if settings.asr.path is None:
            ids.append(f"whisper-{models.whisper_model}")
        if settings.asr.light_model is not None:
            ids.append(f"whisper-{settings.asr.light_model}")
    if settings.llm.engine == "llamacpp":
        ids.append(_LLAMACPP.get(models.llm_model, models.llm_model))
    elif settings.llm.engine == "transformers" and settings.llm.path is None:
        ids.append(_TRANSFORMERS.get(models.llm_model, models.llm_model))
    if not (settings.tts.engine in _WITH_TTS_PATH and models.tts_model_path):
        ids += _TTS.get(settings.tts.engine, ())
    return tuple(dict.fromkeys(ids))
