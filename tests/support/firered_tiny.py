"""Tiny FireRedTTS-2 checkpoints in the official file format, rebuilt anywhere from nothing but tensor names.

The golden vectors in tests/fixtures/firered were made by upstream's own code on exactly these weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.support.firered_shapes import Shapes, codec_state_shapes, llm_state_shapes

FIXTURES = Path(__file__).parents[1] / "fixtures" / "firered"
TOKENIZER_FOLDER = "Qwen2.5-1.5B"
CODEC, POSTTRAIN, PRETRAIN = "codec", "llm_posttrain", "llm_pretrain"  # file stems, and part of each tensor's seed

Array = NDArray[Any]
FloatArray = NDArray[np.float32]


def read_config(build: str, name: str) -> dict[str, Any]:
    """`name` is "llm" or "codec", `build` is "tiny" or "deep" (28 + 4 layers, no codec)."""
    loaded = json.loads((FIXTURES / build / f"config_{name}.json").read_text())
    return dict(loaded["llm_models" if name == "llm" else "codec"])


def tiny_weights(shapes: Shapes, stem: str) -> dict[str, Array]:
    """A value for every tensor, the same on every machine and numpy: each follows from `stem` and its own name."""
    return {name: _value(name, shape, stem) for name, shape in shapes.items()}


def _value(name: str, shape: tuple[int, ...], stem: str) -> Array:
    """Upstream's own initial values (biases 0, norms 1, codebooks 0) would hide most errors, hence these."""
    if name.endswith(".inited"):
        return np.ones(shape, dtype=bool)
    if name.endswith("istft.window"):
        return hann_window(shape[0])
    if name.endswith("embed_positions.weight"):
        return _sinusoids(*shape)
    seed = f"{stem}/{name}"
    if name.endswith((".bias", ".embed_avg")):
        return 0.1 * normal(seed, shape)
    if name.endswith(".codebook"):
        return 0.3 * normal(seed, shape)
    if len(shape) == 1 or name.endswith("original0"):  # scales of norms, lengths of weight-normed rows, cluster sizes
        return np.float32(0.5) + uniform(seed, shape)
    return np.float32(_std(name, shape)) * normal(seed, shape)


def _std(name: str, shape: tuple[int, ...]) -> float:
    """Keeps the spread of what a layer puts out near the spread of what it takes in."""
    if name.endswith("embeddings.weight"):
        return 0.5
    if name.endswith("original1"):
        return 1.0  # only its direction counts
    if name.startswith("upsample.up_conv"):
        return 1 / math.sqrt(shape[0])  # stride = kernel: one tap an output
    if "upsample_conv" in name:
        return 1 / math.sqrt(2 * shape[0])  # transposed, 3 taps, stride 2 and 1: one to three taps an output
    if name.endswith("isift.out.weight"):
        return 1.3 / math.sqrt(shape[1])  # some log magnitudes pass ln 100, where upstream clips
    if name == "audio_head":
        return 2 / math.sqrt(shape[1])  # (codebook, in, out)
    if name.endswith("head.weight"):
        return 2 / math.sqrt(shape[1])
    return 1 / math.sqrt(math.prod(shape[1:]))


def _words(seed: str, n: int) -> NDArray[np.uint16]:
    """Integers only, from the raw bits of PCG64, which numpy promises never to change."""
    digest = hashlib.sha256(seed.encode()).digest()
    return np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(n).astype("<u8").view("<u2")


def normal(seed: str, shape: tuple[int, ...]) -> FloatArray:
    """Near N(0, 1): sums of four 16-bit words, bit for bit the same everywhere, within +-3.5."""
    sums: NDArray[np.int64] = _words(seed, math.prod(shape)).reshape(-1, 4).astype(np.int64).sum(axis=1)
    return ((sums - 2 * 65535) / (65536 / math.sqrt(3))).astype(np.float32).reshape(shape)  # variance 4 * 65536^2 / 12


def uniform(seed: str, shape: tuple[int, ...]) -> FloatArray:
    """U(0, 1) in steps of 2^-16."""
    return (_words(seed, math.prod(shape))[::4] / 65536).astype(np.float32).reshape(shape)


def hann_window(n: int) -> FloatArray:
    """Periodic, as stored in the official file."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)).astype(np.float32)


def _sinusoids(n_positions: int, width: int) -> FloatArray:
    """Whisper's positions: the first half of the channels sine, the second cosine."""
    rates = np.exp(-math.log(10000) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(n_positions)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def llm_weights(build: str = "tiny", stem: str = POSTTRAIN) -> dict[str, Array]:
    return tiny_weights(llm_state_shapes(read_config(build, "llm")), stem)


def codec_weights() -> dict[str, Array]:
    return tiny_weights(codec_state_shapes(read_config("tiny", "codec")), CODEC)


def write_checkpoint(directory: Path, build: str = "tiny") -> Path:
    """Writes an official-format directory (about 7 MB) and gives it back; the deep build has no codec."""
    directory.mkdir(parents=True, exist_ok=True)
    for config in sorted((FIXTURES / build).glob("config_*.json")):
        (directory / config.name).write_bytes(config.read_bytes())
    for stem in (POSTTRAIN, PRETRAIN):
        _save(directory / f"{stem}.pt", "model", llm_weights(build, stem), args=argparse.Namespace(lr=1e-4, stage=stem))
    if (directory / "config_codec.json").exists():
        _save(directory / "codec.pt", "generator", codec_weights())
    write_tokenizer(directory / TOKENIZER_FOLDER)
    return directory


def _save(path: Path, key: str, weights: dict[str, Array], **extra: object) -> None:
    torch.save({key: {name: torch.from_numpy(value) for name, value in weights.items()}, **extra}, path)


def write_tokenizer(directory: Path) -> None:
    """A byte-level BPE with Qwen2.5's text rules and 257 tokens: one for each byte, and <|endoftext|>."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {symbol: token for token, symbol in enumerate(_byte_symbols())}
    end = {"id": 256, "content": "<|endoftext|>", "special": True}
    end |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_QWEN_SPLIT, _BYTE_LEVEL]},
        "post_processor": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": False},
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (directory / "merges.txt").write_text("#version: 0.2\n")


_QWEN_SPLIT = {
    "type": "Split",
    "pattern": {
        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    },
    "behavior": "Isolated",
    "invert": False,
}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def _byte_symbols() -> list[str]:
    """GPT-2's visible stand-in for each byte: printable Latin-1 stands for itself, the rest start at U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]


def speech_like(n_samples: int, seed: str = "speech", sample_rate: int = 16000) -> FloatArray:
    """Syllables of gliding pitch, two formants, breath noise and short pauses; values are 16-bit steps."""
    time = np.arange(n_samples) / sample_rate
    syllable = np.clip(np.sin(2 * np.pi * 3.1 * time) + 0.4 * np.sin(2 * np.pi * 0.7 * time), 0, None) ** 0.7
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.9 * time) + 10 * np.sin(2 * np.pi * 2.3 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    formants = 550 + 250 * np.sin(2 * np.pi * 1.3 * time), 1700 + 500 * np.sin(2 * np.pi * 0.8 * time + 1)
    voiced = np.zeros(n_samples)
    for harmonic in range(1, 30):
        strength = sum(np.exp(-(((harmonic * pitch - formant) / 180) ** 2)) for formant in formants)
        voiced += (strength + 0.5 / harmonic) * np.sin(harmonic * phase)
    breath = normal(seed, (n_samples,)) * (0.02 + 0.2 * np.clip(np.sin(2 * np.pi * 1.7 * time + 2), 0, None))
    samples = np.clip(0.12 * (voiced * syllable + breath), -1, 1)
    return (np.round(samples * 32767) / 32768).astype(np.float32)
