"""The worker's settings: every variable reaches its field, and what is wrong is named without being shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pipeline.errors import ConfigError
from serverless.settings import REDACTED, VARIABLES, WorkerSettings, describe, load, main, variables_of

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-that-nobody-may-see"
LOCAL = {"STORAGE": "local"}
KEYS = {"AWS_ACCESS_KEY_ID": "id-1", "AWS_SECRET_ACCESS_KEY": "secret-1"}

# What each variable is set to in the F5 configuration page, or as it would be, and what it becomes.
EXAMPLES: dict[str, tuple[str, Any]] = {
    "STORAGE": ("local", "local"),
    "STORAGE_DIR": ("/data", Path("/data")),
    "STORAGE_URL": ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
    "STORAGE_SECRET": ("x" * 16, "x" * 16),
    "S3_BUCKET": ("your-bucket-name", "your-bucket-name"),
    "AWS_ACCESS_KEY_ID": ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    "AWS_SECRET_ACCESS_KEY": ("wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
    "AWS_SESSION_TOKEN": ("token-1", "token-1"),
    "AWS_ENDPOINT_URL": (
        "https://s3.us-west-001.backblazeb2.com",
        "https://s3.us-west-001.backblazeb2.com",
    ),
    "AWS_REGION": ("us-west-2", "us-west-2"),
    "AWS_DEFAULT_REGION": ("eu-west-1", "eu-west-1"),
    "ENABLE_S3_MODEL_CACHE": ("false", False),
    "PRESIGN_SECONDS": ("60", 60),
    "REQUEST_TIMEOUT": ("31", 31.0),
    "PROCESSING_TIMEOUT": ("301.5", 301.5),
    "MAX_TEXT_CHARS": ("200", 200),
    "WORKER_CONCURRENCY": ("1", 1),
    "ALLOW_PRIVATE_URLS": ("true", True),
    "VOICE_CACHE_MB": ("64", 64),
    "DEVICE": ("cuda:1", "cuda:1"),
    "ALLOW_CPU": ("yes", True),
    "OMP_NUM_THREADS": ("2", 2),
    "F5_MODEL": ("F5TTS_Base", "F5TTS_Base"),
    "F5_MODEL_DIR": ("/models/f5", Path("/models/f5")),
    "F5_ATTENTION": ("flash_attn", "flash_attn"),
    "NFE_STEP": ("16", 16),
    "CTC_MODEL_DIR": ("/models/ctc", Path("/models/ctc")),
    "WHISPER_MODEL_DIR": ("/models/whisper", Path("/models/whisper")),
    "WATERMARK": ("true", "true"),
    "MODEL_CACHE_DIR": ("/models", Path("/models")),
    "WARM_UP": ("0", False),
    "CUDA_VISIBLE_DEVICES": ("0", "0"),
    "PYTORCH_ALLOC_CONF": ("expandable_segments:True", "expandable_segments:True"),
    "PYTORCH_CUDA_ALLOC_CONF": ("max_split_size_mb:512", "max_split_size_mb:512"),
    "CACHE_DIR": ("/cache", Path("/cache")),
    "VOLUME_DIR": ("/volume", Path("/volume")),
    "HF_HOME": ("/hf", Path("/hf")),
    "HF_HUB_CACHE": ("/hf/hub", Path("/hf/hub")),
    "TORCH_HOME": ("/torch", Path("/torch")),
    "HF_TOKEN": ("hf-1", "hf-1"),
    "GOOGLE_CREDENTIALS_JSON": ('{"type":"service_account","project_id":"..."}',) * 2,
    "GOOGLE_APPLICATION_CREDENTIALS": ("/path/to/service-account.json", Path("/path/to/service-account.json")),
    "GOOGLE_CLOUD_PROJECT": ("your-project-id", "your-project-id"),
    "LOG_LEVEL": ("WARNING", "WARNING"),
    "RUNPOD_LOG_LEVEL": ("ERROR", "ERROR"),
    "RUNPOD_AI_API_KEY": ("rp-1", "rp-1"),
    "RUNPOD_ENDPOINT_ID": ("abc123", "abc123"),
    "RUNPOD_POD_ID": ("worker-1", "worker-1"),
}
BY_VARIABLE = {name: field for field in WorkerSettings.model_fields for name in variables_of(field)}
SECRETS = sorted(name for name, field in BY_VARIABLE.items() if "SecretStr" in str(WorkerSettings.model_fields[field]))


def refused(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load({**LOCAL, **environ})
    return caught.value.message


def plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def test_there_is_an_example_of_every_variable() -> None:
    assert set(EXAMPLES) == set(VARIABLES)
    assert len(VARIABLES) == len(set(VARIABLES))


@pytest.mark.parametrize("variable", EXAMPLES)
def test_every_variable_sets_its_field(variable: str) -> None:
    text, value = EXAMPLES[variable]
    assert plain(getattr(load({**LOCAL, **KEYS, variable: text}), BY_VARIABLE[variable])) == value


@pytest.mark.parametrize("variable", sorted(set(EXAMPLES) - {"STORAGE"}))
def test_an_empty_variable_counts_as_not_set(variable: str) -> None:
    assert load({**LOCAL, variable: "  "}) == load(LOCAL)


def test_a_bucket_is_required_and_the_message_names_the_variable() -> None:
    with pytest.raises(ConfigError, match=r"^S3_BUCKET is required, unless STORAGE=local$"):
        load({})


@pytest.mark.parametrize(
    "name", ["ab", "a" * 64, "Upper", "under_score", "-a-", "a..b", "192.168.0.1", "s3://bucket", "a b c", "bücket"]
)
def test_a_bucket_has_a_name_that_s3_accepts(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^S3_BUCKET = "):
        load({"S3_BUCKET": name})
    assert load({"S3_BUCKET": "f5tts-prod.storage-1"}).bucket == "f5tts-prod.storage-1"


@pytest.mark.parametrize("half", KEYS)
def test_the_two_halves_of_a_key_come_together_or_not_at_all(half: str) -> None:
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refused(**{half: KEYS[half]})
    assert load(LOCAL).access_key_id is None
    assert "AWS_SESSION_TOKEN" in refused(AWS_SESSION_TOKEN="t")


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("TRUE", True), ("1", True), ("on", True), ("false", False), ("No", False), ("0", False)],
)
def test_truth_is_written_in_a_few_words_only(text: str, value: bool) -> None:
    assert load({**LOCAL, "ENABLE_S3_MODEL_CACHE": text}).model_cache is value
    for wrong in ("disabled", "2", "none", "t"):
        assert "ENABLE_S3_MODEL_CACHE" in refused(ENABLE_S3_MODEL_CACHE=wrong)


@pytest.mark.parametrize(
    ("variable", "wrong"),
    [
        ("STORAGE", "ftp"),
        ("REQUEST_TIMEOUT", "0"),
        ("REQUEST_TIMEOUT", "nan"),
        ("PROCESSING_TIMEOUT", "-1"),
        ("PROCESSING_TIMEOUT", "inf"),
        ("PROCESSING_TIMEOUT", "soon"),
        ("MAX_TEXT_CHARS", "1.5"),
        ("NFE_STEP", "3"),
        ("NFE_STEP", "65"),
        ("PRESIGN_SECONDS", "604801"),
        ("DEVICE", "gpu"),
        ("AWS_REGION", "us west"),
        ("AWS_ENDPOINT_URL", "s3.example.com"),
        ("CUDA_VISIBLE_DEVICES", "zero"),
        ("RUNPOD_LOG_LEVEL", "DEBUG"),
        ("LOG_LEVEL", "LOUD"),
        ("WATERMARK", "maybe"),
        ("F5_ATTENTION", "xformers"),
        ("WORKER_CONCURRENCY", "9"),
    ],
)
def test_a_wrong_value_is_refused_with_its_variable(variable: str, wrong: str) -> None:
    message = refused(**{variable: wrong})
    assert message.startswith(variable)
    assert "\n" not in message


@pytest.mark.parametrize("variable", SECRETS)
def test_no_secret_is_shown(variable: str) -> None:
    settings = load({**LOCAL, **KEYS, variable: CANARY})
    assert plain(getattr(settings, BY_VARIABLE[variable])) == CANARY
    for shown in (describe(settings), repr(settings), str(settings), settings.model_dump_json()):
        assert CANARY not in shown
    assert f"{variables_of(BY_VARIABLE[variable])[0]} = {REDACTED}" in describe(settings)


def test_a_wrong_secret_and_a_password_in_a_url_are_not_shown() -> None:
    assert "tiny" not in refused(STORAGE_SECRET="tiny")
    for variable in ("AWS_ENDPOINT_URL", "STORAGE_URL"):
        assert CANARY not in refused(**{variable: f"https://user:{CANARY}@s3.example.com"})


@pytest.mark.parametrize("quote", ["", '"', "'"])
@pytest.mark.parametrize("size", ["512", "1024", "2048"])
def test_allocator_options_are_taken_without_the_quotes_of_a_console(quote: str, size: str) -> None:
    settings = load({**LOCAL, "PYTORCH_CUDA_ALLOC_CONF": f"{quote}max_split_size_mb:{size}{quote}"})
    assert settings.allocator == f"max_split_size_mb:{size}"


@pytest.mark.parametrize(
    "wrong",
    [
        "ax_split_size_mb:512",
        "max_split_size_mb",
        "max_split_size_mb:20",
        "max_split_size_mb:a",
        f"max_split_size_mb:{10**20}",
        "max_non_split_rounding_mb:5",
        "garbage_collection_threshold:0.0",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:0",
        "roundup_power2_divisions:[256:3]",
        "roundup_power2_divisions:[a:b]",
        "expandable_segments:true",
        "a:b,c",
        ",",
    ],
)
def test_allocator_options_that_pytorch_would_die_of_are_refused(wrong: str) -> None:
    assert "PYTORCH_CUDA_ALLOC_CONF" in refused(PYTORCH_CUDA_ALLOC_CONF=wrong)


@pytest.mark.parametrize(
    "right",
    [
        "expandable_segments:True",
        "garbage_collection_threshold:0.6,max_split_size_mb:128",
        "backend:cudaMallocAsync",
        "roundup_power2_divisions:[256:1,512:2,>:4]",
        "roundup_power2_divisions:[256:0]",
        "roundup_power2_divisions:8",
        "max_non_split_rounding_mb:32",
        "per_process_memory_fraction:0.5",
        "pinned_use_background_threads:True",
    ],
)
def test_allocator_options_of_pytorch_are_accepted(right: str) -> None:
    assert load({**LOCAL, "PYTORCH_ALLOC_CONF": right}).allocator == right


def test_spaces_between_allocator_options_are_taken_out() -> None:
    settings = load({**LOCAL, "PYTORCH_ALLOC_CONF": " expandable_segments: True, max_split_size_mb:128 "})
    assert settings.allocator == "expandable_segments:True,max_split_size_mb:128"


def test_libraries_find_what_they_read_themselves_under_both_names() -> None:
    environ = {**LOCAL, "PYTORCH_CUDA_ALLOC_CONF": "'max_split_size_mb:512'", "CACHE_DIR": "/c"}
    load(environ).export(environ)
    assert environ["PYTORCH_ALLOC_CONF"] == environ["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:512"
    assert environ["HF_HOME"] == "/c/huggingface"
    assert environ["HF_HUB_CACHE"] == "/c/huggingface/hub"
    assert environ["TORCH_HOME"] == "/c/torch"
    assert environ["RUNPOD_LOG_LEVEL"] == "INFO"


def test_caches_are_on_the_volume_where_there_is_one(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    assert not load({**LOCAL, "VOLUME_DIR": str(volume)}).cache_dir.is_relative_to(volume)
    volume.mkdir()
    settings = load({**LOCAL, "VOLUME_DIR": str(volume)})
    assert settings.cache_dir.is_relative_to(volume)
    assert settings.hf_hub_cache.is_relative_to(settings.hf_home)
    assert settings.hf_home.is_relative_to(settings.cache_dir)


def test_a_volume_that_this_user_may_not_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not load({**LOCAL, "VOLUME_DIR": str(tmp_path)}).cache_dir.is_relative_to(tmp_path)


def test_the_development_production_and_high_volume_sets_of_the_page_load() -> None:
    minio = {"S3_BUCKET": "test-bucket", "AWS_ACCESS_KEY_ID": "minioadmin", "AWS_SECRET_ACCESS_KEY": "minioadmin"}
    google = {"GOOGLE_APPLICATION_CREDENTIALS": "/app/service-account-dev.json"}
    assert load({**minio, **google, "AWS_REGION": "us-east-1"}).region == "us-east-1"
    production = load({"S3_BUCKET": "f5tts-prod-storage", "AWS_REGION": "us-west-2"})
    assert (production.access_key_id, production.region) == (None, "us-west-2")
    high = load({"S3_BUCKET": "f5tts-enterprise", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:2048"})
    assert high.allocator == "max_split_size_mb:2048"


def test_show_prints_every_variable_once_and_a_wrong_environment_ends_with_one_line() -> None:
    environ = {**{k: v for k, v in os.environ.items() if k not in VARIABLES}, **LOCAL, "HF_TOKEN": CANARY}

    def show(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serverless.settings", "show", "--redact"]
        return subprocess.run(command, cwd=ROOT, env={**environ, **more}, capture_output=True, text=True, timeout=60)

    done = show()
    names = [line.partition(" = ")[0] for line in done.stdout.splitlines()]
    assert names == [variables_of(field)[0] for field in WorkerSettings.model_fields]
    assert CANARY not in done.stdout
    wrong = show(NFE_STEP="many")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("NFE_STEP = 'many' is not accepted")
    assert len(wrong.stderr.splitlines()) == 1


def test_an_unknown_command_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tell"]) == 2
    assert "serverless.settings show" in capsys.readouterr().err


def test_the_service_accounts_json_survives_as_it_is() -> None:
    account = json.dumps({"type": "service_account", "private_key": "a\nb"})
    assert plain(load({**LOCAL, "GOOGLE_CREDENTIALS_JSON": account}).google_credentials_json) == account
