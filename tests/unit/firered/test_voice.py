"""Voice files: small, exact, and refused when anything in them is wrong."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firered.errors import InputError
from firered.voice import MAX_VOICE_FRAMES, MIN_VOICE_FRAMES, VoicePrompt

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def some_codes(n_frames: int = 50, seed: int = 0, codebook_size: int = 2048) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).integers(0, codebook_size, (n_frames, 16))


def some_voice(n_frames: int = 50) -> VoicePrompt:
    return VoicePrompt(some_codes(n_frames), "I do not know.", "anna")


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


@settings(deadline=None)
@given(n_frames=st.integers(MIN_VOICE_FRAMES, 100), seed=st.integers(0, 2**32), transcript=TEXT, name=TEXT)
def test_a_voice_comes_back_from_its_bytes(n_frames: int, seed: int, transcript: str, name: str) -> None:
    voice = VoicePrompt(some_codes(n_frames, seed), transcript + "a", name)
    again = VoicePrompt.from_bytes(voice.to_bytes())
    assert again == voice
    assert hash(again) == hash(voice)
    assert again.digest == voice.digest
    assert (again.transcript, again.name) == (voice.transcript, voice.name)
    np.testing.assert_array_equal(again.codes, voice.codes)


def test_ten_seconds_of_voice_take_a_few_kilobytes() -> None:
    assert len(some_voice(125).to_bytes()) < 4200


def test_codes_are_a_read_only_copy() -> None:
    codes = some_codes()
    voice = VoicePrompt(codes, "a", "b")
    codes[:] = 0
    assert voice.codes.max() > 0
    assert voice.codes.dtype == np.int16
    assert (voice.n_frames, voice.seconds) == (50, 4.0)
    with pytest.raises(ValueError, match="read-only"):
        voice.codes[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        VoicePrompt.from_bytes(voice.to_bytes()).codes[0, 0] = 1


def test_voices_that_differ_in_one_code_or_word_are_not_equal() -> None:
    voice, codes = some_voice(), some_codes()
    codes[3, 3] ^= 1
    assert voice != VoicePrompt(codes, "I do not know.", "anna")
    assert voice != VoicePrompt(some_codes(), "I do not know!", "anna")
    assert voice != "anna"


def test_every_truncation_is_refused() -> None:
    data = some_voice(4).to_bytes()
    for length in range(len(data)):
        with pytest.raises(InputError):
            VoicePrompt.from_bytes(data[:length])


def test_every_flipped_bit_is_refused() -> None:
    data = some_voice(4).to_bytes()
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InputError):
            VoicePrompt.from_bytes(bytes(damaged))


@settings(deadline=None)
@given(data=st.binary(max_size=300))
def test_foreign_bytes_are_refused_even_behind_the_magic_and_a_right_checksum(data: bytes) -> None:
    for foreign in (data, b"FR2VOICE" + data, sealed(b"FR2VOICE" + struct.pack("<HI", 1, 10) + data)):
        with pytest.raises(InputError):
            VoicePrompt.from_bytes(foreign)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"name":"a","transcript":"a","n_frames":5}',
        b'{"name":"a","transcript":"a","n_frames":"x"}',
        b'{"name":"a","transcript":"","n_frames":4}',
        b'{"name":null,"transcript":"a","n_frames":4}',
        b'{"name":"a","transcript":["a"],"n_frames":4}',
        b"\xff",
    ],
)
def test_a_bad_header_with_a_right_checksum_is_refused(header: bytes) -> None:
    body = b"FR2VOICE" + struct.pack("<HI", 1, len(header)) + header + some_codes(4).astype("<i2").tobytes()
    with pytest.raises(InputError):
        VoicePrompt.from_bytes(sealed(body))


def test_another_version_is_named() -> None:
    body = bytearray(some_voice().to_bytes()[:-32])
    body[8] = 7
    with pytest.raises(InputError, match="version 7"):
        VoicePrompt.from_bytes(sealed(bytes(body)))


def test_codes_of_a_larger_codebook_are_refused() -> None:
    data = some_voice().to_bytes()
    with pytest.raises(InputError, match="another codec"):
        VoicePrompt.from_bytes(data, codebook_size=64)
    tiny = VoicePrompt(some_codes(codebook_size=64), "a", "b")
    assert VoicePrompt.from_bytes(tiny.to_bytes(), codebook_size=64) == tiny


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (some_codes(50)[:, :15], "shape"),
        (some_codes(50)[0], "shape"),
        (some_codes(50) / 2, "whole numbers"),
        (np.full((5, 16), -1), "out of range"),
        (np.full((5, 16), 40_000), "out of range"),
        (some_codes(MIN_VOICE_FRAMES - 1), "frames"),
        (some_codes(MAX_VOICE_FRAMES + 1), "frames"),
    ],
)
def test_codes_of_a_wrong_kind_are_refused(codes: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VoicePrompt(codes, "a", "b")


@pytest.mark.parametrize("transcript", ["", "  ", "...", "a" * 1201, "a\ud800"])
def test_a_transcript_that_cannot_be_one_is_refused(transcript: str) -> None:
    with pytest.raises(InputError):
        VoicePrompt(some_codes(), transcript, "anna")
