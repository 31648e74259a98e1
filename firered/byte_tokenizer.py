"""A stand-in for the published tokenizer's folder: Qwen2.5's text rules, but each byte is a token of its own.

257 tokens: GPT-2's visible symbol for each byte in its usual order, then <|endoftext|>. The special tokens of
FireRedTTS-2 are not in the published folder either; whoever loads it appends them.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

END_OF_TEXT = "<|endoftext|>"
N_TOKENS = 257

# How Qwen2.5's published tokenizer.json cuts text into words before the byte pairs are merged.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_byte_tokenizer(directory: Path) -> None:
    """Write tokenizer.json (for `tokenizers`) and tokenizer_config.json (for transformers' AutoTokenizer)."""
    directory.mkdir(parents=True, exist_ok=True)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())  # by code point: printable bytes first, as in GPT-2
    tokenizer = Tokenizer(models.BPE(vocab={symbol: n for n, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
