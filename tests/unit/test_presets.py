"""The presets for cards of 24, 48 and 80 GB: they load, name manifest models, and their weights fit."""

from __future__ import annotations

import json

import pytest

from pipeline.engines.base import ENGINES
from pipeline.model_needs import ALWAYS, needed_ids, needed_models
from pipeline.models import load_manifest
from scripts.presets import PRESETS, settings_of
from settings_sources import CONFIGS, PROFILE_FILES, load_settings

# docs/gpu.md explains the figures. The smallest card of each class, in MiB as nvidia-smi says it: L4, L40S, A100/H100.
CARDS_MIB = {"24gb": 23_034, "48gb": 46_068, "80gb": 81_251}
# Weights of FireRedTTS-2 in bf16 with its codec in fp32: what scripts.convert_firered writes, all of it on the card.
FIRERED_BYTES = 7.8e9
# Keys and values of a token in bf16: 2 x layers x key-value heads x head size x 2 bytes, by the model's config.json.
KV_BYTES_PER_TOKEN = {"qwen3-4b-instruct-2507": 2 * 36 * 8 * 128 * 2, "qwen2.5-7b-instruct": 2 * 28 * 4 * 128 * 2}
FIRERED_BYTES_PER_TALK = 0.09e9
# CUDA context, workspaces, graphs and Whisper's activations: an allowance, to be measured on a card.
ALLOWANCE_BYTES = 1.5e9


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_loads_without_a_notice(preset: str) -> None:
    loaded = load_settings(["--config", str(PRESETS[preset])], {})
    assert loaded.notices == []


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_every_engine_and_each_exists(preset: str) -> None:
    document = json.loads(PRESETS[preset].read_text())
    for kind in ("vad", "asr", "llm", "tts"):
        assert document[kind]["engine"] in ENGINES[kind], kind


@pytest.mark.parametrize("preset", PRESETS)
def test_the_models_of_a_preset_are_in_the_manifest(preset: str) -> None:
    models = needed_models(settings_of(PRESETS[preset], {}), load_manifest())
    roles = sorted(model.role for model in models)
    assert roles == ["asr", "asr", "llm", "speaker", "tts", "vad", "watermark"]  # one to hear with, one under pressure


def needed_bytes(preset: str) -> float:
    settings = settings_of(PRESETS[preset], {})
    models = needed_models(settings, load_manifest())
    on_the_cpu = f"whisper-{settings.asr.light_model}"
    on_the_card = [m for m in models if m.role in ("asr", "llm") and m.id != on_the_cpu]
    weights = sum(model.total_bytes for model in on_the_card) + FIRERED_BYTES
    kv = KV_BYTES_PER_TOKEN[settings.models.llm_model] * settings.llm.context_tokens
    return weights + settings.system.max_concurrent_users * (kv + FIRERED_BYTES_PER_TALK) + ALLOWANCE_BYTES


@pytest.mark.parametrize("preset", PRESETS)
def test_the_weights_of_a_preset_and_its_talks_fit_the_smallest_card_of_its_class(preset: str) -> None:
    share = settings_of(PRESETS[preset], {}).performance.gpu_memory_fraction
    assert 17e9 < needed_bytes(preset) <= CARDS_MIB[preset] * (1 << 20) * share


@pytest.mark.parametrize("preset", PRESETS)
def test_the_page_about_gpus_has_the_sum_of_each_preset(preset: str) -> None:
    page = (CONFIGS.parent / "docs" / "gpu.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| **sum**"))
    assert f"{needed_bytes(preset) / 1e9:.1f}" in row.split("|")[2 + list(PRESETS).index(preset)]


def test_the_gpu_profile_is_the_24_gb_preset() -> None:
    assert json.loads(PROFILE_FILES["gpu"].read_text()) == json.loads(PRESETS["24gb"].read_text())


def test_the_profile_gpu_of_the_manifest_is_what_its_configuration_needs() -> None:
    marked = {model.id for model in load_manifest().models if "gpu" in model.profiles}
    assert marked == set(needed_ids(settings_of(PROFILE_FILES["gpu"], {})))


def test_the_profile_cpu_of_the_manifest_is_what_its_configuration_needs() -> None:
    marked = {model.id for model in load_manifest().models if "cpu" in model.profiles}
    assert marked == set(needed_ids(settings_of(PROFILE_FILES["cpu"], {})))
    assert set(ALWAYS) <= marked


@pytest.mark.parametrize(("smaller", "larger"), [("24gb", "48gb"), ("48gb", "80gb")])
def test_a_larger_card_serves_more_talks(smaller: str, larger: str) -> None:
    seats = [settings_of(PRESETS[preset], {}).system.max_concurrent_users for preset in (smaller, larger)]
    assert seats[0] < seats[1]
