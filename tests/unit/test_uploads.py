from __future__ import annotations

import asyncio
import itertools
import unicodedata
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from api import uploads
from api.uploads import Upload, display_name, read_body, read_upload
from pipeline.errors import InvalidInput, RequestError, TooLarge

BOUNDARY = "a-boundary"
MB = 2**20


class Sender:
    """A client that sends its blocks one by one and counts those taken."""

    def __init__(self, blocks: Iterable[bytes], **headers: str) -> None:
        self._blocks, self.n_taken = iter(blocks), 0
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.request = Request({"type": "http", "method": "POST", "headers": raw}, self._receive)

    async def _receive(self) -> Message:
        block = next(self._blocks, None)
        self.n_taken += block is not None
        return {"type": "http.request", "body": block or b"", "more_body": block is not None}


def part(body: bytes, disposition: str = 'form-data; name="file"; filename="a.wav"', *headers: str) -> bytes:
    lines = [f"--{BOUNDARY}", f"Content-Disposition: {disposition}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body + b"\r\n"


def field(name: str, value: bytes) -> bytes:
    return part(value, f'form-data; name="{name}"')


END = f"--{BOUNDARY}--\r\n".encode()


def form(*parts: bytes, block_bytes: int = 65536, **headers: str) -> Sender:
    body = b"".join(parts) + END
    blocks = [body[start : start + block_bytes] for start in range(0, len(body), block_bytes)]
    return Sender(blocks, content_type=f"multipart/form-data; boundary={BOUNDARY}", **headers)


async def uploaded(sender: Sender, max_bytes: int = MB) -> Upload:
    return await read_upload(sender.request, max_bytes=max_bytes)


async def code_of(sender: Sender, max_bytes: int = MB) -> str:
    with pytest.raises(RequestError) as refused:
        await uploaded(sender, max_bytes)
    return refused.value.code


def endless(block: bytes) -> Iterator[bytes]:
    return itertools.repeat(block)


# --- plain bodies


async def test_a_body_within_the_bound_is_read() -> None:
    assert await read_body(Sender([b"ab", b"", b"cd"]).request, max_bytes=4) == b"abcd"


async def test_a_body_without_end_is_cut_at_the_bound() -> None:
    sender = Sender(endless(bytes(1000)))
    with pytest.raises(TooLarge):
        await read_body(sender.request, max_bytes=10_000)
    assert sender.n_taken == 11


@pytest.mark.parametrize("announced", ["10001", "9" * 30])
async def test_a_body_that_is_announced_too_large_is_not_read_at_all(announced: str) -> None:
    sender = Sender(endless(b"a"), content_length=announced)
    with pytest.raises(TooLarge):
        await read_body(sender.request, max_bytes=10_000)
    assert sender.n_taken == 0


async def test_a_body_larger_than_announced_is_cut_all_the_same() -> None:
    with pytest.raises(TooLarge):
        await read_body(Sender(endless(b"aaaa"), content_length="4").request, max_bytes=10_000)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
async def test_a_packed_body_is_refused_unread(encoding: str) -> None:
    body, sent = Sender(endless(b"a"), content_encoding=encoding), form(part(b"a"), content_encoding=encoding)
    with pytest.raises(InvalidInput, match="packed"):
        await read_body(body.request, max_bytes=10)
    assert await code_of(sent) == "unsupported_encoding"
    assert body.n_taken == sent.n_taken == 0


async def test_a_sender_who_drips_is_refused_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_SECONDS", 0.01)

    async def never() -> Message:
        await asyncio.Event().wait()
        return {}

    with pytest.raises(InvalidInput) as refused:
        await read_body(Request({"type": "http", "headers": []}, never), max_bytes=10)
    assert refused.value.code == "upload_too_slow"


# --- forms


@pytest.mark.parametrize("block_bytes", [1, 7, 65536])
async def test_a_form_gives_its_file_and_its_fields_however_it_is_cut(block_bytes: int) -> None:
    data = bytes(range(256)) * 4 + f"\r\n--{BOUNDARY[:-1]}".encode()
    sender = form(
        field("language", "français".encode()),
        part(data, 'form-data; name="file"; filename="mémo.wav"', "Content-Type: video/webm"),
        field("grain[]", b"word"),
        field("grain[]", b"segment"),
        block_bytes=block_bytes,
    )
    upload = await uploaded(sender)
    assert upload.data == data
    assert upload.display_name == "mémo.wav"
    assert upload.text("language") == "français"
    assert upload.text("prompt") is None
    assert upload.fields["grain[]"] == ("word", "segment")
    with pytest.raises(InvalidInput):
        upload.text("grain[]")


async def test_a_file_of_exactly_the_bound_is_accepted_and_one_byte_more_is_not() -> None:
    assert len((await uploaded(form(part(bytes(1000))), 1000)).data) == 1000
    assert await code_of(form(part(bytes(1001))), 1000) == "upload_too_large"


async def test_a_file_without_end_is_cut_at_the_bound() -> None:
    start = part(b"").removesuffix(b"\r\n")
    sender = Sender(
        itertools.chain([start], endless(bytes(1000))), content_type=f"multipart/form-data; boundary={BOUNDARY}"
    )
    assert await code_of(sender, 10_000) == "upload_too_large"
    assert sender.n_taken == 12


async def test_what_follows_the_form_is_bounded_too() -> None:
    sender = Sender(
        itertools.chain([part(b"a") + END], endless(bytes(65536))),
        content_type=f"multipart/form-data; boundary={BOUNDARY}",
    )
    assert await code_of(sender, 10) == "upload_too_large"


async def test_ten_thousand_parts_are_refused_after_a_few() -> None:
    sender = form(*(field(f"f{i}", b"") for i in range(10_000)), block_bytes=1000)
    assert await code_of(sender) == "too_many_parts"
    assert sender.n_taken < 10


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([field("text", bytes(70_000))], "fields_too_large"),
        ([part(b"", "form-data; name=file", "X: " + "a" * 5000)], "broken_form"),
        ([part(b"", "form-data; name=file", *(f"X-{i}: a" for i in range(9)))], "broken_form"),
        ([part(b"a", "form-data")], "broken_form"),
        ([part(b"a", 'attachment; name="file"')], "broken_form"),
        ([part(b"a", "")], "broken_form"),
        ([b"--a-boundary\r\n\r\nbody\r\n"], "broken_form"),
        ([b"no boundary at all"], "broken_form"),
        ([part(b"a"), part(b"b")], "invalid_input"),
        ([part(b"a", 'form-data; name="other"; filename="b"')], "invalid_input"),
        ([field("text", b"a")], "invalid_input"),
        ([], "invalid_input"),
        ([field("text", b"\xff")], "invalid_text"),
        (
            [part(b"a", 'form-data; name="file"; filename="a"', "Content-Transfer-Encoding: base64")],
            "unsupported_encoding",
        ),
    ],
)
async def test_a_form_that_is_not_right_is_refused(parts: list[bytes], code: str) -> None:
    assert await code_of(form(*parts)) == code


async def test_a_form_that_stops_in_the_middle_is_refused() -> None:
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    assert await code_of(Sender([part(b"a")], content_type=kind)) == "broken_form"


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "audio/wav",
        "multipart/form-data",
        "multipart/mixed; boundary=a",
        f"multipart/form-data; boundary={'b' * 300}",
    ],
)
async def test_what_is_no_form_is_refused(kind: str) -> None:
    assert await code_of(Sender([part(b"a")], content_type=kind)) in ("not_multipart", "broken_form")


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([part(b"a"), field("a", b"b"), END, b"\r\n", b"--"])))
)
def test_any_bytes_are_a_form_or_refused(blocks: list[bytes]) -> None:
    sender = Sender([block for block in blocks if block], content_type=f"multipart/form-data; boundary={BOUNDARY}")
    try:
        upload = asyncio.run(uploaded(sender))
    except RequestError:
        return
    assert upload.data in b"".join(blocks)


# --- names


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("voice.wav", "voice.wav"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\voice.wav", "voice.wav"),
        ("..", ""),
        ("a\0b.wav", "ab.wav"),
        ("CON", "CON"),
        ("voice\u202egpj.wav", "voicegpj.wav"),
        ("in\r\nvoice.wav", "in voice.wav"),
        ("a\u200b\ufeff.wav", "a.wav"),
        ("e\u0301.wav", "é.wav"),
        ("n" * 300 + ".wav", "n" * 100),
        ("\ud800.wav", "?.wav"),
        ("", ""),
    ],
)
def test_a_name_is_shown_without_its_tricks(raw: str, shown: str) -> None:
    assert display_name(raw) == shown


@given(st.text(max_size=500))
def test_any_name_is_short_and_printable(raw: str) -> None:
    shown = display_name(raw)
    assert len(shown) <= 100
    assert "/" not in shown
    assert not [character for character in shown if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")]
