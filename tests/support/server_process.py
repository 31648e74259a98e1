"""The real server with the real models, as a process of its own that tests may hurt and stop."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.tiny_model import closed_port

ROOT = Path(__file__).resolve().parents[2]
START_S = 600.0  # only a fault takes so long; the machine may be busy
LOOK_S = 0.2
CPU = ("--profile", "cpu")
# Who runs the tests with nohup has every program of theirs ignore SIGHUP.
NO_NOHUP = ("env", "--default-signal=HUP")
# Dies as a program does that the system kills, for as long as the file is there.
DYING_PROGRAM = """#!/bin/sh
[ -e '{flag}' ] && kill -KILL $$
exec '{program}' "$@"
"""


class ServerProcess:
    """`python app.py`, of the CPU profile unless the options say otherwise.

    Its temporary directory is its own, its espeak-ng dies while `espeak_dies` is there.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = closed_port()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.espeak_dies = folder / "espeak-dies"
        self._output, self._errors = folder / "output", folder / "errors"
        self._http = httpx.Client(timeout=5, verify=False)  # no TLS here, and no certificates to read
        programs = folder / "bin"
        programs.mkdir()
        shim = programs / "espeak-ng"
        shim.write_text(DYING_PROGRAM.format(flag=self.espeak_dies, program=shutil.which("espeak-ng")))
        shim.chmod(0o755)
        # Uvicorn takes uvloop wherever it is installed; engine processes need what only asyncio's own loop has.
        (programs / "uvloop.py").write_text("raise RuntimeError('another event loop was asked for')\n")
        environ = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{programs}",
            "VOICEPOD_DATA": str(folder / "data"),
            "VOICEPOD__ACCESS__MODE": "open",
            # Beside other tests an engine's threads would wait for each other.
            **{f"VOICEPOD__{kind}__THREADS": "1" for kind in ("ASR", "LLM", "TTS")},
        }
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*NO_NOHUP, sys.executable, str(ROOT / "app.py"), *(options or CPU), "--port", str(self.port)],
                cwd=folder,
                env=environ,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/realtime?model=voicepod"

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    @property
    def private_directories(self) -> list[Path]:
        """What the language model's server keeps its socket in."""
        return list(self.temporary.glob("voicepod-llm-*"))

    def ask(self, path: str) -> httpx.Response | None:
        """None while nobody listens."""
        with contextlib.suppress(httpx.TransportError):
            return self._http.get(f"{self.page}{path}")
        return None

    def engines(self) -> dict[str, Any]:
        """Kind of engine -> how far it is."""
        answer = self.ask("/api/startup")
        return {engine["kind"]: engine["state"] for engine in answer.json()["engines"]} if answer else {}

    def until_live(self) -> ServerProcess:
        """Wait until it answers, with or without models."""
        self._wait(lambda: self.ask("/health/live") is not None)
        return self

    def until_it_says(self, words: str) -> ServerProcess:
        """Wait for these words on its output."""
        self._wait(lambda: words in self.output)
        return self

    def until_ready(self) -> ServerProcess:
        """Wait for the models; a machine without them skips, unless it is meant to have them."""
        self._wait(lambda: (answer := self.ask("/health/ready")) is not None and answer.status_code == 200)
        return self

    def until_loading(self, kind: str) -> ServerProcess:
        """Wait until an engine of this kind has begun to load."""
        self._wait(lambda: self.engines().get(kind) == "loading")
        return self

    def _wait(self, is_so: Any) -> None:
        deadline_s = time.monotonic() + START_S
        while not is_so():
            if self.process.poll() is not None and "download_models" in self.errors:
                assert not os.environ.get("VOICEPOD_REQUIRE_MODELS"), self.errors
                pytest.skip("needs the models: " + self.errors.strip())
            assert self.process.poll() is None, self.output + self.errors
            assert time.monotonic() < deadline_s, self.output + self.errors
            time.sleep(LOOK_S)

    def relatives(self) -> list[int]:
        """The processes that it started and that live, itself included."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == self.process.pid:
                    found.append(pid)
        return found

    def engine_process(self, name: str) -> int | None:
        """The process that its engines of this group live in, None while there is none."""
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[-1] == name:
                    return int(process.pid)
        return None

    def kill(self) -> None:
        """The end, if it has not come yet."""
        self._http.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


class ServerProcesses:
    """One server for all tests of a run, and a new one after a test that stopped it."""

    def __init__(self) -> None:
        self._folders: list[Path] = []
        self._all: list[ServerProcess] = []

    def start(self, *options: str) -> ServerProcess:
        """A new one; a short folder, because the path of a UNIX socket has 107 characters at most."""
        folder = Path(tempfile.mkdtemp(prefix="voicepod-test-"))
        self._folders.append(folder)
        self._all.append(ServerProcess(folder, *options))
        return self._all[-1]

    def ready(self) -> ServerProcess:
        """The one that runs."""
        if not self._all or self._all[-1].process.poll() is not None:
            self.start()
        return self._all[-1].until_ready()

    def close(self) -> None:
        for server in self._all:
            server.kill()
        for folder in self._folders:
            shutil.rmtree(folder)


@contextlib.contextmanager
def server_processes() -> Iterator[ServerProcesses]:
    """Servers that end with the block."""
    servers = ServerProcesses()
    try:
        yield servers
    finally:
        servers.close()
