from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firered.config import (
    FLAVORS,
    CodecConfig,
    LlmConfig,
    RvqConfig,
    StackConfig,
    read_codec_config,
    read_llm_config,
    require_same_codes,
)
from firered.errors import CheckpointError

# Both files as published.
LLM = {
    "llm_models": {
        "sample_rate": 16000,
        "backbone_flavor": "qwen-1.5b",
        "decoder_flavor": "qwen-200m",
        "text_vocab_size": 151936,
        "audio_vocab_size": 2051,
        "audio_num_codebooks": 16,
        "decoder_loss_weight": 0.6,
    }
}
BLOCK = {"num_layers": 4, "num_heads": 12, "ffn_dim": 3072, "attn_dropout": 0, "dropout": 0}
MEL = {"num_mels": 128, "sampling_rate": 16000, "hop_length": 160, "n_fft": 400, "fmin": 0, "fmax": 8000}
CODEC = {
    "codec": {
        "ssl_adaptor": {"in_dim": 1280, "embed_dim": 768, "out_dim": 768, **BLOCK},
        "acoustic_encoder": {**MEL, **BLOCK, "embed_dim": 768, "num_layers": 12, "max_positions": 1500},
        "downsample": {"embed_dim": 1536, "avg_pooler": 4},
        "rvq": {
            "input_dim": 1536,
            "rvq_dim": 768,
            "output_dim": 768,
            "num_quantizers": 16,
            "codebook_size": 2048,
            "codebook_dim": 512,
        },
        "upsample": {"embed_dim": 768, "stride": 4},
        "semantic_decoder": {"in_dim": 768, "embed_dim": 768, "out_dim": 1280, **BLOCK},
        "acoustic_decoder": {
            "embed_dim": 768,
            "num_layers": 12,
            "num_heads": 12,
            "dropout": 0,
            "hop_length": 240,
            "causal": True,
        },
    }
}
SHAPE = {"n_layers": 3, "width": 64, "n_heads": 4, "n_kv_heads": 2, "ffn_width": 128}
FIXTURES = Path(__file__).parents[2] / "fixtures" / "firered" / "tiny"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a value as the JSON of a configuration file."""

    def write_json(value: Any) -> Path:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(value))
        return path

    return write_json


def with_value(config: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of `config` with one value replaced or added."""
    copy: dict[str, Any] = json.loads(json.dumps(config))
    *path, last = dotted.split(".")
    section = copy
    for key in path:
        section = section.setdefault(key, {})
    section[last] = value
    return copy


def test_the_published_files_give_the_default_shapes(write: Callable[[Any], Path]) -> None:
    assert read_llm_config(write(LLM)) == LlmConfig()
    assert read_codec_config(write(CODEC)) == CodecConfig()


def test_a_file_without_values_gives_the_default_shapes(write: Callable[[Any], Path]) -> None:
    assert read_llm_config(write({"llm_models": {}})) == LlmConfig()
    assert read_codec_config(write({"codec": {}})) == CodecConfig()


def test_the_fine_tuning_scripts_top_key_is_taken_too(write: Callable[[Any], Path]) -> None:
    assert read_llm_config(write({"train": {"lr": 1}, "models": LLM["llm_models"]})) == LlmConfig()


def test_special_ids_are_no_codes() -> None:
    assert LlmConfig().codebook_size == CodecConfig().rvq.codebook_size == 2048


@pytest.mark.parametrize("name", FLAVORS)
def test_each_flavour_name_stands_for_a_shape(name: str, write: Callable[[Any], Path]) -> None:
    config = read_llm_config(write(with_value(LLM, "llm_models.backbone_flavor", name)))
    assert config.backbone == FLAVORS[name]
    assert config.backbone.head_width * config.backbone.n_heads == config.backbone.width


def test_a_file_may_carry_the_shapes_themselves(write: Callable[[Any], Path]) -> None:
    shape = SHAPE | {"max_positions": 99, "norm_eps": 1e-5, "rope_base": 500}
    config = read_llm_config(write(with_value(LLM, "llm_models.backbone_shape", shape)))
    assert config.backbone == StackConfig(3, 64, 4, 2, 128, max_positions=99, norm_eps=1e-5, rope_base=500.0)
    assert (config.backbone.head_width, config.backbone.kv_width) == (16, 32)
    assert config.decoder == FLAVORS["qwen-200m"]


def test_the_tiny_files_of_the_golden_vectors_are_read() -> None:
    llm = read_llm_config(FIXTURES / "config_llm.json")
    codec = read_codec_config(FIXTURES / "config_codec.json")
    require_same_codes(llm, codec, FIXTURES)
    assert codec.ssl.width == codec.ssl_adaptor.in_width != codec.ssl_adaptor.width
    assert codec.acoustic_decoder.ffn_width == 4 * codec.acoustic_decoder.width


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("text_vocab_size", 0, "at least 1"),
        ("text_vocab_size", "151936", "whole number"),
        ("text_vocab_size", 1.5, "whole number"),
        ("text_vocab_size", True, "whole number"),
        ("text_vocab_size", None, "whole number"),
        ("audio_vocab_size", 3, "more than the 3 special ids"),
        ("audio_num_codebooks", -16, "at least 1"),
        ("audio_num_codebooks", 1, "at least 2"),
        ("backbone_flavor", "qwen-9b", "qwen-1.5b"),
        ("decoder_flavor", 7, "a string"),
        ("backbone_shape", [3, 64], "a JSON object"),
        ("backbone_shape", SHAPE | {"width": 0}, "at least 1"),
        ("decoder_shape", SHAPE | {"n_heads": 5}, "a divisor of 64"),
        ("decoder_shape", SHAPE | {"n_kv_heads": 3}, "a divisor of 4"),
        ("decoder_shape", SHAPE | {"width": 60}, "even width"),
        ("decoder_shape", SHAPE | {"norm_eps": 0}, "above 0"),
        ("decoder_shape", SHAPE | {"rope_base": float("nan")}, "above 0"),
        ("decoder_shape", {key: SHAPE[key] for key in SHAPE if key != "ffn_width"}, "no default"),
    ],
)
def test_a_wrong_llm_value_is_named(key: str, value: Any, expected: str, write: Callable[[Any], Path]) -> None:
    path = write(with_value(LLM, f"llm_models.{key}", value))
    with pytest.raises(CheckpointError) as caught:
        read_llm_config(path)
    error = caught.value
    assert error.file == path
    assert error.key.startswith(f"llm_models.{key.partition('.')[0]}")
    assert expected in error.expected
    assert all(part in str(error) for part in (str(path), error.key, error.expected, error.found))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ssl.embed_dim", "1280", "whole number"),
        ("ssl.num_heads", 7, "a divisor of 1280"),
        ("ssl", 1280, "a JSON object"),
        ("ssl.num_mels", 80, "128"),
        ("ssl.max_positions", 299, "at least 300"),
        ("ssl_adaptor.num_heads", 11, "a divisor of 768"),
        ("ssl_adaptor.in_dim", 1000, "1280"),
        ("acoustic_encoder.fmin", -1, "at least 0"),
        ("acoustic_encoder.fmax", 9000, "at most 8000"),
        ("acoustic_encoder.hop_length", 0, "at least 1"),
        ("acoustic_encoder.num_layers", 1e400, "whole number"),
        ("downsample.embed_dim", 768, "1536"),
        ("rvq.input_dim", 768, "other than rvq_dim"),
        ("rvq.codebook_dim", 768, "other than rvq_dim"),
        ("rvq.output_dim", 512, "768"),
        ("rvq.num_quantizers", 0, "at least 1"),
        ("upsample.embed_dim", 512, "768"),
        ("upsample.stride", [4], "whole number"),
        ("acoustic_decoder.embed_dim", 240, "768"),
        ("acoustic_decoder.causal", False, "true"),
        ("acoustic_decoder.causal", "yes", "true or false"),
    ],
)
def test_a_wrong_codec_value_is_named(key: str, value: Any, expected: str, write: Callable[[Any], Path]) -> None:
    path = write(with_value(CODEC, f"codec.{key}", value))
    with pytest.raises(CheckpointError) as caught:
        read_codec_config(path)
    assert caught.value.file == path
    assert caught.value.key == f"codec.{key}"
    assert expected in caught.value.expected


@pytest.mark.parametrize(
    "content", [b"", b"not json", b"\xff\xfe\x00", b"[1, 2]", b"{}", b'"text"', b"[" * 100_000, b'{"a": 1}']
)
@pytest.mark.parametrize("read", [read_llm_config, read_codec_config])
def test_a_file_that_is_no_such_configuration_is_named(
    content: bytes, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert caught.value.file == path


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.json: cannot be read: No such file"):
        read_llm_config(tmp_path / "nothing.json")


PLACES = [f"llm_models.{key}" for key in (*LLM["llm_models"], "backbone_shape", "decoder_shape")] + [
    f"codec.{part}.{key}" for part, values in CODEC["codec"].items() for key in values
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*SHAPE, "x"]), inner, max_size=5),
    max_leaves=6,
)


@settings(max_examples=60)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_value_anywhere_gives_a_configuration_or_a_named_fault(
    place: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    is_llm = place.startswith("llm_models")
    path = tmp_path_factory.getbasetemp() / "any_value.json"
    path.write_text(json.dumps(with_value(LLM if is_llm else CODEC, place, value)))
    fault = None
    try:
        _ = read_llm_config(path) if is_llm else read_codec_config(path)
    except CheckpointError as error:
        fault = error
    assert fault is None or (fault.file == path and fault.key)


@pytest.mark.parametrize(
    ("codec", "key"),
    [
        (replace(CodecConfig(), rvq=RvqConfig(n_quantizers=8)), "codec.rvq.num_quantizers"),
        (replace(CodecConfig(), rvq=RvqConfig(codebook_size=1024)), "codec.rvq.codebook_size"),
    ],
)
def test_a_codec_of_another_model_is_named(codec: CodecConfig, key: str, tmp_path: Path) -> None:
    require_same_codes(LlmConfig(), CodecConfig(), tmp_path)
    with pytest.raises(CheckpointError, match=r"config_codec\.json: .* does not fit config_llm\.json") as caught:
        require_same_codes(LlmConfig(), codec, tmp_path)
    assert caught.value.key == key
