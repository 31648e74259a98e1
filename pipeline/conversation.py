"""The history of a talk: ordered items, and the only copy of them. Only the session writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.engines.base import Message, Role
from pipeline.errors import InvalidInput, NotFound, TooLarge

ItemStatus = Literal["in_progress", "completed", "incomplete"]

# Told to the model after a reply that was cut, so that it knows what the user did not hear. The dash alone (as spoken
# transcripts write it) proved enough for small models; a bracketed note is read aloud by them.
CUT_MARK = "—"


@dataclass(frozen=True, slots=True)
class Item:
    """One message. `heard` is the part of `content` that the user heard; None until an interruption fixed it.

    `spoken` says that the content is (a transcript of) audio, which the wire protocol names differently.
    """

    id: str
    role: Role
    content: str
    status: ItemStatus = "completed"
    heard: str | None = None
    spoken: bool = False

    @property
    def remembered(self) -> str:
        """What later replies know of this item."""
        if self.heard is None:
            return self.content
        return f"{self.heard.rstrip()}{CUT_MARK}" if self.heard.strip() else ""


# Hours of talk; a bound for clients that fill the history themselves.
MAX_ITEMS, MAX_CHARS = 2000, 1_000_000


class Conversation:
    """Items in order, found by id."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._begins_with: str | None = None  # older items are kept, and no longer told to the LLM

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_full(self) -> bool:
        """Whether nothing can be added."""
        return len(self._items) >= MAX_ITEMS or sum(len(known.content) for known in self._items) > MAX_CHARS

    @property
    def last_id(self) -> str | None:
        """Id of the newest item."""
        return self._items[-1].id if self._items else None

    def get(self, item_id: str) -> Item:
        """The item, or `NotFound`."""
        return self._items[self._index(item_id)]

    def previous_id(self, item_id: str) -> str | None:
        """Id of the item before this one."""
        index = self._index(item_id)
        return self._items[index - 1].id if index else None

    def add(self, item: Item, *, after: str | None = None) -> str | None:
        """Append, or insert after the item `after` ("root" for the front); gives the id of the item before it.

        `TooLarge` when it is full.
        """
        if self.is_full:
            raise TooLarge("the conversation is full: delete items or begin a new one", code="conversation_full")
        if any(known.id == item.id for known in self._items):
            raise InvalidInput(
                f"there is an item '{item.id}' already", code="item_create_duplicate_item_id", param="item.id"
            )
        if after is None:
            index = len(self._items)
        elif after == "root":
            index = 0
        else:
            index = self._index(after) + 1
        self._items.insert(index, item)
        return self._items[index - 1].id if index else None

    def write(self, item_id: str, *, content: str | None = None, status: ItemStatus | None = None) -> Item:
        """Set the content or status of an item."""
        index = self._index(item_id)
        item = self._items[index]
        self._items[index] = replace(
            item,
            content=item.content if content is None else content,
            status=item.status if status is None else status,
        )
        return self._items[index]

    def cut(self, item_id: str, heard: str) -> Item:
        """Keep only what was heard of an assistant item."""
        index = self._index(item_id)
        item = self._items[index]
        if item.role != "assistant":
            raise InvalidInput("only an assistant item can be truncated", param="item_id")
        self._items[index] = replace(item, heard=heard, status="incomplete")
        return self._items[index]

    def delete(self, item_id: str) -> None:
        """Remove an item, or `NotFound`."""
        del self._items[self._index(item_id)]

    def messages(self, instructions: str, *, max_tokens: int, count: Callable[[str], int]) -> tuple[Message, ...]:
        """What the LLM reads: instructions, then the newest items whose tokens fit `max_tokens`, oldest first.

        `count` gives the tokens of a text. When the history no longer fits, it is cut to half the limit and begins
        there from then on: an LLM keeps what it has read as long as the beginning stays the same, so that is changed
        rarely. A kept history never begins with an assistant item that lost its question, and the newest item is
        always kept, cut from the front if it alone is too long.
        """
        left = max_tokens - count(instructions)
        items = [item for item in self.kept if item.remembered]
        if items and sum(count(item.remembered) + TEMPLATE_TOKENS for item in items) > left:
            items = _newest(items, left // 2, count)
            self._begins_with = items[0].id
        messages = [Message(item.role, item.remembered) for item in items]
        if len(items) == 1 and (n_tokens := count(items[0].remembered) + TEMPLATE_TOKENS) > left:
            messages = [Message(items[0].role, _tail(items[0].remembered, max(left, 64), n_tokens))]
        return (Message("system", instructions), *_joined(messages))

    @property
    def kept(self) -> list[Item]:
        """The items that the LLM may still be told."""
        ids = [item.id for item in self._items]
        return self._items[ids.index(self._begins_with) :] if self._begins_with in ids else self._items

    def _index(self, item_id: str) -> int:
        for index, item in enumerate(self._items):
            if item.id == item_id:
                return index
        raise NotFound(f"there is no item '{item_id}'", code="item_not_found", param="item_id")


# What a chat template adds around one message (role markers and line ends), rounded up.
TEMPLATE_TOKENS = 8


def _newest(items: list[Item], max_tokens: int, count: Callable[[str], int]) -> list[Item]:
    """The newest items within `max_tokens`, at least one, without a leading answer to a question that is gone."""
    kept: list[Item] = []
    for item in reversed(items):
        max_tokens -= count(item.remembered) + TEMPLATE_TOKENS
        if kept and max_tokens < 0:
            break
        kept.insert(0, item)
    while len(kept) > 1 and kept[0].role == "assistant":
        kept.pop(0)
    return kept


def _joined(messages: list[Message]) -> list[Message]:
    """Neighbours of one role as one message: chat templates expect the roles to alternate."""
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1].role == message.role:
            before = joined[-1].content.removesuffix(CUT_MARK)
            joined[-1] = Message(message.role, f"{before.rstrip()} {message.content.lstrip()}")
        else:
            joined.append(message)
    return joined


def _tail(text: str, max_tokens: int, n_tokens: int) -> str:
    """The end of `text`, cut at a space, that is about `max_tokens` of its `n_tokens` long."""
    tail = text[-max(1, len(text) * max_tokens // n_tokens) :]
    return tail[tail.find(" ") + 1 :]
