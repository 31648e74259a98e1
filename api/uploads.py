"""Request bodies and uploaded files, read with a bound that holds while they stream in.

Nothing is written to disk, and nothing of a file's name is used but a cleaned form to show to people.
"""

from __future__ import annotations

import asyncio
import io
import unicodedata
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from pipeline.errors import InvalidInput, TooLarge
from pipeline.untrusted_text import without_unseen

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS: Final = 32  # the largest form of the API has 12 fields
MAX_FIELDS_BYTES: Final = 65536  # all text fields together: 5 000 characters of any script, and some options
MAX_PART_HEADERS: Final = 8
MAX_PART_HEADER_BYTES: Final = 4096
_FRAMING_BYTES: Final = MAX_FIELDS_BYTES + MAX_PARTS * MAX_PART_HEADERS * MAX_PART_HEADER_BYTES
MAX_NAME_CHARACTERS: Final = 100
MAX_SECONDS: Final = 100.0  # RunPod's proxy ends a request that lasts longer


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file and the text fields sent with it. `display_name` is for people to read and for nothing else."""

    data: bytes
    display_name: str
    fields: Mapping[str, tuple[str, ...]]

    def text(self, name: str) -> str | None:
        """The field's value, None when it was not sent; sent twice it is `InvalidInput`."""
        values = self.fields.get(name, ())
        if len(values) > 1:
            raise InvalidInput(f"{name} was sent more than once", param=name)
        return values[0] if values else None


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """The whole body; `TooLarge` as soon as it is announced or has come in larger, the rest is not read."""
    _refuse_announced(request, max_bytes)
    body = io.BytesIO()
    async with aclosing(_blocks(request)) as blocks:
        async for block in blocks:
            if body.tell() + len(block) > max_bytes:
                raise _too_large(max_bytes)
            body.write(block)
    return body.getvalue()


async def read_upload(request: Request, *, file_field: str = "file", max_bytes: int) -> Upload:
    """The one file of a multipart form, by the name of its field, with the text fields around it.

    `max_bytes` bounds the file: past it `TooLarge`, and the rest is not read. `InvalidInput` when the form is not well
    formed, has no such file, several files, or too many or too large parts.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidInput("send the file as multipart/form-data", code="not_multipart")
    _refuse_announced(request, max_bytes + _FRAMING_BYTES, shown_bytes=max_bytes)
    form, n_bytes = _Form(file_field, max_bytes), 0
    try:
        parser = MultipartParser(
            options[b"boundary"],
            form.callbacks(),
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_PART_HEADER_BYTES,
        )
        async with aclosing(_blocks(request)) as blocks:
            async for block in blocks:
                n_bytes += len(block)
                if n_bytes > max_bytes + _FRAMING_BYTES:
                    raise _too_large(max_bytes)
                if not form.is_complete:
                    parser.write(block)
    except FormParserError as error:
        raise InvalidInput("the form is not well formed", code="broken_form") from error
    return form.upload()


async def _blocks(request: Request) -> AsyncGenerator[bytes, None]:
    """The body as it comes in; a sender who drips for longer than `MAX_SECONDS` is refused."""
    deadline = asyncio.get_running_loop().time() + MAX_SECONDS
    blocks = request.stream()
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                block = await anext(blocks, None)
        except TimeoutError as error:
            raise InvalidInput(f"the upload took longer than {MAX_SECONDS:g} s", code="upload_too_slow") from error
        if block is None:
            return
        yield block


def display_name(raw: str) -> str:
    """A file's name as people may see it: the last part, NFC, nothing invisible, at most 100 characters."""
    last = raw[-4 * MAX_NAME_CHARACTERS :].replace("\\", "/").rsplit("/", 1)[-1]
    shown = without_unseen(last.encode("utf-8", "replace").decode())
    cut = unicodedata.normalize("NFC", shown.strip()[:MAX_NAME_CHARACTERS]).strip()
    return cut if cut.strip(".") else ""


def _refuse_announced(request: Request, max_bytes: int, *, shown_bytes: int | None = None) -> None:
    """Refuse by the headers alone: a packed body, which has no honest size, and one announced too large."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise InvalidInput("a packed body (Content-Encoding) is not accepted", code="unsupported_encoding")
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > max_bytes):
        raise _too_large(shown_bytes if shown_bytes is not None else max_bytes)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"more than the {max_bytes / 2**20:g} MB that are accepted", code="upload_too_large")


@dataclass(slots=True)
class _Part:
    name: str
    file_name: str | None
    body: io.BytesIO = field(default_factory=io.BytesIO)


class _Form:
    """What the parser's callbacks fill."""

    def __init__(self, file_field: str, max_bytes: int) -> None:
        self.is_complete = False
        self._file_field, self._max_bytes = file_field, max_bytes
        self._file: _Part | None = None
        self._fields: dict[str, list[str]] = {}
        self._n_parts = self._n_field_bytes = 0
        self._part: _Part | None = None
        self._header, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._add_data,
            "on_part_end": self._close,
            "on_end": self._complete,
        }

    def upload(self) -> Upload:
        if not self.is_complete:
            raise InvalidInput("the form ends before its end", code="broken_form")
        if self._file is None:
            raise InvalidInput(f"the form has no file named {self._file_field}", param=self._file_field)
        fields = {name: tuple(values) for name, values in self._fields.items()}
        return Upload(self._file.body.getvalue(), display_name(self._file.file_name or ""), fields)

    def _begin(self) -> None:
        self._n_parts += 1
        if self._n_parts > MAX_PARTS:
            raise InvalidInput(f"the form has more than {MAX_PARTS} parts", code="too_many_parts")
        self._headers = {}

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _open(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise InvalidInput("a part of the form has no name", code="broken_form")
        packing = self._headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if packing not in (b"binary", b"8bit", b"7bit"):
            raise InvalidInput("a packed part (Content-Transfer-Encoding) is not accepted", code="unsupported_encoding")
        file_name = options.get(b"filename")
        self._part = _Part(
            _decoded(options[b"name"]), None if file_name is None else file_name.decode("utf-8", "replace")
        )
        if self._part.file_name is None and self._part.name != self._file_field:
            return
        if self._part.name != self._file_field or self._file is not None:
            raise InvalidInput(f"send one file, named {self._file_field}", param=self._file_field)
        self._file = self._part

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        if self._part is self._file:
            if self._file.body.tell() + end - start > self._max_bytes:
                raise _too_large(self._max_bytes)
        else:
            self._n_field_bytes += end - start
            if self._n_field_bytes > MAX_FIELDS_BYTES:
                raise TooLarge(f"the text fields hold more than {MAX_FIELDS_BYTES} bytes", code="fields_too_large")
        self._part.body.write(memoryview(data)[start:end])

    def _close(self) -> None:
        assert self._part is not None
        if self._part is not self._file:
            self._fields.setdefault(self._part.name, []).append(_decoded(self._part.body.getvalue()))

    def _complete(self) -> None:
        self.is_complete = True


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("a text field is not UTF-8", code="invalid_text") from error
