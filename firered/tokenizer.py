"""Text to ids: the Qwen2.5 byte-level tokenizer plus FireRedTTS-2's own special tokens.

Two tokenizers share one vocabulary. Words of a caller go through the one that knows no special token at all, so that a
literal `<|text_end|>` or `[S2]` in them is read as plain characters; special ids come from `special_id` alone.
Byte-level BPE never merges across a special token, so ids of the parts in a row equal one call on the whole string.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from firered.errors import CheckpointError, InputError

TEXT_START, TEXT_END = "<|text_start|>", "<|text_end|>"

_EMOTIONS = (
    *("neutral", "happy", "sad", "concern", "confuse", "angry", "surprise", "disgust", "nervous", "apology"),
    *("understand", "fear", "comfort", "shy", "serious"),
)
_SOUNDS = (
    *("breath", "humph", "laugh_heng", "hissing", "sniff", "laugh_he", "sigh", "laugh", "laugh_ha", "quick_breath"),
    *("laugh_hei", "laugh_speak", "/laugh_speak", "cry", "choking", "cry_speak", "/cry_speak", "slurp", "clucking"),
    *("yawning", "cough", "smack", "hem", "stretch", "sneeze"),
)

# Tags a caller may put into the words to be spoken. Whether the published weights were trained on them is undocumented.
EXPRESSION_TAGS: tuple[str, ...] = (
    *(f"<|emotion_{name}|>" for name in _EMOTIONS),
    *(f"<|emotion_extra{n}|>" for n in range(1, 11)),
    *(f"<|{name}|>" for name in _SOUNDS),
    *(f"<|paralinguistic_extra{n}|>" for n in range(1, 14) if n != 9),  # upstream left out 9; ids depend on it
)

# Appended to the Qwen2.5 vocabulary in exactly this order (upstream llm/utils.py:62-187): the order makes the ids.
SPECIAL_TOKENS: tuple[str, ...] = (
    TEXT_START,
    TEXT_END,
    *(f"[S{n}]" for n in range(1, 41)),
    *(f"[S_PODCAST_{n}]" for n in range(1, 11)),
    *(f"[S_DIALOG_{n}]" for n in range(1, 11)),
    *EXPRESSION_TAGS,
)

# Qwen2.5's split of text into words before BPE (its tokenizer.json); only used where that file is absent.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_EXPRESSION_TAG = re.compile("(" + "|".join(re.escape(tag) for tag in EXPRESSION_TAGS) + ")")


class FireRedTokenizer:
    """Ids of spoken text and of special tokens. Immutable after construction; any thread may use it."""

    def __init__(self, tokenizer: Tokenizer, text_vocab_size: int, source: Path) -> None:
        """Takes over `tokenizer`; `source` is the file that errors name."""
        self._plain = _without_special_tokens(tokenizer)
        self._special_ids = _add_special_tokens(tokenizer, text_vocab_size, source)

    @classmethod
    def from_directory(cls, directory: Path, text_vocab_size: int = 151936) -> FireRedTokenizer:
        """Reads `tokenizer.json`, or `vocab.json`, `merges.txt` and `tokenizer_config.json` where it is absent.

        Raises CheckpointError when no such files are there, when they are broken, or when their ids do not fit a text
        embedding of `text_vocab_size` rows.
        """
        whole = directory / "tokenizer.json"
        source = whole if whole.exists() else directory / "vocab.json"
        if not source.exists():
            raise CheckpointError(directory, "no tokenizer", expected="tokenizer.json, or vocab.json and merges.txt")
        try:
            tokenizer = Tokenizer.from_file(str(whole)) if source == whole else _from_vocabulary(directory)
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception for a file it cannot parse
            raise CheckpointError(source, f"not a tokenizer file: {error}") from error
        return cls(tokenizer, text_vocab_size, source)

    def special_id(self, token: str) -> int:
        """Id of one of SPECIAL_TOKENS; KeyError for anything else."""
        return self._special_ids[token]

    def encode(self, text: str, *, allow_tags: bool = False) -> list[int]:
        """Ids of words to be spoken, without begin or end token; never a special id.

        With `allow_tags`, EXPRESSION_TAGS in the text become their special ids; other special tokens stay plain text.
        """
        parts = _EXPRESSION_TAG.split(text) if allow_tags else [text]  # words, tag, words, tag, ..., words
        ids: list[int] = []
        for index, part in enumerate(parts):
            ids += [self._special_ids[part]] if index % 2 else self._encode_words(part)
        return ids

    def _encode_words(self, words: str) -> list[int]:
        try:
            words.encode()
        except UnicodeEncodeError as error:
            raise InputError("the text holds half of a surrogate pair, which is no character") from error
        ids: list[int] = self._plain.encode(words, add_special_tokens=False).ids
        return ids


def _without_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same vocabulary, normalisation and word split, but no token is recognised before the split."""
    plain = Tokenizer(tokenizer.model)
    plain.normalizer = tokenizer.normalizer
    plain.pre_tokenizer = tokenizer.pre_tokenizer
    return plain


def _add_special_tokens(tokenizer: Tokenizer, text_vocab_size: int, source: Path) -> dict[str, int]:
    """Ids of SPECIAL_TOKENS, checked: one id each, no id twice, none beyond the text embedding."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    special_ids: dict[str, int] = {}
    for token in SPECIAL_TOKENS:
        ids = tokenizer.encode(token, add_special_tokens=False).ids
        if len(ids) != 1 or ids[0] in special_ids.values():
            raise CheckpointError(source, "a special token has no id of its own", key=token, found=str(ids))
        if ids[0] >= text_vocab_size:
            expected = f"ids below {text_vocab_size}"
            raise CheckpointError(
                source, "larger than the text embedding", key=token, expected=expected, found=str(ids[0])
            )
        special_ids[token] = ids[0]
    return special_ids


def _from_vocabulary(directory: Path) -> Tokenizer:
    """The tokenizer from Qwen2.5's older pair of files; its own special tokens stand in `tokenizer_config.json`."""
    vocabulary, merges, settings = (directory / name for name in ("vocab.json", "merges.txt", "tokenizer_config.json"))
    for needed in (merges, settings):
        if not needed.exists():
            raise CheckpointError(needed, "missing, and there is no tokenizer.json to read instead")
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated")
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_of_words])
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens_of_qwen(tokenizer, settings)
    return tokenizer


def _add_tokens_of_qwen(tokenizer: Tokenizer, settings: Path) -> None:
    """Adds `added_tokens_decoder` ({id: {"content": ...}}) and checks that each token got the id the file says."""
    added: dict[str, dict[str, Any]] = json.loads(settings.read_text(encoding="utf-8")).get("added_tokens_decoder", {})
    if not added:
        raise CheckpointError(settings, "missing, so the ids of further tokens are unknown", key="added_tokens_decoder")
    for token_id, token in sorted(added.items(), key=lambda item: int(item[0])):
        content = str(token["content"])
        tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False)])
        if tokenizer.token_to_id(content) != int(token_id):
            found = str(tokenizer.token_to_id(content))
            raise CheckpointError(
                settings, "ids do not follow the vocabulary", key=content, expected=token_id, found=found
            )
