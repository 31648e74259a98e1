from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.conversation import TEMPLATE_TOKENS, Conversation, Item
from pipeline.engines.base import Message
from pipeline.errors import InvalidInput, NotFound


def talk(*contents: str) -> Conversation:
    """User and assistant in turns."""
    conversation = Conversation()
    for i, content in enumerate(contents):
        conversation.add(Item(f"item_{i}", "assistant" if i % 2 else "user", content))
    return conversation


def words(text: str) -> int:
    return len(text.split())


def read(conversation: Conversation, max_tokens: int = 10_000) -> list[tuple[str, str]]:
    messages = conversation.messages("Be brief.", max_tokens=max_tokens, count=words)
    assert messages[0] == Message("system", "Be brief.")
    return [(message.role, message.content) for message in messages[1:]]


def test_items_stand_where_they_were_put() -> None:
    conversation = talk("a", "b")
    assert conversation.add(Item("front", "system", "x"), after="root") is None
    assert conversation.add(Item("mid", "user", "y"), after="item_0") == "item_0"
    assert conversation.add(Item("end", "user", "z")) == "item_1"
    assert [item.id for item in conversation] == ["front", "item_0", "mid", "item_1", "end"]
    assert conversation.last_id == "end"
    assert conversation.previous_id("front") is None
    assert conversation.previous_id("mid") == "item_0"


def test_unknown_and_doubled_ids_are_refused_and_change_nothing() -> None:
    conversation = talk("a", "b")
    with pytest.raises(InvalidInput):
        conversation.add(Item("item_0", "user", "again"))
    for call in (
        lambda: conversation.get("none"),
        lambda: conversation.delete("none"),
        lambda: conversation.write("none", content="x"),
        lambda: conversation.cut("none", "x"),
        lambda: conversation.add(Item("new", "user", "x"), after="none"),
    ):
        with pytest.raises(NotFound):
            call()
    assert len(conversation) == 2
    assert Conversation().last_id is None


def test_writing_changes_only_what_is_named() -> None:
    conversation = talk("a")
    assert conversation.write("item_0", status="incomplete").content == "a"
    assert conversation.write("item_0", content="b").status == "incomplete"
    conversation.delete("item_0")
    assert len(conversation) == 0


def test_a_cut_reply_is_remembered_as_far_as_it_was_heard() -> None:
    conversation = talk("tell me", "Once upon a time there was")
    cut = conversation.cut("item_1", "Once upon a ")
    assert (cut.content, cut.status) == ("Once upon a time there was", "incomplete")
    assert read(conversation) == [("user", "tell me"), ("assistant", "Once upon a—")]
    conversation.cut("item_1", " ")
    assert read(conversation) == [("user", "tell me")]
    with pytest.raises(InvalidInput):
        conversation.cut("item_0", "")


def test_neighbours_of_one_role_are_one_message_and_the_cut_is_mended() -> None:
    conversation = talk("one", "Once upon a time")
    conversation.cut("item_1", "Once upon")
    conversation.add(Item("rest", "assistant", " a time"))
    conversation.add(Item("q1", "user", "and"))
    conversation.add(Item("q2", "user", "then?"))
    assert read(conversation) == [("user", "one"), ("assistant", "Once upon a time"), ("user", "and then?")]


def test_the_oldest_go_first_and_no_answer_stays_without_its_question() -> None:
    conversation = talk("q one", "a one", "q two", "a two", "q three")
    each = 2 + TEMPLATE_TOKENS
    assert len(read(conversation, 2 + 5 * each)) == 5
    assert read(conversation, 2 + 5 * each - 1) == [("user", "q three")]  # two would fit into half, but "a two" leads


def test_a_cut_history_keeps_its_beginning_until_it_is_full_again() -> None:
    each = 2 + TEMPLATE_TOKENS
    conversation = talk(*(f"{'qa'[i % 2]} {i}" for i in range(9)))
    limit = 2 + 8 * each
    first = read(conversation, limit)
    assert [content for _, content in first] == ["q 6", "a 7", "q 8"]
    for i in range(9, 14):
        conversation.add(Item(f"item_{i}", "assistant" if i % 2 else "user", f"{'qa'[i % 2]} {i}"))
        assert read(conversation, limit)[: len(first)] == first


def test_the_newest_message_is_kept_even_when_it_alone_is_too_long() -> None:
    conversation = talk("short", "answer", "word " * 500 + "the end")
    ((role, content),) = read(conversation, 100)
    assert role == "user"
    assert content.endswith("the end")
    assert 64 <= words(content) <= 100


@given(st.lists(st.integers(0, 60), max_size=12), st.integers(0, 400))
def test_what_is_read_fits_and_its_roles_alternate(lengths: list[int], max_tokens: int) -> None:
    conversation = talk(*(" ".join(["w"] * n) for n in lengths))
    messages = read(conversation, max_tokens)
    total = sum(words(content) + TEMPLATE_TOKENS for _, content in messages)
    assert total <= max_tokens or len(messages) <= 1
    assert all(a[0] != b[0] for a, b in pairwise(messages))
    if any(lengths):
        assert messages
