"""What the model reads for a reply: the instructions, and as much of the history as its window holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipeline.conversation import Conversation
from pipeline.engines.base import Llm, Message, Voice
from pipeline.errors import InvalidInput
from pipeline.options import LANGUAGES, SessionOptions


class Prompt:
    """Of one session: each text is counted once, as long as it is part of the history."""

    def __init__(self, llm: Llm, conversation: Conversation, *, max_tokens: int) -> None:
        self._llm, self._conversation, self._max_tokens = llm, conversation, max_tokens
        self._n_tokens: dict[str, int] = {}

    async def messages(self, instructions: str) -> tuple[Message, ...]:
        """The history that fits the model's window, behind the instructions."""

        def texts() -> list[str]:
            return [instructions, *(item.remembered for item in self._conversation.kept)]

        while missing := [text for text in texts() if text not in self._n_tokens]:
            for text in missing:  # the history may change meanwhile
                await self._count(text)
        self._n_tokens = {text: self._n_tokens[text] for text in texts()}
        return self._conversation.messages(instructions, max_tokens=self._max_tokens, count=self._n_tokens.__getitem__)

    async def n_tokens(self, messages: Iterable[Message]) -> int:
        """Tokens of what the model is given to read."""
        return sum([await self._count(message.content) for message in messages])

    async def _count(self, text: str) -> int:
        if text not in self._n_tokens:
            self._n_tokens[text] = await self._llm.count_tokens(text)
        return self._n_tokens[text]


def instructions_for(options: SessionOptions, voice: Voice) -> str:
    """The session's instructions, and the language to answer in: the voice's, since it must speak the answer."""
    if options.language is None or options.modality == "text":
        return options.instructions
    name = LANGUAGES.get(voice.language, voice.language)
    return f"{options.instructions} Answer in {name}."


def voice_for(options: SessionOptions, voices: Sequence[Voice]) -> Voice:
    """The chosen voice, or one that speaks the session's language. `InvalidInput` when there is no such voice."""
    chosen = next((voice for voice in voices if voice.id == options.voice), None)
    if chosen is None:
        raise InvalidInput("this voice does not exist", code="voice_not_found", param="voice")
    if options.language is not None and chosen.language != options.language:
        chosen = next((voice for voice in voices if voice.language == options.language), chosen)
    return replace(chosen, speed=options.speed)
