from pathlib import Path

from pipeline.engines.repetition import RepetitionGuard
from pipeline.engines.tiny_chat import ANSWER, write_tiny_chat


def test_the_files_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    first, second = (write_tiny_chat(tmp_path / name) for name in "ab")
    names = sorted(path.name for path in first.iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum((first / name).stat().st_size for name in names) < 5_000_000
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_writing_again_over_the_files_is_no_error(tmp_path: Path) -> None:
    assert write_tiny_chat(write_tiny_chat(tmp_path)) == tmp_path


def test_no_word_of_the_answer_comes_twice_and_no_guard_cuts_it() -> None:
    words = ANSWER.split()
    assert len(set(words)) == len(words) > 50
    assert ANSWER.count(".") == 5
    guard = RepetitionGuard()
    assert not any(guard.is_loop(f"{word} ") for word in words)
