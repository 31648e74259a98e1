"""Any GGUF chat model on the CPU, through llama.cpp's server inside this process (xllamacpp).

The server batches talks by itself, so the lane has one thread for each. It insists on listening somewhere: left alone
it opens a TCP port on loopback without a key. Here it gets a UNIX socket in a directory that only this user may enter,
and a random key; the socket serves one thing, counting tokens, which the library offers no call for.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xllamacpp

from pipeline.engines.base import EngineInfo, Message
from pipeline.engines.lanes import Lane, Stop
from pipeline.engines.repetition import RepetitionGuard
from pipeline.errors import ConfigError, EngineFailed, EngineNotReady, InvalidInput, OutOfMemory
from pipeline.models import CUSTOM_LLM_ID, locate
from settings import Settings

# `models.llm_model` as people write it -> the manifest's id.
MODEL_IDS = {
    "local": "qwen2.5-coder-0.5b-instruct",
    "quality": "qwen2.5-coder-1.5b-instruct",
    "custom": CUSTOM_LLM_ID,
}

# Beside the temperature, which is a setting: what Qwen2.5 recommends for itself, with a mild penalty because small
# models circle. The last 64 tokens are what the penalty looks at (llama.cpp's default).
TOP_P, TOP_K, REPEAT_PENALTY = 0.8, 20, 1.05

# Prompt tokens read between two looks at the stop flag, and between two tokens of every other talk: about 0.7 s on two
# cores. llama.cpp's own 2048 would hold all talks up for half a minute; smaller is no slower on a CPU.
PROMPT_BATCH = 64

# Prompt states of talks whose slot another talk took. llama.cpp's own bound is 8 GiB.
SAVED_PROMPTS_MIB = 512
# The ending `.sock` is what makes the library take the host name for the path of a UNIX socket.
SOCKET_NAME, SOCKET_TIMEOUT_S = "llm.sock", 10.0

# Deltas that may wait for a slow reader: the most tokens a reply can have, so that a talk which reads slowly never
# holds up a thread that others need.
MAX_DELTAS_AHEAD = 4096


@dataclass(slots=True)
class _Server:
    """A running server; `directory` holds its socket. Dropping `server` joins its threads and frees the weights."""

    server: Any
    directory: Path
    key: str


class LlamaCppLlm:
    """A chat model with `capacity` talks at once, each with a window of `context_tokens`."""

    def __init__(
        self,
        *,
        models_dir: Path,
        model: str = "local",
        threads: int = 2,
        capacity: int = 1,
        context_tokens: int = 4096,
        max_tokens: int = 160,
        temperature: float = 0.7,
    ) -> None:
        self._models_dir, self._model_id = models_dir, MODEL_IDS.get(model, model)
        self._threads, self._context_tokens = threads, context_tokens
        self._max_tokens, self._temperature = max_tokens, temperature
        self._lane = Lane("llamacpp", capacity, stage="llm")
        # Apart from the lane: counting must not wait until a talk has its whole answer.
        self._counting = Lane("llamacpp-count", 1, stage="llm")
        self._loading = asyncio.Lock()
        self._running: _Server | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> LlamaCppLlm:
        """Unloaded; reads `models`, `llm` and `system.max_concurrent_users`."""
        llm = settings.llm
        return cls(
            models_dir=settings.models.dir,
            model=settings.models.llm_model,
            threads=llm.threads,
            capacity=settings.system.max_concurrent_users,
            context_tokens=llm.context_tokens,
            max_tokens=llm.max_tokens,
            temperature=llm.temperature,
        )

    @property
    def info(self) -> EngineInfo:
        """`context_tokens` is the window of one talk."""
        return EngineInfo(
            kind="llm",
            name="llamacpp",
            model=self._model_id,
            capacity=self._lane.capacity,
            context_tokens=self._context_tokens,
        )

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the lane."""
        return self._lane.n_waiting

    async def load(self) -> None:
        """Read the weights, start the server and have it say one token."""
        async with self._loading:
            if self._running is None:
                await self._lane.run(self._start)

    async def close(self) -> None:
        """Stop the running answers, then the server, and remove its socket."""
        await self._lane.close()
        await self._counting.close()
        running, self._running = self._running, None
        if running is not None:
            await asyncio.to_thread(_stop, running)

    async def reply(self, messages: Sequence[Message], *, max_tokens: int | None = None) -> AsyncGenerator[str, None]:
        """Text deltas. `InvalidInput` when the messages do not fit the window. A loop of words is cut off quietly."""
        running = self._ready()
        request = {
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_tokens": self._max_tokens if max_tokens is None else max_tokens,
            "temperature": self._temperature,
            "top_p": TOP_P,
            "top_k": TOP_K,
            "repeat_penalty": REPEAT_PENALTY,
            "return_progress": True,  # a call back after each batch of the prompt, so that a stop is seen there too
            "cache_prompt": True,  # the prefix that a talk's slot still holds is not read again
        }

        def work(stop: Stop, emit: Callable[[str], bool]) -> None:
            _chat(running, request, stop, emit)

        guard = RepetitionGuard()
        async with aclosing(self._lane.pushed(work, buffer=MAX_DELTAS_AHEAD)) as deltas:
            async for delta in deltas:
                if guard.is_loop(delta):
                    return
                yield delta

    async def count_tokens(self, text: str) -> int:
        """Tokens of `text`, by the loaded model's own tokeniser."""
        running = self._ready()
        return await self._counting.run(lambda stop: _count(running, text))

    def _ready(self) -> _Server:
        if self._running is None:
            raise EngineNotReady("the language model is still loading, or was closed", stage="llm")
        return self._running

    def _start(self, stop: Stop) -> None:
        directory = locate(self._models_dir, self._model_id)
        weights = next(iter(sorted(directory.glob("*.gguf"))), None)
        if weights is None:
            raise ConfigError(f"the model {self._model_id} in {directory} has no .gguf file")
        private = Path(tempfile.mkdtemp(prefix="voicepod-llm-"))  # mkdtemp makes it 0700
        key = secrets.token_hex(32)
        try:
            running = _Server(xllamacpp.Server(self._parameters(weights, private, key)), private, key)
            _chat(running, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}, stop, lambda _: True)
        except Exception as error:
            shutil.rmtree(private, ignore_errors=True)
            raise ConfigError(f"the model {self._model_id} in {directory} cannot be loaded: {error}") from error
        self._running = running  # here, so that `close` finds it when the caller of `load` was cancelled

    def _parameters(self, weights: Path, private: Path, key: str) -> Any:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(weights)
        parameters.model_alias = {self._model_id}  # else answers carry the file's path
        parameters.hostnames = [str(private / SOCKET_NAME)]
        parameters.api_keys = [key]
        parameters.ui = parameters.endpoint_slots = parameters.endpoint_props = False
        parameters.offline = True
        parameters.verbosity = -1  # the library writes to stderr; what matters comes as an exception
        parameters.n_parallel = self._lane.capacity
        parameters.n_ctx = self._context_tokens * self._lane.capacity  # llama.cpp divides it among the slots
        parameters.n_batch = parameters.n_ubatch = PROMPT_BATCH
        parameters.fit_params = False  # would shrink the window without a word
        parameters.cache_ram_mib = SAVED_PROMPTS_MIB
        parameters.n_gpu_layers = 0
        # They wait for each other in a busy loop: more of them than free cores are slower than one (measurements.md).
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = self._threads
        return parameters


def _chat(running: _Server, request: Mapping[str, Any], stop: Stop, emit: Callable[[str], bool]) -> None:
    """One answer, delta by delta to `emit`. Blocking; the library calls back in this thread."""
    failure: Mapping[str, Any] = {}

    def on_chunk(chunk: Mapping[str, Any]) -> bool:
        """Whether to stop."""
        nonlocal failure
        if "error" in chunk:
            failure = chunk["error"]
            return True
        for choice in chunk.get("choices", ()):
            if (text := choice.get("delta", {}).get("content")) and not emit(text):
                return True
        return bool(stop)

    try:
        running.server.handle_chat_completions({**request, "stream": True}, on_chunk)
    except MemoryError as error:
        raise OutOfMemory("the language model ran out of memory", stage="llm") from error
    except Exception as error:
        raise EngineFailed("the language model failed", stage="llm") from error
    if failure.get("type") == "exceed_context_size_error":
        raise InvalidInput("the conversation is too long for the language model", code="context_exceeded")
    if failure:
        raise EngineFailed("the language model failed", stage="llm") from RuntimeError(str(failure.get("message")))


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SOCKET_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _count(running: _Server, text: str) -> int:
    headers = {"Authorization": f"Bearer {running.key}", "Content-Type": "application/json"}
    try:
        with closing(_UnixConnection(str(running.directory / SOCKET_NAME))) as connection:
            connection.request("POST", "/tokenize", json.dumps({"content": text}), headers)
            return len(json.loads(connection.getresponse().read())["tokens"])
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        raise EngineFailed("the language model could not count tokens", stage="llm") from error


def _stop(running: _Server) -> None:
    running.server = None
    shutil.rmtree(running.directory, ignore_errors=True)
