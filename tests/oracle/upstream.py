"""Upstream's own FireRedTTS-2 classes, on shapes from a config file instead of the hard-coded ones."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.oracle.stubs import install_stubs


def upstream_module(name: str) -> Any:
    """`fireredtts2` or a module of it, by its name below the package."""
    install_stubs()
    return import_module(f"fireredtts2.{name}" if name else "fireredtts2")


def load_engine(directory: Path, kind: str) -> Any:
    """Upstream's whole FireRedTTS2 on CPU; `kind` is "dialogue" or "monologue" and picks the LLM file."""
    _register_flavours(directory)
    _shrink_whisper(directory)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        return upstream_module("").FireRedTTS2(str(directory), kind, "cpu")


def load_llm(directory: Path, stem: str, device: str = "cpu") -> Any:
    """Upstream's Model alone, caches set up for one stream."""
    _register_flavours(directory)
    config = json.loads((directory / "config_llm.json").read_text())
    model = upstream_module("llm.utils").load_llm_model(config, directory / f"{stem}.pt", device)
    model.eval()
    model.setup_caches(1)
    return model


def load_codec(directory: Path) -> Any:
    """Upstream's codec alone."""
    _shrink_whisper(directory)
    config, weights = directory / "config_codec.json", directory / "codec.pt"
    return upstream_module("codec").RedCodecInfer.from_pretrained(str(config), str(weights)).eval()


def _register_flavours(directory: Path) -> None:
    config = json.loads((directory / "config_llm.json").read_text())["llm_models"]
    flavours = upstream_module("llm.modules").FLAVORS
    for part in ("backbone", "decoder"):
        flavours[config[f"{part}_flavor"]] = flavour(config[f"{part}_shape"], config["text_vocab_size"])


def flavour(shape: dict[str, int], vocab_size: int) -> Callable[[], Any]:
    """The constructor of a Qwen2 stack as upstream's own table has them; the constants are upstream's."""
    build = upstream_module("llm.modules").qwen2
    return lambda: build(
        vocab_size=vocab_size,
        num_layers=shape["n_layers"],
        num_heads=shape["n_heads"],
        num_kv_heads=shape["n_kv_heads"],
        embed_dim=shape["width"],
        intermediate_dim=shape["ffn_width"],
        max_seq_len=4096,
        attn_dropout=0.0,
        norm_eps=1e-6,
        rope_base=1_000_000.0,
        tie_word_embeddings=True,
    )


def _shrink_whisper(directory: Path) -> None:
    """Upstream builds Whisper-large there; same class, same mel front end, our widths."""
    shape = json.loads((directory / "config_codec.json").read_text())["codec"]["ssl"]
    whisper = upstream_module("codec.whisper")

    def from_pretrained(cls: Any, pretrained_path: str | None = None) -> Any:
        sizes = {key: shape[key] for key in ("embed_dim", "num_layers", "num_heads", "ffn_dim", "max_positions")}
        encoder = cls(in_dim=shape["num_mels"], **sizes).eval()
        encoder.feature_extractor = whisper.WhisperMelExtractor(num_mels=shape["num_mels"])
        return encoder

    whisper.PretrainedWhisperEncoder.from_pretrained = classmethod(from_pretrained)
