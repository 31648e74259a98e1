"""What a laptop lacks for a first try: an S3 server and an F5-TTS, the one in memory, the other tiny and of noise."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from starlette.routing import BaseRoute

from serverless.local_routes import serve_local
from serverless.local_storage import LocalStorage

BUCKET, REGION = "demo-bucket", "us-east-1"
KEYS = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo-secret"}
# What the environment says goes before these.
DEFAULTS = {"ALLOW_CPU": "true", "ENABLE_S3_MODEL_CACHE": "false"}
TINY = {"DEVICE": "cpu", "NFE_STEP": "4", "OMP_NUM_THREADS": "2"}


def demo_environ(environ: Mapping[str, str], directory: Path) -> dict[str, str]:
    """For the workers: no card needed and, unless F5_MODEL_DIR names real weights, tiny random ones in `directory`."""
    tiny: dict[str, str] = {}
    if not environ.get("F5_MODEL_DIR"):
        from pipeline.engines.tiny_f5 import write_tiny_f5

        tiny = {**TINY, "F5_MODEL_DIR": str(write_tiny_f5(directory / "tiny-f5"))}
    return {**DEFAULTS, **tiny, "CACHE_DIR": str(directory / "cache"), **environ}


@contextlib.contextmanager
def s3_in_memory() -> Iterator[dict[str, str]]:
    """The variables of an S3 server that lives as long as the block; of a directory where moto is not installed."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        yield {"STORAGE": "local"}
        return
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its lines hold signed URLs
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        session = boto3.session.Session(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"], region_name=REGION)
        client = session.client("s3", endpoint_url=url)
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield {"STORAGE": "s3", "S3_BUCKET": BUCKET, "AWS_REGION": REGION, "AWS_ENDPOINT_URL": url, **KEYS}
    finally:
        server.stop()


def local_storage(environ: Mapping[str, str], base_url: str, directory: Path) -> tuple[dict[str, str], list[BaseRoute]]:
    """A directory as storage: the variables for the workers, and the routes that answer its signed URLs."""
    root = Path(environ.get("STORAGE_DIR") or directory / "storage")
    secret = environ.get("STORAGE_SECRET") or secrets.token_urlsafe(32)
    url = environ.get("STORAGE_URL") or base_url
    storage = LocalStorage(root, url, os.fsencode(secret))
    variables = {"STORAGE": "local", "STORAGE_DIR": str(root), "STORAGE_SECRET": secret, "STORAGE_URL": url}
    return variables, list(serve_local(storage))
