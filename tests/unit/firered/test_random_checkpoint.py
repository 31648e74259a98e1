from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import firered.random_checkpoint
from firered.checkpoint import codec_shapes, llm_shapes, open_codec, open_llm
from firered.config import CodecConfig, LlmConfig, read_codec_config, read_llm_config, require_same_codes
from firered.errors import CheckpointError
from firered.random_checkpoint import (
    TINY_CODEC,
    TINY_LLM,
    Size,
    codec_json,
    configs_of,
    llm_json,
    random_weights,
    write_random_checkpoint,
)
from firered.tensor_files import SafetensorsFile
from scripts.convert_firered import main

N_SPECIAL_TOKENS = 124


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("random") / "tiny"
    write_random_checkpoint(directory, "tiny", variants=("dialogue", "monologue"))
    return directory


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_written_configs_are_read_back_as_they_were(size: Size, tmp_path: Path) -> None:
    llm, codec = configs_of(size)
    (tmp_path / "llm.json").write_text(json.dumps(llm_json(llm)))
    (tmp_path / "codec.json").write_text(json.dumps(codec_json(codec)))
    assert read_llm_config(tmp_path / "llm.json") == llm
    assert read_codec_config(tmp_path / "codec.json") == codec
    require_same_codes(llm, codec, tmp_path)


def test_a_full_size_llm_is_called_by_the_published_flavours() -> None:
    assert llm_json(LlmConfig())["llm_models"] == {
        "sample_rate": 16000,
        "backbone_flavor": "qwen-1.5b",
        "decoder_flavor": "qwen-200m",
        "text_vocab_size": 151936,
        "audio_vocab_size": 2051,
        "audio_num_codebooks": 16,
        "decoder_loss_weight": 0.6,
    }


def test_a_tiny_directory_opens_like_a_published_one(tiny: Path) -> None:
    assert {path.name for path in tiny.iterdir()} == {
        "RANDOM_WEIGHTS",
        "config_llm.json",
        "config_codec.json",
        "llm_posttrain.pt",
        "llm_pretrain.pt",
        "codec.pt",
        "Qwen2.5-1.5B",
    }
    assert read_llm_config(tiny / "config_llm.json") == TINY_LLM
    assert read_codec_config(tiny / "config_codec.json") == TINY_CODEC
    llm = open_llm(tiny, TINY_LLM, "cpu", torch.float32)
    assert all(torch.isfinite(llm.take(key)).all() for key in llm_shapes(TINY_LLM))
    weights = open_codec(tiny, TINY_CODEC, "cpu", torch.float32)
    assert all(torch.isfinite(weights.take(key)).all() for key in codec_shapes(TINY_CODEC))


def test_a_tiny_file_holds_what_an_official_one_holds(tiny: Path) -> None:
    llm = torch.load(tiny / "llm_posttrain.pt", weights_only=False)
    codec = torch.load(tiny / "codec.pt", weights_only=False)
    assert "text_head.weight" in llm["model"]
    assert llm["args"].random_seed == 0
    assert codec["generator"]["rvq.quantizers.15.inited"].dtype == torch.bool
    assert {"rvq.quantizers.0.embed_avg", "semantic_decoder.in_proj.weight"} <= set(codec["generator"])
    assert "rvq.input_proj.parametrizations.weight.original1" in codec["generator"]


def test_the_two_variants_differ(tiny: Path) -> None:
    one = open_llm(tiny, TINY_LLM, "cpu", torch.float32).take("projection.weight")
    other = open_llm(tiny, TINY_LLM, "cpu", torch.float32, variant="monologue").take("projection.weight")
    assert not torch.equal(one, other)


def test_the_byte_tokenizer_gives_every_text_back(tiny: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny / "Qwen2.5-1.5B" / "tokenizer.json"))
    text = "It's 3.14 o'clock,\n\n你好 — naïve 🙂  "
    ids = tokenizer.encode(text).ids
    assert tokenizer.get_vocab_size() == 257
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("!a<|endoftext|>").ids == [0, 64, 256]  # GPT-2's order of bytes
    assert TINY_LLM.text_vocab_size >= 257 + N_SPECIAL_TOKENS


def test_the_seed_decides_the_values(tmp_path: Path, tiny: Path) -> None:
    for seed in (0, 1):
        write_random_checkpoint(tmp_path / str(seed), "tiny", seed=seed)
    values = [
        open_codec(d, TINY_CODEC, "cpu", torch.float32).take("rvq.input_proj.weight")
        for d in (tiny, tmp_path / "0", tmp_path / "1")
    ]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_values_do_not_depend_on_order_or_type_but_for_rounding() -> None:
    shapes = llm_shapes(TINY_LLM)
    exact, rounded = (random_weights(shapes, "cpu", dtype, seed=5) for dtype in (torch.float32, torch.bfloat16))
    for key in reversed(shapes):
        assert torch.equal(rounded.take(key), exact.take(key).bfloat16())
    assert not torch.equal(exact.take("projection.weight"), random_weights(shapes, "cpu", torch.float32, 6).take(key))


def test_weights_drawn_in_pieces_fill_the_whole_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firered.random_weights._PIECE", 1000)
    drawn = random_weights({"x.weight": (333, 7)}, "cpu", torch.float32).take("x.weight")
    assert len(set(drawn.flatten().tolist())) > 2300
    assert drawn.std().item() == pytest.approx(1 / 7**0.5, rel=0.1)


def test_no_value_is_left_where_it_would_hide_an_error() -> None:
    for config_shapes in (llm_shapes(TINY_LLM), codec_shapes(TINY_CODEC)):
        weights = random_weights(config_shapes, "cpu", torch.float32)
        for key, shape in config_shapes.items():
            values = weights.take(key)
            if key.endswith("istft.window"):
                assert torch.equal(values, torch.hann_window(shape[0]))
            elif len(shape) == 1 and not key.endswith("bias"):
                assert values.min() >= 0.5
                assert values.max() <= 1.5
                assert values.std() > 0.15
            else:
                expected = 0.1 if key.endswith("bias") else 0.3 if key.endswith("codebook") else None
                assert values.std().item() == pytest.approx(expected, rel=0.5) if expected else 0.02 < values.std() < 1


def test_linear_layers_keep_the_size_of_what_goes_through() -> None:
    weights = random_weights(llm_shapes(TINY_LLM), "cpu", torch.float32)
    x = torch.randn(500, 64)
    hidden = x @ weights.take("projection.weight").T  # (500, 48)
    assert hidden.std().item() == pytest.approx(1, rel=0.2)
    assert (hidden @ weights.take("audio_head")[3]).std().item() == pytest.approx(1, rel=0.2)


def test_full_size_weights_are_not_drawn_before_they_are_taken() -> None:
    shapes = llm_shapes(LlmConfig()) | codec_shapes(CodecConfig())
    weights = random_weights(shapes, "cpu", torch.bfloat16)
    assert weights.scope("decoder.layers.3").take("attn.k_proj.weight").shape == (256, 1536)


def test_a_full_size_directory_is_written_as_converted_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(firered.random_checkpoint, "configs_of", lambda size: (TINY_LLM, TINY_CODEC))
    assert main(["--random", "full", str(tmp_path / "full"), "--seed", "3"]) == 0
    source = SafetensorsFile(tmp_path / "full" / "llm_posttrain.safetensors")
    assert source.read("projection.weight").dtype == torch.bfloat16
    assert source.metadata["random_seed"] == "3"
    assert set(SafetensorsFile(tmp_path / "full" / "codec.safetensors").shapes) == set(codec_shapes(TINY_CODEC))
    assert "full random weights (seed 3) in converted safetensors" in capsys.readouterr().out


def test_random_weights_are_never_written_over_real_ones(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "codec.pt").write_bytes(b"real")
    assert main(["--random", "tiny", str(tmp_path)]) == 1
    assert "random weights are never written over anything else" in capsys.readouterr().err
    assert (tmp_path / "codec.pt").read_bytes() == b"real"
    assert not (tmp_path / "config_llm.json").exists()
    with pytest.raises(CheckpointError, match="RANDOM_WEIGHTS"):
        write_random_checkpoint(tmp_path, "tiny")


def test_random_weights_may_be_written_over_random_ones(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_random_checkpoint(tmp_path / "model", "tiny", seed=seed)
    assert "seed 2" in (tmp_path / "model" / "RANDOM_WEIGHTS").read_text()
