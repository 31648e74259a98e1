"""Long recordings in stretches, words in lines, and the forms that a transcript is given in."""

from __future__ import annotations

import json
from contextlib import aclosing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.rest.transcript_formats import Whole, as_json, body, srt, vtt
from pipeline.audio import AudioChunk, concat
from pipeline.engines.base import Transcript, Word
from pipeline.errors import EngineTimeout
from pipeline.transcription import CUE_CHARS, CUE_S, STRETCH_S, Stretch, cues, stretches, transcribe_all
from pipeline.turn import Waits
from settings import TurnSettings
from tests.support.rest import BusyAsr, TimedAsr, tone
from tests.support.scripted import ScriptedAsr

RATE = 1000
WAITS = Waits.from_settings(TurnSettings())


def said(*words: tuple[str, float, float], language: str = "en", start_s: float = 0.0) -> Stretch:
    timed = tuple(Word(*word) for word in words)
    return Stretch(start_s, start_s + 29, Transcript(" ".join(w.text for w in timed), language, timed))


@given(st.lists(st.sampled_from(["loud", "quiet", "pause"]), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_stretches_are_the_whole_recording_in_order_and_none_is_too_long(parts: list[str]) -> None:
    level = {"loud": 0.5, "quiet": 0.05, "pause": 0.0}
    samples = np.concatenate([np.full(RATE, level[part], np.float32) for part in parts])
    found = list(stretches(AudioChunk(samples, RATE)))
    assert np.array_equal(concat([chunk for _, chunk in found], RATE).samples, samples)
    assert max(chunk.seconds for _, chunk in found) <= STRETCH_S
    assert [start_s for start_s, _ in found] == pytest.approx(
        np.cumsum([0.0] + [chunk.seconds for _, chunk in found[:-1]]).tolist()
    )


def test_a_cut_is_made_in_a_pause() -> None:
    speech = np.full(40 * RATE, 0.3, np.float32)
    speech[23 * RATE : 24 * RATE] = 0.001
    (_, first), _ = stretches(AudioChunk(speech, RATE))
    assert 23.0 < first.seconds < 24.0


async def test_words_are_timed_from_the_start_of_the_whole() -> None:
    asr = TimedAsr(texts=["One two.", "Three."], delay_s=0.0)
    async with aclosing(transcribe_all(asr, tone(40.0), language=None, words=True, waits=WAITS)) as heard:
        first, second = [stretch async for stretch in heard]
    assert [word.start_s for word in first.transcript.words] == [0.0, 0.5]
    assert second.transcript.words[0].start_s == pytest.approx(second.start_s)


async def test_the_language_of_the_first_words_is_kept() -> None:
    class German(BusyAsr):
        async def transcribe(self, utterance: AudioChunk, *, language: str | None) -> Transcript:
            heard = await super().transcribe(utterance, language=language)
            return Transcript(heard.text, language or "de")

    asr = German(texts=["", "Guten Tag.", "Ja."], delay_s=0.0)
    async with aclosing(transcribe_all(asr, tone(70.0), language=None, words=False, waits=WAITS)) as heard:
        assert [stretch.transcript.language async for stretch in heard] == ["de", "de", "de"]
    assert asr.languages_asked == [None, None, "de"]


async def test_a_recogniser_that_hangs_is_not_waited_for_ever() -> None:
    waits = Waits(asr_s=0.01, first_token_s=1.0, token_s=1.0, first_audio_s=1.0, audio_s=1.0)
    with pytest.raises(EngineTimeout):
        async with aclosing(
            transcribe_all(ScriptedAsr(delay_s=60.0), tone(1.0), language=None, words=False, waits=waits)
        ) as heard:
            await anext(heard)


def test_lines_end_at_sentences_pauses_and_what_a_screen_holds() -> None:
    stretch = said(("Hello", 0, 0.4), ("there.", 0.5, 0.9), ("And", 1.0, 1.2), ("now", 3.0, 3.2), ("this", 3.3, 3.5))
    assert [cue.text for cue in cues(stretch)] == ["Hello there.", "And", "now this"]
    many = said(*((f"word{i}", i * 0.3, i * 0.3 + 0.2) for i in range(100)))
    lines = cues(many)
    assert all(len(line.text) <= CUE_CHARS and line.end_s - line.start_s <= CUE_S for line in lines)
    assert " ".join(line.text for line in lines) == many.transcript.text


def test_words_of_a_language_without_spaces_are_joined_without() -> None:
    (line,) = cues(said(("你", 0, 0.2), ("好", 0.2, 0.4), language="zh"))
    assert line.text == "你好"


def test_without_word_times_a_stretch_is_one_line() -> None:
    assert cues(Stretch(29.0, 40.0, Transcript("Hello.", "en"))) == [Word("Hello.", 29.0, 40.0)]
    assert cues(Stretch(0.0, 1.0, Transcript(" ", "en"))) == []


def test_subtitles_hold_text_and_nothing_that_a_player_would_obey() -> None:
    hostile = "a --> b\n\n2\n<i>{\\an8}\u2028&amp;"
    whole = Whole([Stretch(3599.9996, 3661.5, Transcript(hostile, "en"))], 3661.5)
    assert srt(whole) == "1\n01:00:00,000 --> 01:01:01,500\na --› b 2 ‹i›(\\an8) &amp;\n\n"
    assert vtt(whole) == ("WEBVTT\n\n01:00:00.000 --> 01:01:01.500\na --&gt; b 2 &lt;i&gt;{\\an8} &amp;amp;\n\n")


def test_nothing_said_is_an_empty_transcript_in_every_form() -> None:
    whole = Whole([Stretch(0.0, 1.0, Transcript("", "en"))], 1.0)
    assert srt(whole) == ""
    assert vtt(whole) == "WEBVTT\n\n"
    assert as_json(whole, "text", ()) == "\n"
    verbose = json.loads(body(whole, "verbose_json", ("word", "segment")))
    assert (verbose["text"], verbose["words"], verbose["segments"], verbose["language"]) == ("", [], [], "en")
