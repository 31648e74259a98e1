"""What a recording is worth as the reference of a voice: measured, and said in words that help to record a better one.

A cloned voice sounds as its reference does, noise and room included, so the limits are stricter than for a question in
a talk. Everything here is plain computing (up to a second for half a minute of audio), for a thread beside the event
loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import AudioChunk, Framer, Samples
from pipeline.engines.base import Vad
from pipeline.errors import InvalidInput

Severity = Literal["error", "warning"]
Grade = Literal["good", "fair", "poor"]
Code = Literal[
    "too_short",
    "too_long",
    "no_speech",
    "too_quiet",
    "noisy",
    "clipped",
    "several_speakers",
    "silence_inside",
]

SPEECH_PROBABILITY: Final = 0.5
NO_SPEECH_S: Final = 0.3  # less is a click or a cough
SPEECH_SHARE: Final = 0.6  # of the shortest recording: people breathe, and pause before the first word
# Levels of the speech in dB of full scale. A microphone at arm's length gives -35 to -20; below -50 sixteen bits and
# the preamplifier's own noise begin to be heard when it is made louder.
TOO_QUIET_DB, QUIET_DB = -50.0, -38.0
# Speech over what is left between the words. White noise at 10 dB is heard in every word that a clone says; rooms with
# a fan have about 20, a quiet room 30 and more.
NOISY_DB, AUDIBLE_NOISE_DB = 10.0, 18.0
MAX_SNR_DB: Final = 60.0  # digital silence between the words has no level
_LEVEL_S: Final = 0.02
_FLOOR_PERCENTILE: Final = 5  # the quietest moments; there are such ones even in speech without a pause
# Flat tops: at least so many samples in a row within 1 % of the highest one. Speech has none.
_FLAT_SAMPLES, _FLAT_TOP = 3, 0.99
_MIN_CLIPPED_PEAK: Final = 0.1  # quieter recordings are flat from few bits, not from a full scale
FLAT_SHARE, SLIGHTLY_FLAT_SHARE = 0.005, 0.0005
# A change of the sample rate makes flat tops wavy, so that many samples crowd just below the highest ones. Within 20 %
# of the 99.9th percentile clean clips have 0.2 to 1 % of their samples (one 1.7 %), cut at half of their peak 1.5 to
# 6 %, at a third 7 % and more.
_CROWDED_PERCENTILE, _CROWDED_TOP = 99.9, 0.8
CROWDED_SHARE, SLIGHTLY_CROWDED_SHARE = 0.04, 0.02
LONG_SILENCE_S: Final = 2.0  # a cloned voice copies the pauses of its reference
# How alike the two halves are into which the stretches of a recording fall best. Of 29 clips of one speaker: 0.86 and
# more. Of 210 mixes of two: two real people 0.49, a real and a synthetic one up to 0.65,
# synthetic ones that are blends of each other up to 0.88.
OTHER_SPEAKER, MAYBE_OTHER_SPEAKER = 0.68, 0.78
MIN_STRETCHES: Final = 3  # of either speaker, about three seconds; fewer are often a laugh or a breath


class Speakers(Protocol):
    """What tells voices apart: `pipeline.speaker.SpeakerEncoder`."""

    def embed(self, audio: AudioChunk) -> Samples:
        """The voice, float32 (n,) of length 1. `InvalidInput` when nobody speaks."""
        ...

    def partials(self, audio: AudioChunk) -> Samples:
        """The voice in each short stretch of speech, float32 (n_stretches, n)."""
        ...


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong; with an error the recording cannot be used."""

    code: Code
    severity: Severity
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`problems`, the worst first, and what was measured. Levels are dB of full scale, shares lie in [0, 1]."""

    problems: tuple[Problem, ...]
    seconds: float
    speech_s: float
    snr_db: float
    peak_db: float
    clipped_share: float
    several_speakers: bool

    @property
    def usable(self) -> bool:
        """Whether a voice may be made of it."""
        return all(problem.severity != "error" for problem in self.problems)

    @property
    def grade(self) -> Grade:
        """good: nothing to say; fair: it will be heard; poor: it cannot be used."""
        return "poor" if not self.usable else "fair" if self.problems else "good"


def judge(audio: AudioChunk, *, vad: Vad, speakers: Speakers | None, min_s: float, max_s: float) -> Verdict:
    """The verdict on a recording that has to last `min_s` to `max_s`; None looks for no second speaker."""
    is_speech, frame_s = _speech(audio, vad)
    speech_s = float(is_speech.sum() * frame_s)
    peak = float(np.abs(audio.samples).max(initial=0.0))
    has_speech = speech_s >= NO_SPEECH_S
    level_db, snr_db = _levels(audio, is_speech, frame_s) if has_speech else (-np.inf, 0.0)
    clipped, clipping = _clipping(audio.samples)
    mixed = _mixed(speakers, audio) if has_speech and speakers is not None else []
    problems = (
        *_length(audio.seconds, speech_s, min_s, max_s),
        *(_level(level_db, snr_db) if has_speech else ()),
        *clipping,
        *_silence(is_speech, frame_s),
        *mixed,
    )
    ordered = tuple(sorted(problems, key=lambda problem: problem.severity != "error"))
    several = any(problem.code == "several_speakers" for problem in mixed)
    return Verdict(ordered, audio.seconds, speech_s, snr_db, _db(peak), clipped, several)


def _length(seconds: float, speech_s: float, min_s: float, max_s: float) -> list[Problem]:
    if seconds > max_s:
        text = f"the recording lasts {seconds:.1f} s: trim it to {max_s:g} s or less"
        return [Problem("too_long", "error", text)]
    if speech_s < NO_SPEECH_S:
        return [Problem("no_speech", "error", "nobody speaks in this recording: check the microphone")]
    if seconds < min_s:
        text = f"the recording lasts {seconds:.1f} s: at least {min_s:g} s are needed, 10 s are better"
        return [Problem("too_short", "error", text)]
    if speech_s < SPEECH_SHARE * min_s:
        text = f"there are only {speech_s:.1f} s of speech in it: speak for {min_s:g} s or more"
        return [Problem("too_short", "error", text)]
    return []


def _level(level_db: float, snr_db: float) -> list[Problem]:
    found = []
    if level_db < TOO_QUIET_DB:
        found.append(Problem("too_quiet", "error", "the voice is far too quiet: go closer to the microphone"))
    elif level_db < QUIET_DB:
        found.append(Problem("too_quiet", "warning", "the voice is quiet: go closer to the microphone"))
    if snr_db < NOISY_DB:
        text = "the noise is nearly as loud as the voice: record in a quiet room, close to the microphone"
        found.append(Problem("noisy", "error", text))
    elif snr_db < AUDIBLE_NOISE_DB:
        text = "there is noise behind the voice, which the new voice will have as well: a quieter room helps"
        found.append(Problem("noisy", "warning", text))
    return found


def _clipping(samples: Samples) -> tuple[float, list[Problem]]:
    """The share of samples that were cut off, and what to say of it."""
    flat, crowded = _flat_share(samples), _crowded_share(samples)
    share = max(flat, crowded if crowded >= SLIGHTLY_CROWDED_SHARE else 0.0)
    if flat >= FLAT_SHARE or crowded >= CROWDED_SHARE:
        return share, [Problem("clipped", "error", "the recording is distorted: record again with a lower input level")]
    if flat >= SLIGHTLY_FLAT_SHARE or crowded >= SLIGHTLY_CROWDED_SHARE:
        text = "the loudest moments are distorted: a lower input level helps"
        return share, [Problem("clipped", "warning", text)]
    return share, []


def _silence(is_speech: NDArray[np.bool_], frame_s: float) -> list[Problem]:
    """Long pauses between the first and the last word."""
    spoken = np.flatnonzero(is_speech)
    longest_s = float(np.diff(spoken).max(initial=1) - 1) * frame_s
    if longest_s <= LONG_SILENCE_S:
        return []
    text = f"there is a pause of {longest_s:.1f} s in it: trim it, or speak without long pauses"
    return [Problem("silence_inside", "warning", text)]


def _speech(audio: AudioChunk, vad: Vad) -> tuple[NDArray[np.bool_], float]:
    """Which frames of the VAD are speech, and how many seconds each lasts."""
    heard, stream = audio.resampled(vad.info.sample_rate), vad.stream()
    frames = Framer(vad.frame_samples).feed(heard.samples)
    found = [stream.probability(frame) >= SPEECH_PROBABILITY for frame in frames]
    return np.array(found, bool), vad.frame_samples / vad.info.sample_rate


def _levels(audio: AudioChunk, is_speech: NDArray[np.bool_], frame_s: float) -> tuple[float, float]:
    """The level of the speech in dB, and how far it is above the quietest moments."""
    n = round(_LEVEL_S * audio.sample_rate)
    windows = audio.samples[: audio.n_samples // n * n].reshape(-1, n).astype(np.float64)
    power = np.square(windows - windows.mean(axis=1, keepdims=True)).mean(axis=1)
    middle = ((np.arange(len(power)) + 0.5) * _LEVEL_S / frame_s).astype(int)
    spoken = power[is_speech[np.minimum(middle, len(is_speech) - 1)]]
    speech = float(spoken.mean()) if spoken.size else 0.0
    floor = float(np.percentile(power, _FLOOR_PERCENTILE))
    above = max(speech - floor, 1e-12) / max(floor, 1e-12)
    return 10 * float(np.log10(max(speech, 1e-12))), min(10 * float(np.log10(above)), MAX_SNR_DB)


def _flat_share(samples: Samples) -> float:
    """The share of samples in flat tops or bottoms: clipping leaves them at any later volume."""
    flat = 0
    for side in (samples, -samples):
        peak = float(side.max(initial=0.0))
        if peak < _MIN_CLIPPED_PEAK:
            continue
        is_top = np.concatenate(([False], side >= _FLAT_TOP * peak, [False]))
        edges = np.flatnonzero(np.diff(is_top.astype(np.int8)))
        lengths = edges[1::2] - edges[::2]
        flat += int(lengths[lengths >= _FLAT_SAMPLES].sum())
    return flat / max(samples.size, 1)


def _crowded_share(samples: Samples) -> float:
    loudness = np.abs(samples)
    top = float(np.percentile(loudness, _CROWDED_PERCENTILE)) if samples.size else 0.0
    return float(np.mean(loudness >= _CROWDED_TOP * top)) if top >= _MIN_CLIPPED_PEAK / 4 else 0.0


def _mixed(speakers: Speakers, audio: AudioChunk) -> list[Problem]:
    try:
        stretches = speakers.partials(audio)
    except InvalidInput:  # it is more particular than the VAD about what is speech
        return [
            Problem("no_speech", "error", "no voice can be made out in this recording: speak closer, without music")
        ]
    alike = _most_different(stretches) if len(stretches) >= 2 * MIN_STRETCHES else 1.0
    if alike < OTHER_SPEAKER:
        return [Problem("several_speakers", "error", "more than one person speaks: record one voice alone")]
    if alike < MAYBE_OTHER_SPEAKER:
        text = "a second person seems to speak: the new voice is a mixture if so"
        return [Problem("several_speakers", "warning", text)]
    return []


def _most_different(stretches: Samples) -> float:
    """How alike the two groups are into which the stretches fall best (2-means, from the least alike pair)."""
    alike = stretches @ stretches.T
    first, second = np.unravel_index(int(np.argmin(alike)), alike.shape)
    centres = stretches[[first, second]]
    for _ in range(10):
        group = np.argmax(stretches @ centres.T, axis=1)
        counts = np.bincount(group, minlength=2)
        if counts.min() < MIN_STRETCHES:
            return 1.0
        means = np.stack([stretches[group == which].mean(axis=0) for which in (0, 1)])
        new = means / np.linalg.norm(means, axis=1, keepdims=True)
        if np.allclose(new, centres):
            break
        centres = new
    return float(centres[0] @ centres[1])


def _db(amplitude: float) -> float:
    return 20 * float(np.log10(max(amplitude, 1e-6)))
