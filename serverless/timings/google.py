"""Words by Google Cloud Speech-to-Text: it writes down what it hears, and its words are laid over the known ones.

Audio leaves the machine and each minute costs money, so this is used only with credentials, after all that is free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from pipeline.audio import AudioChunk
from serverless.timings.credentials import GoogleCredentials
from serverless.timings.matching import matched
from serverless.timings.spoken import spoken_words
from serverless.timings.words import NotAligned, Span, Unusable

_MIN_TRY_S: Final = 0.001

SAMPLE_RATE = 16_000
MAX_SECONDS = 58.0  # of one call; Google refuses a minute
LANGUAGE_CODES = {
    "en": "en-US",
    "fr": "fr-FR",
    "de": "de-DE",
    "es": "es-ES",
    "it": "it-IT",
    "ja": "ja-JP",
    "zh": "cmn-Hans-CN",
    "nl": "nl-NL",
}
_LOCK = threading.Lock()
_clients: dict[str, Any] = {}


def align(
    audio: AudioChunk,
    tokens: Sequence[str],
    language: str,
    *,
    credentials: GoogleCredentials | None,
    timeout_s: float,
    client: Any = None,
) -> list[Span | None]:
    """Spans of the tokens that Google heard, None for the others.

    `NotAligned` says what Google answered, in short; a call that failed with all its retries is `Unusable`, so that a
    job does not wait for Google with each of its chunks.

    `timeout_s` bounds the call with all its retries. `client` replaces the one made from the credentials.
    """
    if credentials is None and client is None:
        raise Unusable("no credentials for Google")
    if audio.seconds > MAX_SECONDS:
        raise NotAligned(f"the chunk is longer than {MAX_SECONDS:g} s")
    heard = _recognize(client or _client(credentials), audio, language, timeout_s)
    if not heard:
        raise NotAligned("Google heard no words")
    pairs = matched(["".join(words) for words in spoken_words(tokens, language)], [word for word, _ in heard])
    spans: list[Span | None] = []
    for indexes in pairs:
        mine = [heard[i][1] for i in indexes]
        known = [span.confidence for span in mine if span.confidence is not None]
        confidence = sum(known) / len(known) if known else None
        spans.append(Span(mine[0].start_s, mine[-1].end_s, confidence) if mine else None)
    return spans


def _recognize(client: Any, audio: AudioChunk, language: str, timeout_s: float) -> list[tuple[str, Span]]:
    from google.api_core import exceptions
    from google.api_core.retry import Retry, if_exception_type
    from google.cloud import speech

    config = speech.RecognitionConfig(
        encoding=speech.RecognitionConfig.AudioEncoding.LINEAR16,
        sample_rate_hertz=SAMPLE_RATE,
        language_code=LANGUAGE_CODES.get(language, language),
        enable_word_time_offsets=True,
        enable_word_confidence=True,
        model="latest_long" if language == "en" else "default",
    )
    # The library's own retries go on for 5000 s, whatever the timeout of a call is.
    retry = Retry(
        predicate=if_exception_type(exceptions.ServiceUnavailable, exceptions.DeadlineExceeded),
        initial=0.2,
        maximum=5.0,
        timeout=timeout_s,
    )
    content = audio.resampled(SAMPLE_RATE).to_pcm16()
    try:
        answer = client.recognize(
            config=config,
            audio=speech.RecognitionAudio(content=content),
            retry=retry,
            timeout=_until(time.monotonic() + timeout_s),
        )
    except exceptions.GoogleAPICallError as error:
        code = error.grpc_status_code.name if error.grpc_status_code is not None else type(error).__name__
        raise Unusable(f"Google answered {code}") from error
    except exceptions.RetryError as error:
        raise Unusable("Google did not answer in time") from error
    heard = []
    for result in answer.results:
        for word in result.alternatives[0].words if result.alternatives else ():
            span = Span(word.start_time.total_seconds(), word.end_time.total_seconds(), word.confidence or None)
            heard.append((str(word.word), span))
    return heard


def _until(end_s: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Each try has the time that is left. The library gives a try the whole time again when a second is left of it."""

    def bounded(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: call(*args, **options, timeout=max(end_s - time.monotonic(), _MIN_TRY_S))

    return bounded


def _client(credentials: GoogleCredentials | None) -> Any:
    assert credentials is not None
    with _LOCK:
        if credentials.client_email not in _clients:
            try:
                from google.cloud import speech
                from google.oauth2 import service_account
            except ImportError:
                raise Unusable("google-cloud-speech is not installed") from None
            scopes = ["https://www.googleapis.com/auth/cloud-platform"]
            make = service_account.Credentials.from_service_account_info
            account = make(credentials.info, scopes=scopes)  # type: ignore[no-untyped-call]
            # To name a project takes a right of its own, so the account's own one, which pays anyway, is not named.
            if credentials.project_id != credentials.info["project_id"]:
                account = account.with_quota_project(credentials.project_id)
            _clients.clear()
            _clients[credentials.client_email] = speech.SpeechClient(credentials=account)
        return _clients[credentials.client_email]
