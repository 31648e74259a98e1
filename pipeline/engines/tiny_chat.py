"""A chat model of a few hundred kilobytes that needs no download and always gives the same answer.

It has the files of a published model (Hugging Face layout, Qwen2's architecture), so that it goes through the code that
loads a real one. Attention and MLP add nothing to what a token says, and the output head maps each token of the answer
to the next one: a Markov chain, at any temperature. Everything that is no part of the answer leads to its first word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

# No word comes twice: the word that was said last is all the chain knows.
ANSWER: Final = (
    "I hear you well, and this small test voice works as planned. "
    "My answer never changes, whatever was asked before. "
    "Each sentence only shows that text, speech plus sound flow through every stage. "
    "You can interrupt me at any word now. "
    "Real weights give better replies, so please load a trained model when ready."
)
# Words of questions and system prompts, so that a prompt is not read byte by byte.
_COMMON: Final = (
    "the an to of in is it are be have do not or for with on your what which who how why where the there, there here "
    "today? today tell about long story friendly assistant answer one two short sentences plain spoken language, "
    "without lists markdown. user system Hello name sea blue. ship. he she they we us from but if all"
)
END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
TEMPLATE: Final = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WIDTH, _HEADS, _KV_HEADS, _INNER, _N_LAYERS, _WINDOW = 128, 4, 2, 64, 2, 32_768
# With a norm that makes the one set component sqrt(128): the next token is 90 ahead of all others.
_HEAD_WEIGHT = 8.0


def write_tiny_chat(directory: Path) -> Path:
    """The model's files in `directory`, which is made; the same bytes each time."""
    from safetensors.numpy import save

    directory.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _tokens()
    end = vocabulary[END]
    _write(directory / "config.json", _config(len(vocabulary), end))
    _write(directory / "generation_config.json", {"eos_token_id": [end, vocabulary[PAD]], "pad_token_id": end})
    _write(directory / "tokenizer.json", _tokenizer(vocabulary, merges))
    _write(directory / "tokenizer_config.json", _TOKENIZER_CONFIG)
    (directory / "model.safetensors").write_bytes(save(_weights(vocabulary), metadata={"format": "pt"}))
    return directory


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


# --- tokens: Qwen2's byte-level BPE, where every word of ours is one token and all else falls back on bytes

# Qwen2's own, which transformers puts in place of what the file says. It parts punctuation from words, so an answer
# which comes back as history has a few tokens more than it had.
_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _chain() -> list[str]:
    """The answer's tokens; each word but the first holds the space before it, which byte-level BPE writes as Ġ."""
    first, *others = ANSWER.split(" ")
    return [first, *(f"Ġ{word}" for word in others)]


def _tokens() -> tuple[dict[str, int], list[list[str]]]:
    """The vocabulary, special tokens last, and the merges that make each word of its bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = dict.fromkeys(sorted(ByteLevel.alphabet()))
    merges: list[list[str]] = []
    words = [*_chain(), *(f"Ġ{word}" for word in _COMMON.split()), "Hello"]
    for word in words:
        for n in range(1, len(word)):
            if (longer := word[: n + 1]) not in tokens:
                tokens[longer] = None
                merges.append([word[:n], word[n]])
    return {token: i for i, token in enumerate([*tokens, END, START, PAD])}, merges


def _tokenizer(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    plain = {token: i for token, i in vocabulary.items() if token not in (END, START, PAD)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[token], "content": token, **special} for token in (END, START, PAD)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False},
                bytes_only,
            ],
        },
        "post_processor": None,
        "decoder": bytes_only,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": plain,
            "merges": merges,
        },
    }


_TOKENIZER_CONFIG: Final[dict[str, Any]] = {
    "tokenizer_class": "Qwen2Tokenizer",
    "chat_template": TEMPLATE,
    "eos_token": END,
    "pad_token": PAD,
    "clean_up_tokenization_spaces": False,
    "model_max_length": _WINDOW,
}


def _config(n_tokens: int, end: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "float32",
        "vocab_size": n_tokens,
        "hidden_size": _WIDTH,
        "intermediate_size": _INNER,
        "num_hidden_layers": _N_LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "max_position_embeddings": _WINDOW,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "eos_token_id": end,
    }


# --- weights


def _weights(vocabulary: dict[str, int]) -> dict[str, npt.NDArray[np.float32]]:
    """Component 0 is set in tokens that are no part of the answer, component n in its n-th one."""
    chain = [vocabulary[token] for token in _chain()]
    embedding = np.zeros((len(vocabulary), _WIDTH), np.float32)
    embedding[:, 0] = 1.0
    head = np.zeros_like(embedding)
    for state, (token, following) in enumerate(zip([None, *chain], [*chain, vocabulary[END]], strict=True)):
        if token is not None:
            embedding[token] = 0.0
            embedding[token, state] = 1.0
        head[following, state] = _HEAD_WEIGHT
    weights = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        "model.norm.weight": np.ones(_WIDTH, np.float32),
    }
    for n in range(_N_LAYERS):
        weights.update({f"model.layers.{n}.{name}": array for name, array in _layer(n)})
    return weights


def _layer(n: int) -> Iterable[tuple[str, npt.NDArray[np.float32]]]:
    """Attention and MLP compute as in any model; their last step takes it away."""
    random = np.random.default_rng(n)
    kv_width = _WIDTH * _KV_HEADS // _HEADS
    for name, width in (("q", _WIDTH), ("k", kv_width), ("v", kv_width)):
        yield f"self_attn.{name}_proj.weight", random.uniform(-0.1, 0.1, (width, _WIDTH)).astype(np.float32)
        yield f"self_attn.{name}_proj.bias", np.zeros(width, np.float32)
    for name in ("gate", "up"):
        yield f"mlp.{name}_proj.weight", random.uniform(-0.1, 0.1, (_INNER, _WIDTH)).astype(np.float32)
    yield "self_attn.o_proj.weight", np.zeros((_WIDTH, _WIDTH), np.float32)
    yield "mlp.down_proj.weight", np.zeros((_WIDTH, _INNER), np.float32)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{name}.weight", np.ones(_WIDTH, np.float32)
