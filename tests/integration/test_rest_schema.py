"""The OpenAPI document, and generated requests against what it promises."""

from __future__ import annotations

import asyncio
import copy
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CheckFunction, load_all_checks, not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from api.access.principal import SCOPES
from api.application import Server
from api.rest.openapi import document
from api.rest.speech import SpeechRequest, TtsRequest
from pipeline.engines.base import Engines
from tests.support.live_server import scripted_settings
from tests.support.rest import BriefTts, TimedAsr, rest_server
from tests.support.scripted import ScriptedLlm, ScriptedVad

load_all_checks()
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def _document() -> dict[str, Any]:
    engines = Engines(ScriptedVad(), TimedAsr(), ScriptedLlm(), BriefTts())
    with tempfile.TemporaryDirectory() as directory:
        server = Server(scripted_settings(storage={"dir": directory}), engines)
        try:
            return document(server.app)
        finally:
            asyncio.run(server.store.aclose())


DOCUMENT = _document()
# Generated requests bring no key: the server lets everybody in, and who may what is tested elsewhere.
WITHOUT_KEYS = copy.deepcopy(DOCUMENT)
for _operations in WITHOUT_KEYS["paths"].values():
    for _operation in _operations.values():
        _operation["security"] = []
SCHEMA = schemathesis.openapi.from_dict(WITHOUT_KEYS)
TAGS = {"speech", "transcription", "models", "talk", "jobs", "voices", "me", "about", "metrics"}
OURS = [
    (method.upper(), path)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if TAGS & set(operation.get("tags", ()))
]
WITH_BODY = [(method, path) for method, path in OURS if method == "POST"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server in a thread of its own: the generated requests are made by plain calls."""
    found: list[str] = []
    started, may_end = threading.Event(), threading.Event()

    async def serve() -> None:
        async with rest_server(
            asr=TimedAsr(delay_s=0.0), llm=ScriptedLlm(first_token_s=0.0, token_s=0.0), tts=BriefTts()
        ) as rest:
            found.append(rest.live.http)
            started.set()
            await asyncio.to_thread(may_end.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server")
    thread.start()
    assert started.wait(30)
    yield found[0]
    may_end.set()
    thread.join(30)


def send_generated(url: str, method: str, path: str, mode: GenerationMode, checks: list[CheckFunction]) -> None:
    operation = SCHEMA[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def holds(case: Any) -> None:
        case.call_and_validate(base_url=url, checks=checks)

    holds()


@pytest.mark.parametrize(("method", "path"), OURS, ids=lambda part: part)
def test_every_answer_is_one_that_the_document_promises(url: str, method: str, path: str) -> None:
    send_generated(url, method, path, GenerationMode.POSITIVE, [*CHECKS, unsupported_method])


@pytest.mark.parametrize(("method", "path"), WITH_BODY, ids=lambda part: part)
def test_what_the_document_does_not_allow_is_refused(url: str, method: str, path: str) -> None:
    send_generated(url, method, path, GenerationMode.NEGATIVE, [*CHECKS, negative_data_rejection])


@pytest.mark.parametrize(("method", "path"), WITH_BODY, ids=lambda part: part)
@pytest.mark.parametrize("content_type", ["application/xml", "image/png", "multipart/form-data", ""])
def test_a_body_of_another_kind_is_refused(url: str, method: str, path: str, content_type: str) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = httpx.request(method, url + path, content=b"<a/>", headers=headers, timeout=20)
    assert answer.status_code in (400, 415)
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_the_document_is_served_to_those_who_have_a_key() -> None:
    async with rest_server() as rest:
        assert (await rest.client.get("/api/openapi.json")).json() == DOCUMENT
    async with rest_server(access={"mode": "keys"}) as rest:
        assert (await rest.client.get("/api/openapi.json")).status_code == 401


def test_every_operation_names_its_scope_its_errors_and_what_it_is_for() -> None:
    assert ("POST", "/v1/audio/speech") in OURS
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert "422" not in operation["responses"], (method, path)
    for method, path in OURS:
        operation = DOCUMENT["paths"][path][method.lower()]
        assert operation["security"] == [{"key": []}], path
        assert {*SCOPES, "any"} & set(re.findall(r"Scope: `(\w+)`", operation["description"])), path
    assert DOCUMENT["paths"]["/api/health"]["get"]["security"] == []


def test_examples_are_what_the_document_allows() -> None:
    for model, path in ((SpeechRequest, "/v1/audio/speech"), (TtsRequest, "/api/tts")):
        content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
        model.model_validate(content["application/json"]["example"])
