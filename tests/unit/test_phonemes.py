import shutil
import subprocess
from typing import Any

import pytest

from pipeline.engines import phonemes
from pipeline.engines.phonemes import kokoro_spelling, pronounceable, require_program
from pipeline.engines.phonemes import phonemes as ipa_of
from pipeline.errors import ConfigError, EngineFailed, EngineTimeout

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="the program espeak-ng is not installed")


@pytest.mark.parametrize("text", ["", "...", "😀 🎉", "— !", "日本語", "\x00\x1b", "“”()"])
def test_what_nobody_can_say_is_nothing(text: str) -> None:
    assert pronounceable(text) == ""
    assert ipa_of(text, "en-us") == ""


def test_emoji_and_other_scripts_are_left_out_of_a_sentence() -> None:
    assert pronounceable("Déjà vu 😀 in 日本, it cost $5.50!") == "Déjà vu in , it cost $5.50!"


@needs_espeak
@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("Hello there, how are you?", ",?"),
        ("Wait… what?! No: yes; no.", "…?:;."),
        ("It is 3.14 at 12:30.", "."),
        ("One — two—three", "——"),
        ('"Well," she said, "no."', ",,."),
        ("A cat (black) sat.", ",,."),
        ("First line.\n\nSecond line!", ".!"),
    ],
)
def test_punctuation_stays_between_the_phonemes(text: str, marks: str) -> None:
    ipa = ipa_of(text, "en-us")
    assert "".join(char for char in ipa if char in ",.!?;:—…") == marks


@needs_espeak
def test_a_text_that_espeak_cuts_further_keeps_all_its_words() -> None:
    joined = ipa_of("hello e.g. world", "en-us")
    assert "wˈɜːld" in joined
    assert "həlˈoʊ" in joined


@needs_espeak
def test_accents_differ() -> None:
    assert ipa_of("water", "en-us") != ipa_of("water", "en-gb")


@needs_espeak
def test_a_text_that_looks_like_an_option_is_only_text() -> None:
    assert ipa_of("--help -v de", "en-us")


def test_kokoro_gets_its_own_letters_for_diphthongs() -> None:
    assert kokoro_spelling("bˈɔɪɪʃ vˈɔɪs tʃˈɜːtʃ ɡˌoʊ", "en-us") == "bˈYɪʃ vˈYs ʧˈɜɹʧ ɡˌO"
    assert kokoro_spelling("wˈɔːtə ɡˌəʊ", "en-gb") == "wˈɔːtə ɡˌQ"


def test_a_missing_program_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phonemes, "PROGRAM", "espeak-ng-that-is-not-there")
    with pytest.raises(ConfigError, match="apt-get install espeak-ng"):
        require_program()
    with pytest.raises(EngineFailed, match="not-there could not be started: No such file"):
        ipa_of("hello", "en-us")


def test_a_killed_program_fails_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, -9, b"", b"")

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(EngineFailed):
        ipa_of("hello", "en-us")


def test_a_program_that_hangs_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(command: list[str], timeout: float, **kwargs: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    with pytest.raises(EngineTimeout):
        ipa_of("hello", "en-us")
