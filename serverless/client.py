"""A caller of the worker through RunPod's HTTP interface: the real one and the local one look the same.

    client = Client("https://api.runpod.ai/v2/ENDPOINT", api_key=...)
    output = client.wait(client.run({"text": "Hello."}))
    client.download(output["audio_url"], Path("hello.wav"))

`python -m serverless.client --help` has the same as commands. Needs httpx and nothing else of this project.
"""

from __future__ import annotations

import base64
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

FINAL: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_INLINE_BYTES: Final = 7_000_000  # in base64 it is 9.4 MB, and /run takes 10
MAX_DOWNLOAD_BYTES: Final = 512_000_000
MAX_ANSWER_BYTES: Final = 32_000_000  # a result of /runsync has 20 MB at most
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
N_FAULTS = 8  # in a row, while polling
TIMEOUT_S: Final = 30.0
SLACK_S: Final = 15.0


class ClientError(Exception):
    """The call did not work; `status` is of the HTTP answer, if there was one."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class JobFailed(ClientError):
    """The job ended without a result. `state` is RunPod's; `code` and `retryable` are the worker's, if it said them."""

    def __init__(self, job_id: str, answer: Mapping[str, Any]) -> None:
        output = answer.get("output")
        told: Mapping[str, Any] = output if isinstance(output, dict) else {}
        self.job_id = job_id
        self.state = str(answer.get("status", "FAILED"))
        self.code = str(told.get("error_code", self.state))
        self.retryable = bool(told.get("retryable", self.state == "TIMED_OUT"))
        errors = told.get("errors")
        self.errors = [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
        super().__init__(str(answer.get("error") or self.state))


class Client:
    """One endpoint. Not for several threads at once; close it, or use it as a context.

    Args:
        url: of the endpoint, such as https://api.runpod.ai/v2/abc123 or what the local server prints.
        api_key: goes to this host only, and over plain http only to this machine.
        timeout_s: for connecting and for each silence of the other side.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClientError("the URL of the endpoint begins with https:// or http://")
        if api_key and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ClientError("an API key is not sent over http to another machine; use https")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = httpx.Client(headers=headers, timeout=timeout_s)
        self._plain = httpx.Client(timeout=timeout_s, follow_redirects=False)
        """For the storage's signed URLs, which need no key and shall not see it."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()
        self._plain.close()

    def run(
        self, job_input: Mapping[str, Any], *, policy: Mapping[str, int] | None = None, webhook: str | None = None
    ) -> str:
        """Queue a job; gives its id. `policy` has executionTimeout and ttl in milliseconds."""
        return _text(self._call("POST", "run", json=_body(job_input, policy, webhook)), "id")

    def runsync(
        self, job_input: Mapping[str, Any], *, wait_s: float = 90.0, policy: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """Run a job and wait for its output, at first in one call, then by asking again until `wait_s` is over."""
        deadline_s = time.monotonic() + wait_s
        held_s = min(max(wait_s, 1.0), 300.0)
        path = f"runsync?wait={round(held_s * 1000)}"
        answer = self._call("POST", path, json=_body(job_input, policy, None), timeout=held_s + SLACK_S)
        job_id = _text(answer, "id")
        if _text(answer, "status") in FINAL:
            return _output(job_id, answer)
        return self.wait(job_id, timeout_s=max(deadline_s - time.monotonic(), 0.0))

    def status(self, job_id: str) -> dict[str, Any]:
        """What RunPod knows of the job: status, output, error, delayTime, executionTime."""
        answer = self._call("GET", f"status/{_name(job_id)}")
        return {**answer, "status": _text(answer, "status")}

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float = 600.0,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """The job's output when it is done, asked for ever more slowly; `progress` gets each answer on the way.

        Raises:
            JobFailed: it ended in another way.
            ClientError: the time is over (the job goes on), or the endpoint does not answer.
        """
        deadline_s, pause_s, n_faults = time.monotonic() + timeout_s, FIRST_PAUSE_S, 0
        while True:
            try:
                answer = self.status(job_id)
                n_faults = 0
            except ClientError as error:
                n_faults += 1
                is_passing = error.status is None or error.status == 429 or error.status >= 500
                if not is_passing or n_faults > N_FAULTS:
                    raise
                answer = {"status": "UNKNOWN"}
            if answer["status"] in FINAL:
                return _output(job_id, answer)
            if progress:
                progress(answer)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise ClientError(f"job {job_id} is {answer['status']} after {timeout_s:g} s")
            time.sleep(min(pause_s * random.uniform(0.8, 1.2), left_s))  # noqa: S311 - spreads callers, keeps no secret
            pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)

    def stream(self, job_id: str, *, timeout_s: float = 600.0) -> Iterator[Any]:
        """What a job that answers in parts gives, part by part; JobFailed at its end if it failed."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            answer = self._call("GET", f"stream/{_name(job_id)}")
            state, items = _text(answer, "status"), answer.get("stream") or []
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise ClientError("the endpoint's stream is no list of items")
            yield from (item.get("output") for item in items)
            if state in FINAL and not items:
                if state != "COMPLETED":
                    raise JobFailed(job_id, self.status(job_id))
                return
            if time.monotonic() > deadline_s:
                raise ClientError(f"job {job_id} still streams after {timeout_s:g} s")
            time.sleep(0 if items else FIRST_PAUSE_S)

    def cancel(self, job_id: str) -> str:
        """Stop a job; gives the state it is in then."""
        return _text(self._call("POST", f"cancel/{_name(job_id)}"), "status")

    def retry(self, job_id: str) -> None:
        """Queue a job again that failed or ran out of time, under its id."""
        self._call("POST", f"retry/{_name(job_id)}")

    def purge_queue(self) -> int:
        """Cancel all jobs that wait; gives how many."""
        removed = self._call("POST", "purge-queue").get("removed")
        if not isinstance(removed, int):
            raise ClientError("the endpoint's answer has no number `removed`")
        return removed

    def health(self) -> dict[str, Any]:
        """Numbers of jobs and workers."""
        return self._call("GET", "health")

    def upload_voice(
        self, name: str, audio: bytes, *, consent: bool, timeout_s: float = 120.0, **fields: Any
    ) -> dict[str, Any]:
        """Store a reference voice; a large one goes straight to the storage by a signed URL.

        Args:
            name: by which later jobs ask for it.
            audio: a wav, flac, mp3 or ogg file.
            consent: that the speaker agreed to be cloned; the worker refuses without.
            timeout_s: for the worker's part.
            fields: `ref_text` (what is said in it), `language`, `overwrite`.
        """
        voice = {"voice_name": name, "consent": consent, **fields}
        if len(audio) <= MAX_INLINE_BYTES:
            job = {"endpoint": "upload", "voice_file": base64.b64encode(audio).decode(), **voice}
            return self.wait(self.run(job), timeout_s=timeout_s)
        place = self.wait(self.run({"endpoint": "request_upload", "voice_name": name}), timeout_s=timeout_s)
        url, upload_id, given = _text(place, "upload_url"), _text(place, "upload_id"), place.get("headers")
        headers = {name: _text(given, name) for name in given} if isinstance(given, dict) else {}
        try:
            with self._plain.stream("PUT", url, content=audio, headers=headers) as stored:
                status = stored.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError(f"the storage did not take the voice: {type(error).__name__}") from None
        if status not in (200, 201, 204):
            raise ClientError("the storage did not take the voice", status=status)
        confirm = {"endpoint": "confirm", "upload_id": upload_id, **voice}
        return self.wait(self.run(confirm), timeout_s=timeout_s)

    def download(self, url: str, target: Path, *, max_bytes: int = MAX_DOWNLOAD_BYTES) -> int:
        """Fetch a result's signed URL into a file; gives its size. There is a whole file afterwards or none.

        Raises:
            ClientError: more than `max_bytes`, fewer than announced, or the URL is not valid any more.
        """
        part = tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False)  # noqa: SIM115
        try:
            with part, self._plain.stream("GET", url) as answer:
                if answer.status_code != 200:
                    raise ClientError("the storage refused the download", status=answer.status_code)
                size = 0
                for piece in answer.iter_bytes():
                    size += len(piece)
                    if size > max_bytes:
                        raise ClientError(f"the file is over {max_bytes} bytes")
                    part.write(piece)
            os.replace(part.name, target)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError(f"the download broke off: {type(error).__name__}") from None
        finally:
            Path(part.name).unlink(missing_ok=True)
        return size

    def _call(self, method: str, path: str, *, json: object = None, timeout: float | None = None) -> dict[str, Any]:
        silence_s = timeout if timeout is not None else self._timeout_s
        deadline_s = time.monotonic() + silence_s + self._timeout_s
        try:
            with self._http.stream(method, f"{self._url}/{path}", json=json, timeout=silence_s) as answer:
                body = _parsed(answer, deadline_s)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError(f"the endpoint does not answer: {type(error).__name__}") from None
        if answer.status_code == 401:
            raise ClientError("the API key is missing or wrong", status=401)
        if answer.status_code != 200 or not isinstance(body, dict):
            told = (body.get("error") if isinstance(body, dict) else None) or "the endpoint refused the call"
            raise ClientError(f"{told} (HTTP {answer.status_code})", status=answer.status_code)
        return body


def _parsed(answer: httpx.Response, deadline_s: float) -> Any:
    """The JSON of an answer, read no further than it may be long and no later than the deadline; None if it is none."""
    data = bytearray()
    for piece in answer.iter_bytes():
        data += piece
        if len(data) > MAX_ANSWER_BYTES:
            raise ClientError(f"the endpoint's answer is over {MAX_ANSWER_BYTES} bytes", status=answer.status_code)
        if time.monotonic() > deadline_s:
            raise ClientError("the endpoint's answer does not come to an end")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str):
        raise ClientError(f"the endpoint's answer has no `{name}`")
    return value


def _body(job_input: Mapping[str, Any], policy: Mapping[str, int] | None, webhook: str | None) -> dict[str, Any]:
    more = {"policy": dict(policy) if policy else None, "webhook": webhook}
    return {"input": dict(job_input), **{name: value for name, value in more.items() if value is not None}}


def _output(job_id: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    if answer["status"] != "COMPLETED":
        raise JobFailed(job_id, answer)
    output = answer.get("output")
    return output if isinstance(output, dict) else {"output": output}


def _name(job_id: str) -> str:
    if not job_id.strip(".") or not all(letter.isalnum() or letter in "-_." for letter in job_id):
        raise ClientError("that is no job id")
    return job_id


if __name__ == "__main__":
    from serverless.client_commands import main

    sys.exit(main(sys.argv[1:]))
