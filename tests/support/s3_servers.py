"""Real S3 servers on free loopback ports, each a process of its own: moto for features, nanio for signatures.

`with start_moto() as server:` or `server = start_nanio()` ... `server.stop()`. Each has one bucket, `BUCKET`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serverless.s3 import S3Storage
from tests.support.tiny_model import closed_port

BUCKET = "voice-bucket"
ACCESS_KEY_ID, SECRET_ACCESS_KEY = "AKIDTESTONLY00000000", "test-secret-of-forty-characters-00000000"
_START_S = 60.0  # only a fault takes so long


@dataclass
class S3Server:
    """Where the server answers and what it accepts."""

    kind: str
    endpoint_url: str
    process: subprocess.Popen[bytes]
    folder: Path
    access_key_id: str = ACCESS_KEY_ID
    secret_access_key: str = SECRET_ACCESS_KEY
    region: str = "us-east-1"
    bucket: str = BUCKET
    _clients: list[Any] = field(default_factory=list)

    def storage(self, **other: Any) -> S3Storage:
        """The product's client for it; `other` replaces arguments."""
        arguments: dict[str, Any] = {
            "bucket": self.bucket,
            "region": self.region,
            "endpoint_url": self.endpoint_url,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
            "max_attempts": 3,
        }
        return S3Storage(**(arguments | other))

    def client(self) -> Any:
        """A plain boto3 client, to look at the server beside the product."""
        if not self._clients:
            import boto3
            from botocore.config import Config

            self._clients.append(
                boto3.session.Session().client(
                    "s3",
                    region_name=self.region,
                    endpoint_url=self.endpoint_url,
                    aws_access_key_id=self.access_key_id,
                    aws_secret_access_key=self.secret_access_key,
                    config=Config(
                        s3={"addressing_style": "path"},
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                    ),
                )
            )
        return self._clients[0]

    def environ(self) -> dict[str, str]:
        """The variables that make a worker use it."""
        return {
            "S3_BUCKET": self.bucket,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
        }

    def empty(self) -> None:
        """Delete every object, so that one server serves many tests."""
        while found := self.client().list_objects_v2(Bucket=self.bucket).get("Contents"):
            for item in found:
                self.client().delete_object(Bucket=self.bucket, Key=item["Key"])

    def stop(self) -> None:
        """End the process by its own id and delete what it stored."""
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> S3Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_moto() -> S3Server:
    """moto: checksums, conditional writes, lifecycle, CORS; takes any key and any signature."""
    return _start("moto", ["-m", "moto.server", "-H", "127.0.0.1", "-p", "{port}"], {})


def start_nanio() -> S3Server:
    """nanio: checks every signature and its time; ignores If-None-Match."""
    environ = {"NANIO_ACCESS_KEY": ACCESS_KEY_ID, "NANIO_SECRET_KEY": SECRET_ACCESS_KEY}
    arguments = ["-m", "nanio", "serve", "--host", "127.0.0.1", "--port", "{port}", "--data-dir", "{folder}"]
    return _start("nanio", [*arguments, "--no-access-log", "--log-level", "error"], environ)


def _start(kind: str, arguments: list[str], environ: dict[str, str]) -> S3Server:
    folder = Path(tempfile.mkdtemp(prefix=f"{kind}-"))
    port = closed_port()
    process = subprocess.Popen(
        [sys.executable, *(a.format(port=port, folder=folder) for a in arguments)],
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = S3Server(kind, f"http://127.0.0.1:{port}", process, folder)
    try:
        _wait_until_it_answers(server, port)
        server.client().create_bucket(Bucket=BUCKET)
    except BaseException:
        server.stop()
        raise
    return server


def _wait_until_it_answers(server: S3Server, port: int) -> None:
    import socket

    end = time.monotonic() + _START_S
    while True:
        assert server.process.poll() is None, f"{server.kind} ended at its start"
        assert time.monotonic() < end, f"{server.kind} did not start"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
