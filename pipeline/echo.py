"""Tells our own voice, come back through the microphone, from an interruption: by its sound, and by its words."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Final

import numpy as np

from pipeline.audio import AudioChunk, Samples

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
# One or two words may well be the user's own, quoted from the reply ("Paris?").
MIN_WORDS = 3
MIN_SHARE = 0.8

# How much of the microphone is compared, and how late our voice may be in it: network both ways, loudspeaker, room.
HEARD_S: Final = 0.8
MAX_DELAY_S: Final = 1.0
# How alike the two must be. Our voice alone has 0.9, in a small room 0.65 and more; another voice 0.25, seldom 0.5, and
# with our echo as loud below it 0.5 (docs/measurements.md).
MIN_LIKENESS: Final = 0.6
MIN_SOUND: Final = 0.3  # of the time: clicks are all alike
_RATE: Final = 16_000
_WINDOW, _HOP = 512, 160
_RANGE_DB: Final = 35.0  # what lies further below the loudest band is the room
_EDGES_HZ: Final = np.geomspace(250, 5000, 25)  # small loudspeakers are silent below and above


def is_echo(heard: str, reply: str) -> bool:
    """Whether at least 80 % of the words of `heard` (three or more) stand in `reply`, in order and close together."""
    words, spoken = _words(heard), _words(reply)
    if len(words) < MIN_WORDS or len(spoken) < MIN_WORDS:
        return False
    blocks = [b for b in SequenceMatcher(None, words, spoken, autojunk=False).get_matching_blocks() if b.size]
    matched = sum(block.size for block in blocks)
    if matched < MIN_SHARE * len(words):
        return False
    stretch = blocks[-1].b + blocks[-1].size - blocks[0].b
    return stretch <= 1.5 * len(words) + 1


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def sounds_like(heard: AudioChunk, played: AudioChunk) -> bool:
    """Whether the end of `heard` is some stretch of `played`, however quiet: its spectrum changes in the same way."""
    mic = _bands(heard.resampled(_RATE).samples[-round(HEARD_S * _RATE) :])
    n = len(mic)
    if not n or np.mean(mic.max(axis=1) > mic.min()) < MIN_SOUND:
        return False
    ours = _bands(played.resampled(_RATE).samples)
    if len(ours) < n:
        return False
    stretches = np.lib.stride_tricks.sliding_window_view(ours, n, axis=0).transpose(0, 2, 1)
    mic, stretches = _centred(mic), _centred(stretches)
    lengths = np.sqrt(np.square(stretches).sum(axis=(1, 2)) * np.square(mic).sum())
    likeness = (stretches * mic).sum(axis=(1, 2)) / np.maximum(lengths, 1e-6)
    return bool(likeness.max() >= MIN_LIKENESS)


def _bands(samples: Samples) -> Samples:
    """Decibels of 24 bands every 10 ms: float32 (n, 24), none further than `_RANGE_DB` below the loudest."""
    if samples.size < _WINDOW:
        return np.zeros((0, _BANDS.shape[1]), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP]
    power = np.square(np.abs(np.fft.rfft(frames * _HANN, axis=1))).astype(np.float32) @ _BANDS
    decibels = 10 * np.log10(power + 1e-7)
    limited: Samples = np.maximum(decibels, decibels.max() - _RANGE_DB)
    return limited


def _centred(bands: Samples) -> Samples:
    """Without what a loudspeaker does to each band, and without loudness, which rises at every word of every voice."""
    bands = bands - bands.mean(axis=-2, keepdims=True)
    centred: Samples = bands - bands.mean(axis=-1, keepdims=True)
    return centred


_HANN: Final = np.hanning(_WINDOW).astype(np.float32)
_HZ: Final = np.fft.rfftfreq(_WINDOW, 1 / _RATE)[:, None]
_BANDS: Final = ((_EDGES_HZ[:-1] <= _HZ) & (_EDGES_HZ[1:] > _HZ)).astype(np.float32)  # (257, 24)
