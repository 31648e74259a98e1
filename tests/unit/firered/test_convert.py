from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from firered.checkpoint import DTYPE_KEY, Weights, codec_shapes, llm_shapes, open_codec, open_llm
from firered.model_directory import Progress, only_writer, size_text
from firered.random_checkpoint import TINY_CODEC, TINY_LLM, write_random_checkpoint
from firered.safetensors_writer import write_safetensors
from firered.tensor_files import SafetensorsFile
from scripts.convert_firered import main

LLM, CODEC = "llm_posttrain.safetensors", "codec.safetensors"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upstream directory with both language models, not to be written to."""
    directory = tmp_path_factory.mktemp("official")
    write_random_checkpoint(directory, "tiny", variants=("dialogue", "monologue"))
    return directory


@pytest.fixture
def source(official: Path, tmp_path: Path) -> Path:
    """A copy of it, to be written to."""
    return Path(shutil.copytree(official, tmp_path / "source"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; gives its exit status and what it wrote to standard output and error."""

    def run_main(*arguments: Path | str) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_main


Run = Callable[..., tuple[int, str, str]]


def taken(weights: Weights, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: weights.take(key) for key in shapes}


def assert_same_weights(one: Path, other: Path, llm_dtype: torch.dtype, codec_dtype: torch.dtype) -> None:
    llms = [taken(open_llm(d, TINY_LLM, "cpu", llm_dtype), llm_shapes(TINY_LLM)) for d in (one, other)]
    codecs = [taken(open_codec(d, TINY_CODEC, "cpu", codec_dtype), codec_shapes(TINY_CODEC)) for d in (one, other)]
    for first, second in (llms, codecs):
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("dtype", "codec_dtype", "types"),
    [("bf16", "fp32", (torch.bfloat16, torch.float32)), ("fp32", "fp16", (torch.float32, torch.float16))],
)
def test_a_converted_directory_gives_the_weights_of_the_original(
    dtype: str, codec_dtype: str, types: tuple[torch.dtype, torch.dtype], official: Path, target: Path, run: Run
) -> None:
    status, said, _ = run(official, target, "--dtype", dtype, "--codec-dtype", codec_dtype, "--verify")
    assert status == 0
    assert f"{LLM}: all 67 tensors equal those of llm_posttrain.pt" in said
    assert_same_weights(official, target, *types)
    assert {path.name for path in target.iterdir()} == {
        "config_llm.json",
        "config_codec.json",
        "Qwen2.5-1.5B",
        LLM,
        CODEC,
    }


def test_converted_files_are_read_by_safetensors_itself(official: Path, target: Path, run: Run) -> None:
    run(official, target)
    loaded = safetensors.torch.load_file(target / LLM)
    assert {key: tuple(tensor.shape) for key, tensor in loaded.items()} == llm_shapes(TINY_LLM)
    assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}
    header_bytes = int.from_bytes((target / LLM).read_bytes()[:8], "little")
    assert (8 + header_bytes) % 64 == 0


def test_nothing_that_only_training_needs_is_converted(official: Path, target: Path, run: Run) -> None:
    run(official, target)
    assert set(SafetensorsFile(target / CODEC).shapes) == set(codec_shapes(TINY_CODEC))


@pytest.mark.parametrize(
    ("variant", "files"),
    [("monologue", {"llm_pretrain.safetensors"}), ("both", {"llm_pretrain.safetensors", LLM})],
)
def test_the_variant_chooses_the_language_model(
    variant: str, files: set[str], official: Path, target: Path, run: Run
) -> None:
    assert run(official, target, "--variant", variant)[0] == 0
    assert {path.name for path in target.glob("llm_*.safetensors")} == files


def test_a_second_run_finds_everything_done(official: Path, target: Path, run: Run) -> None:
    run(official, target)
    before = (target / LLM).stat()
    status, said, _ = run(official, target)
    assert status == 0
    assert f"{LLM}: there already, as bf16" in said
    assert f"{CODEC}: there already, as fp32" in said
    assert (target / LLM).stat().st_ino == before.st_ino


def test_a_changed_original_is_converted_again(source: Path, target: Path, run: Run) -> None:
    run(source, target)
    shutil.copyfile(source / "llm_pretrain.pt", source / "llm_posttrain.pt")
    said = run(source, target)[1]
    assert f"{LLM}: 0.6 MB as bf16, from" in said
    assert f"{CODEC}: there already" in said
    assert_same_weights(source, target, torch.bfloat16, torch.float32)


def test_another_type_is_converted_again(official: Path, target: Path, run: Run) -> None:
    run(official, target)
    run(official, target, "--dtype", "fp32")
    assert SafetensorsFile(target / LLM).metadata[DTYPE_KEY] == "fp32"


@pytest.mark.parametrize("content", [b"", b"cut off"])
def test_a_broken_conversion_is_made_again(content: bytes, official: Path, target: Path, run: Run) -> None:
    run(official, target)
    (target / LLM).write_bytes(content)
    assert run(official, target)[0] == 0
    assert_same_weights(official, target, torch.bfloat16, torch.float32)


def test_converted_files_may_lie_beside_the_originals(source: Path, run: Run) -> None:
    assert run(source, source)[0] == 0
    (source / "llm_posttrain.pt").unlink()
    (source / "codec.pt").unlink()
    status, said, _ = run(source, source, "--verify")
    assert status == 0
    assert "there already" in said
    assert "llm_posttrain.pt is gone, nothing to compare with" in said


def test_verify_finds_a_flipped_bit(official: Path, target: Path, run: Run) -> None:
    run(official, target)
    content = bytearray((target / LLM).read_bytes())
    content[-1] ^= 1
    (target / LLM).write_bytes(content)
    status, _, complaint = run(official, target, "--verify")
    assert status == 1
    assert f"{LLM}: audio_head: differs from llm_posttrain.pt" in complaint


def test_weights_in_the_tokenizer_folder_are_not_copied(source: Path, target: Path, run: Run) -> None:
    (source / "Qwen2.5-1.5B" / "model.safetensors").write_bytes(b"3 GB")
    run(source, target)
    names = {path.name for path in (target / "Qwen2.5-1.5B").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(
    "gone", ["config_llm.json", "config_codec.json", "codec.pt", "llm_posttrain.pt", "Qwen2.5-1.5B"]
)
def test_what_the_source_lacks_is_named(gone: str, source: Path, target: Path, run: Run) -> None:
    path = source / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    status, _, complaint = run(source, target)
    assert status == 1
    assert str(path) in complaint
    assert complaint.count("\n") == 1


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return os.abort, ()


def test_a_pickle_that_runs_code_is_refused(source: Path, target: Path, run: Run) -> None:
    torch.save({"generator": {}, "extra": RunsCode()}, source / "codec.pt")
    status, _, complaint = run(source, target)
    assert status == 1
    assert "codec.pt: is refused" in complaint
    assert "posix.abort" in complaint
    assert not (target / CODEC).exists()


@pytest.mark.parametrize(("value", "dtype", "found"), [(1e5, "fp16", "100000"), (float("nan"), "fp32", "nan")])
def test_a_value_that_the_type_cannot_hold_is_named(
    value: float, dtype: str, found: str, source: Path, target: Path, run: Run
) -> None:
    state = torch.load(source / "codec.pt", weights_only=False)
    state["generator"]["ssl.layer_norm.bias"][3] = value
    torch.save(state, source / "codec.pt")
    status, _, complaint = run(source, target, "--codec-dtype", dtype)
    assert status == 1
    assert f"{CODEC}: ssl.layer_norm.bias: has values that are not finite as {dtype} (found {found})" in complaint
    assert [path.name for path in target.glob("codec.*")] == []


def test_a_full_disk_is_noticed_beforehand(
    official: Path, target: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("firered.model_directory.shutil.disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    status, _, complaint = run(official, target)
    assert status == 1
    assert "without enough space" in complaint
    assert "found 1.0 MB" in complaint
    assert not (target / LLM).exists()


def test_a_target_that_cannot_be_made_is_named(official: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").touch()
    status, _, complaint = run(official, tmp_path / "file" / "target")
    assert status == 1
    assert complaint == f"{tmp_path / 'file' / 'target'}: Not a directory\n"


def test_only_one_process_writes_a_directory(official: Path, target: Path, run: Run) -> None:
    with only_writer(target):
        status, _, complaint = run(official, target)
    assert status == 1
    assert "is being written by another process" in complaint
    assert run(official, target)[0] == 0


@pytest.mark.parametrize("arguments", [[], ["one"], ["one", "two", "three"], ["--random", "tiny"], ["a", "b", "--x"]])
def test_wrong_usage_has_an_exit_status_of_its_own(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_an_interrupt_leaves_what_was_there(
    source: Path, target: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, target)
    before = (target / LLM).read_bytes()
    shutil.copyfile(source / "llm_pretrain.pt", source / "llm_posttrain.pt")

    def interrupt(progress: Progress, n_bytes: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", interrupt)
        status, _, complaint = run(source, target)
    assert status == 130
    assert "run the same command again" in complaint
    assert (target / LLM).read_bytes() == before
    assert list(target.glob("*.part")) == []
    assert run(source, target)[0] == 0
    assert (target / LLM).read_bytes() != before


def test_a_tensor_larger_than_a_piece_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firered.safetensors_writer._PIECE", 7)
    tensors = {"a": torch.randn(5, 5), "b": torch.randn(3, 4).T, "c": torch.randn(7)}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    written: list[int] = []
    write_safetensors(tmp_path / "x.safetensors", shapes, "fp32", {}, tensors.__getitem__, written.append)
    loaded = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    assert sum(written) == 4 * (25 + 12 + 7)


def test_sizes_are_told_in_decimal_units() -> None:
    assert (size_text(3_667_902_656), size_text(613_344)) == ("3.67 GB", "0.6 MB")
