"""A language model behind HTTP: what an OpenAI-compatible server is asked, and what its refusals mean.

httpx alone does it: it is there at run time already, and the openai library would bring its own retries, which also
run where text was spoken, and a reader of events without a bound. A stream that is closed closes its connection, which
is what makes these servers stop computing.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx

from pipeline.engines.event_stream import MalformedStream, events
from pipeline.errors import Busy, EngineFailed, EngineTimeout, InvalidInput, VoicepodError

Json = dict[str, Any]

KEY_VARIABLES: Final = "VOICEPOD__LLM__API_KEY or OPENAI_API_KEY"

CONNECT_S: Final = 3.0  # a name, a connection and TLS; whoever needs longer is down
ASK_S: Final = 5.0  # a list of models or a count of tokens
MAX_BODY_BYTES: Final = 4 << 20  # a list of all models of a large provider has some 100 kB
# A connection is kept for the next turn; a server that closes it earlier is noticed when it is taken up again.
KEEP_CONNECTION_S: Final = 60.0
# After the last event the end of the body comes at once. One that does not come costs the connection, not the turn.
LAST_BYTES_S: Final = 0.1
# Before the second attempt, and twice as much before each further one, give or take half of it at random: talks that
# met the same fault do not come back together.
BACKOFF_S, RETRY_AFTER_S = 0.25, 2.0
RETRIED: Final = frozenset((429, 502, 503, 504))
MAX_NAMED: Final = 10  # models in a message
MAX_WORDS_BYTES: Final = 1 << 16  # of a refusal, that are looked through

# Any of these in a refusal: vLLM and SGLang ("maximum context length", "model's context length"), OpenAI
# ("context_length_exceeded"), llama.cpp ("exceed_context_size_error", "available context size"), Ollama ("input length
# exceeds"), text-generation-inference ("`inputs` tokens + `max_new_tokens` must be"), LM Studio ("context overflows"),
# gateways ("prompt is too long").
_TOO_LONG: Final = re.compile(
    r"context[ _](length|size|window|overflow)|maximum context|context the overflows|input length exceeds|"
    r"tokens.{0,3}\+.{0,3}.?max_new_tokens|(prompt|input) is too long",
    re.IGNORECASE,
)


class Passing(Exception):
    """A failure that may be gone in a moment; `error` is what it is called if not."""

    def __init__(self, error: VoicepodError, after_s: float = 0.0) -> None:
        super().__init__()
        self.error, self.after_s = error, after_s


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that the server has; `context_tokens` is 0 where it does not say (vLLM does)."""

    id: str
    context_tokens: int = 0


class ChatServer:
    """One server, from `open` to `close`; belongs to the event loop that it was made on."""

    def __init__(self, base_url: str, key: str | None, *, retries: int, first_token_s: float) -> None:
        self._base_url = base_url
        self._retries, self._first_token_s = retries, first_token_s
        headers = {"Accept-Encoding": "identity"}  # a compressed stream could unpack to any size
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=min(CONNECT_S, first_token_s)),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_CONNECTION_S),
            follow_redirects=False,  # the key and what was said go to the server of the settings, to no other
            trust_env=False,  # a proxy of the environment is not meant for the machine itself
        )

    async def close(self) -> None:
        """End all streams and connections."""
        await self._http.aclose()

    async def models(self) -> tuple[RemoteModel, ...] | None:
        """What the server has; None where it keeps no list. Raises `VoicepodError`."""
        try:
            answer = await self._ask("GET", f"{self._base_url}/models")
        except Passing as passing:
            raise passing.error from passing.__cause__
        if answer is None:
            return None
        listed = answer.get("data")
        return tuple(
            RemoteModel(entry["id"], _whole(entry.get("max_model_len")))
            for entry in (listed if isinstance(listed, list) else ())
            if isinstance(entry, dict) and isinstance(entry.get("id"), str)
        )

    async def count(self, kind: str, model: str, text: str) -> int | None:
        """Tokens of `text`, as servers of this kind (vllm, llamacpp) count them; None where they do not."""
        root = self._base_url.removesuffix("/v1")
        asked = {"content": text}
        if kind == "vllm":
            asked = {"model": model, "prompt": text, "add_special_tokens": False}  # type: ignore[dict-item]
        try:
            answer = await self._ask("POST", f"{root}/tokenize", asked)
        except (Passing, VoicepodError):
            return None
        found = (answer or {}).get("count" if kind == "vllm" else "tokens")
        if kind == "llamacpp" and isinstance(found, list):
            return len(found)
        return found if isinstance(found, int) else None

    async def _ask(self, method: str, url: str, body: Json | None = None) -> Json | None:
        """The JSON object of a short answer; None for 404 and 405. Raises `Passing` and `VoicepodError`."""
        try:
            async with asyncio.timeout(ASK_S), self._request(method, url, body) as response:
                content = await _bounded(response)
        except TimeoutError:
            raise EngineTimeout("the language model server gives no answer", stage="llm") from None
        if response.status_code in (404, 405):
            return None
        if response.status_code != 200:
            raise _refusal(response, content)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise EngineFailed("what answers at llm.base_url is no language model server", stage="llm")
        return answer

    async def chat(self, request: Json) -> AsyncGenerator[str, None]:
        """Text as it comes. What may pass is tried anew, but never once a delta was given."""
        ends_at = time.monotonic() + self._first_token_s
        for attempt in range(self._retries + 1):
            has_begun = False
            try:
                async with aclosing(self._attempt(request)) as deltas:
                    async for delta in deltas:
                        has_begun = True
                        yield delta
                return
            except Passing as passing:
                wait_s = max(_backoff_s(attempt), passing.after_s)
                if has_begun or attempt == self._retries or time.monotonic() + wait_s > ends_at:
                    raise passing.error from passing.__cause__
            await asyncio.sleep(wait_s)

    async def _attempt(self, request: Json) -> AsyncGenerator[str, None]:
        """One request. `Passing` where another one may do better."""
        async with self._request("POST", f"{self._base_url}/chat/completions", {**request, "stream": True}) as response:
            if response.status_code != 200:
                content = await _bounded(response)
                if response.status_code == 404:
                    raise await self._unknown(str(request.get("model")))
                raise _refusal(response, content)
            try:
                if response.headers.get("Content-Type", "").startswith(("text/html", "application/json")):
                    raise MalformedStream("a whole page or answer")
                async with aclosing(response.aiter_raw()) as chunks, aclosing(events(chunks)) as found:  # type: ignore[type-var]
                    async for event in found:
                        text, is_last = _read(event)
                        if text:
                            yield text
                        if is_last:
                            await _read_out(chunks)
                            return
            except MalformedStream as error:
                raise EngineFailed("the language model server gives no stream of text", stage="llm") from error
            raise Passing(_gone())

    @asynccontextmanager
    async def _request(self, method: str, url: str, body: Json | None) -> AsyncIterator[httpx.Response]:
        """The head of an answer. `Passing` when there is no server, or it goes away; `EngineFailed` after `close`."""
        if self._http.is_closed:
            raise _gone()
        try:
            async with self._http.stream(method, url, json=body) as response:
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Passing(EngineFailed("the language model server cannot be reached", stage="llm")) from error
        except httpx.TransportError as error:
            raise Passing(_gone()) from error

    async def _unknown(self, model: str) -> VoicepodError:
        """The error for a 404, which lists the models that there are."""
        has: tuple[RemoteModel, ...] = ()
        with suppress(VoicepodError):
            has = await self.models() or ()
        if any(model == entry.id for entry in has) or not has:
            return EngineFailed(
                "the language model server has no chat at llm.base_url, or not this model", stage="llm", retryable=False
            )
        return EngineFailed(unknown_model(model, has), stage="llm", retryable=False)


def unknown_model(model: str, has: tuple[RemoteModel, ...]) -> str:
    """The message for a model that the server has not."""
    names = ", ".join(_printable(entry.id) for entry in has[:MAX_NAMED]) or "none"
    more = f" and {len(has) - MAX_NAMED} more" if len(has) > MAX_NAMED else ""
    return (
        f"the language model server has no model '{_printable(model)}'; set llm.remote_model to one of: {names}{more}"
    )


def _printable(name: str) -> str:
    return "".join(c for c in name if c.isprintable())[:80]


def _backoff_s(attempt: int) -> float:
    return BACKOFF_S * float(2**attempt) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _gone() -> EngineFailed:
    return EngineFailed("the language model server went away in the middle of its answer", stage="llm")


async def _bounded(response: httpx.Response) -> bytes:
    """The body; what is beyond the bound is cut off, which no JSON survives."""
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            break
    return bytes(content)


async def _read_out(chunks: AsyncIterator[bytes]) -> None:
    """Read to the end of the body, so that the connection may serve the next turn."""
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(LAST_BYTES_S):
            async for _ in chunks:
                pass


def _read(event: str) -> tuple[str, bool]:
    """The text of one event and whether the model is done. Thoughts (`reasoning_content`, `reasoning`) are no text."""
    if event.strip() == "[DONE]":
        return "", True
    try:
        chunk = json.loads(event)
    except (ValueError, RecursionError):
        raise MalformedStream("an event that is no JSON") from None
    if not isinstance(chunk, dict):
        raise MalformedStream("an event that is no object")
    if chunk.get("error") or chunk.get("object") == "error":
        raise _named(200, event)
    choices = chunk.get("choices")
    if not isinstance(choices, list | None):
        raise MalformedStream("choices that are no list")
    if not choices:  # figures of use
        return "", False
    choice = choices[0]
    delta = choice.get("delta") or {} if isinstance(choice, dict) else None
    if not isinstance(delta, dict) or not isinstance(delta.get("content"), str | None):
        raise MalformedStream("a delta that is no text")
    # Halves of a character, from servers that cut in UTF-16, are no text in any encoding.
    text = (delta.get("content") or "").encode(errors="ignore").decode()
    return text, bool(choice.get("finish_reason"))  # some gateways write "" for null


def _refusal(response: httpx.Response, content: bytes) -> VoicepodError | Passing:
    """What a status other than 200 means. The server's own words may hold a key or what was said: they stay here."""
    status, words = response.status_code, content[:MAX_WORDS_BYTES].decode(errors="replace")
    if status in RETRIED and "insufficient_quota" not in words:
        asked = _retry_after_s(response.headers)
        if status == 429:
            busy = Busy("the language model server is busy", retry_after_s=asked or RETRY_AFTER_S)
            return Passing(busy, asked or 0.0)
        failed = EngineFailed(f"the language model server is not available (status {status})", stage="llm")
        return Passing(failed, asked or 0.0)
    return _named(status, words)


def _named(status: int, words: str) -> VoicepodError:
    """The error for a refusal that would come again."""
    if status in (401, 403):
        message = f"the language model server refuses the key: set it in {KEY_VARIABLES}"
    elif _TOO_LONG.search(words):
        return InvalidInput("the conversation is too long for the language model", code="context_exceeded")
    elif "insufficient_quota" in words:
        message = "the account at the language model server has nothing left to spend"
    elif status in (400, 422) and (refused := _refused_parameter(words)):
        message = f"the language model server does not take {refused}"
        return EngineFailed(message, stage="llm", code=f"{refused}_refused", retryable=False)
    elif 300 <= status < 400:
        message = "the language model server has moved: set llm.base_url to where it is now"
    else:
        message = f"the language model server failed (status {status})"
        return EngineFailed(message, stage="llm", retryable=status >= 500 or status == 200)
    return EngineFailed(message, stage="llm", retryable=False)


def _refused_parameter(words: str) -> str:
    """What OpenAI's newer models refuse: `max_tokens` under its old name, and a temperature."""
    if "max_completion_tokens" in words:
        return "max_tokens"
    return "temperature" if "temperature" in words and "nsupported" in words else ""


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `Retry-After`, which is a number or a date."""
    text = headers.get("Retry-After", "")
    try:
        wait_s = max(float(text), 0.0) if text.replace(".", "", 1).isdigit() else _until_s(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return wait_s if math.isfinite(wait_s) else None


def _until_s(date: str) -> float:
    return max(parsedate_to_datetime(date).timestamp() - time.time(), 0.0)
