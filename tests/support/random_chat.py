"""Chat models of random weights: they say nothing of sense, but what they say depends on every token before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.engines.tiny_chat import write_tiny_chat


def write_random_chat(directory: Path, *, seed: int = 0, generation: dict[str, Any] | None = None) -> Path:
    """The tiny chat model with other weights; `generation` goes into its generation_config.json."""
    write_tiny_chat(directory)
    torch.manual_seed(seed)
    weights = load_file(directory / "model.safetensors")
    for name, tensor in weights.items():
        scale = 1.0 if "embed" in name or "v_proj" in name or "o_proj" in name else 0.1
        weights[name] = tensor if tensor.ndim == 1 else torch.randn_like(tensor) * scale
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def write_other_chat(directory: Path, kind: str, **config: Any) -> Path:
    """A random chat model of another architecture, a `model_type` of transformers, with the tiny model's tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM

    write_tiny_chat(directory)
    ends = (directory / "generation_config.json").read_text()
    small = {"vocab_size": 640, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 8192}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small | heads | config))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) * (0.8 if "embed" in name else 0.25))
    network.save_pretrained(directory)
    (directory / "generation_config.json").write_text(ends)
    return directory
