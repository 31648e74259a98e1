from __future__ import annotations

import argparse
import io
import logging
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from firered.checkpoint import (
    DTYPE_KEY,
    FORMAT_KEY,
    SOURCE_KEY,
    Weights,
    codec_shapes,
    llm_shapes,
    open_codec,
    open_llm,
    weights_from,
)
from firered.config import CodecConfig, LlmConfig, read_codec_config, read_llm_config
from firered.errors import CheckpointError
from firered.key_table import codec_table, fuse_weight_norm, llm_table
from firered.random_checkpoint import TINY_CODEC, TINY_LLM
from firered.random_weights import RandomTensors
from firered.tensor_files import archive_fingerprint
from tests.support.firered_shapes import codec_state_shapes, llm_state_shapes
from tests.support.firered_tiny import read_config, write_checkpoint

State = dict[str, Tensor]


def state_of(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    source = RandomTensors(shapes, "cpu", torch.float32, seed)
    return {key: source.read(key) for key in shapes}


@pytest.fixture(scope="module")
def llm_state() -> State:
    """What upstream saves under "model"."""
    return state_of(llm_table(TINY_LLM).official_shapes())


@pytest.fixture(scope="module")
def codec_state() -> State:
    """What upstream saves under "generator"."""
    return state_of(codec_table(TINY_CODEC).official_shapes())


@pytest.fixture
def save(tmp_path: Path, llm_state: State) -> Callable[..., Path]:
    """Saves the language model as upstream does, with changes: a value of None takes the key away."""

    def save_llm(**changes: Any) -> Path:
        state = {key: value for key, value in (llm_state | changes).items() if value is not None}
        torch.save({"model": state, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "llm_posttrain.pt")
        return tmp_path / "llm_posttrain.pt"

    return save_llm


def open_tiny(directory: Path, dtype: torch.dtype = torch.float32) -> Weights:
    return open_llm(directory, TINY_LLM, "cpu", dtype)


def test_the_tables_reproduce_the_published_totals() -> None:
    llm, codec = llm_table(LlmConfig()).official_shapes(), codec_table(CodecConfig()).official_shapes()
    assert (len(llm), sum(map(math.prod, llm.values()))) == (392, 2_067_450_880)
    assert (len(codec), sum(map(math.prod, codec.values()))) == (1202, 1_074_603_666)


def test_the_tables_agree_with_the_ones_written_down_for_the_golden_vectors() -> None:
    directory = Path(__file__).parents[2] / "fixtures" / "firered"
    for build in ("tiny", "deep"):
        llm = read_llm_config(directory / build / "config_llm.json")
        assert llm_table(llm).official_shapes() == llm_state_shapes(read_config(build, "llm"))
    codec = read_codec_config(directory / "tiny" / "config_codec.json")
    assert codec_table(codec).official_shapes() == codec_state_shapes(read_config("tiny", "codec"))


def test_a_full_size_state_dict_fits_its_table() -> None:
    for table in (llm_table(LlmConfig()), codec_table(CodecConfig())):
        state = {key: torch.empty(shape, device="meta") for key, shape in table.official_shapes().items()}
        for key in ("text_embeddings.weight", "audio_head", "acoustic_decoder.isift.out.weight"):
            if key in table.shapes:
                taken = weights_from(state, table, "meta", torch.bfloat16).take(key)
                assert tuple(taken.shape) == table.shapes[key]


def test_the_engine_takes_nothing_that_only_training_needs() -> None:
    taken = [*llm_shapes(TINY_LLM), *codec_shapes(TINY_CODEC)]
    unused = ("text_head", "semantic_decoder", "embed_avg", "cluster_size", "inited", "original", "weight_g")
    assert [key for key in taken if any(word in key for word in unused)] == []


def test_an_official_directory_gives_every_tensor_in_its_shape_and_the_dtype_asked_for(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path)
    llm, codec = read_llm_config(directory / "config_llm.json"), read_codec_config(directory / "config_codec.json")
    for weights, shapes in (
        (open_llm(directory, llm, "cpu", torch.bfloat16), llm_shapes(llm)),
        (open_llm(directory, llm, "cpu", torch.bfloat16, variant="monologue"), llm_shapes(llm)),
        (open_codec(directory, codec, "cpu", torch.bfloat16), codec_shapes(codec)),
    ):
        taken = {key: weights.take(key) for key in shapes}
        assert {key: tuple(tensor.shape) for key, tensor in taken.items()} == shapes
        assert {tensor.dtype for tensor in taken.values()} == {torch.bfloat16}


def test_each_variant_is_a_file_of_its_own(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path)
    llm = read_llm_config(directory / "config_llm.json")
    dialogue = open_llm(directory, llm, "cpu", torch.float32).take("projection.weight")
    monologue = open_llm(directory, llm, "cpu", torch.float32, variant="monologue").take("projection.weight")
    assert not torch.equal(dialogue, monologue)


def test_the_special_audio_ids_are_cut_from_embeddings_and_heads(llm_state: State) -> None:
    weights = weights_from(llm_state, llm_table(TINY_LLM), "cpu", torch.float32)
    embeddings, stored = weights.take("audio_embeddings.weight"), llm_state["audio_embeddings.weight"]
    for codebook in range(16):
        assert torch.equal(embeddings[64 * codebook : 64 * (codebook + 1)], stored[67 * codebook :][:64])
    assert torch.equal(weights.take("codebook0_head.weight"), llm_state["codebook0_head.weight"][:64])
    assert torch.equal(weights.take("audio_head"), llm_state["audio_head"][:, :, :64])
    assert weights.take("audio_head").is_contiguous()


def test_a_scope_takes_by_the_rest_of_the_name(llm_state: State) -> None:
    weights = weights_from(llm_state, llm_table(TINY_LLM), "cpu", torch.float32)
    layer = weights.scope("backbone").scope("layers.1")
    assert torch.equal(layer.take("attn.q_proj.bias"), llm_state["backbone.layers.1.attn.q_proj.bias"])
    with pytest.raises(KeyError, match=r"backbone\.layers\.1\.attn\.lora"):
        layer.take("attn.lora")


def test_a_single_tensor_may_be_taken_in_another_dtype(llm_state: State) -> None:
    weights = weights_from(llm_state, llm_table(TINY_LLM), "cpu", torch.bfloat16)
    assert weights.take("backbone.norm.scale").dtype == weights.dtype == torch.bfloat16
    assert torch.equal(weights.take("backbone.norm.scale", dtype=torch.float32), llm_state["backbone.norm.scale"])


@pytest.mark.parametrize("shape", [(6, 10, 1), (5, 4, 3)])
def test_fusing_weight_norm_gives_what_torch_computes(shape: tuple[int, int, int]) -> None:
    g, v = torch.rand(shape[0], 1, 1) + 0.5, torch.randn(shape)
    assert torch.allclose(fuse_weight_norm(g, v), torch._weight_norm(v, g, 0))


def test_both_namings_of_weight_norm_give_the_same_weights(codec_state: State) -> None:
    table = codec_table(TINY_CODEC)
    new = weights_from(codec_state, table, "cpu", torch.float32)
    old_names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    old_state = dict(codec_state)
    for key in codec_state:
        for new_name, old_name in old_names.items():
            if key.endswith(new_name):
                old_state[key.replace(new_name, old_name)] = old_state.pop(key)
    old = weights_from(old_state, table, "cpu", torch.float32)
    normed = [key for key, forms in table.forms.items() if len(forms) > 1]
    assert len(normed) == 1 + 2 * 16
    assert all(torch.equal(new.take(key), old.take(key)) for key in normed)


def test_weight_norm_is_fused_in_fp32_before_rounding(codec_state: State) -> None:
    key, table = "rvq.input_proj.weight", codec_table(TINY_CODEC)
    exact = weights_from(codec_state, table, "cpu", torch.float32).take(key)
    assert torch.equal(weights_from(codec_state, table, "cpu", torch.bfloat16).take(key), exact.bfloat16())
    halves = {name: tensor.half() for name, tensor in codec_state.items() if tensor.is_floating_point()}
    rounded = weights_from(codec_state | halves, table, "cpu", torch.float32).take(key)
    assert torch.allclose(rounded, exact, rtol=2e-3, atol=2e-3)


def test_half_of_a_weight_norm_pair_is_a_missing_key(codec_state: State) -> None:
    gone = "rvq.quantizers.3.in_project.parametrizations.weight.original1"
    state = {key: tensor for key, tensor in codec_state.items() if key != gone}
    with pytest.raises(CheckpointError, match=r"original1: is missing \(expected a tensor of shape \(16, 48, 1\)\)"):
        weights_from(state, codec_table(TINY_CODEC), "cpu", torch.float32)


def test_training_tensors_may_be_absent(save: Callable[..., Path]) -> None:
    weights = open_tiny(save(**{"text_head.weight": None}).parent)
    assert weights.take("text_embeddings.weight").shape == (512, 64)


@pytest.mark.parametrize(
    ("changes", "key", "problem", "expected", "found"),
    [
        ({"decoder.norm.scale": None}, "decoder.norm.scale", "is missing", "(48,)", ""),
        ({"projection.weight": torch.zeros(64, 48)}, "projection.weight", "another shape", "(48, 64)", "(64, 48)"),
        (
            {"audio_head": torch.zeros(15, 48, 66)},
            "audio_head",
            "shape",
            "(15, 48, 64) or (15, 48, 67)",
            "(15, 48, 66)",
        ),
        ({"backbone.lora": torch.zeros(1)}, "backbone.lora", "is unknown", "", ""),
        (
            {"projection.weight": torch.zeros(48, 64, dtype=torch.int8)},
            "projection.weight",
            "no weight",
            "float",
            "int8",
        ),
        ({"projection.weight": "text"}, "projection.weight", "no tensor", "a dense tensor", "str"),
        ({"audio_head": torch.zeros(2, 2).to_sparse()}, "audio_head", "no tensor", "dense", "Tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_a_wrong_key_is_named_at_open(
    changes: dict[str, Any], key: str, problem: str, expected: str, found: str, save: Callable[..., Path]
) -> None:
    path = save(**changes)
    with pytest.raises(CheckpointError) as caught:
        open_tiny(path.parent)
    error = caught.value
    assert (error.file, error.key) == (path, key)
    assert problem in error.problem
    assert expected in error.expected
    assert found in error.found
    assert all(part in str(error) for part in (str(path), key, error.expected, error.found))


def test_of_many_wrong_keys_the_first_is_named_and_the_rest_counted(save: Callable[..., Path]) -> None:
    path = save(**{"decoder.norm.scale": None, "projection.weight": torch.zeros(1), "lora": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"decoder\.norm\.scale: is missing, and 2 more keys cannot be used"):
        open_tiny(path.parent)


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path, llm_state: State) -> None:
    path, folder = tmp_path / "llm_posttrain.pt", tmp_path / "made_by_the_pickle"
    torch.save({"model": llm_state, "args": RunsCode(folder)}, path)
    with pytest.raises(CheckpointError, match="is refused: unpickling it would run code") as caught:
        open_tiny(tmp_path)
    assert caught.value.found == "posix.mkdir"
    assert not folder.exists()


def test_a_class_other_than_the_published_namespace_is_refused(tmp_path: Path, llm_state: State) -> None:
    torch.save({"model": llm_state, "args": Path("x")}, tmp_path / "llm_posttrain.pt")
    with pytest.raises(CheckpointError, match=r"is refused: .*pathlib"):
        open_tiny(tmp_path)


def zip_of_text() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("notes/readme.txt", "hello")
    return stream.getvalue()


def saved(value: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **how)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"<html>Not found</html>", "22 bytes that are no zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "no zip archive"),
        (zip_of_text(), "a zip archive of something else"),
        (saved({"model": {}}, _use_new_zipfile_serialization=False), "no zip archive"),
        (saved({"generator": {}}), "generator"),
        (saved({}), "an empty dict"),
        (saved([1, 2]), "list"),
        (saved({"model": [1]}), "list"),
        (saved({"model": {1: torch.zeros(1)}}), "Tensor"),
    ],
)
def test_a_foreign_file_is_named(content: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "llm_posttrain.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_tiny(tmp_path)
    assert caught.value.file == path
    assert found in caught.value.found


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_named(share: float, save: Callable[..., Path]) -> None:
    path = save()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="not all of one") as caught:
        open_tiny(path.parent)
    assert caught.value.file == path


def test_a_damaged_pickle_is_named(save: Callable[..., Path]) -> None:
    path = save()
    with zipfile.ZipFile(path) as archive:
        member = next(member for member in archive.infolist() if member.filename.endswith("data.pkl"))
    damaged = bytearray(path.read_bytes())
    begin = member.header_offset + 200
    damaged[begin : begin + 400] = os.urandom(400)
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError) as caught:
        open_tiny(path.parent)
    assert caught.value.file == path


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    (tmp_path / "readme.md").touch()
    with pytest.raises(CheckpointError, match=r"expected llm_posttrain\.safetensors or .*found readme\.md"):
        open_tiny(tmp_path)
    with pytest.raises(CheckpointError, match="found no such directory"):
        open_tiny(tmp_path / "nowhere")


def test_safetensors_are_preferred(save: Callable[..., Path], llm_state: State) -> None:
    directory = save(**{"decoder.norm.scale": None}).parent
    safetensors.torch.save_file(llm_state, directory / "llm_posttrain.safetensors")
    weights = open_tiny(directory)
    assert torch.equal(weights.take("decoder.norm.scale"), llm_state["decoder.norm.scale"])


def test_a_conversion_of_another_file_is_passed_over_with_a_warning(
    save: Callable[..., Path], llm_state: State, caplog: pytest.LogCaptureFixture
) -> None:
    path = save()
    fingerprint = archive_fingerprint(path)
    assert fingerprint
    older = {key: tensor + 1 for key, tensor in llm_state.items()}
    for made_from, offset in ((fingerprint, 1), ("0" * 64, 0)):
        metadata = {SOURCE_KEY: made_from}
        safetensors.torch.save_file(older, path.with_suffix(".safetensors"), metadata)
        taken = open_tiny(path.parent).take("projection.weight")
        assert torch.equal(taken, llm_state["projection.weight"] + offset)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "was not made from the llm_posttrain.pt beside it" in caplog.text


def test_a_fingerprint_tells_files_apart_that_differ_in_one_number(save: Callable[..., Path], llm_state: State) -> None:
    first, again = archive_fingerprint(save()), archive_fingerprint(save())
    changed = llm_state["projection.weight"].clone()
    changed[0, 0] += 1
    assert first == again != archive_fingerprint(save(**{"projection.weight": changed}))


def test_a_conversion_coarser_than_asked_for_is_used_with_a_warning(
    tmp_path: Path, llm_state: State, caplog: pytest.LogCaptureFixture
) -> None:
    halves = {key: tensor.bfloat16() for key, tensor in llm_state.items()}
    safetensors.torch.save_file(halves, tmp_path / "llm_posttrain.safetensors", {DTYPE_KEY: "bf16"})
    with caplog.at_level(logging.WARNING):
        open_tiny(tmp_path, torch.bfloat16)
        assert caplog.text == ""
        taken = open_tiny(tmp_path, torch.float32).take("projection.weight")
    assert torch.equal(taken, llm_state["projection.weight"].bfloat16().float())
    assert "holds bf16" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_safetensors_are_named(share: float, tmp_path: Path, llm_state: State) -> None:
    path = tmp_path / "llm_posttrain.safetensors"
    content = safetensors.torch.save(llm_state)
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="a whole safetensors file") as caught:
        open_tiny(tmp_path)
    assert caught.value.file == path


def test_safetensors_of_something_else_are_named(tmp_path: Path) -> None:
    safetensors.torch.save_file({"unet.weight": torch.zeros(2)}, tmp_path / "llm_posttrain.safetensors")
    with pytest.raises(CheckpointError, match=r"backbone\.layers\.0\.attn\.q_proj\.weight: is missing, and \d+ more"):
        open_tiny(tmp_path)


def test_integer_safetensors_are_no_weights(tmp_path: Path, llm_state: State) -> None:
    counted = llm_state | {"projection.weight": torch.zeros(48, 64, dtype=torch.int32)}
    safetensors.torch.save_file(counted, tmp_path / "llm_posttrain.safetensors")
    with pytest.raises(CheckpointError, match=r"projection\.weight: is no weight .*found I32"):
        open_tiny(tmp_path)


def test_another_format_version_is_named(tmp_path: Path, llm_state: State) -> None:
    safetensors.torch.save_file(llm_state, tmp_path / "llm_posttrain.safetensors", {FORMAT_KEY: "99"})
    with pytest.raises(CheckpointError, match=r"has another format version \(expected 1, found 99\)"):
        open_tiny(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_was_taken_outlives_the_file(suffix: str, save: Callable[..., Path], llm_state: State) -> None:
    path = save()
    if suffix == ".safetensors":
        path.unlink()
        path = path.with_suffix(suffix)
        safetensors.torch.save_file(llm_state, path)
    taken = open_tiny(path.parent).take("projection.weight")
    with path.open("r+b") as stream:  # the same bytes on disk, overwritten in place
        stream.write(b"\xff" * path.stat().st_size)
    assert torch.equal(taken, llm_state["projection.weight"])
