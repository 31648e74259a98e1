"""A real HTTP server on a free loopback port that serves byte strings and misbehaves on request."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """`files` by path. `cut_after` gives, one entry a request, after how many body bytes the connection breaks."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    headers_of: dict[str, dict[str, str]] = field(default_factory=dict)
    """More headers of single paths."""
    redirects: dict[str, str] = field(default_factory=dict)
    """Path to path or to another server's URL; `headers` then go with the redirect, as of a hub with a store."""
    status: int | None = None
    honours_range: bool = True
    cut_after: list[int | None] = field(default_factory=list)
    stall: threading.Event | None = None
    """With `cut_after`: hold the connection open at that point until the event is set."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """(method, path, headers in lower case) in order of arrival."""

    def asked_for(self, path: str) -> list[str | None]:
        """The Range header of each GET of `path`."""
        return [headers.get("range") for method, p, headers in self.requests if (method, p) == ("GET", path)]


@contextlib.contextmanager
def serving(files: dict[str, bytes] | None = None) -> Iterator[FileServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.requests.append((self.command, self.path, headers))
            if self.path in server.redirects:
                self.send_response(302)
                target = server.redirects[self.path]
                self.send_header("Location", target if "://" in target else server.address + target)
                self.send_header("Content-Length", "0")
                for name, value in (server.headers | server.headers_of.get(self.path, {})).items():
                    self.send_header(name, value)
                self.end_headers()
                return
            body = server.files.get(self.path)
            status = server.status or (200 if body is not None else 404)
            if body is None or status >= 400:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = 0
            if server.honours_range and "range" in headers:
                start = int(headers["range"].removeprefix("bytes=").removesuffix("-"))
                status = 206
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            common = {} if server.redirects else server.headers
            for name, value in (common | server.headers_of.get(self.path, {})).items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self._send(body[start:])

        def _send(self, body: bytes) -> None:
            limit = server.cut_after.pop(0) if server.cut_after else None
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body if limit is None else body[:limit])
                self.wfile.flush()
            if limit is not None:
                self.close_connection = True
                if server.stall:
                    server.stall.wait(60)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = FileServer(f"http://127.0.0.1:{http.server_address[1]}", files or {})
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        if server.stall:
            server.stall.set()
        http.shutdown()
        http.server_close()
        thread.join()
