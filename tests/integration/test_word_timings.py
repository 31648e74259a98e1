"""Word times of real speech by the real methods: how far off they are, and what happens when one cannot do it."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from pipeline.audio import AudioChunk, concat, decode_file
from serverless.errors import JobError
from serverless.speech import SpokenChunk
from serverless.timings import LANGUAGES, METHODS, Tools, WordTimings, ctc, phonetic, time_words
from serverless.timings.espeak_words import readings, speak
from serverless.timings.tokens import words_of
from serverless.timings.viterbi import best_path

CORPUS = Path(__file__).parents[1] / "fixtures" / "timings"
RATE = 24_000
NOTHING = Tools(ctc_dir=None, google=None, device="cpu", google_timeout_s=1.0)
SENTENCES = {
    "en": "The weather was cold, so we stayed at home.",
    "fr": "Il faisait froid, nous sommes restés à la maison.",
    "de": "Das Wetter war kalt, also blieben wir zu Hause.",
    "es": "Hacía mucho frío, así que nos quedamos en casa.",
    "it": "Faceva freddo, quindi siamo rimasti a casa.",
    "ja": "今日は寒いですから、家にいました。",
    "zh": "今天天气很冷，所以我们在家。",
    "nl": "Het was koud weer, dus bleven we thuis.",
}

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")


@pytest.fixture(scope="module")
def corpus() -> list[tuple[str, AudioChunk, list[tuple[float, float]]]]:
    """Text, audio at 24 kHz and true word times of each sentence of festival."""
    listed = json.loads((CORPUS / "words.json").read_text())
    return [
        (
            clip["text"],
            decode_file((CORPUS / clip["file"]).read_bytes(), max_seconds=30).resampled(RATE),
            [tuple(times) for times in clip["times"]],
        )
        for clip in listed
    ]


def timed(
    audio: AudioChunk,
    text: str,
    *,
    method: str = "auto",
    language: str | None = "en",
    tools: Tools = NOTHING,
    cancelled: Callable[[], bool] = lambda: False,
) -> WordTimings:
    return time_words(
        audio,
        [SpokenChunk(text, 0.0, audio.seconds)],
        method=method,
        language=language,
        tools=tools,
        cancelled=cancelled,
    )


def check_form(timings: WordTimings, text: str, audio: AudioChunk) -> None:
    """What holds for all answers of all methods."""
    assert [word.text for word in timings.words] == words_of(text, timings.language)
    at = 0.0
    for word in timings.words:
        assert at <= word.start_s < word.end_s <= audio.seconds
        at = word.end_s
    assert timings.approximate == (timings.coverage < 1.0)


def start_errors_ms(timings: WordTimings, times: Sequence[tuple[float, float]]) -> list[float]:
    return [1000 * abs(word.start_s - start) for word, (start, _) in zip(timings.words, times, strict=True)]


@pytest.mark.parametrize(
    ("method", "mean_ms", "p95_ms"), [("whisperx", 30, 100), ("dtw", 50, 150), ("estimate", 300, 900)]
)
def test_english_words_are_found_where_they_are_said(
    method: str, mean_ms: float, p95_ms: float, corpus: list[tuple[str, AudioChunk, list[tuple[float, float]]]]
) -> None:
    if method == "dtw" and shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng")
    used = {"whisperx": "phonetic"}.get(method, method)
    errors: list[float] = []
    for text, audio, times in corpus:
        timings = timed(audio, text, method=method)
        assert timings.method == used, timings.attempts
        assert timings.coverage == (0.0 if used == "estimate" else 1.0)
        check_form(timings, text, audio)
        errors += start_errors_ms(timings, times)
    assert len(errors) > 60
    assert np.mean(errors) < mean_ms
    assert np.percentile(errors, 95) < p95_ms


def test_the_default_asks_for_a_ctc_model_first_and_says_that_there_is_none(
    corpus: list[tuple[str, AudioChunk, list[tuple[float, float]]]],
) -> None:
    text, audio, _ = corpus[0]
    attempts = [(a.method, a.chunk, a.error) for a in timed(audio, text).attempts]
    assert attempts == [("ctc", None, "there is no CTC model for the language"), ("phonetic", 0, None)]


def test_a_chunk_that_is_not_what_is_said_falls_back_alone(
    corpus: list[tuple[str, AudioChunk, list[tuple[float, float]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, audio_1, times_1), (_, audio_2, _), (third, audio_3, times_3) = corpus[:3]
    wrong = "Six entirely different and unrelated syllables happen here repeatedly " * 2
    monkeypatch.setattr("serverless.timings.espeak_words.PROGRAM", "no-such-program")
    gap = AudioChunk.silence(0.35, RATE)
    audio = concat([audio_1, gap, audio_2, gap, audio_3], RATE)
    starts = np.cumsum([0.0, audio_1.seconds + 0.35, audio_2.seconds + 0.35])
    chunks = [
        SpokenChunk(text, float(start), float(start + part.seconds))
        for text, start, part in zip((first, wrong, third), starts, (audio_1, audio_2, audio_3), strict=True)
    ]
    timings = time_words(audio, chunks, method="auto", language="en", tools=NOTHING, cancelled=lambda: False)
    check_form(timings, " ".join((first, wrong, third)), audio)
    by_chunk = {a.chunk: a.method for a in timings.attempts if a.error is None}
    assert by_chunk == {0: "phonetic", 1: "estimate", 2: "phonetic"}
    assert "phonetic" in {a.method for a in timings.attempts if a.chunk == 1 and a.error}
    n_wrong = len(wrong.split())
    assert timings.coverage == pytest.approx(1 - n_wrong / len(timings.words))
    last = timings.words[-len(times_3) :]
    expected = [start + float(starts[2]) for start, _ in times_3]
    assert np.mean([abs(word.start_s - start) for word, start in zip(last, expected, strict=True)]) < 0.03
    inside = timings.words[len(times_1) : len(times_1) + n_wrong]
    assert chunks[1].start_s - 0.001 <= inside[0].start_s
    assert inside[-1].end_s <= chunks[1].end_s + 0.001


@needs_espeak
@pytest.mark.parametrize(
    "written", ["Gud mawning, everywun, & wellcum too the shoh.", "GUD mawning, (everywun) + wélcome 2 the “show”"]
)
def test_words_that_no_dictionary_has_and_signs_are_found_too(
    written: str, corpus: list[tuple[str, AudioChunk, list[tuple[float, float]]]]
) -> None:
    n_found = 0
    for text, audio, times in corpus:
        if not text.startswith("Good morning"):
            continue
        timings = timed(audio, written)
        assert timings.method == "phonetic", timings.attempts
        check_form(timings, written, audio)
        assert np.mean(start_errors_ms(timings, times)) < 60
        n_found += 1
    assert n_found == 2


@needs_espeak
@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_is_laid_over_espeak_at_another_tempo_and_pitch(language: str) -> None:
    """The true times are espeak's own, so this shows that edges are carried over, not how well others are timed."""
    text = SENTENCES[language]
    tokens = words_of(text, language)
    said = readings(tokens, language)
    reference, edges = speak([word for words in said for word in words], language)
    faster = AudioChunk(reference.samples, round(reference.sample_rate * 1.12))  # shorter and higher
    audio = faster.resampled(RATE)
    timings = timed(audio, text, method="dtw", language=None)
    assert (timings.method, timings.language) == ("dtw", language), timings.attempts
    assert timings.coverage == 1.0
    check_form(timings, text, audio)
    firsts = np.cumsum([0, *map(len, said)])[:-1]
    true = [edges[i] / faster.sample_rate for i in firsts]
    assert np.mean([abs(word.start_s - start) for word, start in zip(timings.words, true, strict=True)]) < 0.05


@pytest.mark.parametrize("language", [*LANGUAGES, "xx"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_times_for_every_language(method: str, language: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 2 * RATE).astype(np.float32)
    audio, text = AudioChunk(noise, RATE), SENTENCES.get(language, "Nobody speaks 42 % of this.")
    timings = timed(audio, text, method=method, language=language)
    check_form(timings, text, audio)
    assert [a for a in timings.attempts if a.error is None]
    assert not any(word in (a.error or "") for a in timings.attempts for word in text.split() if len(word) > 5)


@pytest.mark.parametrize("seconds", [0.0, 0.00002, 0.003, 0.5])
@pytest.mark.parametrize("text", ["", "…", "One two three four five six."])
def test_silent_or_tiny_audio_loses_no_job(seconds: float, text: str) -> None:
    audio = AudioChunk.silence(seconds, RATE)
    timings = timed(audio, text)
    assert timings.method == "estimate"
    if audio.n_samples:
        check_form(timings, text, audio)
    else:
        assert timings.words == ()


@pytest.mark.parametrize("sample", [0.0, 1e-5, np.nan])
@pytest.mark.parametrize("method", ["auto", "dtw", "google"])
def test_nothing_is_measured_in_silence(method: str, sample: float) -> None:
    audio = AudioChunk(np.full(2 * RATE, sample, np.float32), RATE)
    timings = timed(audio, "Hello there.", method=method)
    assert (timings.method, timings.coverage, timings.approximate) == ("estimate", 0.0, True)
    check_form(timings, "Hello there.", audio)


def test_a_text_that_nobody_could_say_in_the_time_is_not_searched_for() -> None:
    audio = AudioChunk(np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32), RATE)
    timings = timed(audio, "million " * 40)
    assert {a.error for a in timings.attempts if a.chunk == 0} == {None, "the text is too long for the audio"}
    check_form(timings, "million " * 40, audio)


def test_a_word_that_cannot_be_said_in_english_is_put_between_its_neighbours(
    corpus: list[tuple[str, AudioChunk, list[tuple[float, float]]]],
) -> None:
    text, audio, times = corpus[0]
    timings = timed(audio, text.replace("best", "东京"))
    assert timings.method == "phonetic", timings.attempts
    assert timings.coverage == pytest.approx(11 / 12)
    check_form(timings, text.replace("best", "东京"), audio)
    assert np.median(start_errors_ms(timings, times)) < 30


def test_chunks_that_reach_beyond_the_audio_or_have_no_text_are_put_up_with() -> None:
    audio = AudioChunk.silence(1.0, RATE)
    chunks = [SpokenChunk("", 0.0, 0.5), SpokenChunk("late words", 0.9, 7.0), SpokenChunk("later", 8.0, 9.0)]
    timings = time_words(audio, chunks, method="auto", language="en", tools=NOTHING, cancelled=lambda: False)
    check_form(timings, "late words later", audio)


def test_a_job_that_is_cancelled_stops_between_two_chunks() -> None:
    audio = AudioChunk.silence(2.0, RATE)
    answers = iter([False, True])
    chunks = [SpokenChunk("one", 0.0, 1.0), SpokenChunk("two", 1.0, 2.0)]
    with pytest.raises(JobError) as caught:
        time_words(audio, chunks, method="estimate", language="en", tools=NOTHING, cancelled=lambda: next(answers))
    assert caught.value.code == "CANCELLED"


def test_without_its_programs_the_chain_ends_at_the_estimate_and_says_why(
    corpus: list[tuple[str, AudioChunk, list[tuple[float, float]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    monkeypatch.setattr(phonetic, "_made", [])
    text, audio, _ = corpus[0]
    timings = timed(audio, text)
    assert (timings.method, timings.approximate) == ("estimate", True)
    reasons = {a.method: a.error for a in timings.attempts}
    assert reasons["phonetic"] == "pocketsphinx is not installed"
    timings = timed(audio, text, method="dtw")
    assert {a.method: a.error for a in timings.attempts}["dtw"] == "espeak-ng is not installed"


def test_an_espeak_that_hangs_is_waited_for_once_by_each_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    program = tmp_path / "espeak-ng"
    program.write_text(f"#!/bin/sh\necho >>{calls}\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("pipeline.engines.phonemes.TIMEOUT_S", 0.3)
    monkeypatch.setattr("serverless.timings.espeak_words.TIMEOUT_S", 0.3)
    monkeypatch.setattr(phonetic, "_made", [])
    audio = AudioChunk(np.random.default_rng(0).normal(0, 0.1, 6 * RATE).astype(np.float32), RATE)
    chunks = [SpokenChunk("Zarkonia quixbyth wibblat", 3.0 * i, 3.0 * i + 3.0) for i in range(2)]
    timings = time_words(audio, chunks, method="auto", language="en", tools=NOTHING, cancelled=lambda: False)
    assert (timings.method, len(timings.words)) == ("estimate", 6)
    assert calls.read_text() == "\n\n"


def test_without_a_segmenter_or_a_detector_words_are_still_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from serverless.timings import tokens

    for library in ("rjieba", "sudachipy", "py3langid", "py3langid.langid"):
        monkeypatch.setitem(sys.modules, library, None)
    tokens.japanese.cache_clear()
    tokens._detector.cache_clear()
    audio = AudioChunk.silence(1.0, RATE)
    for text, language in (("你好 世界", "zh"), ("今日は いい", "ja"), ("Bonjour le monde", "en")):
        timings = timed(audio, text, language=None, method="estimate")
        assert (len(timings.words), timings.language) == (len(text.split()), language)


def test_a_method_that_breaks_costs_neither_the_times_nor_the_users_words(
    corpus: list[tuple[str, AudioChunk, list[tuple[float, float]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> list[None]:
        raise RuntimeError("cannot align 'best of times' in /home/someone")

    monkeypatch.setattr(phonetic, "align", broken)
    text, audio, _ = corpus[0]
    with structlog.testing.capture_logs() as logs:
        timings = timed(audio, text)
    assert timings.method in ("dtw", "estimate")
    assert ("phonetic", "failed inside (RuntimeError)") in [(a.method, a.error) for a in timings.attempts]
    assert "times" not in json.dumps(logs).replace("n_times", "").replace("timings.", "")


# --- a CTC model: tiny and random, but loaded and run by the real code

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]


@pytest.fixture(scope="module")
def ctc_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`en/` with a wav2vec2 of the shape of the real ones, 20 ms a frame, and random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(LETTERS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("ctc")
    Wav2Vec2ForCTC(config).save_pretrained(str(folder / "en"))
    (folder / "en" / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    (folder / "en" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return folder


def test_words_follow_the_best_path_through_the_models_own_output(
    ctc_dir: Path, corpus: list[tuple[str, AudioChunk, list[tuple[float, float]]]]
) -> None:
    import torch
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    text, audio, _ = corpus[1]
    timings = timed(audio, text, method="whisperx", tools=Tools(ctc_dir, None, "cpu", 1.0))
    assert timings.method == "ctc", timings.attempts
    check_form(timings, text, audio)
    assert all(word.confidence is not None and 0.0 < word.confidence < 1.0 for word in timings.words)

    network = Wav2Vec2ForCTC.from_pretrained(str(ctc_dir / "en"), local_files_only=True).eval()
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    inputs = extractor(audio.resampled(16_000).samples, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        expected = torch.log_softmax(network(inputs.input_values).logits[0], -1).numpy()
    emissions = ctc._emissions(ctc._load(ctc_dir / "en", "cpu"), audio)
    assert np.allclose(emissions, expected, atol=1e-3)

    words = ["".join(c for c in word.upper() if c.isalpha() or c == "'") for word in text.split()]
    labels = [LETTERS.index(letter) for letter in "|".join(words)]
    found = best_path(emissions, labels, 0)
    assert found is not None
    position = 0
    for word, timing in zip(words, timings.words, strict=True):
        mine = found[position : position + len(word)]
        position += len(word) + 1
        assert timing.confidence == pytest.approx(float(np.mean([p for _, _, p in mine])), rel=1e-6)
        assert timing.start_s >= mine[0][0] * 0.02 - 0.001


def test_letters_that_the_model_does_not_know_match_any_sound(
    ctc_dir: Path, corpus: list[tuple[str, AudioChunk, list[tuple[float, float]]]]
) -> None:
    _, audio, _ = corpus[0]
    tools = Tools(ctc_dir, None, "cpu", 1.0)
    timings = timed(audio, "The cañon of times ever after", method="ctc", tools=tools)
    assert (timings.method, timings.coverage) == ("ctc", 1.0)
    timings = timed(audio, "В лесу родилась ёлочка", method="ctc", tools=tools)
    assert ("ctc", "the model does not know the letters of the text") in [(a.method, a.error) for a in timings.attempts]


def test_a_text_too_long_for_its_audio_or_a_broken_model_falls_back(ctc_dir: Path, tmp_path: Path) -> None:
    noise = AudioChunk(np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32), RATE)
    timings = timed(noise, "word " * 20, method="ctc", tools=Tools(ctc_dir, None, "cpu", 1.0))
    assert ("ctc", "the text is too long for the audio") in [(a.method, a.error) for a in timings.attempts]
    assert timings.method == "estimate"
    shutil.copytree(ctc_dir / "en", tmp_path / "fr")
    (tmp_path / "fr" / "model.safetensors").write_bytes(b"not weights")
    timings = timed(noise, "bonjour", method="ctc", language="fr", tools=Tools(tmp_path, None, "cpu", 1.0))
    assert timings.attempts[0].error in ("the CTC model cannot be loaded", "failed inside (SafetensorError)")


def test_a_directory_that_is_a_model_itself_serves_the_languages_whose_letters_it_knows(ctc_dir: Path) -> None:
    noise = AudioChunk(np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32), RATE)
    tools = Tools(ctc_dir / "en", None, "cpu", 1.0)
    assert timed(noise, "Bonjour à tous", method="ctc", language="fr", tools=tools).method == "ctc"
    assert timed(noise, "今天天气很冷", method="ctc", language="zh", tools=tools).method != "ctc"


def test_an_emission_of_the_model_lasts_20_ms(ctc_dir: Path) -> None:
    model: Any = ctc._load(ctc_dir / "en", "cpu")
    assert (model.samples_a_frame, model.blank, model.separator, model.normalize) == (320, 0, 4, True)
