"""A recording as a reference for F5-TTS: at most 12 s, without silence around it, cut in a pause.

The text of a recording that is cut must be cut with it: words that are not in the audio are spoken at the start of
everything the voice says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.f5_imports import package_directory
from pipeline.engines.f5_text import MAX_REFERENCE_S, SAMPLE_RATE
from pipeline.errors import ConfigError, InvalidInput

MIN_SPEECH_S: Final = 1.0
TAIL_S: Final = 0.05  # of silence at the end, as upstream gives a reference
# Fast Hindi has 60 bytes a second. More is another text, and where it has more letters than the recording has frames
# (94 a second), the model takes time for every letter: 5,000 of them keep it busy with 52 s of noise.
MAX_TEXT_RATE: Final = 80.0
DEFAULT_TEXT: Final = "Some call me nature, others call me mother nature."

_WINDOW = SAMPLE_RATE // 100
_MARGIN = 3  # windows kept around the speech, so that no soft onset is cut
_QUIET_DB, _NOISE_MARGIN_DB, _LEAST_DB = -42.0, 6.0, -15.0  # of the loudest window; above the room; at the most
_MIN_PAUSE_WINDOWS: Final = 10  # shorter ones are the closures of p, t and k
_MIN_CUT_S: Final = 3.0
_MAX_DRIFT_S: Final = 0.5  # by which a pause may miss the place where its words should end
_LENGTH_BONUS: Final = 0.05  # a second more of voice is worth so many seconds of drift
_TEXT_END = re.compile(r"[.!?,;:…](?=\s)|[。！？，、；：]")


@dataclass(frozen=True, slots=True)
class _Pause:
    """Windows `[start, end)` without speech; `share` of all speech lies before it."""

    start: int
    end: int
    share: float


def prepare(audio: AudioChunk, text: str) -> tuple[AudioChunk, str]:
    """The recording as mono 24 kHz of at most 12 s with its text, cut together where it is longer.

    `InvalidInput` when there is no second of speech in it, no text, more than can be said in it, or no pause where both
    can be cut.
    """
    text = text.encode(errors="ignore").decode().strip()  # half of a surrogate pair is no letter
    if not any(character.isalnum() for character in text):
        raise InvalidInput("the text of the recording holds no words", code="voice_text_empty", param="ref_text")
    samples, is_loud = _speech(audio)
    if samples.size <= _max_samples():
        return _together(samples, text)
    ends = [(match.end(), len(text[: match.end()].encode()) / len(text.encode())) for match in _TEXT_END.finditer(text)]
    seconds = samples.size / SAMPLE_RATE
    cuts = [
        (drift_s - _LENGTH_BONUS * pause.start * _WINDOW / SAMPLE_RATE, pause, end)
        for pause in _pauses(is_loud)
        for end, share in ends
        if (drift_s := abs(pause.share - share) * seconds) <= _MAX_DRIFT_S
    ]
    if not cuts:
        raise InvalidInput(
            "the recording is longer than 12 s, and its text cannot be cut with it: give at most 12 s with their "
            "words, or leave the text out",
            code="voice_too_long",
            param="ref_text",
        )
    _, pause, end = min(cuts, key=lambda cut: cut[0])
    return _together(_until(samples, pause), text[:end])


def check_rate(seconds: float, text: str) -> None:
    """`InvalidInput` when nobody can say `text` in so many seconds."""
    if len(text.encode()) > MAX_TEXT_RATE * seconds:
        raise InvalidInput(
            "the text is longer than what can be said in the recording", code="voice_text_too_long", param="ref_text"
        )


def cut(audio: AudioChunk) -> AudioChunk:
    """The same for a recording whose text is not known yet; it is to be transcribed from what this gives."""
    samples, is_loud = _speech(audio)
    if samples.size > _max_samples():
        *_, last = (None, *_pauses(is_loud))
        if last is None:
            raise InvalidInput(
                "the recording is longer than 12 s and has no pause in them", code="voice_too_long", param="file"
            )
        samples = _until(samples, last)
    return _finished(samples)


def default_recording() -> tuple[AudioChunk, str]:
    """The English reference that the package brings, with its text; `ConfigError` when it is not installed."""
    path = package_directory() / "infer" / "examples" / "basic" / "basic_ref_en.wav"
    try:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise ConfigError("the package f5-tts is damaged: its reference recording cannot be read") from error
    return prepare(AudioChunk(samples.mean(axis=1, dtype=np.float32), int(sample_rate)), DEFAULT_TEXT)


def _together(samples: Samples, text: str) -> tuple[AudioChunk, str]:
    check_rate(samples.size / SAMPLE_RATE, text)
    return _finished(samples), text


def _max_samples() -> int:
    return round((MAX_REFERENCE_S - TAIL_S) * SAMPLE_RATE)


def _speech(audio: AudioChunk) -> tuple[Samples, NDArray[np.bool_]]:
    """The recording from its first to its last sound, whole windows, and which of these are loud."""
    samples = audio.resampled(SAMPLE_RATE).samples
    n_windows = samples.size // _WINDOW
    windows = samples[: n_windows * _WINDOW].reshape(n_windows, _WINDOW)
    level_db = 10 * np.log10(np.square(windows, dtype=np.float64).mean(axis=1) + 1e-12) if n_windows else np.zeros(0)
    if not np.isfinite(level_db).all() or level_db.max(initial=-120.0) < -60.0:
        raise InvalidInput("the recording is silent", code="voice_silent", param="file")
    quiet_db = max(level_db.max() + _QUIET_DB, float(np.percentile(level_db, 10)) + _NOISE_MARGIN_DB)
    is_loud = level_db > min(quiet_db, level_db.max() + _LEAST_DB)
    (loud,) = np.nonzero(is_loud)
    if loud.size * _WINDOW < MIN_SPEECH_S * SAMPLE_RATE:
        raise InvalidInput("the recording holds less than a second of speech", code="voice_too_short", param="file")
    start, end = max(int(loud[0]) - _MARGIN, 0), min(int(loud[-1]) + 1 + _MARGIN, n_windows)
    return samples[start * _WINDOW : end * _WINDOW], is_loud[start:end]


def _pauses(is_loud: NDArray[np.bool_]) -> Iterator[_Pause]:
    """Those at which what is before them lasts 3 to 12 s, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], is_loud, [True])).astype(np.int8)))
    n_loud = int(is_loud.sum())
    for start, end in edges.reshape(-1, 2):
        seconds = (start + _MARGIN) * _WINDOW / SAMPLE_RATE
        if end - start >= _MIN_PAUSE_WINDOWS and _MIN_CUT_S <= seconds <= MAX_REFERENCE_S - TAIL_S:
            yield _Pause(int(start), int(end), float(is_loud[:start].sum()) / n_loud)


def _until(samples: Samples, pause: _Pause) -> Samples:
    return samples[: (pause.start + _MARGIN) * _WINDOW]


def _finished(samples: Samples) -> AudioChunk:
    fade = np.linspace(1.0, 0.0, _WINDOW, dtype=np.float32)
    out = np.concatenate((samples, np.zeros(round(TAIL_S * SAMPLE_RATE), np.float32)))
    out[samples.size - _WINDOW : samples.size] *= fade
    return AudioChunk(out, SAMPLE_RATE)
