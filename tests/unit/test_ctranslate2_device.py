from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import ctranslate2
import pytest

from pipeline.engines.ctranslate2_device import CUBLAS, load_cublas, resolved_device, runnable_type
from pipeline.errors import ConfigError

PLAIN_CPU = {"int8", "int8_float32", "float32"}
INTEL_CPU = PLAIN_CPU | {"int16"}
CARD = {"int8", "int8_float32", "int8_float16", "int8_bfloat16", "float16", "bfloat16", "float32"}
OLD_CARD = {"int8", "int8_float32", "float32"}  # before compute capability 7.0


@pytest.mark.parametrize(
    ("asked", "kind", "supported", "runs"),
    [
        ("int8", "cpu", PLAIN_CPU, "int8"),
        ("int8_float16", "cpu", PLAIN_CPU, "int8"),
        ("int16", "cpu", INTEL_CPU, "int16"),
        ("int16", "cpu", PLAIN_CPU, "float32"),
        ("float16", "cpu", PLAIN_CPU, "float32"),
        ("bfloat16", "cpu", PLAIN_CPU, "float32"),
        ("default", "cpu", PLAIN_CPU, "default"),
        ("int8", "cuda", CARD, "int8_float16"),
        ("int8", "cuda", OLD_CARD, "int8"),
        ("int16", "cuda", CARD, "float16"),
        ("float16", "cuda", CARD, "float16"),
        ("float16", "cuda", OLD_CARD, "float32"),
        ("bfloat16", "cuda", CARD, "bfloat16"),
        ("float32", "cuda", CARD, "float32"),
        ("auto", "cuda", CARD, "auto"),
    ],
)
def test_a_number_format_that_the_device_has_not_becomes_the_nearest(
    asked: str, kind: str, supported: set[str], runs: str
) -> None:
    assert runnable_type(asked, kind, supported) == runs


@pytest.mark.parametrize(
    ("n_cards", "device", "found"),
    [
        (0, "auto", ("cpu", 0)),
        (2, "auto", ("cuda", 0)),
        (2, "cpu", ("cpu", 0)),
        (2, "cuda", ("cuda", 0)),
        (2, "cuda:1", ("cuda", 1)),
    ],
)
def test_the_device_is_found(
    monkeypatch: pytest.MonkeyPatch, n_cards: int, device: str, found: tuple[str, int]
) -> None:
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: n_cards)
    assert resolved_device(device, setting="asr.device") == found


@pytest.mark.parametrize(("n_cards", "device"), [(0, "cuda"), (1, "cuda:1"), (2, "cuda:2")])
def test_a_card_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, n_cards: int, device: str) -> None:
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: n_cards)
    with pytest.raises(ConfigError, match=rf"asr\.device: there is no card {device}; CTranslate2 sees {n_cards}"):
        resolved_device(device, setting="asr.device")


def libraries(monkeypatch: pytest.MonkeyPatch, there: set[str]) -> list[str]:
    """Makes the loader find those only; gives what was looked for."""
    asked: list[str] = []

    def load(name: str, mode: int) -> None:
        asked.append(name)
        assert mode == ctypes.RTLD_GLOBAL
        if name not in there:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    return asked


def test_cublas_of_the_system_is_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = libraries(monkeypatch, {CUBLAS})
    load_cublas()
    assert asked == [CUBLAS]


def test_cublas_of_nvidias_package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "nvidia" / "cublas" / "lib" / CUBLAS
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    asked = libraries(monkeypatch, {str(library)})
    load_cublas()
    assert asked == [CUBLAS, str(library)]


def test_no_cublas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(monkeypatch, set())
    with pytest.raises(ConfigError, match=r"Run: \.venv/bin/pip install nvidia-cublas-cu12=="):
        load_cublas()
