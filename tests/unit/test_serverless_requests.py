"""What a job may ask for: a table of right and wrong values of every field, and inputs that mean harm."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema_rs import ValidationError
from jsonschema_rs import validate as validate_schema

from serverless.errors import JobError
from serverless.requests import (
    ENDPOINTS,
    MAX_UPLOAD_BYTES,
    ConfirmRequest,
    ListVoicesRequest,
    TtsRequest,
    UploadRequest,
    main,
    parse,
    schema,
)

ROOT = Path(__file__).resolve().parents[2]
TEXT = {"text": "Hello there."}
UPLOAD = {"endpoint": "upload", "voice_name": "anna", "voice_file_url": "https://example.com/a.wav"}
UPLOAD_ID = "0" * 32
JOB = "abc-123-u1"

# Field of tts -> what it takes, and what it does not.
TABLE: dict[str, tuple[list[Any], list[Any]]] = {
    "text": (
        ["a", "x" * 5000, "  trimmed  ", "日本語", "Zoë\tis\nhere"],
        ["", "   ", "x" * 5001, 5, None, ["a"], "?!", "\x00\u202e"],
    ),
    "speed": ([0.5, 1, 1.25, 2.0], [0.49, 2.01, True, "1.0", None, math.nan, math.inf, -1, 10**400, [1]]),
    "local_voice": (
        ["anna", "anna.wav", "A-1_b.c", None, "https://example.com/v.wav?x=1"],
        [
            "",
            "../anna",
            "a/b",
            "/etc/passwd",
            "a b",
            "äh",
            ".hidden",
            "a\n",
            "x" * 80,
            5,
            "ftp://x/y",
            "a\x00b",
            "..%2f",
        ],
    ),
    "return_word_timings": ([True, False], [1, "true", None]),
    "timing_method": (
        ["whisperx", "google", "auto", "ctc", "phonetic", "dtw", "estimate"],
        ["", "WhisperX", "aeneas", None, 1],
    ),
    "timing_format": (
        ["srt", "vtt", "csv", "json", "ass", ["srt"], ["ass", "json", "srt", "vtt", "csv"]],
        ["", "SRT", "txt", [], ["srt", "txt"], [1], None, {"srt": 1}, [["srt"]]],
    ),
    "timing_granularity": (["words", "segments"], ["word", "", None]),
    "timing_crlf": ([True, False], [0, "no"]),
    "timing_karaoke": ([True, False], [0, "no"]),
    "seed": ([0, 42, 2**63 - 1, None], [-1, 2**63, 1.0, "42", True]),
    "nfe_step": ([4, 7, 16, 32, 64, "fast", "balanced", "quality", None], [3, 65, 7.0, True, "7", "slow"]),
    "cfg_strength": ([0, 2.0, 10], [-0.1, 10.1, math.nan, "2", True]),
    "language": (["en", "fr", "de", "es", "it", "ja", "zh", "nl", None], ["EN", "en-US", "xx", "", 1]),
    "output_format": (["wav", "flac", "mp3", "opus"], ["WAV", "ogg", "exe", None]),
    "output_sample_rate": ([8000, 22050, 24000, 48000], [7999, 48001, 24000.0, "24000", True, 0]),
    "presign_seconds": ([1, 3600, 604800, None], [0, 604801, -1, 1.5, "60", True]),
    "idempotency_key": (["k", "x" * 200, "any text: é", None], ["", "x" * 201, 5]),
}
RIGHT = [(field, value) for field, (right, _) in TABLE.items() for value in right]
WRONG = [(field, value) for field, (_, wrong) in TABLE.items() for value in wrong]


def refused(job_input: Any, **options: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        parse(job_input, **options)
    return caught.value


def test_the_table_has_every_field_but_two() -> None:
    assert set(TABLE) == set(TtsRequest.model_fields) - {"endpoint", "ref_text"}


@pytest.mark.parametrize(("field", "value"), RIGHT, ids=lambda value: repr(value)[:30])
def test_a_field_takes_what_the_table_says(field: str, value: Any) -> None:
    assert isinstance(parse({**TEXT, field: value}), TtsRequest)


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: repr(value)[:30])
def test_a_field_refuses_what_the_table_says_and_is_named(field: str, value: Any) -> None:
    error = refused({**TEXT, field: value})
    assert error.code == "INVALID_INPUT"
    assert not error.retryable
    assert {entry.field.partition(".")[0] for entry in error.errors} == {field}
    assert all(entry.code and entry.message for entry in error.errors)


def test_what_is_not_given_has_the_defaults_of_the_page() -> None:
    request = parse(TEXT)
    assert isinstance(request, TtsRequest)
    assert request.model_dump() == {
        "endpoint": "tts",
        "text": "Hello there.",
        "local_voice": None,
        "ref_text": None,
        "language": None,
        "speed": 1.0,
        "seed": None,
        "nfe_step": None,
        "cfg_strength": 2.0,
        "output_format": "wav",
        "output_sample_rate": 24000,
        "return_word_timings": False,
        "timing_method": "whisperx",
        "timing_format": ["srt"],
        "timing_granularity": "words",
        "timing_crlf": False,
        "timing_karaoke": False,
        "presign_seconds": None,
        "idempotency_key": None,
    }


def test_values_become_what_the_worker_uses() -> None:
    request = parse({"text": " a ", "nfe_step": "fast", "timing_format": ["vtt", "srt", "vtt"], "local_voice": "a.wav"})
    assert isinstance(request, TtsRequest)
    assert (request.text, request.nfe_step, request.timing_format, request.local_voice) == ("a", 7, ["vtt", "srt"], "a")


def test_the_longest_text_is_a_setting() -> None:
    parse({"text": "x" * 10}, max_text_chars=10)
    error = refused({"text": "x" * 11}, max_text_chars=10)
    assert error.errors[0].message == "the text has 11 characters, and 10 are the most"


def test_ref_text_belongs_to_a_voice() -> None:
    assert refused({**TEXT, "ref_text": "Hi."}).errors[0].field == "ref_text"
    parse({**TEXT, "ref_text": "Hi.", "local_voice": "anna"})
    for wrong in ("", "x" * 1001, 5):
        assert refused({**TEXT, "ref_text": wrong, "local_voice": "anna"}).errors[0].field == "ref_text"


def test_mp3_takes_only_the_rates_that_it_has() -> None:
    parse({**TEXT, "output_format": "mp3", "output_sample_rate": 22050})
    assert (
        refused({**TEXT, "output_format": "mp3", "output_sample_rate": 23000}).errors[0].field == "output_sample_rate"
    )
    parse({**TEXT, "output_format": "wav", "output_sample_rate": 23000})


@pytest.mark.parametrize("name", ["statsu", "", "TTS", None, 1, ["tts"], {"a": 1}, "tts\n", "__class__"])
def test_an_unknown_endpoint_lists_all_and_never_speaks(name: Any) -> None:
    error = refused({**TEXT, "endpoint": name})
    assert error.code == "UNKNOWN_ENDPOINT"
    assert all(known in error.message for known in ENDPOINTS)


@pytest.mark.parametrize("job_input", [None, [], "text", 5, True])
def test_an_input_that_is_no_object_is_refused(job_input: Any) -> None:
    assert refused(job_input).errors[0].field == "input"


def test_every_endpoint_has_a_model_and_takes_its_own_fields() -> None:
    inputs: list[dict[str, Any]] = [
        TEXT,
        UPLOAD,
        {"endpoint": "request_upload", "voice_name": "anna", "presign_seconds": 60},
        {"endpoint": "confirm", "voice_name": "anna", "upload_id": UPLOAD_ID, "consent": True},
        {"endpoint": "list_voices", "limit": 1000, "prefix": "an", "cursor": "anna"},
        {"endpoint": "get_voice", "voice_name": "anna"},
        {"endpoint": "delete_voice", "voice_name": "anna"},
        {"endpoint": "status", "job_id": JOB},
        {"endpoint": "result", "job_id": JOB, "presign_seconds": 60},
        {"endpoint": "download", "job_id": JOB, "type": "timing", "format": "vtt"},
        {"endpoint": "info"},
        {"endpoint": "health"},
    ]
    assert [type(parse(each)) for each in inputs] == list(ENDPOINTS.values())


@pytest.mark.parametrize(
    ("job_input", "field"),
    [
        ({"endpoint": "status"}, "job_id"),
        ({"endpoint": "status", "job_id": "../a"}, "job_id"),
        ({"endpoint": "status", "job_id": "a\n"}, "job_id"),
        ({"endpoint": "status", "job_id": "a", "text": "x"}, "text"),
        ({"endpoint": "result", "job_id": "a" * 129}, "job_id"),
        ({"endpoint": "download", "job_id": "a", "format": "zip"}, "format"),
        ({"endpoint": "download", "job_id": "a", "type": "both"}, "type"),
        ({"endpoint": "list_voices", "limit": 0}, "limit"),
        ({"endpoint": "list_voices", "limit": 1001}, "limit"),
        ({"endpoint": "list_voices", "prefix": "../"}, "prefix"),
        ({"endpoint": "get_voice", "voice_name": "a/b"}, "voice_name"),
        ({"endpoint": "delete_voice", "voice_name": "voices/../x"}, "voice_name"),
        ({"endpoint": "confirm", "voice_name": "a", "upload_id": "../x"}, "upload_id"),
        ({**UPLOAD, "consent": "yes"}, "consent"),
        ({**UPLOAD, "overwrite": 1}, "overwrite"),
        ({**UPLOAD, "voice_file_url": "file:///etc/passwd"}, "voice_file_url"),
        ({**UPLOAD, "voice_file": "AAAA"}, "voice_file_url"),
        ({"endpoint": "upload", "voice_name": "a"}, "voice_file_url"),
        ({"endpoint": "upload", "voice_name": "a", "voice_file": "no base64!"}, "voice_file"),
        ({"endpoint": "upload", "voice_name": "a", "voice_file": 5}, "voice_file"),
    ],
)
def test_other_endpoints_name_the_field_at_fault(job_input: dict[str, Any], field: str) -> None:
    error = refused(job_input)
    assert (error.code, [entry.field for entry in error.errors]) == ("INVALID_INPUT", [field])


def test_a_voice_may_come_as_base64_or_a_data_url() -> None:
    text = base64.b64encode(b"RIFF").decode()
    for voice in (text, f"data:audio/wav;base64,{text}"):
        request = parse({"endpoint": "upload", "voice_name": "anna", "voice_file": voice})
        assert isinstance(request, UploadRequest)
        assert request.voice_file == b"RIFF"


def test_base64_may_come_in_lines_as_programs_write_it() -> None:
    voice = base64.encodebytes(bytes(range(256))).decode().replace("\n", "\r\n")
    request = parse({"endpoint": "upload", "voice_name": "anna", "voice_file": voice})
    assert isinstance(request, UploadRequest)
    assert request.voice_file == bytes(range(256))


def test_base64_of_more_than_seven_megabytes_is_refused_before_it_is_decoded() -> None:
    error = refused({"endpoint": "upload", "voice_name": "a", "voice_file": "!" * (MAX_UPLOAD_BYTES * 4 // 3 + 5)})
    assert "request_upload" in error.message


def test_consent_is_not_assumed() -> None:
    for job_input, kind in (
        (UPLOAD, UploadRequest),
        ({"endpoint": "confirm", "voice_name": "a", "upload_id": UPLOAD_ID}, ConfirmRequest),
    ):
        request = parse(job_input)
        assert isinstance(request, kind)
        assert request.consent is False


def test_pages_of_voices_have_a_default_length() -> None:
    request = parse({"endpoint": "list_voices"})
    assert isinstance(request, ListVoicesRequest)
    assert (request.limit, request.prefix, request.cursor) == (100, "", None)


def test_a_misspelt_field_names_the_nearest_one() -> None:
    error = refused({**TEXT, "sped": 1.0})
    assert error.message == "sped: no such field; did you mean speed?"


def test_all_wrong_fields_are_told_at_once_as_golden_json() -> None:
    answer = refused({"text": "", "speed": 3, "timing_format": ["srt", "doc"], "volume": 11}).answer()
    assert json.loads(json.dumps(answer)) == {
        "error": "INVALID_INPUT: text: there is no text to speak (and 3 more)",
        "error_code": "INVALID_INPUT",
        "retryable": False,
        "errors": [
            {"field": "text", "code": "invalid", "message": "there is no text to speak"},
            {"field": "speed", "code": "less_than_equal", "message": "it should be less than or equal to 2"},
            {
                "field": "timing_format.1",
                "code": "literal_error",
                "message": "it should be 'srt', 'vtt', 'csv', 'json' or 'ass'",
            },
            {"field": "volume", "code": "unknown", "message": "no such field"},
        ],
    }


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb"])
@pytest.mark.parametrize("field", ["text", "ref_text", "idempotency_key", "local_voice"])
def test_half_a_surrogate_pair_is_refused_before_anything_reads_it(field: str, value: str) -> None:
    assert refused({**TEXT, field: value}).errors[0].code == "not_unicode"


def test_no_value_of_the_caller_is_in_an_error() -> None:
    canary = "canary-of-the-caller"
    for field in TtsRequest.model_fields:
        if field != "endpoint":
            with pytest.raises(JobError) as caught:
                parse({**TEXT, field: {canary: [canary]}})
            assert canary not in json.dumps(caught.value.answer())


def test_names_of_unknown_fields_cannot_disturb_a_terminal_or_fill_the_answer() -> None:
    answer = refused({**TEXT, **{f"x\x1b[2J\n\u202e{number}{'y' * 500}": 1 for number in range(500)}}).answer()
    assert len(answer["errors"]) == 20
    assert len(json.dumps(answer)) < 10_000
    assert all(entry["field"].isprintable() for entry in answer["errors"])


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    endpoint=st.sampled_from([*ENDPOINTS, "other"]) | anything,
    fields=st.dictionaries(
        st.sampled_from(sorted({field for model in ENDPOINTS.values() for field in model.model_fields})) | st.text(),
        anything,
        max_size=6,
    ),
)
def test_whatever_comes_is_a_request_or_an_error_with_a_code(endpoint: Any, fields: dict[str, Any]) -> None:
    try:
        request = parse({**fields, "endpoint": endpoint})
    except JobError as error:
        json.dumps(error.answer()).encode()
    else:
        assert request.endpoint in ENDPOINTS


def test_jobs_with_the_same_result_have_the_same_fingerprint() -> None:
    def fingerprint(**more: Any) -> str:
        request = parse({**TEXT, **more})
        assert isinstance(request, TtsRequest)
        return request.fingerprint()

    same = {fingerprint(), fingerprint(idempotency_key="k"), fingerprint(presign_seconds=5), fingerprint(speed=1)}
    assert len(same) == 1
    others = {fingerprint(seed=1), fingerprint(speed=1.1), fingerprint(timing_format="vtt"), fingerprint(text="x")}
    assert len(others | same) == 5


def test_the_schema_has_every_endpoint_and_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(schema()))
    written = json.loads((ROOT / "serverless" / "input.schema.json").read_text())
    assert printed == written, "stale: python -m serverless.requests schema > serverless/input.schema.json"
    for part, (name, model) in zip(printed["oneOf"], ENDPOINTS.items(), strict=True):
        assert part["properties"]["endpoint"]["const"] == name
        assert set(part["properties"]) == set(model.model_fields)
        assert part["additionalProperties"] is False
    assert main([]) == 2


@pytest.mark.parametrize(("field", "value"), RIGHT, ids=lambda value: repr(value)[:30])
def test_the_schema_takes_all_that_the_worker_takes(field: str, value: Any) -> None:
    validate_schema(schema(), {"endpoint": "tts", **TEXT, field: value})


def test_the_schema_refuses_what_no_endpoint_has() -> None:
    wrong = [("timing_format", "doc"), ("timing_format", []), ("nfe_step", "slow"), ("nfe_step", 3), ("sped", 1)]
    for field, value in wrong:
        with pytest.raises(ValidationError):
            validate_schema(schema(), {"endpoint": "tts", **TEXT, field: value})
