"""One thread that moves all talks on: a stretch of one talk's prompt, then a token of every talk that speaks.

Talks that speak go through the network together, each with its own keys and values. Talks come and go between two
steps. A step that fails costs the talks it was for, and no other. Importing this module imports torch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch
from transformers import DynamicCache

from pipeline.engines.chat_cache import CacheStore, cut, is_plain, joined
from pipeline.engines.chat_model import ChatModel
from pipeline.engines.chat_sampling import Picker, pick
from pipeline.engines.lanes import Stop
from pipeline.engines.out_of_memory import is_out_of_memory
from pipeline.errors import EngineError, EngineFailed, EngineNotReady, OutOfMemory

log = structlog.get_logger()

CLOSE_TIMEOUT_S = 10.0  # as for a lane

# Talks share steps with a network that gives the same numbers for them together as alone, up to this share of the
# largest. Sums are made in another order: 1e-6 in fp32 (measured), 0.4 % a rounding in bfloat16, 0.4 % with 8 bits.
MAX_DIFFERENCE, MAX_DIFFERENCE_FP32 = 0.05, 1e-3


@dataclass(slots=True, eq=False)
class Talk:
    """One answer in the making. `out` gets its tokens, then None or the error that ended it."""

    prompt: list[int]
    max_tokens: int
    stop: Stop
    out: queue.SimpleQueue[int | EngineError | None] = field(default_factory=queue.SimpleQueue)
    cache: Any = None
    seen: list[int] = field(default_factory=list)  # what the cache holds
    picker: Picker | None = None
    following: int | None = None  # said, but not yet read by the network
    n_said: int = 0

    @property
    def is_read(self) -> bool:
        """Whether the prompt is behind it."""
        return self.following is not None


class ChatBatch:
    """Moves on as many talks as it is given; keys and values of `capacity` talks are held, ended ones included."""

    def __init__(self, model: ChatModel, *, capacity: int, prompt_batch: int) -> None:
        self._model, self._prompt_batch = model, prompt_batch
        self._config = model.network.config.get_text_config()
        self._store = CacheStore(self._config, capacity)
        self._joins = False
        self._talks: list[Talk] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="chat-batch", daemon=True)
        self._thread.start()

    @property
    def joins(self) -> bool:
        """Whether talks share steps; else they take turns."""
        return self._joins

    def tokens(self, talk: Talk) -> Iterator[int]:
        """The answer's tokens as they are made, without the end token. It ends only when no step of the talk runs."""
        with self._changed:
            if self._is_closed:
                raise _closed()
            self._talks.append(talk)
            self._changed.notify()
        while (item := talk.out.get()) is not None:
            if isinstance(item, EngineError):
                raise item
            yield item

    def close(self) -> bool:
        """End all talks with `EngineNotReady`. False when the running step did not end in time."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)
        return not self._thread.is_alive()

    def join_if_same(self, short: Sequence[int], long: Sequence[int], *, may_join: bool = True) -> None:
        """Let talks share steps if two of unlike length say together what each says alone. For use before any talk.

        Without `may_join` they take turns, and only the numbers of a talk that is alone are looked at.

        Raises what the network raises for a talk that is alone, and `ArithmeticError` where it gives no numbers.
        """
        with torch.inference_mode():
            pairs = [[self._read_apart(prompt) for prompt in (short, long)] for _ in range(2)]
            token, lengths = short[0], [len(short), len(long)]
            alone = torch.cat([self._model.forward([[token]], cache) for cache in pairs[0]])
            if not alone.amax(-1).isfinite().all():
                raise ArithmeticError("it gives no numbers in this format; set llm.precision to bf16 or fp32")
            # Other ways to compute attention take no mask of ours.
            if not may_join or self._config._attn_implementation != "sdpa" or not all(map(is_plain, pairs[1])):
                return
            try:
                together = self._together([token, token], lengths, pairs[1])
            except Exception as error:
                log.info("llm.talks_take_turns", reason=type(error).__name__)
                return
            allowed = MAX_DIFFERENCE_FP32 if self._model.is_exact else MAX_DIFFERENCE
            self._joins = bool((alone - together).abs().max() <= allowed * alone.abs().max())

    def _read_apart(self, prompt: Sequence[int]) -> Any:
        cache = DynamicCache(config=self._config)
        self._model.forward([prompt], cache)
        return cache

    # --- in the thread

    def _run(self) -> None:
        with torch.inference_mode():
            while self._has_work():
                try:
                    self._step()
                except Exception as error:  # boundary: talks wait for this thread
                    self._fail_all(error)
        for talk in list(self._talks):
            self._leave(talk, _closed())

    def _has_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._talks or self._is_closed)
            return not self._is_closed

    def _step(self) -> None:
        for talk in [talk for talk in self._talks if talk.stop]:
            self._end(talk)
        reading = [talk for talk in self._talks if not talk.is_read]
        if reading:
            self._read(min(reading, key=lambda talk: len(talk.prompt) - len(talk.seen)))
        speaking = [talk for talk in self._talks if talk.is_read]
        if len(speaking) > 1 and self._joins and self._speak_together(speaking):
            return
        for talk in speaking:
            self._speak(talk)

    def _read(self, talk: Talk) -> None:
        """The next stretch of the prompt, and with its last one the first token of the answer."""
        try:
            if talk.cache is None:
                talk.cache, n_known = self._store.take(talk.prompt)
                talk.seen = talk.prompt[:n_known]
                talk.picker = Picker(self._model.sampling, talk.prompt)
            # What is not plain may not be read piece by piece: not every such network looks at what it read before.
            n = self._prompt_batch if is_plain(talk.cache) else len(talk.prompt)
            stretch = talk.prompt[len(talk.seen) : len(talk.seen) + n]
            logits = self._model.forward([stretch], talk.cache)
            talk.seen += stretch
            if len(talk.seen) == len(talk.prompt):
                self._say([talk], self._picked([talk], logits))
        except Exception as error:
            self._fail(talk, error)

    def _speak(self, talk: Talk) -> None:
        try:
            token = _following(talk)
            tokens = self._picked([talk], self._model.forward([[token]], talk.cache))
            talk.seen.append(token)
            self._say([talk], tokens)
        except Exception as error:
            self._fail(talk, error)

    def _speak_together(self, talks: list[Talk]) -> bool:
        """A token of each talk. False where there was too little memory to take them together: nothing has changed."""
        following = [_following(talk) for talk in talks]
        try:
            logits = self._together(following, [len(talk.seen) for talk in talks], [talk.cache for talk in talks])
            tokens = self._picked(talks, logits)
        except Exception as error:
            if is_out_of_memory(error):
                error.with_traceback(None)  # its frames hold what was computed
                for talk in talks:
                    cut(talk.cache, len(talk.seen))
                self._free_memory()
                return False
            for talk in talks:
                self._fail(talk, error)
            return True
        for talk, token in zip(talks, following, strict=True):
            talk.seen.append(token)
        self._say(talks, tokens)
        return True

    def _together(self, tokens: Sequence[int], lengths: Sequence[int], caches: Sequence[Any]) -> torch.Tensor:
        cache, mask = joined(caches)
        positions = torch.tensor(lengths, device=self._model.device)[:, None]
        return self._model.forward([[token] for token in tokens], cache, attention_mask=mask, position_ids=positions)

    def _picked(self, talks: Sequence[Talk], logits: torch.Tensor) -> list[int | None]:
        return pick(logits, [talk.picker for talk in talks if talk.picker is not None])

    def _say(self, talks: Sequence[Talk], tokens: Sequence[int | None]) -> None:
        for talk, token in zip(talks, tokens, strict=True):
            if token is None:
                self._fail(talk, ArithmeticError("the network gave something that is no number"))
            elif token in self._model.end_tokens:
                self._end(talk)
            else:
                talk.following = token
                talk.n_said += 1
                if talk.picker is not None:
                    talk.picker.saw(token)
                talk.out.put(token)
                if talk.n_said >= talk.max_tokens or len(talk.seen) + 1 >= self._model.window:
                    self._end(talk)

    def _end(self, talk: Talk) -> None:
        if talk.cache is not None:
            self._store.give_back(talk.seen, talk.cache)
        self._leave(talk, None)

    def _fail(self, talk: Talk, error: Exception) -> None:
        """End the talk; what its cache holds is no longer known."""
        if talk.cache is not None:
            self._store.drop()
            talk.cache = None
        if is_out_of_memory(error):
            failure: EngineError = OutOfMemory("the language model ran out of memory", stage="llm")
            error.with_traceback(None)
            self._free_memory()
        else:
            failure = EngineFailed("the language model failed", stage="llm")
        failure.__cause__ = error
        self._leave(talk, failure)

    def _fail_all(self, error: Exception) -> None:
        """After a failure outside a talk's own step, such as a card that is lost while its memory is freed."""
        log.error("llm.step_failed", reason=type(error).__name__)
        for talk in list(self._talks):
            if talk.cache is not None:
                self._store.drop()
            failure = EngineFailed("the language model failed", stage="llm")
            failure.__cause__ = error
            self._leave(talk, failure)

    def _leave(self, talk: Talk, error: EngineError | None) -> None:
        with self._changed:
            self._talks.remove(talk)
        talk.cache = None
        talk.out.put(error)

    def _free_memory(self) -> None:
        self._store.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def _following(talk: Talk) -> int:
    assert talk.following is not None
    return talk.following


def _closed() -> EngineError:
    return EngineNotReady("the language model is closed", stage="llm")
