"""No word of a caller makes a key that leaves its prefix."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from serverless import keys
from serverless.errors import JobError
from serverless.storage import clamp_seconds, disposition

WITH_A_NAME: dict[str, Callable[[str], str]] = {
    "voices/": keys.voice_audio,
    "voices": keys.voice_meta,
    "voice": keys.voice_text,
    "uploads/": lambda name: keys.upload(name, "0" * 32),
    "output/": lambda job: keys.output(job, "wav"),
    "timings/": lambda job: keys.timing(job, "srt"),
    "jobs/": keys.manifest,
    "jobs/i": keys.idempotency,
    "healthz/": keys.health,
    "models/": lambda word: keys.model(word, word, word),
}
HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "..\\x",
    "a/b",
    "/a",
    "a/",
    "a\\b",
    "~",
    "a b",
    " a",
    "a\n",
    "a\0b",
    "%2e%2e%2f",
    "a%2fb",
    ".hidden",
    "-rf",
    "ä",
    "ａ",
    "a\u202eb",
    "a\u200b",
    "İ",
    "١",
    "x" * 129,
    "a.wav.wav",
    "😀",
    "a?b",
    "a#b",
    "a:b",
    "a*",
    "$(id)",
]
SAFE = set(string.ascii_letters + string.digits + "_.-/+=@,")


@given(st.text())
@pytest.mark.parametrize("prefix", WITH_A_NAME)
def test_any_text_gives_a_plain_key_below_its_prefix_or_an_error(prefix: str, word: str) -> None:
    try:
        key = WITH_A_NAME[prefix](word)
    except (JobError, InvalidInput):
        return
    assert key.startswith(prefix)
    assert set(key) <= SAFE
    assert not {"", ".", ".."} & set(key.split("/"))
    assert keys.checked(key) == key


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True))
def test_a_good_name_is_kept_with_and_without_its_suffix(name: str) -> None:
    if name.lower().endswith(".wav"):
        return
    assert keys.voice_name(name) == name
    assert keys.voice_name(name + ".wav") == name
    assert keys.voice_audio(name) == f"voices/{name}.wav"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_with_the_field_at_fault(name: str) -> None:
    with pytest.raises(JobError) as caught:
        keys.voice_name(name, field="local_voice")
    assert (caught.value.code, caught.value.errors[0].field) == ("INVALID_INPUT", "local_voice")
    if len(name) > 6 and name.isascii():
        assert name not in caught.value.message


@pytest.mark.parametrize("name", [None, 3, b"a", ["a"], True])
def test_what_is_no_string_is_refused(name: object) -> None:
    with pytest.raises(JobError):
        keys.voice_name(name)
    with pytest.raises(JobError):
        keys.job_id(name)
    with pytest.raises(JobError):
        keys.idempotency(name)
    with pytest.raises(JobError):
        keys.upload("anna", name)


@pytest.mark.parametrize("job", ["a1b2-c3-u1", "sync-0f-e1", "A" * 128, "local_test"])
def test_ids_of_runpod_are_kept(job: str) -> None:
    assert keys.manifest(job) == f"jobs/{job}.json"


@pytest.mark.parametrize("job", [each for each in HOSTILE if each != "a.wav.wav"])
def test_hostile_ids_of_jobs_are_refused(job: str) -> None:
    with pytest.raises(JobError, match="job_id"):
        keys.manifest(job)


@pytest.mark.parametrize("suffix", ["", "WAV", "a/b", "..", "w av", "toolongsuffix", "é"])
def test_hostile_suffixes_are_refused(suffix: str) -> None:
    with pytest.raises(JobError):
        keys.output("job", suffix)


def test_an_idempotency_key_is_stored_as_its_hash_alone() -> None:
    assert keys.idempotency("../../secret order") == keys.idempotency("../../secret order")
    assert "secret" not in keys.idempotency("../../secret order")
    assert keys.idempotency("a") != keys.idempotency("b")
    with pytest.raises(JobError):
        keys.idempotency("x" * 257)


def test_the_check_of_a_worker_with_any_name_has_a_key() -> None:
    assert keys.health("pod/../x y") == "healthz/pod----x-y"
    assert keys.health("") == "healthz/worker"


@given(st.text())
def test_a_file_name_cannot_break_out_of_its_header(name: str) -> None:
    header = disposition(name)
    assert header.isascii()
    assert header.count('"') == 2
    assert not set(header) & set("\r\n\\")


@given(st.integers())
def test_signed_urls_live_between_a_second_and_seven_days(seconds: int) -> None:
    assert 1 <= clamp_seconds(seconds) <= 604_800
