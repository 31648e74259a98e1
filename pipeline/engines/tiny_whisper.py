"""A Whisper of a few megabytes with random weights that always hears the same sentence: for trying the GPU profile.

It is laid out as the openai/whisper-* repositories of Hugging Face are, so the code that loads them loads it. What the
audio says does not reach the words: every block's output is zero, and each position of the decoder points at one
token. So the guards let the sentence pass, and the language is English. Attention, and so the word times, is random.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.whisper_weights import Shape, WhisperSizes, tensor_shapes

SENTENCE: Final = "Please tell me something nice about the sea."
TINY: Final = WhisperSizes(n_mels=80, width=32, n_heads=1, n_audio_layers=1, n_text_layers=1, n_vocabulary=51_865)

_SEED: Final = 20
_NOISE: Final = 0.02  # of all that is random
_POINTER: Final = 20.0  # how much louder a position is than the token that stands there
_SHARPNESS: Final = 5.0  # makes the logit of the wanted token 28 and of all others less than 3
_PROMPT_TOKENS: Final = 4  # start, language, task, and either "no time stamps" or the first time stamp

Numbers = NDArray[np.float32]


def write_tiny_whisper(directory: Path) -> Path:
    """Write the model into `directory`, made when missing, bit for bit the same each time; gives `directory`."""
    from safetensors.numpy import save_file

    from pipeline.engines.whisper_from_safetensors import stored_name

    directory.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(_wanted_tokens())
    halves = {stored_name(name): np.ascontiguousarray(numbers.astype(np.float16)) for name, numbers in tensors.items()}
    config = {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "d_model": TINY.width,
        "encoder_layers": TINY.n_audio_layers,
        "encoder_attention_heads": TINY.n_heads,
        "decoder_layers": TINY.n_text_layers,
        "decoder_attention_heads": TINY.n_heads,
        "encoder_ffn_dim": 4 * TINY.width,
        "decoder_ffn_dim": 4 * TINY.width,
        "num_mel_bins": TINY.n_mels,
        "vocab_size": TINY.n_vocabulary,
        "max_source_positions": 1500,
        "max_target_positions": 448,
    }
    save_file(halves, directory / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", config), ("generation_config.json", {"alignment_heads": [[0, 0]]})):
        (directory / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return directory


def _wanted_tokens() -> list[int]:
    """The token that each position of the decoder is to give: the prompt's, the sentence's, and at last the end."""
    from pipeline.engines.whisper_model import whisper_tokenizer

    tokenizer = whisper_tokenizer(is_multilingual=True, n_languages=99, language="en")
    prompt = [tokenizer.to_language_token("en"), tokenizer.transcribe, tokenizer.timestamp_begin]
    assert len(prompt) == _PROMPT_TOKENS - 1
    return [*prompt, *tokenizer.encode(" " + SENTENCE), tokenizer.eot]


def _tensors(wanted: list[int]) -> dict[str, Numbers]:
    """All tensors by openai-whisper's names."""
    random = np.random.default_rng(_SEED)
    tensors = {name: _drawn(random, name, shape) for name, shape in tensor_shapes(TINY).items()}
    places = {token: place for place, token in enumerate(dict.fromkeys(wanted))}
    assert len(places) <= TINY.width  # each wanted token has an axis of its own
    embedding = tensors["decoder.token_embedding.weight"]
    positions = tensors["decoder.positional_embedding"]
    for token, place in places.items():
        embedding[token] = np.eye(TINY.width, dtype=np.float32)[place]
    for position in range(len(positions)):
        positions[position, places[wanted[min(position, len(wanted) - 1)]]] += _POINTER
    tensors["decoder.ln.weight"] *= _SHARPNESS
    return tensors


def _drawn(random: np.random.Generator, name: str, shape: Shape) -> Numbers:
    """Noise; ones for the scale of a norm; zeros for what would let a block change what passes it, and for biases."""
    if name.endswith((".bias", ".out.weight", ".mlp.2.weight")):
        return np.zeros(shape, np.float32)
    if "ln" in name.split(".")[-2] and name.endswith(".weight"):
        return np.ones(shape, np.float32)
    return (random.standard_normal(shape) * _NOISE).astype(np.float32)
