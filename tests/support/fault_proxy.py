"""An HTTP proxy in front of one server that hurts chosen requests: answers of its own, cut bodies, held answers."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

S3_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message>{more}</Error>'


@dataclass
class Fault:
    """What happens to the next `times` requests that `matches` holds for.

    With `status` the server is not asked. `cut_at`: so many bytes of the real body are passed on, then the connection
    ends; `flip`: a byte of the body is changed. `hold`: the answer waits for the event.
    """

    times: int = 1
    method: str = ""
    path: str = ""
    status: int = 0
    code: str = ""
    more: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    flip: bool = False
    hold: threading.Event | None = None
    after: bool = False
    """Ask the server first, then give `status` instead of its answer."""

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and method.startswith(self.method) and self.path in path


@dataclass
class FaultProxy:
    """`faults` in order; `requests` is every (method, path, headers in lower case) that came."""

    endpoint_url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    on_request: Callable[[str, str], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, path: str, headers: dict[str, str]) -> Fault | None:
        with self._lock:
            self.requests.append((method, path, headers))
            for fault in self.faults:
                if fault.matches(method, path):
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, path: str = "") -> int:
        """How often the method was asked for paths that hold `path`."""
        with self._lock:
            return sum(m == method and path in p for m, p, _ in self.requests)


@contextlib.contextmanager
def faulty(target: str) -> Iterator[FaultProxy]:
    """The proxy in front of the server at the URL `target`."""
    netloc = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self._body(headers)
            fault = proxy.take(self.command, self.path, headers)
            if proxy.on_request:
                proxy.on_request(self.command, self.path)
            if fault and fault.hold:
                fault.hold.wait(60)
            if fault and fault.status and not fault.after:
                self._own(fault)
                return
            upstream = http.client.HTTPConnection(netloc, timeout=60)
            try:
                # The signature is over the Host that the client wrote.
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "transfer-encoding", "expect", "content-length"):
                        upstream.putheader(name, value)
                if body or self.command in ("PUT", "POST"):
                    upstream.putheader("Content-Length", str(len(body)))
                upstream.endheaders(body)
                answer = upstream.getresponse()
                data = answer.read()
                if fault and fault.status:
                    self._own(fault)
                    return
                self._give(answer.status, answer.getheaders(), data, fault)
            finally:
                upstream.close()

        def _body(self, headers: dict[str, str]) -> bytes:
            if headers.get("expect") == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            return self.rfile.read(int(headers.get("content-length") or 0))

        def _give(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: Fault | None) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = {n.lower(): v for n, v in headers}.get("content-length", str(len(data)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
            self.end_headers()
            if fault and fault.flip and data:
                data = data[:-1] + bytes([data[-1] ^ 1])
            if fault and fault.cut_at is not None:
                data = data[: fault.cut_at]
                self.close_connection = True
            self.wfile.write(data)

        def _own(self, fault: Fault) -> None:
            body = b"" if self.command == "HEAD" else S3_ERROR.format(code=fault.code, more=fault.more).encode()
            self.send_response_only(fault.status)
            self.send_header("Content-Type", "application/xml")
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = FaultProxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield proxy
    finally:
        for fault in proxy.faults:
            if fault.hold:
                fault.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()
