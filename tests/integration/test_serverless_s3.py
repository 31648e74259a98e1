"""S3 as a `Storage`, against two real servers on loopback and with a proxy between that breaks what it is told to."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import structlog
import urllib3

from pipeline.errors import ConfigError, InvalidInput, StorageError
from serverless import keys
from serverless.local_storage import LocalStorage
from serverless.s3 import S3Storage
from serverless.s3_errors import s3_errors
from serverless.storage import AlreadyStored, NotStored, Storage
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.s3_servers import S3Server


@pytest.fixture
def storage(server: S3Server) -> Storage:
    return server.storage(range_bytes=1 << 20)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        call()
    return caught.value.code


def test_what_is_put_can_be_got_and_headed_and_deleted(storage: Storage, server: S3Server) -> None:
    storage.put("output/a.wav", b"RIFF....", content_type="audio/wav", filename='my "speech".wav')
    assert storage.get("output/a.wav", max_bytes=100) == b"RIFF...."
    found = storage.head("output/a.wav")
    assert found is not None
    assert (found.key, found.size) == ("output/a.wav", 8)
    kept = server.client().head_object(Bucket=server.bucket, Key="output/a.wav")
    assert kept["ContentType"] == "audio/wav"
    assert kept["Metadata"]["sha256"] == hashlib.sha256(b"RIFF....").hexdigest()
    if server.kind == "moto":
        assert kept["ContentDisposition"] == 'attachment; filename="my _speech_.wav"'
    storage.delete("output/a.wav")
    storage.delete("output/a.wav")
    assert storage.head("output/a.wav") is None
    with pytest.raises(NotStored):
        storage.get("output/a.wav", max_bytes=100)


def test_an_object_larger_than_allowed_is_not_read(storage: Storage) -> None:
    storage.put("output/a.wav", b"x" * 101, content_type="audio/wav")
    assert code_of(lambda: storage.get("output/a.wav", max_bytes=100)) == "object_too_large"
    assert len(storage.get("output/a.wav", max_bytes=101)) == 101


def test_large_files_go_up_in_parts_and_come_down_in_ranges(storage: Storage, tmp_path: Path) -> None:
    data = random.Random(1).randbytes((9 << 20) + 12345)
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(data)
    storage.put("models/m/r/weights", source, content_type="application/octet-stream")
    found = storage.head("models/m/r/weights")
    assert found is not None
    assert found.etag.endswith("-2")
    storage.download("models/m/r/weights", target, size=len(data))
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(data).digest()
    assert [p.name for p in target.parent.iterdir()] == ["target"]
    assert code_of(lambda: storage.download("models/m/r/weights", target, size=5)) == "wrong_size"
    with pytest.raises(NotStored):
        storage.download("models/m/r/none", target, size=5)


def test_an_empty_object_can_be_downloaded(storage: Storage, tmp_path: Path) -> None:
    storage.put("models/m/r/empty", b"", content_type="text/plain")
    storage.download("models/m/r/empty", tmp_path / "empty", size=0)
    assert (tmp_path / "empty").read_bytes() == b""


def test_listing_goes_on_after_the_cursor(storage: Storage) -> None:
    for i in range(7):
        storage.put(f"voices/v{i}.wav", b"x", content_type="audio/wav")
    storage.put("output/other.wav", b"x", content_type="audio/wav")
    seen, cursor, pages = [], None, 0
    while True:
        page, cursor = storage.list("voices/", cursor=cursor, limit=3)
        seen += [item.key for item in page]
        pages += 1
        if cursor is None:
            break
    assert seen == [f"voices/v{i}.wav" for i in range(7)]
    assert pages == 3
    assert storage.list("nothing/") == ([], None)


def test_only_the_first_conditional_put_stores(storage: Storage) -> None:
    storage.put("jobs/a.json", b"first", content_type="application/json", if_absent=True)
    with pytest.raises(AlreadyStored):
        storage.put("jobs/a.json", b"second", content_type="application/json", if_absent=True)
    assert storage.get("jobs/a.json", max_bytes=100) == b"first"


@pytest.mark.parametrize("kind", ["bucket", "directory"])
def test_of_many_writers_at_once_exactly_one_stores(kind: str, moto: S3Server, tmp_path: Path) -> None:
    storage: Storage = moto.storage() if kind == "bucket" else LocalStorage(tmp_path, None, b"x" * 16)
    won, start = list[int](), threading.Barrier(8)
    storage.head("jobs/race.json")

    def write(i: int) -> None:
        start.wait()
        try:
            storage.put("jobs/race.json", str(i).encode(), content_type="application/json", if_absent=True)
        except AlreadyStored:
            return
        won.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.get("jobs/race.json", max_bytes=10) == str(won[0]).encode()
    moto.empty()


def test_a_conditional_put_whose_answer_was_lost_still_counts_as_ours(moto: S3Server, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault(method="PUT", status=500, code="InternalError", after=True))
    storage = moto.storage(endpoint_url=proxy.endpoint_url)
    storage.put("jobs/a.json", b"mine", content_type="application/json", if_absent=True)
    assert proxy.count("PUT") == 2
    assert storage.get("jobs/a.json", max_bytes=10) == b"mine"


def test_a_store_that_refuses_the_condition_is_written_without_it(moto: S3Server, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault(method="PUT", status=501, code="NotImplemented"))
    storage = moto.storage(endpoint_url=proxy.endpoint_url)
    storage.put("jobs/a.json", b"mine", content_type="application/json", if_absent=True)
    assert "if-none-match" not in proxy.requests[-2][2]
    assert storage.get("jobs/a.json", max_bytes=10) == b"mine"


def test_a_signed_url_reads_the_object_without_credentials(storage: Storage, server: S3Server) -> None:
    storage.put("output/a.wav", b"RIFF", content_type="audio/wav")
    url = storage.presign_get("output/a.wav", seconds=60, filename="a b.wav")
    answer = httpx.get(url)
    assert (answer.status_code, answer.content) == (200, b"RIFF")
    assert answer.headers["content-type"] == "audio/wav"
    if server.kind == "moto":
        assert answer.headers["content-disposition"] == 'attachment; filename="a b.wav"'
    assert httpx.get(url.split("?")[0]).status_code == 403


def test_signed_urls_live_from_a_second_to_seven_days(storage: Storage) -> None:
    for wanted, given in ((0, 1), (-5, 1), (3600, 3600), (10**9, 604800)):
        assert httpx.URL(storage.presign_get("output/a.wav", seconds=wanted)).params["X-Amz-Expires"] == str(given)


@pytest.mark.parametrize(
    ("bucket", "start"),
    [
        ("my-bucket", "https://my-bucket.s3.af-south-1.amazonaws.com/output/a.wav?"),
        ("my.bucket", "https://s3.af-south-1.amazonaws.com/my.bucket/output/a.wav?"),  # as a host it has no certificate
    ],
)
def test_a_signed_url_of_aws_goes_to_the_region_of_the_bucket(bucket: str, start: str) -> None:
    storage = S3Storage(bucket=bucket, region="af-south-1", access_key_id="AKID", secret_access_key="secret")
    assert storage.presign_get("output/a.wav", seconds=60).startswith(start)
    assert storage.presign_put("output/a.wav", seconds=60, content_type="audio/wav", max_bytes=1).startswith(start)


def test_the_log_holds_no_key_and_no_signature(moto: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        storage = moto.storage()
        storage.put("output/a.wav", b"RIFF", content_type="audio/wav")
        url = storage.presign_get("output/a.wav", seconds=60)
    assert httpx.URL(url).params["X-Amz-Signature"] not in caplog.text
    assert moto.access_key_id not in caplog.text
    moto.empty()


def test_a_signed_url_stores_only_what_it_says(nanio: S3Server) -> None:
    storage = nanio.storage()
    url = storage.presign_put("uploads/anna/" + "0" * 32, seconds=60, content_type="audio/wav", max_bytes=100)
    assert "checksum" not in url.lower()
    assert httpx.put(url, content=b"RIFF", headers={"Content-Type": "text/html"}).status_code == 403
    assert httpx.get(url).status_code == 403
    assert (
        httpx.put(url.replace("anna", "bert"), content=b"x", headers={"Content-Type": "audio/wav"}).status_code == 403
    )
    assert httpx.put(url, content=b"RIFF", headers={"Content-Type": "audio/wav"}).status_code == 200
    assert storage.get("uploads/anna/" + "0" * 32, max_bytes=100) == b"RIFF"
    nanio.empty()


def test_the_check_passes_and_leaves_nothing_behind(storage: Storage) -> None:
    storage.check()
    assert storage.list(keys.HEALTHZ) == ([], None)


@pytest.mark.parametrize(
    ("other", "code"),
    [
        ({"access_key_id": "AKIDOFNOBODY00000000"}, "s3_bad_key_id"),
        ({"secret_access_key": "a-wrong-secret-0000000000000000000000000"}, "s3_bad_secret"),
        ({"bucket": "no-such-bucket"}, "s3_no_bucket"),
        ({"bucket": "Not A Bucket"}, "s3_no_bucket"),
        ({"endpoint_url": "http://127.0.0.1:9", "max_attempts": 1}, "s3_unreachable"),
    ],
)
def test_the_check_names_what_is_wrong_and_tells_no_secret(nanio: S3Server, other: dict[str, str], code: str) -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(StorageError) as caught:
        nanio.storage(**other).check()
    assert caught.value.code == code
    told = "".join(traceback.format_exception(caught.value)) + repr(logs)
    assert logs or code == "s3_no_bucket"
    secrets = (nanio.secret_access_key, nanio.access_key_id, "AKIDOFNOBODY", "a-wrong-secret", nanio.endpoint_url)
    assert not [secret for secret in (*secrets, "127.0.0.1", "X-Amz") if secret in told.replace(__file__, "")]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(status=403, code="AccessDenied", times=9), "s3_forbidden"),
        (Fault(status=403, code="RequestTimeTooSkewed", times=9), "s3_clock"),
        (Fault(status=400, code="ExpiredToken", times=9), "s3_bad_token"),
        (Fault(status=503, code="SlowDown", times=9), "s3_slow_down"),
        (Fault(status=500, code="InternalError", times=9), "s3_error"),
        (
            Fault(status=301, code="PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}, times=9),
            "s3_wrong_region",
        ),
        (
            Fault(status=400, code="AuthorizationHeaderMalformed", more="<Region>eu-west-1</Region>", times=9),
            "s3_wrong_region",
        ),
    ],
    ids=lambda value: value.code if isinstance(value, Fault) else "",
)
def test_each_answer_of_s3_has_its_own_message(moto: S3Server, proxy: FaultProxy, fault: Fault, code: str) -> None:
    proxy.faults.append(fault)
    with pytest.raises(StorageError) as caught:
        moto.storage(endpoint_url=proxy.endpoint_url, max_attempts=1).check()
    assert caught.value.code == code
    if code == "s3_wrong_region":
        assert "eu-west-1" in caught.value.message
    assert caught.value.retryable == (code in ("s3_slow_down", "s3_error"))


def test_a_server_that_does_not_answer_is_a_timeout(moto: S3Server, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault(hold=threading.Event(), times=9))
    storage = moto.storage(endpoint_url=proxy.endpoint_url, max_attempts=1, request_timeout_s=0.3)
    assert code_of(storage.check) == "s3_timeout"


def test_a_passing_slow_down_is_waited_out(moto: S3Server, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault(status=503, code="SlowDown", method="PUT", times=2))
    storage = moto.storage(endpoint_url=proxy.endpoint_url)
    storage.put("output/a.wav", b"RIFF", content_type="audio/wav")
    assert proxy.count("PUT") == 3


def test_a_body_that_breaks_off_is_asked_for_again(moto: S3Server, proxy: FaultProxy, tmp_path: Path) -> None:
    storage = moto.storage(endpoint_url=proxy.endpoint_url, range_bytes=50_000)
    data = random.Random(2).randbytes(200_000)
    storage.put("output/a.wav", data, content_type="audio/wav")
    proxy.faults += [Fault(method="GET", cut_at=1000), Fault(method="GET", cut_at=0)]
    assert storage.get("output/a.wav", max_bytes=10**6) == data
    proxy.faults += [Fault(method="GET", cut_at=1000), Fault(method="GET", cut_at=49_999)]
    storage.download("output/a.wav", tmp_path / "a", size=len(data))
    assert (tmp_path / "a").read_bytes() == data


def test_a_body_that_stands_still_is_asked_for_again() -> None:
    n_asked, ended = 0, threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal n_asked
            n_asked += 1
            self.send_response(200)
            self.send_header("Content-Length", "8")
            self.end_headers()
            self.wfile.write(b"RIFF")
            self.wfile.flush()
            if n_asked == 1:
                ended.wait(60)
            self.wfile.write(b"....")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            endpoint_url = f"http://127.0.0.1:{server.server_address[1]}"
            storage = S3Storage(
                bucket="voice-bucket", endpoint_url=endpoint_url, access_key_id="AKID", secret_access_key="secret",
                request_timeout_s=0.3,
            )  # fmt: skip
            assert storage.get("output/a.wav", max_bytes=100) == b"RIFF...."
        finally:
            ended.set()
            server.shutdown()
            thread.join()
    assert n_asked == 2


@pytest.mark.parametrize("error", [urllib3.exceptions.SSLError("bad record mac"), urllib3.exceptions.DecodeError("x")])
def test_a_connection_that_breaks_inside_tls_is_an_error_of_the_storage(error: Exception) -> None:
    with pytest.raises(StorageError) as caught, s3_errors("get"):
        raise error  # as botocore lets it through while a body is read
    assert (caught.value.code, caught.value.retryable) == ("s3_cut_off", True)


def test_a_profile_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(StorageError) as caught:
        S3Storage(bucket="b-b").check()
    assert (caught.value.code, caught.value.retryable) == ("s3_no_credentials", False)


def test_a_body_that_always_breaks_off_is_an_error_and_the_rest_is_kept(
    moto: S3Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    storage = moto.storage(endpoint_url=proxy.endpoint_url, range_bytes=50_000)
    data = random.Random(3).randbytes(200_000)
    storage.put("output/a.wav", data, content_type="audio/wav")
    target = tmp_path / "a"
    proxy.faults = [Fault(method="GET", cut_at=10, times=99)]
    assert code_of(lambda: storage.download("output/a.wav", target, size=len(data))) == "s3_cut_off"
    assert target.with_name("a.ranges").exists()
    proxy.faults.clear()
    storage.download("output/a.wav", target, size=len(data))
    assert target.read_bytes() == data


def test_a_download_goes_on_where_it_stopped(moto: S3Server, proxy: FaultProxy, tmp_path: Path) -> None:
    storage = moto.storage(endpoint_url=proxy.endpoint_url, range_bytes=50_000)
    data = random.Random(4).randbytes(200_000)
    storage.put("output/a.wav", data, content_type="audio/wav")
    storage.download("output/a.wav", tmp_path / "a", size=len(data))
    found = storage.head("output/a.wav")
    assert found is not None
    notes = f"{found.etag} 200000 50000\n0 50000\n100000 150000\n1500"
    (tmp_path / "a.ranges").write_text(notes)
    proxy.requests.clear()
    storage.download("output/a.wav", tmp_path / "a", size=len(data))
    asked = sorted(headers["range"] for method, _, headers in proxy.requests if method == "GET")
    assert asked == ["bytes=150000-199999", "bytes=50000-99999"]
    assert (tmp_path / "a").read_bytes() == data


def test_notes_about_another_object_are_not_believed(moto: S3Server, tmp_path: Path) -> None:
    storage = moto.storage(range_bytes=50_000)
    old, new = random.Random(5).randbytes(100_000), random.Random(6).randbytes(100_000)
    (tmp_path / "a").write_bytes(old)
    (tmp_path / "a.ranges").write_text("another-etag 100000 50000\n0 50000\n")
    storage.put("output/a.wav", new, content_type="audio/wav")
    storage.download("output/a.wav", tmp_path / "a", size=len(new))
    assert (tmp_path / "a").read_bytes() == new
    moto.empty()


def test_credentials_are_given_both_or_neither(moto: S3Server) -> None:
    with pytest.raises(ConfigError):
        moto.storage(secret_access_key=None)
    with pytest.raises(ConfigError):
        moto.storage(endpoint_url="ftp://example.com")


def test_without_credentials_anywhere_the_check_says_so(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage = moto.storage(access_key_id=None, secret_access_key=None)
    assert code_of(storage.check) == "s3_no_credentials"


@pytest.mark.parametrize("key", ["../x", "a//b", "/a", "a/", "a/../b", "a b", "voices/ä.wav", "x" * 600, ".hidden", ""])
def test_a_key_that_is_no_key_never_reaches_the_store(moto: S3Server, key: str) -> None:
    storage = moto.storage()
    for call in (
        lambda: storage.put(key, b"", content_type="audio/wav"),
        lambda: storage.get(key, max_bytes=1),
        lambda: storage.head(key),
        lambda: storage.delete(key),
        lambda: storage.presign_get(key, seconds=1),
        lambda: storage.presign_put(key, seconds=1, content_type="a/b", max_bytes=1),
    ):
        with pytest.raises(InvalidInput):
            call()
