"""What the model reads for a reply: the instructions, and as much of the history as its window holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    """The session's instructions, and the language to answer in: the session's if the voice speaks it."""
    if options.language is None or options.modality == "text":
        return options.instructions
    language = options.language if speaks(voice, options.language) else voice.language
    return f"{options.instructions} Answer in {LANGUAGES.get(language, language)}."


def voice_for(options: SessionOptions, voices: Mapping[str, Voice]) -> Voice:
    """The chosen voice of those by id, or one that speaks the session's language. `InvalidInput` when there is none.

    Its `language` is the one that it will speak.
    """
    chosen = voices.get(options.voice)
    if chosen is None:
        raise InvalidInput("this voice does not exist", code="voice_not_found", param="voice")
    language = options.language
    if language is not None and not speaks(chosen, language):
        chosen = next((voice for voice in voices.values() if speaks(voice, language)), chosen)
    if language is None or not speaks(chosen, language):
        language = chosen.language
    return replace(chosen, speed=options.speed, language=language)


def speaks(voice: Voice, language: str) -> bool:
    """Whether the language is one of the voice's."""
    return language == voice.language or language in voice.languages
