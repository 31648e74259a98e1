"""Google's real client against a server of the same protocol on loopback: words, retries, refusals, deadlines."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest

from pipeline.audio import AudioChunk
from serverless.speech import SpokenChunk
from serverless.timings import GoogleCredentials, Tools, WordTimings, google, time_words

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from google.cloud import speech
    from google.cloud.speech_v1.services.speech.transports import SpeechGrpcTransport

METHOD = "/google.cloud.speech.v1.Speech/Recognize"
RATE = 24_000
ACCOUNT = GoogleCredentials("p", "a@p.example", {})


@dataclass
class Cloud:
    """What the server is asked, and what it answers, one entry a call; the last one stays."""

    answers: list[Any] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)  # seconds that a call had left
    ends: list[float] = field(default_factory=list)  # the same as moments of time.monotonic
    away_until: float = 0.0  # of time.monotonic

    def recognize(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked.append(request)
        self.deadlines.append(context.time_remaining())
        self.ends.append(time.monotonic() + self.deadlines[-1])
        if time.monotonic() < self.away_until:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "private details of the project")
        return answer


def heard(*words: tuple[str, float, float]) -> Any:
    """An answer with these words, in two results as Google cuts them."""
    results = []
    for some in (words[:2], words[2:]):
        infos = [
            speech.WordInfo(word=word, start_time=timedelta(seconds=a), end_time=timedelta(seconds=b), confidence=0.75)
            for word, a, b in some
        ]
        alternative = speech.SpeechRecognitionAlternative(transcript=" ".join(w for w, *_ in some), words=infos)
        results.append(speech.SpeechRecognitionResult(alternatives=[alternative]))
    return speech.RecognizeResponse(results=results)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """The server, known to the chain as the client of `ACCOUNT`."""
    state = Cloud()
    handler = grpc.unary_unary_rpc_method_handler(
        state.recognize,
        request_deserializer=speech.RecognizeRequest.deserialize,
        response_serializer=speech.RecognizeResponse.serialize,
    )
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("google.cloud.speech.v1.Speech", {"Recognize": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = speech.SpeechClient(transport=SpeechGrpcTransport(channel=channel))
        monkeypatch.setattr(google, "_clients", {ACCOUNT.client_email: client})
        yield state
    server.stop(None).wait()


def timed(text: str, *, language: str | None = "en", timeout_s: float = 5.0, n_chunks: int = 1) -> WordTimings:
    audio = AudioChunk(np.random.default_rng(0).normal(0, 0.1, 2 * n_chunks * RATE).astype(np.float32), RATE)
    chunks = [SpokenChunk(text, 2.0 * i, 2.0 * i + 2.0) for i in range(n_chunks)]
    tools = Tools(None, ACCOUNT, "cpu", timeout_s)
    return time_words(audio, chunks, method="google", language=language, tools=tools, cancelled=lambda: False)


def test_recognised_words_give_the_known_ones_their_times(cloud: Cloud) -> None:
    cloud.answers = [
        heard(("i", 0.1, 0.3), ("have", 0.3, 0.6), ("forty", 0.6, 0.9), ("two", 0.9, 1.2), ("cats", 1.3, 1.8))
    ]
    timings = timed("I have 42 cats!")
    assert timings.method == "google"
    assert [(w.text, w.start_s, w.end_s) for w in timings.words] == [
        ("I", 0.1, 0.3),
        ("have", 0.3, 0.6),
        ("42", 0.6, 1.2),
        ("cats!", 1.3, 1.8),
    ]
    assert {w.confidence for w in timings.words} == {0.75}
    assert (timings.coverage, timings.approximate) == (1.0, False)


def test_words_that_google_did_not_hear_are_put_between_the_others(cloud: Cloud) -> None:
    cloud.answers = [heard(("one", 0.0, 0.5), ("four", 1.1, 1.5))]
    timings = timed("One zwölf drei four")
    times = [(w.start_s, w.end_s) for w in timings.words]
    assert times[0] == (0.0, 0.5)
    assert times[3] == (1.1, 1.5)
    assert times[1][0] == 0.5
    assert times[1][1] == times[2][0]
    assert times[2][1] == 1.1
    assert (timings.coverage, timings.approximate) == (0.5, True)
    assert [w.confidence is None for w in timings.words] == [False, True, True, False]


@pytest.mark.parametrize(
    ("language", "text", "code"),
    [("de", "Guten Tag", "de-DE"), (None, "Bonjour tout le monde", "fr-FR"), ("zh", "你好 世界", "cmn-Hans-CN")],
)
def test_the_language_and_the_sound_are_the_requests(cloud: Cloud, language: str | None, text: str, code: str) -> None:
    cloud.answers = [heard(*((word, 0.5, 0.9) for word in text.split()))]
    assert timed(text, language=language).method == "google"
    (request,) = cloud.asked
    assert request.config.language_code == code
    assert request.config.enable_word_time_offsets
    assert (request.config.encoding.name, request.config.sample_rate_hertz) == ("LINEAR16", 16_000)
    assert len(request.audio.content) == 2 * 2 * 16_000


def test_each_chunk_is_a_call_of_its_own_and_its_times_are_moved(cloud: Cloud) -> None:
    cloud.answers = [heard(("hello", 0.5, 0.9))]
    timings = timed("Hello.", n_chunks=3)
    assert [w.start_s for w in timings.words] == [0.5, 2.5, 4.5]
    assert len(cloud.asked) == 3


def test_a_server_that_is_away_for_a_moment_is_asked_again(cloud: Cloud) -> None:
    cloud.answers = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, heard(("hello", 0.5, 0.9))]
    assert timed("Hello.").method == "google"
    assert len(cloud.asked) == 3


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT"])
def test_a_refusal_is_not_tried_again_nor_by_the_chunks_after_it(cloud: Cloud, code: str) -> None:
    cloud.answers = [grpc.StatusCode[code]]
    timings = timed("Hello there.", n_chunks=3)
    assert timings.method != "google"
    assert len(timings.words) == 6
    assert len(cloud.asked) == 1
    failed = [(a.method, a.chunk, a.error) for a in timings.attempts if a.method == "google"]
    assert failed == [("google", None, f"Google answered {code}")]


def test_the_retries_end_when_the_time_is_up(cloud: Cloud) -> None:
    cloud.answers = [heard(("hello", 0.5, 0.9))]  # for one who waits too long
    cloud.away_until = time.monotonic() + 2.0
    timings = timed("Hello.", timeout_s=0.3)
    assert timings.method != "google"
    assert any(a.error == "Google did not answer in time" for a in timings.attempts)
    assert max(cloud.deadlines) <= 0.31
    assert max(cloud.ends) <= cloud.ends[0] + 0.05  # each try has what the ones before it left; gRPC rounds it up


def test_when_google_hears_nothing_another_method_takes_over(cloud: Cloud) -> None:
    for answer in (speech.RecognizeResponse(), heard(("entirely", 0.1, 0.5), ("different", 0.5, 1.0))):
        cloud.answers = [answer]
        timings = timed("Zwiebelkuchen, bitte.", language="de")
        assert timings.method != "google"
        assert [a.error for a in timings.attempts if a.method == "google"] in (
            ["Google heard no words"],
            ["too few words were found"],
        )


@pytest.mark.parametrize(("project", "named"), [("billing", "billing"), ("p", None)])
def test_the_client_is_made_from_the_account_without_asking_anyone(
    project: str, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    info = {"type": "service_account", "project_id": "p", "private_key": pem, "client_email": "b@p.example"}
    info["token_uri"] = "https://oauth2.googleapis.com/token"
    monkeypatch.setattr(google, "_clients", {})
    client = google._client(GoogleCredentials(project, "b@p.example", info))
    assert client.transport._credentials.quota_project_id == named
    assert client.transport._credentials.service_account_email == "b@p.example"
    assert google._client(GoogleCredentials(project, "b@p.example", info)) is client
    client.transport.close()
