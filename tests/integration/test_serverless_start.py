"""How the worker starts: what importing it loads, what stops it, what it reports, and where its model comes from."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pipeline.audio import AudioChunk
from pipeline.engines.base import Transcript
from pipeline.errors import ConfigError, VoicepodError
from serverless import handler, parts
from serverless.errors import JobError
from serverless.local_storage import LocalStorage
from serverless.model_files import F5TTS_V1_BASE
from serverless.model_source import find_files, pinned
from serverless.settings import VARIABLES
from serverless.transcribing import Transcriber
from tests.support.serverless_jobs import worker_settings

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-that-nobody-may-see"
HEAVY = {"torch", "boto3", "botocore", "google", "grpc", "runpod", "transformers", "f5_tts", "pocketsphinx", "whisper"}

# A worker that may reach nobody, and that could install nothing; its model is written first. What of F5-TTS's packages
# only trains or compiles is not loaded: it would take seconds of each start.
ALONE = """
import os, pathlib, socket, sys
from pipeline.engines.tiny_f5 import write_tiny_f5
write_tiny_f5(pathlib.Path(os.environ["F5_MODEL_DIR"]))
sys.modules["pip"] = sys.modules["ensurepip"] = None
def refuse(*args, **kwargs): raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from serverless.handler import main
status = main(sys.argv[1:])
unused = {"einx", "sympy", "torch._dynamo", "scipy.integrate", "librosa", "wandb"} & set(sys.modules)
sys.exit(f"loaded: {unused}" if unused else status)
"""


# A worker whose model never comes back from its only job.
HANGING = """
import asyncio, pathlib, sys, threading
import runpod
from serverless import handler, worker
from tests.support.serverless_jobs import Talker, workplace
worker.STOP_GRACE_S = 0.05
talker = Talker(held=threading.Event(), ignores_cancel=True)
place = workplace(pathlib.Path(sys.argv[1]), talker, PROCESSING_TIMEOUT="0.2")
handler.the_worker = lambda: place.worker
handler.register = lambda *parts: None
runpod.serverless.start = lambda config: asyncio.run(config["handler"]({"id": "job-1", "input": {"text": "Hello."}}))
sys.exit(handler.main([]))
"""


def started(*arguments: str, code: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "serverless.handler"]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environ | variables, capture_output=True, text=True, timeout=240
    )


def test_importing_the_handler_loads_no_model_library_and_no_client() -> None:
    code = "import sys, serverless.handler; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = started(code=code)
    assert set(done.stdout.split()) & HEAVY == set()


@pytest.fixture
def bare() -> Iterator[None]:
    """No variable of a worker is set, nor is any left behind that it sets itself."""
    with patch.dict(os.environ):
        for variable in VARIABLES:
            os.environ.pop(variable, None)
        handler.the_worker.cache_clear()
        yield
        handler.the_worker.cache_clear()


def test_a_process_whose_configuration_is_wrong_writes_one_line_and_gives_1() -> None:
    done = started()
    assert (done.returncode, done.stdout) == (1, "")
    assert "S3_BUCKET is required, unless STORAGE=local" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"S3_BUCKET": "a-bucket", "AWS_ACCESS_KEY_ID": CANARY}, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"STORAGE": "local", "PROCESSING_TIMEOUT": "never"}, "PROCESSING_TIMEOUT"),
    ],
)
def test_a_wrong_configuration_stops_the_start_with_one_line(
    variables: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ.update(variables)
    assert handler.main([]) == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert message in written.err
    assert len(written.err.splitlines()) == 1
    assert CANARY not in written.err


def test_a_check_that_fails_ends_the_worker_before_it_takes_a_job(tmp_path: Path) -> None:
    local = {"STORAGE": "local", "STORAGE_DIR": str(tmp_path / "storage"), "MODEL_CACHE_DIR": str(tmp_path)}
    sdk = {
        "RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/v2/f5/job-take/$ID?gpu=x",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
    }
    done = started(**local, **sdk, GOOGLE_CREDENTIALS_JSON=CANARY)
    assert done.returncode == 1
    checks = [json.loads(line) for line in done.stdout.splitlines() if '"start.check"' in line]
    assert [(check["name"], check["ok"]) for check in checks] == [("storage", True), ("google", False)]
    assert "GOOGLE_CREDENTIALS_JSON" in checks[-1]["message"]
    assert '"timing_phonetic": "ready"' in done.stdout
    assert CANARY not in done.stdout + done.stderr
    assert str(tmp_path) not in done.stdout + done.stderr


def test_the_check_of_a_worker_without_network_and_pip_is_a_report_and_gives_0(tmp_path: Path) -> None:
    local = {"STORAGE": "local", "STORAGE_DIR": str(tmp_path / "storage"), "CACHE_DIR": str(tmp_path / "cache")}
    on_a_laptop = {"ALLOW_CPU": "true", "F5_MODEL_DIR": str(tmp_path / "f5"), "MODEL_CACHE_DIR": str(tmp_path)}
    done = started("--check", code=ALONE, **local, **on_a_laptop, HF_TOKEN=CANARY, OMP_NUM_THREADS="1")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True), report
    assert [check["name"] for check in report["checks"]] == ["storage", "google", "watermark", "device", "model"]
    assert all(check["seconds"] >= 0 and check["message"] for check in report["checks"])
    assert report["features"]["timing_phonetic"] == "ready"
    assert report["features"]["timing_google"].startswith("no account")
    assert CANARY not in done.stdout + done.stderr


@pytest.mark.usefixtures("bare", "logging_as_it_was")
def test_the_check_names_everything_that_is_wrong_and_gives_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    (tmp_path / "file").write_text("")
    wrong = {"F5_MODEL_DIR": str(tmp_path / "nowhere"), "GOOGLE_CREDENTIALS_JSON": CANARY, "WATERMARK": "true"}
    local = {"STORAGE": "local", "STORAGE_DIR": str(tmp_path / "file"), "MODEL_CACHE_DIR": str(tmp_path)}
    os.environ.update(wrong | local | {"CACHE_DIR": str(tmp_path)})
    status = handler.main(["--check"])
    written = capsys.readouterr()
    report = json.loads(written.out)
    messages = {check["name"]: check["message"] for check in report["checks"] if not check["ok"]}
    assert (status, report["ok"]) == (1, False)
    assert set(messages) == {"storage", "google", "watermark", "device", "model"}
    assert "ALLOW_CPU=true" in messages["device"]
    assert "GOOGLE_CREDENTIALS_JSON" in messages["google"]
    assert CANARY not in written.out + written.err


def test_a_worker_whose_model_hangs_does_not_wait_for_it_when_it_leaves(tmp_path: Path) -> None:
    done = started(str(tmp_path), code=HANGING, STORAGE="local", STORAGE_DIR=str(tmp_path / "storage"))
    assert done.returncode == 1, done.stderr
    assert '"worker.model_hangs"' in done.stdout


@pytest.mark.usefixtures("bare")
async def test_a_job_of_a_worker_that_is_configured_wrong_is_told_so() -> None:
    answer = await handler.handler({"id": "job-1", "input": {"endpoint": "info"}})
    assert answer["error"] == "MODEL_UNAVAILABLE: S3_BUCKET is required, unless STORAGE=local"


# --- where the model comes from


def test_the_published_model_is_pinned_to_commits_sizes_and_hashes() -> None:
    for file in pinned(F5TTS_V1_BASE).files:
        assert len(file.hub_revision) == 40
        assert file.size
        assert file.sha256


def test_a_directory_with_weights_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "own.safetensors").write_bytes(b"")
    settings = worker_settings(tmp_path, F5_MODEL_DIR=str(tmp_path))
    files, source = find_files(settings, LocalStorage(tmp_path, None, b"x" * 16))
    assert (files.checkpoint, files.vocoder) == (tmp_path / "own.safetensors", tmp_path / "vocos")
    assert source == "F5_MODEL_DIR"


def test_a_directory_that_is_not_there_is_an_error_and_an_empty_one_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serverless import model_source

    asked: dict[str, Any] = {}

    def find_model(spec: Any, **places: Any) -> Path:
        asked.update(places)
        raise ConfigError("nowhere")

    monkeypatch.setattr(model_source, "find_model", find_model)
    storage = LocalStorage(tmp_path / "storage", None, b"x" * 16)
    with pytest.raises(ConfigError, match="F5_MODEL_DIR is no directory"):
        find_files(worker_settings(tmp_path, F5_MODEL_DIR=str(tmp_path / "nowhere")), storage)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="nowhere"):
        find_files(worker_settings(tmp_path, F5_MODEL_DIR=str(tmp_path / "empty"), VOLUME_DIR="/v"), storage)
    assert asked["baked_dir"] == tmp_path / "empty"
    assert asked["hub_caches"][0] == Path("/v/huggingface-cache/hub")
    assert asked["storage"] is None  # a laptop's storage holds no models
    with pytest.raises(ConfigError, match="needs F5_MODEL_DIR"):
        find_files(worker_settings(tmp_path, F5_MODEL="F5TTS_Base"), storage)


@pytest.mark.parametrize(("enabled", "has_storage"), [("true", True), ("false", False)])
def test_the_bucket_is_asked_for_models_only_where_that_is_enabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: str, has_storage: bool
) -> None:
    from serverless import model_source

    asked: dict[str, Any] = {}

    def find_model(spec: Any, **places: Any) -> Path:
        asked.update(places)
        raise ConfigError("nowhere")

    monkeypatch.setattr(model_source, "find_model", find_model)
    settings = worker_settings(tmp_path, STORAGE="s3", S3_BUCKET="a-bucket", ENABLE_S3_MODEL_CACHE=enabled)
    with pytest.raises(ConfigError, match="nowhere"):
        find_files(settings, parts.make_storage(settings))
    assert (asked["storage"] is not None, asked["upload_to_s3"]) == (has_storage, has_storage)


# --- voices that are written down


class ScriptedWhisper:
    """In place of the engine: hears what it is told to."""

    n_loaded = 0
    text, closed = "Some call me nature.", False

    def __init__(self, **options: Any) -> None:
        assert options["path"] == Path("/models/whisper")

    async def load(self) -> None:
        type(self).n_loaded += 1

    async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
        return Transcript(self.text, "en", audio_seconds=utterance.seconds)

    async def close(self) -> None:
        type(self).closed = True


@pytest.fixture
def whisper(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedWhisper]:
    class Fresh(ScriptedWhisper):
        pass

    monkeypatch.setattr("pipeline.engines.asr_whisper.WhisperAsr", Fresh)
    return Fresh


async def test_a_recording_is_written_down_from_any_thread(whisper: type[ScriptedWhisper]) -> None:
    transcriber = Transcriber(Path("/models/whisper"), device="cpu", threads=1)
    audio = AudioChunk.silence(1.0, 24_000)
    heard = await asyncio.gather(*(asyncio.to_thread(transcriber, audio) for _ in range(3)))
    await asyncio.to_thread(transcriber.close)
    assert set(heard) == {("Some call me nature.", "en")}
    assert whisper.closed


def test_writing_down_that_takes_too_long_is_said_to_and_stops(
    whisper: type[ScriptedWhisper], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()

    async def endless(self: ScriptedWhisper, utterance: AudioChunk, *, language: str | None) -> Transcript:
        try:
            return await asyncio.Future()
        finally:
            stopped.set()

    monkeypatch.setattr(whisper, "transcribe", endless)
    transcriber = Transcriber(Path("/models/whisper"), device="cpu", threads=1, timeout_s=0.05)
    with pytest.raises(JobError, match="give ref_text") as caught:
        transcriber(AudioChunk.silence(1.0, 24_000))
    assert caught.value.code == "TIMEOUT"
    assert stopped.wait(20)
    transcriber.close()


def test_a_recording_in_which_nothing_is_said_is_no_voice(whisper: type[ScriptedWhisper]) -> None:
    whisper.text = "  "
    transcriber = Transcriber(Path("/models/whisper"), device="cpu", threads=1)
    with pytest.raises(JobError, match="no words") as caught:
        transcriber(AudioChunk.silence(1.0, 24_000))
    transcriber.close()
    assert caught.value.code == "VOICE_INVALID"
    assert isinstance(caught.value, VoicepodError)
