"""Model directories with random weights, for tests and timing. They speak noise.

A tiny one is in upstream's format (pickled fp32 state dicts with everything training leaves in them), so that it goes
through every step a published one does. A full-size one is written as converted safetensors straight away.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from firered.byte_tokenizer import write_byte_tokenizer
from firered.checkpoint import (
    CODEC_CONFIG_NAME,
    CODEC_STEM,
    CODEC_TOP_KEY,
    DTYPE_KEY,
    FORMAT,
    FORMAT_KEY,
    LLM_CONFIG_NAME,
    LLM_STEMS,
    LLM_TOP_KEY,
    TOKENIZER_NAME,
    Variant,
)
from firered.config import (
    FLAVORS,
    AcousticDecoderConfig,
    AdaptorConfig,
    CodecConfig,
    DownsampleConfig,
    EncoderConfig,
    LlmConfig,
    RvqConfig,
    StackConfig,
    UpsampleConfig,
)
from firered.errors import CheckpointError
from firered.key_table import KeyTable, codec_table, llm_table
from firered.model_directory import Progress, Say, only_writer, require_space, size_text
from firered.random_weights import RandomTensors, random_weights
from firered.safetensors_writer import n_bytes_of, write_safetensors

__all__ = [
    "TINY_CODEC",
    "TINY_LLM",
    "Size",
    "codec_json",
    "configs_of",
    "llm_json",
    "random_weights",
    "write_random_checkpoint",
]

Size = Literal["tiny", "full"]

# Says of a directory that its weights are random, so that they may be written over.
MARK_NAME = "RANDOM_WEIGHTS"

# No two neighbouring widths are equal, so a transposed or misplaced matrix does not fit. The text vocabulary has room
# for the 257 tokens of the byte tokenizer and the 124 special ones.
TINY_LLM = LlmConfig(
    backbone=StackConfig(n_layers=3, width=64, n_heads=4, n_kv_heads=2, ffn_width=128),
    decoder=StackConfig(n_layers=2, width=48, n_heads=6, n_kv_heads=2, ffn_width=96),
    text_vocab_size=512,
    audio_vocab_size=67,
)
TINY_CODEC = CodecConfig(
    ssl=EncoderConfig(n_mels=128, width=40, n_layers=1, n_heads=2, ffn_width=64),
    ssl_adaptor=AdaptorConfig(in_width=40, width=48, out_width=24, n_layers=1, n_heads=3, ffn_width=80),
    acoustic_encoder=EncoderConfig(n_mels=128, width=32, n_layers=1, n_heads=2, ffn_width=64),
    downsample=DownsampleConfig(width=56),
    rvq=RvqConfig(in_width=56, width=48, codebook_size=64, codebook_width=16),
    upsample=UpsampleConfig(width=48),
    acoustic_decoder=AcousticDecoderConfig(width=48, n_layers=2, n_heads=3),
    semantic_decoder=AdaptorConfig(in_width=48, width=48, out_width=40, n_layers=1, n_heads=3, ffn_width=80),
)


def configs_of(size: Size) -> tuple[LlmConfig, CodecConfig]:
    """The shapes of a tiny model (300 000 + 500 000 numbers), or the published ones."""
    return (TINY_LLM, TINY_CODEC) if size == "tiny" else (LlmConfig(), CodecConfig())


def write_random_checkpoint(
    directory: Path,
    size: Size,
    *,
    seed: int = 0,
    variants: Sequence[Variant] = ("dialogue",),
    llm_dtype_name: str = "bf16",
    codec_dtype_name: str = "fp32",
    say: Say = lambda line: None,
) -> None:
    """Write a whole directory; CheckpointError when it holds anything but random weights. The types are for `full`."""
    llm, codec = configs_of(size)
    _require_no_other_model(directory)
    with only_writer(directory):
        (directory / MARK_NAME).write_text(f"The weights here are random: {size}, seed {seed}.\n")
        (directory / LLM_CONFIG_NAME).write_text(json.dumps(llm_json(llm), indent=1) + "\n")
        (directory / CODEC_CONFIG_NAME).write_text(json.dumps(codec_json(codec), indent=1) + "\n")
        write_byte_tokenizer(directory / TOKENIZER_NAME)
        for variant in variants:
            path = directory / LLM_STEMS[variant]
            _write_weights(path, size, LLM_TOP_KEY, llm_table(llm), llm_dtype_name, seed, say)
        _write_weights(directory / CODEC_STEM, size, CODEC_TOP_KEY, codec_table(codec), codec_dtype_name, seed, say)


def llm_json(config: LlmConfig) -> dict[str, Any]:
    """What `read_llm_config` reads back as `config`: flavour names where they fit, else the shapes."""
    return {
        "llm_models": {
            "sample_rate": 16000,
            **_stack_json("backbone", config.backbone),
            **_stack_json("decoder", config.decoder),
            "text_vocab_size": config.text_vocab_size,
            "audio_vocab_size": config.audio_vocab_size,
            "audio_num_codebooks": config.n_codebooks,
            "decoder_loss_weight": 0.6,
        }
    }


def codec_json(config: CodecConfig) -> dict[str, Any]:
    """What `read_codec_config` reads back as `config`, under upstream's names; "ssl" is ours."""
    mel, rvq, decoder = config.mel, config.rvq, config.acoustic_decoder
    front_end = {
        "sampling_rate": mel.sample_rate,
        "hop_length": mel.hop_length,
        "n_fft": mel.n_fft,
        "fmin": mel.f_min,
        "fmax": mel.f_max,
    }
    return {
        "codec": {
            "ssl": _encoder_json(config.ssl),
            "ssl_adaptor": _adaptor_json(config.ssl_adaptor),
            "acoustic_encoder": _encoder_json(config.acoustic_encoder) | front_end,
            "downsample": {"embed_dim": config.downsample.width, "avg_pooler": config.downsample.factor},
            "rvq": {
                "input_dim": rvq.in_width,
                "rvq_dim": rvq.width,
                "output_dim": rvq.width,
                "num_quantizers": rvq.n_quantizers,
                "codebook_size": rvq.codebook_size,
                "codebook_dim": rvq.codebook_width,
            },
            "upsample": {"embed_dim": config.upsample.width, "stride": config.upsample.factor},
            "semantic_decoder": _adaptor_json(config.semantic_decoder),
            "acoustic_decoder": {
                "embed_dim": decoder.width,
                "num_layers": decoder.n_layers,
                "num_heads": decoder.n_heads,
                "hop_length": decoder.hop_length,
                "causal": True,
            },
        }
    }


def _stack_json(part: str, stack: StackConfig) -> dict[str, Any]:
    names = [name for name, shape in FLAVORS.items() if shape == stack]
    if names:
        return {f"{part}_flavor": names[0]}
    fields = ("n_layers", "width", "n_heads", "n_kv_heads", "ffn_width", "max_positions", "norm_eps", "rope_base")
    return {f"{part}_flavor": "random", f"{part}_shape": {name: getattr(stack, name) for name in fields}}


def _encoder_json(encoder: EncoderConfig) -> dict[str, Any]:
    return {
        "num_mels": encoder.n_mels,
        "embed_dim": encoder.width,
        "num_layers": encoder.n_layers,
        "num_heads": encoder.n_heads,
        "ffn_dim": encoder.ffn_width,
        "max_positions": encoder.max_positions,
    }


def _adaptor_json(adaptor: AdaptorConfig) -> dict[str, Any]:
    return {
        "in_dim": adaptor.in_width,
        "embed_dim": adaptor.width,
        "out_dim": adaptor.out_width,
        "num_layers": adaptor.n_layers,
        "num_heads": adaptor.n_heads,
        "ffn_dim": adaptor.ffn_width,
    }


def _require_no_other_model(directory: Path) -> None:
    """Random weights must never take the place of real ones."""
    if directory.is_dir() and any(directory.iterdir()) and not (directory / MARK_NAME).exists():
        problem = "is not empty, and random weights are never written over anything else"
        raise CheckpointError(directory, problem, expected=f"a new directory, or one with the file {MARK_NAME}")


def _write_weights(stem: Path, size: Size, top_key: str, table: KeyTable, dtype_name: str, seed: int, say: Say) -> None:
    """One file, named `stem` and the suffix of its format."""
    if size == "tiny":
        path = stem.with_suffix(".pt")
        _write_official(path, top_key, table, seed)
        say(f"{path.name}: {size_text(path.stat().st_size)} of random weights")
        return
    path, n_bytes = stem.with_suffix(".safetensors"), n_bytes_of(table.shapes, dtype_name)
    require_space(path.parent, n_bytes)
    say(f"{path.name}: {size_text(n_bytes)} of random weights as {dtype_name}")
    source = RandomTensors(table.shapes, "cpu", torch.float32, _file_seed(path, seed))
    metadata = {FORMAT_KEY: FORMAT, DTYPE_KEY: dtype_name, "random_seed": str(seed)}
    write_safetensors(path, table.shapes, dtype_name, metadata, source.read, Progress(n_bytes, say).advance)


def _write_official(path: Path, top_key: str, table: KeyTable, seed: int) -> None:
    """As upstream saves it: fp32, weight norm in two tensors, training's tensors and its options beside them."""
    source = RandomTensors(table.official_shapes(), "cpu", torch.float32, _file_seed(path, seed))
    state = {key: source.read(key) for key in source.shapes}
    torch.save({top_key: state, "args": argparse.Namespace(random_seed=seed)}, path)


def _file_seed(path: Path, seed: int) -> int:
    """Another for each file: the two language models have the same names inside."""
    return seed * 1000 + [*LLM_STEMS.values(), CODEC_STEM].index(path.stem)
