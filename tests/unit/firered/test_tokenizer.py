"""Ids: the order of the special tokens, and that a caller's words never become one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from firered.errors import CheckpointError, InputError
from firered.tokenizer import EXPRESSION_TAGS, SPECIAL_TOKENS, TEXT_END, TEXT_START, FireRedTokenizer
from tests.support.firered_tiny import write_tokenizer

# The 22 tokens of the published Qwen2.5 tokenizer and whether they are "special" there.
QWEN_TOKENS = [
    *((f"<|{name}|>", True) for name in ("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end")),
    *(
        (f"<|{name}|>", True)
        for name in ("box_start", "box_end", "quad_start", "quad_end", "vision_start", "vision_end")
    ),
    *((f"<|{name}|>", True) for name in ("vision_pad", "image_pad", "video_pad")),
    *((name, False) for name in ("<tool_call>", "</tool_call>")),
    *(
        (f"<|{name}|>", False)
        for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
    ),
]
MERGES = [
    ("h", "e"),
    ("l", "l"),
    ("he", "ll"),
    ("hell", "o"),
    ("Ġ", "w"),
    ("Ġw", "o"),
    ("<", "|"),
    ("|", ">"),
    ("[", "S"),
]
LITERALS = [*SPECIAL_TOKENS, *(name for name, _ in QWEN_TOKENS)]
TEXT_VOCAB_SIZE = 1024
N_PLAIN = 256 + len(MERGES)  # ids below this are bytes and merges
FIRST_SPECIAL = N_PLAIN + len(QWEN_TOKENS)


def qwen_like(directory: Path) -> Path:
    """The tiny byte tokenizer, grown by a few merges and by Qwen2.5's own added tokens."""
    write_tokenizer(directory)
    path = directory / "tokenizer.json"
    written: dict[str, Any] = json.loads(path.read_text())
    vocabulary = written["model"]["vocab"]
    for pair in MERGES:
        vocabulary["".join(pair)] = len(vocabulary)
    written["model"]["merges"] = [list(pair) for pair in MERGES]
    written["added_tokens"] = []
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for number, (content, special) in enumerate(QWEN_TOKENS):
        written["added_tokens"].append(
            {"id": len(vocabulary) + number, "content": content, "special": special, **plain}
        )
    path.write_text(json.dumps(written))
    settings = {
        "added_tokens_decoder": {str(token["id"]): {"content": token["content"]} for token in written["added_tokens"]}
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_like(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> FireRedTokenizer:
    return FireRedTokenizer.from_directory(directory, TEXT_VOCAB_SIZE)


@pytest.fixture(scope="module")
def one_call(directory: Path) -> Tokenizer:
    """A tokenizer that knows every special token, as upstream uses it on a whole segment."""
    whole = Tokenizer.from_file(str(directory / "tokenizer.json"))
    whole.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return whole


def special_ids(tokenizer: FireRedTokenizer) -> list[int]:
    return [tokenizer.special_id(token) for token in SPECIAL_TOKENS]


def test_there_are_124_special_tokens_in_the_order_of_the_checkpoint() -> None:
    assert len(SPECIAL_TOKENS) == len(set(SPECIAL_TOKENS)) == 124
    known = {0: TEXT_START, 1: TEXT_END, 2: "[S1]", 41: "[S40]", 42: "[S_PODCAST_1]", 61: "[S_DIALOG_10]"}
    known |= {62: "<|emotion_neutral|>", 76: "<|emotion_serious|>", 77: "<|emotion_extra1|>", 87: "<|breath|>"}
    known |= {111: "<|sneeze|>", 112: "<|paralinguistic_extra1|>", 119: "<|paralinguistic_extra8|>"}
    known |= {120: "<|paralinguistic_extra10|>", 123: "<|paralinguistic_extra13|>"}
    assert {index: SPECIAL_TOKENS[index] for index in known} == known


def test_special_ids_follow_the_vocabulary_one_by_one(tokenizer: FireRedTokenizer) -> None:
    assert special_ids(tokenizer) == list(range(FIRST_SPECIAL, FIRST_SPECIAL + 124))


def test_tokens_that_the_file_already_holds_keep_their_ids(
    directory: Path, tmp_path: Path, one_call: Tokenizer
) -> None:
    one_call.save(str(tmp_path / "tokenizer.json"))
    saved = FireRedTokenizer.from_directory(tmp_path, TEXT_VOCAB_SIZE)
    assert special_ids(saved) == special_ids(FireRedTokenizer.from_directory(directory, TEXT_VOCAB_SIZE))


def test_words_are_merged_and_have_no_begin_or_end(tokenizer: FireRedTokenizer) -> None:
    assert len(tokenizer.encode("hello world")) == len(["hello", " wo", "r", "l", "d"])
    assert tokenizer.encode("") == []


@pytest.mark.parametrize(
    "text", ["Hello.", "你好，世界", "Ça va ?", "e\u0301", "  two  spaces \n", "Привет 3.14", "日本語ーテスト", "!"]
)
def test_parts_in_a_row_equal_one_call_on_the_whole_string(
    text: str, tokenizer: FireRedTokenizer, one_call: Tokenizer
) -> None:
    whole = one_call.encode(f"[S1]{TEXT_START}{text}{TEXT_END}", add_special_tokens=False).ids
    tag, start, end = (tokenizer.special_id(token) for token in ("[S1]", TEXT_START, TEXT_END))
    assert [tag, start, *tokenizer.encode(text), end] == whole


@settings(deadline=None)
@given(words=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_without_literals_equals_one_call(
    words: str, tokenizer: FireRedTokenizer, one_call: Tokenizer
) -> None:
    words = words.replace("<", "").replace("[", "")
    whole = one_call.encode(f"[S2]{TEXT_START}{words}{TEXT_END}", add_special_tokens=False).ids
    assert tokenizer.encode(words) == whole[2:-1]


@pytest.mark.parametrize("literal", LITERALS)
def test_a_special_literal_in_a_callers_words_stays_plain_characters(literal: str, tokenizer: FireRedTokenizer) -> None:
    for text in (literal, f"hello {literal} world", f"a{literal}b", literal * 3):
        assert max(tokenizer.encode(text)) < N_PLAIN


@settings(deadline=None)
@given(parts=st.lists(st.sampled_from(LITERALS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)))
def test_no_mixture_of_literals_and_text_reaches_a_special_id(parts: list[str], tokenizer: FireRedTokenizer) -> None:
    assert all(token_id < N_PLAIN for token_id in tokenizer.encode("".join(parts)))


def test_allowed_tags_become_ids_and_structure_does_not(tokenizer: FireRedTokenizer) -> None:
    ids = tokenizer.encode("hello<|laugh|> world<|text_end|>[S2]<|im_end|>", allow_tags=True)
    assert [token_id for token_id in ids if token_id >= N_PLAIN] == [tokenizer.special_id("<|laugh|>")]
    assert len(EXPRESSION_TAGS) == 62


def test_half_a_surrogate_pair_is_an_input_error(tokenizer: FireRedTokenizer) -> None:
    with pytest.raises(InputError, match="surrogate"):
        tokenizer.encode("a\ud83d")


def test_vocabulary_and_merges_alone_give_the_same_ids(
    directory: Path, tmp_path: Path, tokenizer: FireRedTokenizer
) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    older = FireRedTokenizer.from_directory(tmp_path, TEXT_VOCAB_SIZE)
    text = "hello world, I'm 42 你好 é!\n"
    assert older.encode(text) == tokenizer.encode(text)
    assert special_ids(older) == special_ids(tokenizer)


@pytest.mark.parametrize("missing", ["merges.txt", "tokenizer_config.json"])
def test_a_missing_file_of_the_older_form_is_named(directory: Path, tmp_path: Path, missing: str) -> None:
    for name in {"vocab.json", "merges.txt", "tokenizer_config.json"} - {missing}:
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    with pytest.raises(CheckpointError, match=missing):
        FireRedTokenizer.from_directory(tmp_path)


def test_settings_without_qwens_own_tokens_are_refused(directory: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="added_tokens_decoder"):
        FireRedTokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"900": {"content": "<|im_start|>"}}}')
    with pytest.raises(CheckpointError, match="expected 900"):
        FireRedTokenizer.from_directory(tmp_path)


def test_no_tokenizer_at_all_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected tokenizer\.json"):
        FireRedTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}'])
def test_a_broken_tokenizer_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer file"):
        FireRedTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json"])
def test_a_broken_file_of_the_older_form_is_a_checkpoint_error(directory: Path, tmp_path: Path, name: str) -> None:
    for copied in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / copied).write_bytes((directory / copied).read_bytes())
    (tmp_path / name).write_text("{")
    with pytest.raises(CheckpointError):
        FireRedTokenizer.from_directory(tmp_path)


def test_a_text_embedding_that_is_too_small_names_the_first_token_beyond_it(directory: Path) -> None:
    with pytest.raises(CheckpointError, match="below 300") as caught:
        FireRedTokenizer.from_directory(directory, text_vocab_size=300)
    assert caught.value.key in SPECIAL_TOKENS


def test_a_foreign_vocabulary_in_which_tokens_have_no_id_of_their_own_is_refused(
    directory: Path, tmp_path: Path
) -> None:
    written = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary["[S1]"] = vocabulary["[S2]"] = 5
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(CheckpointError, match="no id of its own"):
        FireRedTokenizer.from_directory(tmp_path, TEXT_VOCAB_SIZE)
