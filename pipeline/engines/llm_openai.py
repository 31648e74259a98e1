"""Any chat model behind an OpenAI-compatible server: vLLM, Ollama, llama.cpp's own server, OpenAI.

Nothing blocks here, so there is no lane: an answer is a stream over HTTP, and closing it closes the connection.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import structlog

from pipeline.engines.base import EngineInfo, Message
from pipeline.engines.chat_server import KEY_VARIABLES, ChatServer, RemoteModel, unknown_model
from pipeline.engines.lanes import Waited, tell_nobody, work_told
from pipeline.engines.repetition import RepetitionGuard
from pipeline.errors import Busy, ConfigError, EngineError, EngineNotReady, EngineTimeout, InvalidInput
from settings import Settings

log = structlog.get_logger()

# A token is rarely longer, so only a server that does not keep `max_tokens` reaches this.
MAX_CHARS_PER_TOKEN: Final = 32

TOKENIZERS: Final = ("vllm", "llamacpp")
_COUNTED_ONE_BY_ONE: Final = re.compile(r"[^\w\s]|\d")
BYTES_PER_TOKEN: Final = 3


def estimated_tokens(text: str) -> int:
    """More than a model's own count as a rule: a token for each digit and sign, and for each 3 bytes of the rest.

    Against Qwen2.5's tokeniser: sentences of eight languages come out at 1.2 to 2.1 times its count, one very long
    German word and a telephone number at 0.9.
    """
    n_single = len(_COUNTED_ONE_BY_ONE.findall(text))
    rest = re.sub(r"\s+", " ", _COUNTED_ONE_BY_ONE.sub("", text)).strip()
    return n_single + math.ceil(len(rest.encode(errors="replace")) / BYTES_PER_TOKEN)


class OpenAiLlm:
    """A model on another server, with `capacity` streams at once. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        base_url: str | None,
        model: str | None = None,
        key: str | None = None,
        capacity: int = 1,
        context_tokens: int = 4096,
        history_tokens: int = 2048,
        max_tokens: int = 160,
        temperature: float | None = 0.7,
        retries: int = 2,
        first_token_s: float = 30.0,
        token_s: float = 15.0,
    ) -> None:
        self._base_url, self._key, self._model = base_url, key, model
        self._capacity, self._context_tokens = capacity, context_tokens
        self._history_tokens, self._max_tokens, self._temperature = history_tokens, max_tokens, temperature
        self._retries, self._first_token_s, self._token_s = retries, first_token_s, token_s
        self._slots = asyncio.Semaphore(capacity)
        self._n_waiting = self._n_running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._loading = asyncio.Lock()
        self._server: ChatServer | None = None
        self._closed = False
        self._tokenizer: str | None = None
        self._limit_name = "max_tokens"

    @classmethod
    def from_settings(cls, settings: Settings) -> OpenAiLlm:
        """Unloaded; reads `llm`, the waits of `turn` and `system.max_concurrent_users`."""
        llm, turn = settings.llm, settings.turn
        return cls(
            base_url=llm.base_url,
            model=llm.remote_model,
            key=llm.api_key.get_secret_value().strip() if llm.api_key else None,
            capacity=settings.system.max_concurrent_users,
            context_tokens=llm.context_tokens,
            history_tokens=llm.history_tokens,
            max_tokens=llm.max_tokens,
            temperature=llm.temperature,
            retries=llm.retries,
            first_token_s=turn.first_token_timeout_s,
            token_s=turn.token_timeout_s,
        )

    @property
    def info(self) -> EngineInfo:
        """`model` is the server's name for it, `context_tokens` what the settings say."""
        return EngineInfo(
            kind="llm",
            name="openai",
            model=self._model or "",
            device="remote",
            capacity=self._capacity,
            context_tokens=self._context_tokens,
        )

    @property
    def n_waiting(self) -> int:
        """Answers that wait for another one to end."""
        return self._n_waiting

    async def idle(self) -> None:
        """Return once no answer is under way."""
        await self._idle.wait()

    async def load(self) -> None:
        """Find the server and its model, and have it say one token."""
        async with self._loading:
            if self._closed:
                raise self._closed_error()
            if self._server is not None:
                return
            server = ChatServer(*self._address(), retries=self._retries, first_token_s=self._first_token_s)
            try:
                await self._meet(server)
            except BaseException:
                await server.close()
                raise
            self._server = server

    async def close(self) -> None:
        """End the running answers and the connections."""
        self._closed = True
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    async def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncGenerator[str, None]:
        """Text deltas. `InvalidInput` when the messages do not fit the window. A loop of words is cut off quietly."""
        limit = self._max_tokens if max_tokens is None else max_tokens
        request = self._request(messages, limit)
        guard, n_chars_left = RepetitionGuard(), limit * MAX_CHARS_PER_TOKEN
        async with self._slot() as server, aclosing(self._timed(server.chat(request))) as deltas:
            async for delta in deltas:
                if guard.is_loop(delta):
                    return
                yield delta[:n_chars_left]
                n_chars_left -= len(delta)
                if n_chars_left <= 0:
                    log.warning("llm.limit_ignored", limit=limit)
                    return

    async def count_tokens(self, text: str) -> int:
        """By the server's own tokeniser where it tells (vLLM, llama.cpp), else `estimated_tokens`."""
        server = self._ready()
        if not text:
            return 0
        n_tokens = None
        if self._tokenizer is not None:
            n_tokens = await server.count(self._tokenizer, self._model or "", text)
        return estimated_tokens(text) if n_tokens is None else n_tokens

    def _request(self, messages: Sequence[Message], limit: int) -> dict[str, Any]:
        request = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            self._limit_name: limit,
        }
        return request if self._temperature is None else {**request, "temperature": self._temperature}

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[ChatServer]:
        """The server, once fewer than `capacity` answers are under way."""
        self._ready()
        tell, asked_s = work_told.get(tell_nobody), time.monotonic()
        self._n_waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._n_waiting -= 1
        try:
            self._n_running += 1
            self._idle.clear()
            tell(Waited("openai", time.monotonic() - asked_s))
            yield self._ready()
        except EngineError as error:
            if self._closed:  # its connection was cut
                raise self._closed_error() from error
            raise
        finally:
            self._slots.release()
            self._n_running -= 1
            if not self._n_running:
                self._idle.set()

    async def _timed(self, deltas: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """The same deltas, each within the time that a turn waits for it."""
        limit_s = self._first_token_s
        async with aclosing(deltas):
            while True:
                try:
                    async with asyncio.timeout(limit_s):
                        delta = await anext(deltas, None)
                except TimeoutError:
                    raise EngineTimeout("the language model took too long", stage="llm") from None
                if delta is None:
                    return
                yield delta
                limit_s = self._token_s

    def _address(self) -> tuple[str, str | None]:
        """Where the server is, and the key. `ConfigError` for what the settings cannot say."""
        if self._base_url is None:
            raise ConfigError(
                "llm.base_url is not set: the engine openai needs the address of a chat server (vLLM, Ollama, "
                "llama.cpp, OpenAI). Run: python app.py --set llm.engine=openai "
                "--set llm.base_url=http://127.0.0.1:8000/v1"
            )
        if self._key and not (self._key.isascii() and self._key.isprintable()):
            raise ConfigError(f"the key in {KEY_VARIABLES} holds characters that no key has")
        return self._base_url, self._key

    async def _meet(self, server: ChatServer) -> None:
        try:
            self._model = await self._chosen_model(server)
            await self._say_one_token(server)
        except (EngineError, Busy, InvalidInput) as error:
            raise ConfigError(
                f"{error.message}. llm.base_url is {self._base_url}; start the server there or correct the setting. "
                f"Run: curl {self._base_url}/models"
            ) from error
        for kind in TOKENIZERS:
            if await server.count(kind, self._model, "Hello"):
                self._tokenizer = kind
                return

    async def _chosen_model(self, server: ChatServer) -> str:
        """The server's name for the model. `ConfigError` where it has no such model, or too small a window."""
        has = await server.models()
        if self._model is None:
            if has is None or len(has) != 1:
                raise ConfigError(unknown_model("", has or ()))
            wanted = has[0]
        elif has is None:  # it keeps no list: the first word will tell
            wanted = RemoteModel(self._model)
        else:
            by_name = {entry.id.removesuffix(":latest"): entry for entry in has} | {entry.id: entry for entry in has}
            if self._model not in by_name:
                raise ConfigError(unknown_model(self._model, has))
            wanted = by_name[self._model]
        window = wanted.context_tokens or self._context_tokens
        if self._history_tokens + self._max_tokens > window:
            raise ConfigError(
                f"the language model server has a window of {window} tokens: llm.history_tokens and llm.max_tokens "
                f"together must fit into it. Run: python app.py --set llm.history_tokens={window // 2} "
                f"--set llm.max_tokens={min(self._max_tokens, window // 4)}"
            )
        self._context_tokens = min(window, self._context_tokens)
        return wanted.id

    async def _say_one_token(self, server: ChatServer) -> None:
        """Warm up, and learn which of two names the limit has (OpenAI's newer models take one only)."""
        while True:
            request = self._request([Message("user", "Hi")], 1)
            try:
                async with aclosing(self._timed(server.chat(request))) as deltas:
                    async for _ in deltas:
                        pass
                return
            except EngineError as error:
                if error.code == "max_tokens_refused" and self._limit_name == "max_tokens":
                    self._limit_name = "max_completion_tokens"
                elif error.code == "temperature_refused" and self._temperature is not None:
                    self._temperature = None
                    log.warning("llm.temperature_refused")
                else:
                    raise

    def _ready(self) -> ChatServer:
        if self._server is None:
            raise self._closed_error()
        return self._server

    @staticmethod
    def _closed_error() -> EngineNotReady:
        return EngineNotReady("the language model is still loading, or was closed", stage="llm")
