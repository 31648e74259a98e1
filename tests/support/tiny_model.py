"""A model of two small files, and every way it can be published: hub files, wheels, tarballs, manifests."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from pipeline.models import Manifest, locate
from scripts.download_models import main
from scripts.model_sources import Hub
from scripts.model_store import ARCHIVES_NAME

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = random.Random(1).randbytes(300_000)
CONFIG = b'{"rate": 24000}'
WEIGHTS_PATH = f"/owner/tiny/resolve/{COMMIT}/model.onnx"
CONFIG_PATH = f"/owner/tiny/resolve/{COMMIT}/config.json"
HUB_FILES = {WEIGHTS_PATH: WEIGHTS, CONFIG_PATH: CONFIG}
N_PARTS = 12
PART_BYTES = len(WEIGHTS) // N_PARTS


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(members: dict[str, bytes | tuple[bytes, int]]) -> bytes:
    """A zip archive; a member may carry Unix mode bits."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            data, mode = content if isinstance(content, tuple) else (content, 0)
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def tarball(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.SYMTYPE
            info.linkname = target
            archive.addfile(info)
    return buffer.getvalue()


def package(name: str, archive: str, data: bytes, registry: str = "pypi") -> dict[str, Any]:
    size_and_hash = {"bytes": len(data), "sha256": sha256(data)}
    return {"registry": registry, "name": name, "version": "1.0", "archive": archive, **size_and_hash}


def part_wheels() -> dict[str, bytes]:
    """Twelve wheels that hold the weights in stretches; the last one holds the configuration as well."""
    wheels = {}
    for number in range(1, N_PARTS + 1):
        piece = WEIGHTS[(number - 1) * PART_BYTES : number * PART_BYTES]
        members: dict[str, bytes | tuple[bytes, int]] = {f"tiny_part{number}/data.bin": piece}
        if number == N_PARTS:
            members["tiny_part12/config.json"] = CONFIG
        wheels[f"tiny_part{number}-1.0-py3-none-any.whl"] = wheel(members)
    return wheels


def manifest(*, hub: bool = True, parts: bool = False) -> Manifest:
    wheels = part_wheels() if parts else {}
    packages = {
        f"tiny-part{n}": package(f"tiny-part{n}", archive, data)
        for n, (archive, data) in enumerate(wheels.items(), start=1)
    }
    weights: dict[str, Any] = {"name": "model.onnx", "bytes": len(WEIGHTS), "sha256": sha256(WEIGHTS)}
    config: dict[str, Any] = {"name": "config.json", "bytes": len(CONFIG), "sha256": sha256(CONFIG)}
    if hub:
        for file in (weights, config):
            file["hub"] = {"repository": "owner/tiny", "revision": COMMIT, "path": file["name"]}
    if parts:
        weights["parts"] = [
            {"package": key, "member": f"{key.replace('-', '_')}/data.bin", "bytes": PART_BYTES} for key in packages
        ]
        config["parts"] = [{"package": "tiny-part12", "member": "tiny_part12/config.json", "bytes": len(CONFIG)}]
    model = {"id": "tiny", "title": "Tiny", "role": "tts", "tier": "default", "licence": "MIT", "profiles": ["cpu"]}
    return Manifest.model_validate(
        {"format": 1, "packages": packages, "models": [{**model, "files": [weights, config]}]}
    )


def real_wheel(name: str, members: dict[str, bytes]) -> bytes:
    """A wheel that pip accepts as one."""
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    tags = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return wheel({**members, f"{info}/METADATA": metadata, f"{info}/WHEEL": tags, f"{info}/RECORD": b""})


def single(record: dict[str, Any], member: str) -> Manifest:
    """A manifest of one model with one file, which is one member of one package."""
    part = {"package": record["name"], "member": member, "bytes": len(CONFIG)}
    file = {"name": "config.json", "bytes": len(CONFIG), "sha256": sha256(CONFIG), "parts": [part]}
    model = {"id": "tiny", "title": "Tiny", "role": "tts", "tier": "default", "licence": "MIT", "profiles": ["cpu"]}
    return Manifest.model_validate(
        {"format": 1, "packages": {record["name"]: record}, "models": [{**model, "files": [file]}]}
    )


def download(models_dir: Path, *arguments: str, manifest: Manifest, **outside: Any) -> int:
    outside.setdefault("hub", Hub(pause=lambda _seconds: None))
    return main(["--models-dir", str(models_dir), *arguments], manifest=manifest, **outside)


def assert_whole(models_dir: Path, of: Manifest) -> None:
    directory = locate(models_dir, "tiny", manifest=of)
    assert (directory / "model.onnx").read_bytes() == WEIGHTS
    assert (directory / "config.json").read_bytes() == CONFIG
    assert [path.name for path in directory.rglob("*.part")] == []
    assert not (models_dir / ARCHIVES_NAME).exists()


class Lines:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.grown = 0

    def say(self, text: str) -> None:
        self.said.append(text)

    def growing(self, label: str, n_bytes: int, have: int) -> Any:
        def grow(n_grown: int) -> None:
            self.grown += n_grown

        return contextlib.nullcontext(grow)


def written(files: dict[str, bytes], directory: Path) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory
