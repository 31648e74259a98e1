from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.engines.tiny_whisper import TINY, write_tiny_whisper
from pipeline.engines.whisper_weights import WhisperSizes, layout_of, read_whisper, tensor_shapes
from pipeline.errors import ConfigError
from tests.support.whisper_files import ctranslate2_variables, hugging_face_name, write_ctranslate2

VARIABLES = ctranslate2_variables()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_whisper(tmp_path_factory.mktemp("tiny"))


def copy_of(tiny: Path, directory: Path) -> Path:
    for path in tiny.iterdir():
        (directory / path.name).symlink_to(path)
    return directory


def replaced(path: Path, content: object) -> None:
    path.unlink()
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


# --- CTranslate2


def test_ctranslate2s_joined_projections_come_apart(tmp_path: Path) -> None:
    weights = read_whisper(write_ctranslate2(tmp_path, VARIABLES, {"alignment_heads": [[0, 1]]}))
    assert weights.sizes == WhisperSizes(
        n_mels=80, width=8, n_heads=2, n_audio_layers=1, n_text_layers=1, n_vocabulary=51_865
    )
    assert weights.alignment_heads == ((0, 1),)
    joined = VARIABLES["decoder/layer_0/self_attention/linear_0/weight"]
    audio = VARIABLES["decoder/layer_0/attention/linear_1/weight"]
    expected = {
        "decoder.blocks.0.attn.query.weight": joined[:8],
        "decoder.blocks.0.attn.key.weight": joined[8:16],
        "decoder.blocks.0.attn.value.weight": joined[16:],
        "decoder.blocks.0.attn.value.bias": VARIABLES["decoder/layer_0/self_attention/linear_0/bias"][16:],
        "decoder.blocks.0.attn.out.weight": VARIABLES["decoder/layer_0/self_attention/linear_1/weight"],
        "decoder.blocks.0.cross_attn.query.bias": VARIABLES["decoder/layer_0/attention/linear_0/bias"],
        "decoder.blocks.0.cross_attn.key.weight": audio[:8],
        "decoder.blocks.0.cross_attn.value.weight": audio[8:],
        "decoder.blocks.0.cross_attn.out.weight": VARIABLES["decoder/layer_0/attention/linear_2/weight"],
        "decoder.blocks.0.cross_attn_ln.weight": VARIABLES["decoder/layer_0/attention/layer_norm/gamma"],
        "encoder.blocks.0.attn_ln.bias": VARIABLES["encoder/layer_0/self_attention/layer_norm/beta"],
        "encoder.blocks.0.mlp_ln.weight": VARIABLES["encoder/layer_0/ffn/layer_norm/gamma"],
        "encoder.blocks.0.mlp.0.weight": VARIABLES["encoder/layer_0/ffn/linear_0/weight"],
        "encoder.blocks.0.mlp.2.bias": VARIABLES["encoder/layer_0/ffn/linear_1/bias"],
        "encoder.conv2.weight": VARIABLES["encoder/conv2/weight"],
        "encoder.ln_post.bias": VARIABLES["encoder/layer_norm/beta"],
        "encoder.positional_embedding": VARIABLES["encoder/position_encodings/encodings"],
        "decoder.token_embedding.weight": VARIABLES["decoder/embeddings/weight"],
    }
    for name, numbers in expected.items():
        assert np.array_equal(weights.read(name).numpy(), numbers), name
    assert {name: tuple(weights.read(name).shape) for name in tensor_shapes(weights.sizes)} == tensor_shapes(
        weights.sizes
    )


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"encoder/layer_0/self_attention/linear_0/bias": np.ones(24, np.float16)}, "gives the keys a bias"),
        ({"decoder/layer_0/attention/linear_1/bias": np.ones(16, np.float16)}, "gives the keys a bias"),
        ({"encoder/num_heads": np.array(4, np.int16)}, "differ in their heads"),
        ({"encoder/num_heads": np.array(0, np.int16), "decoder/num_heads": np.array(0, np.int16)}, "0 heads"),
        ({"encoder/conv1/weight": np.zeros((8, 80), np.float16)}, "no convolution"),
        ({"encoder/conv1/weight": np.zeros((8, 64, 3), np.float16)}, "64 mel bands"),
        ({"decoder/embeddings/weight": np.zeros((100, 8), np.float16)}, "a vocabulary of 100"),
        ({"decoder/embeddings/weight": np.zeros((), np.float16)}, "a vocabulary of 0"),
    ],
)
def test_what_no_whisper_has_is_refused(tmp_path: Path, change: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        read_whisper(write_ctranslate2(tmp_path, VARIABLES | change))


def test_quantised_numbers_are_refused(tmp_path: Path) -> None:
    name = "encoder/layer_0/ffn/linear_0/weight"
    weights = read_whisper(write_ctranslate2(tmp_path, VARIABLES | {name: np.zeros((32, 8), np.int8)}))
    with pytest.raises(ConfigError, match="quantised"):
        weights.read("encoder.blocks.0.mlp.0.weight")


def test_another_model_of_ctranslate2_is_refused(tmp_path: Path) -> None:
    write_ctranslate2(tmp_path, VARIABLES)
    path = tmp_path / "model.bin"
    path.write_bytes(path.read_bytes().replace(b"WhisperSpec", b"WhimperSpec"))
    with pytest.raises(ConfigError, match="it is a WhimperSpec"):
        read_whisper(tmp_path)


# --- Hugging Face


def test_the_tiny_model_is_the_same_each_time_and_small(tiny: Path, tmp_path: Path) -> None:
    again = write_tiny_whisper(tmp_path / "again")
    for path in tiny.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert sum(path.stat().st_size for path in tiny.iterdir()) < 5_000_000


def test_tensors_have_hugging_faces_names(tiny: Path) -> None:
    weights, stored = read_whisper(tiny), load_file(tiny / "model.safetensors")
    names = list(tensor_shapes(TINY))
    assert weights.sizes == TINY
    assert weights.alignment_heads == ((0, 0),)
    assert set(stored) == {hugging_face_name(name) for name in names}
    for name in names:
        assert torch.equal(weights.read(name), stored[hugging_face_name(name)])


def test_a_model_in_shards_is_read(tiny: Path, tmp_path: Path) -> None:
    stored = load_file(tiny / "model.safetensors")
    shards: dict[str, dict[str, torch.Tensor]] = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    where = {}
    for i, (name, tensor) in enumerate(stored.items()):
        where[name] = f"model-{i % 2 + 1}.safetensors"
        shards[where[name]][name] = tensor
    for name, tensors in shards.items():
        save_file(tensors, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}), encoding="utf-8")
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    weights = read_whisper(tmp_path)
    assert weights.alignment_heads == ()  # no generation_config.json
    assert all(torch.equal(weights.read(n), stored[hugging_face_name(n)]) for n in tensor_shapes(TINY))


@pytest.mark.parametrize(
    "listed",
    [
        [],
        {},
        {"a": "../model.safetensors"},
        {"a": "model.bin"},
        {"a": None},
        {str(i): f"{i}.safetensors" for i in range(65)},
    ],
)
def test_a_list_of_shards_names_safetensors_files_beside_it(tiny: Path, tmp_path: Path, listed: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}), encoding="utf-8")
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="does not list safetensors files"):
        read_whisper(tmp_path)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"model_type": "wav2vec2"}, "not of a Whisper"),
        ({"d_model": "32"}, "d_model is no whole number"),
        ({"d_model": True}, "d_model is no whole number"),
        ({"d_model": 10**12}, "for a width of"),
        ({"d_model": -32}, "for a width of"),
        ({"encoder_layers": 10**9}, "layers"),
        ({"encoder_attention_heads": 2}, "differ in heads"),
        ({"max_source_positions": 3000}, "positions"),
        ({"vocab_size": 2**40}, "a vocabulary of"),
        ({"num_mel_bins": 64}, "64 mel bands"),
    ],
)
def test_sizes_that_no_whisper_has_are_refused(tiny: Path, tmp_path: Path, change: dict[str, Any], wrong: str) -> None:
    copy_of(tiny, tmp_path)
    replaced(tmp_path / "config.json", json.loads((tiny / "config.json").read_text()) | change)
    with pytest.raises(ConfigError, match=wrong):
        read_whisper(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, " " * 5_000_000, '{"model_type": "whisper"}'])
def test_a_config_that_is_none_is_refused(tiny: Path, tmp_path: Path, content: str) -> None:
    copy_of(tiny, tmp_path)
    replaced(tmp_path / "config.json", content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_whisper(tmp_path)


@pytest.mark.parametrize(
    "heads", [{}, "0", [0], [[0]], [[0, 1]], [[1, 0]], [[-1, 0]], [[0, 0.0]], [[0, True]], [[0, 0]] * 2]
)
def test_heads_that_the_model_has_not_are_refused(tiny: Path, tmp_path: Path, heads: object) -> None:
    copy_of(tiny, tmp_path)
    replaced(tmp_path / "generation_config.json", {"alignment_heads": heads})
    with pytest.raises(ConfigError, match="alignment_heads"):
        read_whisper(tmp_path)


def test_a_tensor_that_is_missing_of_another_shape_or_type_is_refused(tiny: Path, tmp_path: Path) -> None:
    copy_of(tiny, tmp_path)
    stored = load_file(tiny / "model.safetensors")
    del stored["model.encoder.conv1.bias"]
    stored["model.encoder.conv2.bias"] = torch.zeros(31)
    stored["model.decoder.layer_norm.bias"] = torch.zeros(32, dtype=torch.int8)
    (tmp_path / "model.safetensors").unlink()
    save_file(stored, tmp_path / "model.safetensors")
    weights = read_whisper(tmp_path)
    for name, wrong in {
        "encoder.conv1.bias": "it has no",
        "encoder.conv2.bias": r"\(31,\) instead of \(32,\)",
        "decoder.ln.bias": "holds I8",
    }.items():
        with pytest.raises(ConfigError, match=wrong):
            weights.read(name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(head=st.binary(max_size=64), n_kept=st.integers(0, 9_000))
def test_a_damaged_safetensors_file_is_refused(tiny: Path, tmp_path: Path, head: bytes, n_kept: int) -> None:
    with (tiny / "model.safetensors").open("rb") as stream:
        data = stream.read(9_000)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(head + data[len(head) : n_kept])
    with pytest.raises(ConfigError, match="damaged"):
        read_whisper(tmp_path)


# --- which layout


def test_a_directory_without_a_model_is_refused_and_a_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory"):
        layout_of(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="neither"):
        layout_of(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is a pickle"):
        layout_of(tmp_path)
