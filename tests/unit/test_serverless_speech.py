"""Speech of any length out of short chunks: text, seeds, joins, references and files, with a voice that hums."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import AudioChunk, Samples
from pipeline.engines import f5_reference
from pipeline.engines.f5_text import (
    MAX_TOTAL_S,
    MIN_SPEECH_S,
    byte_rate,
    max_text_bytes,
    readable,
    reference_text,
    speech_seconds,
)
from pipeline.errors import EngineFailed, OutOfMemory
from pipeline.text_chunks import chunks_of, is_speakable
from serverless import speech
from serverless.audio_files import encode
from serverless.clean_text import clean
from serverless.errors import JobError
from serverless.speech import Reference, Speech, chunk_seed, cut_reference, default_reference, joined, prepare_reference

RATE = 24_000
REFERENCE = Reference("key", AudioChunk(np.full(RATE * 5, 0.1, np.float32), RATE), "x" * 74)  # 15 bytes a second


class Hummer:
    """Gives noise of the length that F5-TTS would give, the same for the same seed."""

    def __init__(self, *, loudness: float = 0.3, fails: Callable[[int, str], None] | None = None) -> None:
        self.loudness, self.fails = loudness, fails
        self.texts: list[str] = []
        self.seeds: list[int] = []

    def speak_chunk(
        self,
        reference: AudioChunk,
        reference_text: str,
        text: str,
        *,
        seed: int,
        speed: float,
        nfe_step: int,
        cfg_strength: float,
        cancelled: Callable[[], bool],
    ) -> Samples:
        self.texts.append(text)
        self.seeds.append(seed)
        if self.fails is not None:
            self.fails(len(self.texts), text)
        seconds = speech_seconds(text, byte_rate(reference.seconds, reference_text), speed)
        noise = np.random.default_rng(seed).uniform(-1, 1, round(seconds * RATE))
        return (noise * self.loudness).astype(np.float32)


def speak(text: str, engine: Hummer | None = None, **options: object) -> Speech:
    arguments: dict[str, object] = {"cancelled": lambda: False, "progress": lambda *_: None, "seed": 7} | options
    return speech.synthesize(engine or Hummer(), REFERENCE, text, **arguments)  # type: ignore[arg-type]


LONG = " ".join(f"This is sentence number {n}, and it says a little." for n in range(30))

# --- text


@pytest.mark.parametrize(
    "text", ["", "   ", "\n\n", "...?!", "😀🎉", "\u202e\u200b", "\ud800", "\x00\x07", "— – …", "\u0301" * 9]
)
def test_text_without_a_letter_or_digit_is_refused_for_its_field(text: str) -> None:
    with pytest.raises(JobError) as caught:
        clean(text)
    assert caught.value.code == "INVALID_INPUT"
    assert [error.field for error in caught.value.errors] == ["text"]


@settings(deadline=None)
@given(st.text(st.characters(), max_size=300).map(lambda text: f"a{text}"))
def test_cleaned_text_has_no_control_characters_and_cleaning_it_again_changes_nothing(text: str) -> None:
    cleaned = clean(text)
    assert not {unicodedata.category(c) for c in cleaned.replace("\n", "")} & {"Cc", "Cf", "Cs", "Co", "Cn"}
    assert "  " not in cleaned
    assert cleaned == cleaned.strip()
    assert unicodedata.is_normalized("NFC", cleaned)
    assert clean(cleaned.replace("\n", "\n\n")) == cleaned
    cleaned.encode()


def test_lines_join_and_paragraphs_stay_apart() -> None:
    assert (
        clean("One\r\nline.\n \t\nTwo\u2028lines.\u2029Three\u00a0 \x85 lines") == "One line.\nTwo lines.\nThree lines"
    )


def test_a_row_of_marks_is_shortened() -> None:
    assert clean("Wait" + "." * 500 + " what" + "!?" * 3) == "Wait... what!?!?!?"


texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=400),
    st.text(st.sampled_from("ab, .!?;:—\n今天天気。、「」あいうé\u0301"), max_size=400),
    st.lists(
        st.sampled_from(["Hello there.", "Dr. Smith said: yes;", "今天天气不错。", "x" * 70, "e\u0301" * 30]),
        max_size=12,
    ).map(" ".join),
)


@settings(deadline=None, max_examples=200)
@given(texts, st.integers(0, 200))
def test_chunks_join_back_and_keep_to_their_bytes(text: str, max_bytes: int) -> None:
    chunks = chunks_of(text, max_bytes)
    assert "".join(chunks) == text
    assert all(chunks)
    assert max((len(chunk.strip().encode()) for chunk in chunks), default=0) <= max(max_bytes, 16)


@settings(deadline=None)
@given(st.lists(st.text("abcdefgh", min_size=1, max_size=15), min_size=1, max_size=60), st.integers(16, 120))
def test_words_that_fit_stay_whole(words: list[str], max_bytes: int) -> None:
    spoken = [word for chunk in chunks_of(" ".join(words), max_bytes) for word in chunk.split()]
    assert spoken == words


def test_cuts_lie_at_sentences_then_clauses_then_words_and_never_in_an_accent() -> None:
    text = "First one here. The second one is a bit longer, with a clause. Last."
    assert [chunk.strip() for chunk in chunks_of(text, 50)] == [
        "First one here.",
        "The second one is a bit longer, with a clause.",
        "Last.",
    ]
    assert [chunk.strip() for chunk in chunks_of(text, 34)] == [
        "First one here.",
        "The second one is a bit longer,",
        "with a clause.",
        "Last.",
    ]
    assert [chunk.strip() for chunk in chunks_of("one two three four five six", 16)] == [
        "one two three",
        "four five six",
    ]
    assert all(unicodedata.combining(part[0]) == 0 for part in chunks_of("e\u0301" * 40, 20))


def test_chunks_of_a_paragraph_are_about_equally_long() -> None:
    lengths = [len(chunk) for chunk in chunks_of(LONG, 400)]
    assert len(lengths) == 4
    assert min(lengths) > 0.8 * max(lengths)


def test_japanese_and_chinese_are_cut_at_their_own_marks_and_words() -> None:
    assert chunks_of("今日は天気です。明日は雨です。", 30) == ["今日は天気です。", "明日は雨です。"]
    parts = chunks_of("我喜欢吃苹果和香蕉但是不喜欢吃梨", 24)
    assert "".join(parts) == "我喜欢吃苹果和香蕉但是不喜欢吃梨"
    assert any("苹果" in part for part in parts)
    assert any("香蕉" in part for part in parts)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("NASA and the BBC", "NASA and the BBC"),
        ("This is IMPORTANT news", "This is important news"),
        ("STOP IT NOW", "stop it now"),
        ("OK", "OK"),
        ("ÉCOLE FERMÉE", "école fermée"),
    ],
)
def test_shouting_is_not_spelled_and_acronyms_are(text: str, read: str) -> None:
    assert readable(text) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Hello", "Hello. "),
        ("Hello. ", "Hello. "),
        ("Really?", "Really? "),
        ("你好。", "你好。"),
        ("你好", "你好. "),
        ("So, ", "So. "),
    ],
)
def test_a_reference_text_ends_as_a_sentence(text: str, read: str) -> None:
    assert reference_text(text) == read


@given(st.floats(1, 12), st.text(max_size=200), st.floats(0.5, 2), st.floats(0, 1))
def test_reference_and_new_speech_stay_within_what_one_run_can_do(
    seconds: float, text: str, speed: float, share: float
) -> None:
    rate = byte_rate(seconds, text or "x")
    n_bytes = int(max_text_bytes(seconds, rate, speed) * share)
    assert seconds + speech_seconds("x" * n_bytes, rate, speed) <= MAX_TOTAL_S + MIN_SPEECH_S / speed


def test_short_texts_get_their_time_and_the_speed_still_counts() -> None:
    assert speech_seconds("Hi.", 15, 1.0) == MIN_SPEECH_S
    assert speech_seconds("Hi.", 15, 2.0) == MIN_SPEECH_S / 2


# --- chunks into speech


def test_the_same_seed_gives_the_same_samples_over_several_chunks_and_another_seed_others() -> None:
    first, again, other = speak(LONG, seed=5), speak(LONG, seed=5), speak(LONG, seed=6)
    assert len(first.chunks) > 3
    np.testing.assert_array_equal(first.audio.samples, again.audio.samples)
    assert not np.array_equal(first.audio.samples, other.audio.samples)


def test_every_chunk_has_a_seed_of_its_own_that_torch_takes() -> None:
    engine = Hummer()
    speak(LONG, engine, seed=2**32 - 1)
    assert len(set(engine.seeds)) == len(engine.seeds)
    assert all(0 <= seed < 2**63 for seed in engine.seeds)
    assert len({chunk_seed(seed, index) for seed in range(50) for index in range(50)}) == 2500


def test_without_a_seed_one_is_drawn_and_told() -> None:
    first, other = speak("Hello there.", seed=None), speak("Hello there.", seed=None)
    assert first.seed != other.seed
    np.testing.assert_array_equal(speak("Hello there.", seed=first.seed).audio.samples, first.audio.samples)


def test_the_chunks_hold_all_words_in_order_and_their_spans_cover_the_audio() -> None:
    said = speak(LONG)
    assert " ".join(chunk.text for chunk in said.chunks) == LONG
    assert said.chunks[0].start_s == 0
    assert said.chunks[-1].end_s == said.audio.seconds
    for before, after in zip(said.chunks, said.chunks[1:], strict=False):
        assert before.end_s == after.start_s


def test_a_paragraph_ends_with_a_pause_that_belongs_to_no_chunk() -> None:
    said = speak("Here is the first one.\n\nAnd the second one.")
    first, second = said.chunks
    assert second.start_s - first.end_s == pytest.approx(speech.PARAGRAPH_PAUSE_S)
    pause = said.audio.samples[round(first.end_s * RATE) : round(second.start_s * RATE)]
    assert not pause.any()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12_000), st.booleans()), min_size=1, max_size=6))
def test_joined_audio_is_where_its_spans_say(parts: list[tuple[int, bool]]) -> None:
    """Each chunk is a constant of its own, so the samples tell which chunk they come from."""
    levels = [0.1 * (n + 1) for n in range(len(parts))]
    spoken = [np.full(size, level, np.float32) for (size, _), level in zip(parts, levels, strict=True)]
    audio, spans = joined(spoken, [is_paragraph for _, is_paragraph in parts])
    assert np.isfinite(audio.samples).all()
    end = 0.0
    for index, ((start_s, end_s), level) in enumerate(zip(spans, levels, strict=True)):
        assert end <= start_s <= end_s <= audio.seconds
        middle = round((start_s + end_s) / 2 * RATE)
        if end_s - start_s > 2 * speech.CROSS_FADE_S:
            assert audio.samples[middle] == pytest.approx(level)
        if index and not parts[index - 1][1]:
            assert start_s == end
        end = end_s
    assert end == audio.seconds


def test_a_cross_fade_keeps_the_level_and_the_ends_do_not_click() -> None:
    flat = np.full(RATE, 0.5, np.float32)
    audio, _ = joined([flat, flat, flat], [False, False, True])
    assert audio.n_samples == 3 * RATE - 2 * round(speech.CROSS_FADE_S * RATE)
    np.testing.assert_allclose(audio.samples[200:-200], 0.5, atol=1e-6)
    assert abs(audio.samples[0]) < 0.01
    assert abs(audio.samples[-1]) < 0.01


def test_loud_speech_is_lowered_and_never_clipped() -> None:
    said = speak("Hello there.", Hummer(loudness=3.0))
    assert np.abs(said.audio.samples).max() == pytest.approx(speech.PEAK, rel=1e-5)
    assert said.audio.samples.dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, None])
def test_what_is_not_audio_fails_the_job(bad: float | None) -> None:
    class Broken(Hummer):
        def speak_chunk(self, *arguments: object, **options: object) -> Samples:
            return np.array([] if bad is None else [0.1, bad], np.float32)

    with pytest.raises(EngineFailed):
        speak("Hello there.", Broken())


def test_progress_counts_chunks_and_seconds() -> None:
    told: list[tuple[int, int, float]] = []
    said = speak(LONG, progress=lambda *values: told.append(values))
    n = len(said.chunks)
    assert [(done, total) for done, total, _ in told] == [(i + 1, n) for i in range(n)]
    assert [seconds for *_, seconds in told] == sorted(seconds for *_, seconds in told)
    assert told[-1][2] == pytest.approx(said.audio.seconds, abs=0.16 * n)


def test_stretches_of_marks_alone_are_not_spoken() -> None:
    engine = Hummer()
    said = speak("Hello.\n\n— * — ?\n\nBye.", engine)
    assert engine.texts == ["Hello.", "Bye."] == [chunk.text for chunk in said.chunks]


def test_cancelling_between_chunks_ends_the_job() -> None:
    engine = Hummer()
    with pytest.raises(JobError) as caught:
        speak(LONG, engine, cancelled=lambda: len(engine.texts) == 2)
    assert (caught.value.code, len(engine.texts)) == ("CANCELLED", 2)


def test_an_engine_that_ends_because_it_was_cancelled_is_no_failure_of_the_engine() -> None:
    is_cancelled = False

    def fails(_n: int, _text: str) -> None:
        nonlocal is_cancelled
        is_cancelled = True
        raise EngineFailed("stopped", stage="tts")

    with pytest.raises(JobError) as caught:
        speak("Hello there.", Hummer(fails=fails), cancelled=lambda: is_cancelled)
    assert caught.value.code == "CANCELLED"


def test_an_error_that_the_cancel_check_raises_comes_out() -> None:
    def late() -> bool:
        raise JobError("TIMEOUT", "too late")

    with pytest.raises(JobError) as caught:
        speak("Hello there.", cancelled=late)
    assert caught.value.code == "TIMEOUT"


def test_running_out_of_memory_is_tried_once_more_in_half_the_length() -> None:
    def fails(n: int, _text: str) -> None:
        if n == 2:
            raise OutOfMemory("full", stage="tts")

    engine = Hummer(fails=fails)
    said = speak(LONG, engine)
    assert said.n_oom_retries == 1
    assert " ".join(chunk.text for chunk in said.chunks) == LONG
    assert max(map(len, engine.texts[2:])) <= max(map(len, engine.texts[:2])) * 0.6


def test_running_out_of_memory_twice_is_told() -> None:
    def fails(_n: int, _text: str) -> None:
        raise OutOfMemory("full", stage="tts")

    engine = Hummer(fails=fails)
    with pytest.raises(JobError) as caught:
        speak(LONG, engine)
    assert (caught.value.code, caught.value.retryable, len(engine.texts)) == ("OUT_OF_MEMORY", True, 2)


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=200))
def test_hostile_text_is_spoken_or_refused_and_nothing_else(text: str) -> None:
    engine = Hummer()
    if not is_speakable(text):
        with pytest.raises(JobError):
            speak(text, engine)
        assert not engine.texts
        return
    said = speak(text, engine)
    assert said.audio.n_samples
    for spoken in engine.texts:
        assert is_speakable(spoken)
        spoken.encode()


# --- references


def bursts(*seconds: float, pause_s: float = 0.3, edge_s: float = 0.5) -> AudioChunk:
    """Noise of these lengths with pauses between."""
    random = np.random.default_rng(3)
    parts = [np.zeros(round(edge_s * RATE))]
    for length in seconds:
        parts += [random.uniform(-0.3, 0.3, round(length * RATE)), np.zeros(round(pause_s * RATE))]
    return AudioChunk(np.concatenate([*parts[:-1], parts[0]]).astype(np.float32), RATE)


def test_a_short_recording_keeps_its_text_and_loses_the_silence_around_it() -> None:
    reference = prepare_reference(bursts(2, 3, edge_s=2.0), " Two words, three. ")
    assert reference.text == "Two words, three."
    assert reference.audio.sample_rate == RATE
    assert reference.audio.seconds == pytest.approx(5.3 + 0.06 + f5_reference.TAIL_S, abs=0.03)
    assert not reference.audio.samples[-round(f5_reference.TAIL_S * RATE) :].any()


def test_another_rate_becomes_24_khz() -> None:
    reference = prepare_reference(bursts(3).resampled(44_100), "Some words.")
    assert reference.audio.sample_rate == RATE
    assert reference.audio.seconds == pytest.approx(3.1, abs=0.05)


def test_the_key_follows_from_audio_and_text() -> None:
    keys = {prepare_reference(bursts(3), text).key for text in ("One.", "Two.", "One.")}
    keys.add(prepare_reference(bursts(4), "One.").key)
    assert len(keys) == 3


def test_a_long_recording_is_cut_in_a_pause_together_with_its_text() -> None:
    text = "The first part has four. " + "The second has four so. " + "The third part is a longer one, yes it is."
    audio = bursts(4, 4, 7)
    reference = prepare_reference(audio, text)
    assert reference.text == "The first part has four. The second has four so."
    assert reference.audio.seconds == pytest.approx(8.3 + 0.06 + 0.05, abs=0.03)


def test_a_long_recording_whose_text_cannot_be_cut_with_it_is_refused() -> None:
    for text in ("one long text without any mark that would say where a part of it ends", "Yes. " + "no " * 200):
        with pytest.raises(JobError) as caught:
            prepare_reference(bursts(4, 4, 7), text)
        assert caught.value.code == "VOICE_INVALID"
        assert "12 s" in caught.value.message


def test_a_recording_to_be_transcribed_is_cut_at_its_last_pause_within_12_s() -> None:
    assert cut_reference(bursts(4, 4, 7)).seconds == pytest.approx(8.41, abs=0.03)
    with pytest.raises(JobError, match="no pause"):
        cut_reference(bursts(20))


def test_what_was_cut_is_taken_as_it_is() -> None:
    cut = cut_reference(bursts(4, 4, 7))
    assert prepare_reference(cut, "Eight seconds of noise.").audio.seconds == pytest.approx(cut.seconds, abs=0.03)


@pytest.mark.parametrize(
    ("audio", "text"),
    [
        (AudioChunk.silence(3, RATE), "Words."),
        (AudioChunk.silence(0, RATE), "Words."),
        (bursts(0.4), "Words."),
        (bursts(3), " ... "),
        (AudioChunk(np.full(RATE * 3, np.nan, np.float32), RATE), "Words."),
    ],
    ids=["silent", "empty", "short", "no words", "nan"],
)
def test_what_is_no_reference_is_refused(audio: AudioChunk, text: str) -> None:
    with pytest.raises(JobError) as caught:
        prepare_reference(audio, text)
    assert caught.value.code == "VOICE_INVALID"


def test_a_noisy_recording_is_cut_as_well() -> None:
    quiet = bursts(4, 4, 7)
    noise = np.random.default_rng(1).normal(0, 0.006, quiet.n_samples).astype(np.float32)  # 30 dB below
    cut = cut_reference(AudioChunk(quiet.samples + noise, RATE))
    assert cut.seconds == pytest.approx(8.41, abs=0.05)


def test_the_default_voice_is_there_without_a_model() -> None:
    reference = default_reference()
    assert reference is default_reference()
    assert reference.text == f5_reference.DEFAULT_TEXT
    assert 5 < reference.audio.seconds < 5.5


def test_a_text_that_nobody_can_say_in_the_recording_is_refused() -> None:
    with pytest.raises(JobError, match="longer than what can be said") as caught:
        prepare_reference(bursts(1.5), "word " * 100)
    assert caught.value.code == "VOICE_INVALID"
    assert prepare_reference(bursts(1.5), "word " * 15).text


def test_hostile_text_of_a_reference_is_cleaned() -> None:
    assert prepare_reference(bursts(3), "Some\u202e\ud800 \x00words\n\nhere.").text == "Some words here."
    assert f5_reference.prepare(bursts(3), "Some\ud800 words.")[1] == "Some words."


# --- files


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 48_000])
@pytest.mark.parametrize("output_format", ["wav", "flac", "mp3", "opus"])
def test_a_file_reads_back_with_its_rate_and_length(output_format: str, rate: int) -> None:
    tone = (0.4 * np.sin(2 * np.pi * 440 * np.arange(RATE * 2) / RATE)).astype(np.float32)
    file = encode(AudioChunk(tone, RATE), output_format, rate)  # type: ignore[arg-type]
    samples, got_rate = soundfile.read(io.BytesIO(file.data), dtype="float32", always_2d=True)
    assert got_rate == (48_000 if output_format == "opus" else rate)
    assert samples.shape[1] == 1
    tolerance = 1 if output_format in ("wav", "flac") else 0.06 * got_rate + 1152
    assert samples.shape[0] == pytest.approx(2 * got_rate, abs=tolerance)
    middle = samples[got_rate // 2 : got_rate // 2 + got_rate, 0]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440
    assert file.suffix == f".{output_format}"
    assert file.content_type.startswith("audio/")
    assert b"AI-generated" in file.data


def test_a_wav_header_tells_the_true_length() -> None:
    file = encode(AudioChunk.silence(0.5, RATE), "wav", RATE)
    assert int.from_bytes(file.data[4:8], "little") == len(file.data) - 8
    assert soundfile.info(io.BytesIO(file.data)).frames == RATE // 2


@pytest.mark.parametrize(
    ("output_format", "rate", "field"),
    [
        ("ogg", RATE, "output_format"),
        ("wav", 7_999, "sample_rate"),
        ("wav", 96_000, "sample_rate"),
        ("mp3", 23_000, "sample_rate"),
    ],
)
def test_other_formats_and_rates_are_refused_for_their_field(output_format: str, rate: int, field: str) -> None:
    with pytest.raises(JobError) as caught:
        encode(AudioChunk.silence(0.1, RATE), output_format, rate)  # type: ignore[arg-type]
    assert [error.field for error in caught.value.errors] == [field]
