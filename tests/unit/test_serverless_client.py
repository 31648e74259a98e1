"""The client against servers that misbehave."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serverless import client as client_module
from serverless import client_commands
from serverless.client import Client, ClientError, JobFailed
from tests.support.tiny_model import closed_port

Answer = tuple[int, Any]


class Scripted:
    """A server that answers from a list, the last answer again and again; `seen` is what was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.url = ""

    def answer(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()

    class Handler(http.server.BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            scripted.seen.append((self.command, self.path, headers, body))
            status, content = scripted.answer()
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("location", scripted.url)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = respond

        def log_message(self, format: str, *args: object) -> None:
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scripted.url = f"http://127.0.0.1:{http_server.server_port}/v2/x"
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield scripted
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr("serverless.client.time.sleep", slept.append)
    return slept


def test_polling_gets_slower_and_survives_passing_faults(server: Scripted, without_pauses: list[float]) -> None:
    busy: list[Answer] = [(200, {"id": "j", "status": "IN_PROGRESS"})] * 12
    done = {"id": "j", "status": "COMPLETED", "output": {"a": 1}}
    server.answers = [*busy, (500, {}), (429, {"error": "slow down"}), (502, b"<html>"), (200, done)]
    with Client(server.url) as client:
        assert client.wait("j") == {"a": 1}
    assert len(without_pauses) == 15
    assert without_pauses[0] < 0.3
    assert 3.9 < max(without_pauses) < 6.1


def test_polling_gives_up_when_the_endpoint_stays_away(server: Scripted) -> None:
    server.answers = [(503, {})]
    with Client(server.url) as client, pytest.raises(ClientError) as gone:
        client.wait("j")
    assert gone.value.status == 503
    assert len(server.seen) == 9


@pytest.mark.parametrize("status", [400, 401, 404])
def test_polling_does_not_repeat_what_is_wrong(server: Scripted, status: int) -> None:
    server.answers = [(status, {"error": "no"})]
    with Client(server.url) as client, pytest.raises(ClientError):
        client.wait("j")
    assert len(server.seen) == 1


def test_waiting_has_an_end_and_the_job_goes_on(server: Scripted) -> None:
    server.answers = [(200, {"id": "j", "status": "IN_QUEUE"})]
    with Client(server.url) as client, pytest.raises(ClientError, match="job j is IN_QUEUE after 0 s"):
        client.wait("j", timeout_s=0.0)


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "TIMED_OUT"])
def test_each_bad_end_is_an_error_that_says_which(server: Scripted, state: str) -> None:
    server.answers = [(200, {"id": "j", "status": state})]
    with Client(server.url) as client, pytest.raises(JobFailed) as failed:
        client.wait("j")
    assert (failed.value.state, failed.value.code) == (state, state)


def test_what_the_worker_says_of_a_failure_is_passed_on(server: Scripted) -> None:
    output = {"error_code": "INVALID_INPUT", "retryable": False, "errors": [{"field": "speed", "message": "too fast"}]}
    server.answers = [(200, {"id": "j", "status": "FAILED", "error": "INVALID_INPUT: speed", "output": output})]
    with Client(server.url) as client, pytest.raises(JobFailed, match="INVALID_INPUT: speed") as failed:
        client.wait("j")
    assert (failed.value.code, failed.value.retryable, failed.value.errors) == (
        "INVALID_INPUT", False, output["errors"]
    )  # fmt: skip


def test_the_key_goes_to_the_endpoint_and_nowhere_else(server: Scripted, tmp_path: Path) -> None:
    server.answers = [(200, {"jobs": {}})]
    with Client(server.url, api_key="k") as client:
        client.health()
        server.answers = [(200, b"audio")]
        client.download(f"{server.url}/signed", tmp_path / "a.wav")
    assert server.seen[0][2]["authorization"] == "Bearer k"
    assert "authorization" not in server.seen[1][2]


@pytest.mark.parametrize("url", ["http://example.com/v2/x", "ftp://127.0.0.1/x", "example.com", ""])
def test_a_key_is_not_sent_in_the_clear(url: str) -> None:
    with pytest.raises(ClientError):
        Client(url, api_key="k")


def test_a_small_voice_goes_with_the_job(server: Scripted) -> None:
    server.answers = [(200, {"id": "j", "status": "IN_QUEUE"}), (200, {"id": "j", "status": "COMPLETED", "output": {}})]
    with Client(server.url) as client:
        client.upload_voice("anna", b"RIFF", consent=True, ref_text="Hello.")
    job = json.loads(server.seen[0][3])["input"]
    assert job == {
        "endpoint": "upload", "voice_file": "UklGRg==", "voice_name": "anna", "consent": True, "ref_text": "Hello."
    }  # fmt: skip


def test_a_large_voice_goes_to_the_storage(server: Scripted) -> None:
    place = {"upload_url": f"{server.url}/put", "upload_id": "u", "headers": {"Content-Type": "audio/x-any"}}
    queued: Answer = (200, {"id": "j", "status": "IN_QUEUE"})
    done = [(200, {"id": "j", "status": "COMPLETED", "output": output}) for output in (place, {"name": "anna"})]
    server.answers = [queued, done[0], (200, b""), queued, done[1]]
    audio = bytes(client_module.MAX_INLINE_BYTES + 1)
    with Client(server.url, api_key="k") as client:
        assert client.upload_voice("anna", audio, consent=True) == {"name": "anna"}
    method, path, headers, body = server.seen[2]
    assert (method, path, len(body)) == ("PUT", "/v2/x/put", len(audio))
    assert headers["content-type"] == "audio/x-any"
    assert "authorization" not in headers
    confirmed = json.loads(server.seen[3][3])["input"]
    assert confirmed == {"endpoint": "confirm", "upload_id": "u", "voice_name": "anna", "consent": True}


def test_a_storage_that_refuses_a_voice_is_an_error(server: Scripted) -> None:
    place = {"upload_url": f"{server.url}/put", "upload_id": "u"}
    output = {"id": "j", "status": "COMPLETED", "output": place}
    server.answers = [(200, {"id": "j", "status": "IN_QUEUE"}), (200, output), (403, b"")]
    with Client(server.url) as client, pytest.raises(ClientError, match="did not take the voice") as refused:
        client.upload_voice("anna", bytes(client_module.MAX_INLINE_BYTES + 1), consent=True)
    assert refused.value.status == 403


def test_a_download_is_whole_or_not_there(server: Scripted, tmp_path: Path) -> None:
    target = tmp_path / "a.wav"
    cases: list[tuple[Answer, Callable[[], str]]] = [
        ((200, b"x" * 2000), lambda: "over 1000 bytes"),
        ((403, b"expired"), lambda: "refused"),
        ((302, b""), lambda: "refused"),  # no redirect is followed
    ]
    with Client(server.url) as client:
        for answer, words in cases:
            server.answers = [answer]
            with pytest.raises(ClientError, match=words()):
                client.download(server.url, target, max_bytes=1000)
            assert list(tmp_path.iterdir()) == []
        server.answers = [(200, b"x" * 1000)]
        assert client.download(server.url, target, max_bytes=1000) == 1000
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("job_id", ["", "../run", "a/b", "a?b", "a b"])
def test_a_job_id_cannot_lead_to_another_route(job_id: str) -> None:
    with Client(f"http://127.0.0.1:{closed_port()}/v2/x") as client, pytest.raises(ClientError, match="no job id"):
        client.status(job_id)


def test_an_endpoint_that_is_not_there_is_an_error_without_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert client_commands.main(["health", "--url", f"http://127.0.0.1:{closed_port()}/v2/x"]) == 1
    assert capsys.readouterr().err == "client: the endpoint does not answer: ConnectError\n"


def test_commands_print_what_went_wrong_field_by_field(
    server: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(client_commands.KEY_VARIABLE, "k")
    output = {"error_code": "INVALID_INPUT", "errors": [{"field": "speed", "message": "0.5 to 2"}]}
    failed = {"id": "j", "status": "FAILED", "error": "INVALID_INPUT: speed", "output": output}
    server.answers = [(200, {"id": "j", "status": "IN_QUEUE"}), (200, failed)]
    assert client_commands.main(["run", "--url", server.url, '{"text": "a", "speed": 9}']) == 1
    assert capsys.readouterr().err == "client: INVALID_INPUT: speed\n  speed: 0.5 to 2\n"
    assert server.seen[0][2]["authorization"] == "Bearer k"


DONE = {"id": "j", "status": "COMPLETED"}
LIES: list[tuple[Answer, str]] = [
    ((200, {}), "no "),
    ((200, []), "refused"),
    ((200, b"<html>"), "refused"),
    ((200, b"[" * 100_000), "refused"),
    ((200, {"id": None, "status": ["COMPLETED"]}), "no "),
    ((200, {"id": 5, "status": 5, "stream": 5, "removed": "all"}), "no "),
    ((302, b""), "refused"),
]


@pytest.mark.parametrize(("lie", "words"), LIES)
def test_an_answer_that_is_not_what_it_should_be_is_an_error(server: Scripted, lie: Answer, words: str) -> None:
    server.answers = [lie]
    with Client(server.url) as client:
        calls: list[Callable[[], object]] = [
            lambda: client.run({"a": 1}),
            lambda: client.runsync({"a": 1}),
            lambda: client.status("j"),
            lambda: client.wait("j"),
            lambda: list(client.stream("j")),
            lambda: client.cancel("j"),
            client.purge_queue,
        ]
        for call in calls:
            with pytest.raises(ClientError, match=words):
                call()


@pytest.mark.parametrize("stream", [5, {"a": 1}, ["item"]])
def test_a_stream_that_is_no_list_of_items_is_an_error(server: Scripted, stream: object) -> None:
    server.answers = [(200, {**DONE, "stream": stream})]
    with Client(server.url) as client, pytest.raises(ClientError, match="no list of items"):
        list(client.stream("j"))


@pytest.mark.parametrize("errors", [None, 5, [5, None], {"field": "speed"}])
def test_errors_of_another_form_are_left_out(server: Scripted, errors: object) -> None:
    server.answers = [(200, {"id": "j", "status": "FAILED", "output": {"errors": errors}})]
    with Client(server.url) as client, pytest.raises(JobFailed) as failed:
        client.wait("j")
    assert failed.value.errors == []


def test_an_answer_is_read_no_further_than_it_may_be_long(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 1000)
    server.answers = [(200, {**DONE, "output": {"text": "x" * 1000}})]
    with Client(server.url) as client, pytest.raises(ClientError, match="over 1000 bytes"):
        client.wait("j")
    assert len(server.seen) == 1


def test_an_answer_that_trickles_in_is_not_waited_for_without_end(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [(200, {"jobs": {}})]
    with Client(server.url, timeout_s=10.0) as client:
        now_s = [0.0, 20.1]
        monkeypatch.setattr("serverless.client.time.monotonic", lambda: now_s.pop(0) if len(now_s) > 1 else now_s[0])
        with pytest.raises(ClientError, match="does not come to an end"):
            client.health()


@pytest.mark.parametrize("job_id", [".", ".."])
def test_dots_alone_are_no_job(server: Scripted, job_id: str) -> None:
    with Client(server.url) as client, pytest.raises(ClientError, match="no job id"):
        client.cancel(job_id)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/x", "http://a\x00b/", "file:///etc/passwd", "", 5, None])
def test_a_place_for_the_voice_that_is_no_url_is_an_error(server: Scripted, url: object) -> None:
    place = {**DONE, "output": {"upload_url": url, "upload_id": "u"}}
    server.answers = [(200, {"id": "j", "status": "IN_QUEUE"}), (200, place)]
    with Client(server.url) as client, pytest.raises(ClientError):
        client.upload_voice("anna", bytes(client_module.MAX_INLINE_BYTES + 1), consent=True)


def test_a_download_from_what_is_no_url_is_an_error(tmp_path: Path) -> None:
    with Client(f"http://127.0.0.1:{closed_port()}/v2/x") as client:
        for url in ("http://127.0.0.1:99999/x", "http://a\x00b/", "file:///etc/passwd", ""):
            with pytest.raises(ClientError, match="broke off"):
                client.download(url, tmp_path / "a.wav")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["5", "[1]", "null", '"text"'])
def test_an_input_that_is_no_object_is_said(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{closed_port()}/v2/x"
    assert client_commands.main(["run", "--url", url, text]) == 1
    assert capsys.readouterr().err == "client: the input is no JSON object\n"


def test_what_a_server_says_is_no_command_to_the_terminal(server: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = [(200, {"jobs": "\x1b[2J \x9b \ud800 ä€"})]
    assert client_commands.main(["health", "--url", server.url]) == 0
    server.answers = [(400, {"error": "\x1b]0;gone\x07"})]
    assert client_commands.main(["health", "--url", server.url]) == 1
    said = capsys.readouterr()
    assert '"\\u001b[2J \\x9b \\ud800 ä€"' in said.out
    assert said.err == "client: \\x1b]0;gone\\x07 (HTTP 400)\n"


def test_ctrl_c_while_waiting_is_no_trace(
    server: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("serverless.client.time.sleep", interrupt)
    server.answers = [(200, {"id": "j", "status": "IN_QUEUE"})]
    assert client_commands.main(["run", "--url", server.url, '{"text": "a"}']) == 130
    assert capsys.readouterr().err == "client: stopped; a job that was sent goes on\n"


def test_a_demonstration_without_urls_says_what_the_worker_said(
    server: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (voice := tmp_path / "a.wav").write_bytes(b"RIFF")
    queued: Answer = (200, {"id": "j", "status": "IN_QUEUE"})
    result = {"audio_url": f"{server.url}/a", "timing_files": {"../x": "http://127.0.0.1/"}, "timing_error": "no voice"}
    uploaded: Answer = (200, {**DONE, "output": {}})
    server.answers = [(200, {"jobs": {}}), queued, uploaded, queued, (200, {**DONE, "output": result}), (200, b"a")]
    out = tmp_path / "out"
    arguments = ["demo", "--url", server.url, "--out", str(out), "--voice", str(voice), "--ref-text", "a"]
    assert client_commands.main(arguments) == 1
    assert "no URL for speech.words.srt: no voice" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["speech.wav"]
