from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.engines import llm_llamacpp
from pipeline.errors import ConfigError
from pipeline.model_needs import ALWAYS, needed_ids, needed_models, require_models
from pipeline.models import CUSTOM_LLM_ID, Mark, load_manifest, write_mark
from settings import Settings


def settings(**sections: dict[str, Any]) -> Settings:
    return Settings.model_validate(sections)


@pytest.mark.parametrize(
    ("sections", "ids"),
    [
        ({}, {"silero-vad", "whisper-base", "qwen2.5-coder-0.5b-instruct", "kokoro-82m"}),
        (
            {"vad": {"engine": "webrtc"}, "tts": {"engine": "piper"}, "llm": {"engine": "openai"}},
            {"whisper-base", "piper-joe"},
        ),
        (
            {"llm": {"engine": "transformers"}, "asr": {"engine": "whisper"}, "tts": {"engine": "firered"}},
            {"silero-vad", "whisper-base", "qwen3-4b-instruct-2507", "fireredtts-2"},
        ),
        (
            {
                "models": {"tts_model_path": "/own/tts", "llm_model": "quality", "whisper_model": "turbo"},
                "llm": {"engine": "transformers"},
                "tts": {"engine": "firered"},
            },
            {"silero-vad", "whisper-turbo", "qwen2.5-7b-instruct"},
        ),
        (
            {
                "llm": {"engine": "transformers", "path": "/own/llm"},
                "asr": {"engine": "whisper", "path": "/own/asr"},
                "tts": {"engine": "firered_upstream"},
            },
            {"silero-vad"},
        ),
        (
            {"asr": {"light_model": "tiny.en"}, "llm": {"engine": "openai"}, "tts": {"engine": "firered"}},
            {"silero-vad", "whisper-base", "whisper-tiny.en", "fireredtts-2"},
        ),
        (
            {"llm": {"engine": "openai"}, "tts": {"engine": "f5"}},
            {"silero-vad", "whisper-base", "f5-tts-v1-base", "vocos-mel-24khz"},
        ),
        (
            {"models": {"tts_model_path": "/own/tts"}, "llm": {"engine": "openai"}, "tts": {"engine": "f5"}},
            {"silero-vad", "whisper-base"},
        ),
        ({"models": {"llm_model": "custom"}}, {"silero-vad", "whisper-base", CUSTOM_LLM_ID, "kokoro-82m"}),
    ],
)
def test_a_configuration_names_the_models_that_it_runs_on(sections: dict[str, Any], ids: set[str]) -> None:
    assert set(needed_ids(settings(**sections))) == ids | set(ALWAYS)


def test_the_other_names_are_those_of_the_engines() -> None:
    from pipeline.engines import llm_transformers

    for engine, names in (("llamacpp", llm_llamacpp.MODEL_IDS), ("transformers", llm_transformers.MODEL_IDS)):
        for name, model_id in names.items():
            found = needed_ids(settings(llm={"engine": engine}, models={"llm_model": name}))
            assert model_id in found, (engine, name)


def test_a_model_that_the_manifest_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match="no model 'whisper-huge'"):
        needed_models(settings(models={"whisper_model": "huge"}), load_manifest())


def mark(models_dir: Path, *ids: str) -> None:
    for model_id in ids:
        (models_dir / model_id).mkdir(parents=True)
        write_mark(models_dir / model_id, Mark(model=model_id, source="a test", files=()))


GPU: dict[str, dict[str, Any]] = {
    "asr": {"engine": "whisper"},
    "llm": {"engine": "transformers"},
    "tts": {"engine": "firered"},
}


def test_what_is_missing_is_got_by_one_command(tmp_path: Path) -> None:
    mark(tmp_path, "silero-vad", "whisper-base", "perth-implicit")
    with pytest.raises(ConfigError) as raised:
        require_models(settings(models={"dir": tmp_path}, **GPU))
    assert raised.value.message.endswith(
        "qwen3-4b-instruct-2507, fireredtts-2. Run: python -m scripts.download_models --model qwen3-4b-instruct-2507 "
        f"--model fireredtts-2 --model resemblyzer --models-dir {tmp_path}"
    )


def test_models_that_are_all_here_need_nothing(tmp_path: Path) -> None:
    mark(tmp_path, "silero-vad", "whisper-base", "qwen3-4b-instruct-2507", "fireredtts-2")
    require_models(settings(models={"dir": tmp_path}, **GPU))


def test_an_unknown_model_is_left_to_its_engine(tmp_path: Path) -> None:
    mark(tmp_path, "silero-vad", "qwen3-4b-instruct-2507", "fireredtts-2")
    require_models(settings(models={"dir": tmp_path, "whisper_model": "huge"}, **GPU))
