"""Any chat model in Hugging Face layout, on a card or a CPU, through transformers and torch.

The lane has a thread for each talk, which waits for its tokens; one more thread moves all talks on together
(`chat_batch.py`). Importing this module needs neither torch nor transformers; `load` does.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.engines import lanes
from pipeline.engines.base import EngineInfo, Message
from pipeline.engines.lanes import Lane, Stop
from pipeline.engines.repetition import RepetitionGuard
from pipeline.engines.torch_device import import_torch, torch_device
from pipeline.errors import ConfigError, EngineFailed, EngineNotReady, InvalidInput
from pipeline.models import locate
from process_tuning import long_import
from settings import Settings

if TYPE_CHECKING:
    from pipeline.engines.chat_batch import ChatBatch
    from pipeline.engines.chat_model import ChatModel

Precision = Literal["auto", "bf16", "fp16", "fp32"]
Bits = Literal[16, 8, 4]

# `models.llm_model` as people write it -> the manifest's id.
MODEL_IDS = {"local": "qwen3-4b-instruct-2507", "quality": "qwen2.5-7b-instruct"}

# Prompt tokens read between two looks at the stop flag, and between two tokens of every other talk. On a CPU as for
# llama.cpp, about a second for a model of 0.5 billion weights; a card reads four times as many at the price of a token.
PROMPT_BATCH, PROMPT_BATCH_CPU = 512, 64

# Deltas that may wait for a slow reader: the most tokens a reply can have, so that it never holds a thread up.
MAX_DELTAS_AHEAD = 4096


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """The weights, and the thread that works with them."""

    model: ChatModel
    batch: ChatBatch


class TransformersLlm:
    """A chat model with `capacity` talks at once, each with a window of `context_tokens`.

    `directory` overrides `model`, an id of the manifest. `device` is auto, cpu, cuda or cuda:N; `precision` auto is
    bf16 on a card that has it, else fp16, and fp32 on a CPU. `bits` below 16 are those of a stored weight. `threads`
    are those of a CPU. `batching` lets talks share the network's steps where it gives them the same as alone.
    """

    def __init__(
        self,
        *,
        models_dir: Path,
        model: str = "local",
        directory: Path | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        bits: Bits = 16,
        threads: int = 2,
        capacity: int = 1,
        context_tokens: int = 4096,
        max_tokens: int = 160,
        temperature: float = 0.7,
        batching: bool = True,
    ) -> None:
        self._models_dir, self._directory = models_dir, directory
        self._model_id = directory.name if directory else MODEL_IDS.get(model, model)
        self._device, self._precision, self._bits, self._threads = device, precision, bits, threads
        self._context_tokens, self._max_tokens, self._temperature = context_tokens, max_tokens, temperature
        self._batching = batching
        self._lane = Lane("transformers", capacity, stage="llm")
        # Apart from the lane: counting must not wait until a talk has its whole answer.
        self._counting = Lane("transformers-count", 1, stage="llm")
        self._loading = asyncio.Lock()
        self._running: _Running | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> TransformersLlm:
        """Unloaded; reads `models`, `llm`, `system.gpu_device` and `system.max_concurrent_users`."""
        llm = settings.llm
        return cls(
            models_dir=settings.models.dir,
            model=settings.models.llm_model,
            directory=llm.path,
            device=settings.system.gpu_device if llm.device == "auto" else llm.device,
            precision=llm.precision,
            bits=llm.bits,
            threads=llm.threads,
            capacity=settings.system.max_concurrent_users,
            context_tokens=llm.context_tokens,
            max_tokens=llm.max_tokens,
            temperature=llm.temperature,
            batching=settings.model_optimization.dynamic_batching,
        )

    @property
    def info(self) -> EngineInfo:
        """`device` is complete once loaded; `context_tokens` is the window of one talk."""
        return EngineInfo(
            kind="llm",
            name="transformers",
            model=self._model_id,
            device=str(self._running.model.device) if self._running else self._device,
            capacity=self._lane.capacity,
            context_tokens=self._context_tokens,
        )

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the lane."""
        return self._lane.n_waiting

    async def idle(self) -> None:
        """Return once no talk has a step."""
        await self._lane.idle()

    async def load(self) -> None:
        """Read the weights and take a few steps, alone and together."""
        async with self._loading:
            if self._running is None:
                await self._lane.run(self._start)

    async def close(self) -> None:
        """End the running answers and free the weights."""
        await self._lane.close()
        await self._counting.close()
        held, self._running = [self._running], None
        if not await asyncio.to_thread(_free, held):
            lanes.abandoned.add("transformers")

    async def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncGenerator[str, None]:
        """Text deltas. `InvalidInput` when the messages do not fit the window. A loop of words is cut off quietly."""
        self._ready()
        asked = self._max_tokens if max_tokens is None else max_tokens

        def work(stop: Stop, emit: Callable[[str], bool]) -> None:  # holds no weights: a pool forgets its jobs late
            _answer(self._ready(), messages, asked, stop, emit)

        guard = RepetitionGuard()
        async with aclosing(self._lane.pushed(work, buffer=MAX_DELTAS_AHEAD)) as deltas:
            async for delta in deltas:
                if guard.is_loop(delta):
                    return
                yield delta

    async def count_tokens(self, text: str) -> int:
        """Tokens of `text`, by the loaded model's own tokeniser."""
        self._ready()
        return await self._counting.run(lambda stop: self._ready().model.count(text))

    def _ready(self) -> _Running:
        if self._running is None:
            raise EngineNotReady("the language model is still loading, or was closed", stage="llm")
        return self._running

    # --- in the lane's threads

    def _start(self, stop: Stop) -> None:
        directory = self._directory or locate(self._models_dir, self._model_id)
        torch = import_torch("llm.engine transformers", "transformers")
        device = torch_device(self._device, torch, setting="llm.device")
        if device == "cpu":
            torch.set_num_threads(self._threads)  # for threads that begin after this, the batch's among them
        with long_import():
            from pipeline.engines.chat_batch import ChatBatch
            from pipeline.engines.chat_model import read_chat_model

        model = read_chat_model(
            directory,
            device=device,
            precision=self._precision,
            bits=self._bits,
            window=self._context_tokens,
            temperature=self._temperature,
        )
        prompts = [model.prompt([Message("user", text)]) for text in ("Hi.", "Hello there, how are you today? " * 8)]
        batch = ChatBatch(
            model,
            capacity=self._lane.capacity,
            prompt_batch=PROMPT_BATCH_CPU if device == "cpu" else PROMPT_BATCH,
        )
        try:
            batch.join_if_same(*prompts, may_join=self._batching)
        except Exception as error:
            batch.close()
            raise ConfigError(f"the language model in {directory} does not run: {error}") from error
        if stop:
            batch.close()
            return
        # Set here and not by `load`, so that `close` finds it even when nobody waits for `load` any more.
        self._running = _Running(model, batch)


def _answer(
    running: _Running, messages: Sequence[Message], max_tokens: int, stop: Stop, emit: Callable[[str], bool]
) -> None:
    """One answer, delta by delta to `emit`; blocks until its last step is over."""
    from pipeline.engines.chat_batch import Talk
    from pipeline.engines.token_text import TokenText

    try:
        prompt = running.model.prompt(messages)
    except InvalidInput:
        raise
    except Exception as error:
        raise EngineFailed("the language model could not read the conversation", stage="llm") from error
    if len(prompt) >= running.model.window:
        raise InvalidInput("the conversation is too long for the language model", code="context_exceeded")
    text = TokenText(running.model.tokenizer)
    for token in running.batch.tokens(Talk(prompt, max_tokens, stop)):
        if delta := text.add(token):
            emit(delta)  # a talk that nobody reads any more is ended by its stop flag
    if rest := text.rest():
        emit(rest)


def _free(held: list[_Running | None]) -> bool:
    """End the thread and free the weights, whose last hold is the one in `held`. False when a step does not end."""
    running = held.pop()
    if running is None:
        return True
    has_ended = running.batch.close()
    del running
    gc.collect()  # where a network holds itself in a circle
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return has_ended
