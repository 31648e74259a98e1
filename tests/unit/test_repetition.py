import pytest

from pipeline.engines.repetition import RepetitionGuard


def stops_after(text: str, size: int = 3) -> str | None:
    """What had been read when the guard stopped the reply, None if it let all of it pass."""
    guard = RepetitionGuard()
    for end in range(0, len(text), size):
        if guard.is_loop(text[end : end + size]):
            return text[: end + size]
    return None


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_the_same_words_three_times_in_a_row_are_a_loop(size: int) -> None:
    read = stops_after("Well. " + "I like the sea. " * 10, size)
    assert read is not None
    assert size == 1000 or read.count("I like the sea") <= 4


def test_case_and_punctuation_do_not_hide_a_loop() -> None:
    assert stops_after("I like the sea! I LIKE the sea, i like, the sea. And so on") is not None


def test_a_single_word_again_and_again_is_a_loop() -> None:
    assert stops_after("no, " * 40) is not None


@pytest.mark.parametrize(
    "text",
    [
        "I like the sea. I like the sea. That is all there is to say about it.",
        "No, no, no, no! Please do not do that, it hurts.",
        "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
        "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen.",
        "",
    ],
)
def test_people_repeat_themselves_a_little(text: str) -> None:
    assert stops_after(text) is None


def test_a_word_that_comes_in_two_deltas_is_one_word() -> None:
    guard = RepetitionGuard()
    assert not any(guard.is_loop(delta) for delta in ["the sea is bl", "ue ", "the sea is bl", "ack ", "the sea is bl"])
