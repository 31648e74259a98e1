"""The worker's README names everything that the old configuration page named, and everything there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from serverless import requests, settings
from serverless.devserver.__main__ import PORT
from serverless.errors import Code
from serverless.requests import ENDPOINTS, TtsRequest

ROOT = Path(__file__).parents[2]
README = (ROOT / "serverless" / "README.md").read_text()

# Copied from the page: its variables, flags, endpoints, files, images, packages, permissions, constants.
_OLD_PAGE = """
S3_BUCKET AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY ENABLE_S3_MODEL_CACHE AWS_ENDPOINT_URL AWS_REGION
GOOGLE_CREDENTIALS_JSON GOOGLE_APPLICATION_CREDENTIALS GOOGLE_CLOUD_PROJECT
PYTORCH_CUDA_ALLOC_CONF max_split_size_mb:512 CUDA_VISIBLE_DEVICES HF_HOME TRANSFORMERS_CACHE HF_HUB_CACHE TORCH_HOME
RUNPOD_AI_API_KEY RUNPOD_ENDPOINT_ID REQUEST_TIMEOUT PROCESSING_TIMEOUT CONTENT_TYPE audio/wav
return_word_timings timing_method timing_format speed local_voice whisperx google srt vtt csv json ass
"upload" "status" "result"
runpod-handler.py s3_utils.py ghcr.io/swivid/f5-tts:main
/path/to/service-account.json /app/service-account-dev.json /app/service-account-prod.json
/app/service-account-enterprise.json
flash_attn transformers>=4.48.1 google-cloud-speech runpod boto3 requests
F5-TTS 22050 cuda cpu validate_request(job_input)
s3:ListBucket s3:GetObject s3:PutObject s3:DeleteObject
speech.operations.get speech.speech.recognize speech.speech.longrunningrecognize
Backblaze DigitalOcean MinIO minioadmin f5tts-prod-storage f5tts-enterprise nvidia-smi FFMPEG
English French German Spanish Italian Japanese Chinese Dutch
"""
PROBLEMS = [
    "S3 Connection Failed",
    "Model Loading Failed",
    "WhisperX Runtime Installation Failed",
    "Google Cloud Speech API Failed",
    "Performance Issues",
]


@pytest.mark.parametrize("item", _OLD_PAGE.split())
def test_an_item_of_the_old_page_is_named(item: str) -> None:
    section = README.partition("## What became of the old configuration")[2].partition("## The local RunPod")[0]
    assert re.search(rf"(?<!\w){re.escape(item)}(?!\w)", section)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_of_the_old_list_is_named(problem: str) -> None:
    assert problem.replace(" Runtime", "").lower() in README.lower()


@pytest.mark.parametrize("variable", settings.VARIABLES)
def test_a_variable_is_explained(variable: str) -> None:
    assert f"`{variable}`" in README.partition("## Settings")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", [*ENDPOINTS, *sorted(set(TtsRequest.model_fields) - {"endpoint"}), *get_args(Code)])
def test_an_endpoint_a_field_and_an_error_is_explained(name: str) -> None:
    assert re.search(rf"[`\s]{name}[`\s]", README)


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"127.0.0.1:{PORT}/v2/local" in README
    defaults = settings.WorkerSettings(storage="local")
    section = README.partition("## Settings")[2]
    for variable, value in (
        ("PRESIGN_SECONDS", defaults.presign_seconds),
        ("REQUEST_TIMEOUT", int(defaults.request_timeout_s)),
        ("PROCESSING_TIMEOUT", int(defaults.processing_timeout_s)),
        ("MAX_TEXT_CHARS", defaults.max_text_chars),
        ("WORKER_CONCURRENCY", defaults.concurrency),
        ("VOICE_CACHE_MB", defaults.voice_cache_mb),
        ("NFE_STEP", defaults.nfe_step),
    ):
        assert f"| `{variable}` | {value} |" in section
    for name, steps in requests.NFE_PRESETS.items():
        assert f"`{name}` ({steps})" in README


def test_files_and_modules_that_it_names_are_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / "serverless" / target).exists(), target
    for module in re.findall(r"-m ((?:serverless|scripts)\.[a-z0-9_]+)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_it_says_what_the_weights_may_not_be_used_for() -> None:
    assert "CC-BY-NC" in README.partition("\n## ")[0]
