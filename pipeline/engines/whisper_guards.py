"""Guards against what Whisper invents for silence and noise ("Thank you.", "No, no, no, ..."), from cheap to dear.

Two engines run Whisper; both ask here whether to ask the model, for how many tokens, and whether to believe it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.audio import AudioChunk, Samples

SAMPLE_RATE: Final = 16_000
WINDOW_S: Final = 30.0  # what Whisper hears at once

FLOOR_DB: Final = -55.0  # the loudest 100 ms must pass this (full scale = 0) or the model is not asked
_FLOOR: Final = 10 ** (FLOOR_DB / 10)
# A pause at which Whisper may end its text, or begin it, how many dB below the loudest it is, and how long after the
# end that Whisper gives the last word it may still sound, or before the start of the first one.
PAUSE_S, NEAR_DB, LAST_WORD_S = 0.5, 25.0, 1.0
_LOOK_S: Final = 0.1
TOKENS_PER_S, MIN_TOKENS, MAX_TOKENS = 10.0, 24, 220  # fast speech is 5 tokens/s; a loop of noise would run to 448
MAX_NO_SPEECH: Final = 0.6  # unless the average log-probability is good; both as in the Whisper paper, section 4.5
MIN_AVG_LOGPROB: Final = -1.0
# Where Whisper half doubts that anyone spoke. Of the test clips, speech has -0.46 and more, a dog's bark -0.94.
MIN_AVG_LOGPROB_DOUBTED: Final = -0.7
# The same for one word: "2", "two" and "Two." share the probability, so one that was said often has no more than -0.9.
# What noise is taken for has less ("you", -1.3), or more than one word.
MIN_AVG_LOGPROB_WORD, WORD_CHARS = -0.9, 12
# Text that zips this well is one phrase again and again: an invention where Whisper itself half doubts that anyone
# spoke (a dog: 4.1 and 0.47), and always beyond what people repeat (a sentence said three times: 3.2 and 0.02).
MAX_COMPRESSION, MAX_COMPRESSION_EVER, DOUBTED_SPEECH = 2.4, 6.0, 0.2


def is_audible(utterance: AudioChunk) -> bool:
    """Whether any 100 ms of the utterance are louder than `FLOOR_DB`."""
    return has_sound(utterance.samples, utterance.sample_rate)


def has_sound(samples: Samples, sample_rate: int) -> bool:
    """As `is_audible`, for float32 (n_samples,) at `sample_rate` hertz; False for less than 100 ms."""
    return bool(_powers(samples, sample_rate).max(initial=0) > _FLOOR)


def has_pause(samples: Samples, sample_rate: int) -> bool:
    """Whether something is loud after a pause of `PAUSE_S`: Whisper may end its text there, and lose what follows."""
    loud = _loud(samples, sample_rate)
    return loud.size > 0 and bool(np.diff(loud).max(initial=0) > PAUSE_S / _LOOK_S)


def goes_on(samples: Samples, sample_rate: int, end_s: float) -> bool:
    """Whether something is loud that the words do not account for, of which the last one ends at `end_s`."""
    loud = _loud(samples, sample_rate)
    return loud.size > 0 and bool(loud[-1] * _LOOK_S > end_s + LAST_WORD_S)


def went_before(samples: Samples, sample_rate: int, start_s: float) -> bool:
    """The same before the first word, which starts at `start_s`."""
    loud = _loud(samples, sample_rate)
    return loud.size > 0 and bool(loud[0] * _LOOK_S < start_s - LAST_WORD_S)


def _loud(samples: Samples, sample_rate: int) -> np.ndarray:
    """Numbers of the stretches of `_LOOK_S` that come near the loudest one."""
    powers = _powers(samples, sample_rate)
    return np.flatnonzero(powers > max(powers.max(initial=0) * 10 ** (-NEAR_DB / 10), _FLOOR))


def _powers(samples: Samples, sample_rate: int) -> np.ndarray:
    """The mean square of each whole stretch of `_LOOK_S`, (n_stretches,)."""
    window = max(round(sample_rate * _LOOK_S), 1)
    n_windows = samples.size // window
    powers: np.ndarray = np.square(samples[: n_windows * window].reshape(n_windows, window)).mean(axis=1)
    return powers


def max_new_tokens(n_samples: int) -> int:
    """How many tokens Whisper may write for so many samples at 16 kHz."""
    return min(MIN_TOKENS + int(TOKENS_PER_S * n_samples / SAMPLE_RATE), MAX_TOKENS)


def is_speech(text: str, *, no_speech_prob: float, avg_logprob: float, compression_ratio: float) -> bool:
    """Whether what Whisper wrote is worth a turn. Values that are no numbers are not."""
    is_doubted = no_speech_prob > DOUBTED_SPEECH
    is_word = len(text.split()) == 1 and len(text.strip()) <= WORD_CHARS
    least_doubted = MIN_AVG_LOGPROB_WORD if is_word else MIN_AVG_LOGPROB_DOUBTED
    if not avg_logprob >= (least_doubted if is_doubted else MIN_AVG_LOGPROB):
        return False
    if compression_ratio > (MAX_COMPRESSION if is_doubted else MAX_COMPRESSION_EVER):
        return False
    return any(char.isalnum() for char in text)
