"""A voice recording, read and made ready for the codec: 16 kHz mono, speech from end to end, 30 s at the most.

What the encoder gets decides how every word of the voice sounds, so a recording that cannot serve is refused with the
reason, and one that may disappoint comes with warnings for the person who chose it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from firered.errors import InputError

SAMPLE_RATE = 16000  # what the codec's encoder takes

MIN_SECONDS = 0.5
MAX_SECONDS = 60.0
# Of a longer recording only the start is used: more adds little to the likeness (upstream's examples have 3-10 s) and
# costs context and time with every prompt.
KEPT_SECONDS = 30.0
_EARLIEST_CUT_SECONDS = 15.0

_MIN_SAMPLE_RATE, _MAX_SAMPLE_RATE = 8000, 192_000
_MAX_CHANNELS = 8
_MAX_PEAK = 4.0  # floating-point audio may overshoot 1; beyond this it is something else, such as unscaled integers

# Levels in dB of full scale (a square wave is 0), over the loudest 400 ms (the gating block of ITU-R BS.1770). Speech
# is recorded at -30 to -15; the noise of a muted microphone lies below -50.
_SILENT_DB, _QUIET_DB = -50.0, -36.0
_LEVEL_SECONDS = 0.4

_BLOCK = 320  # samples: 20 ms
# A block counts as silence this far below the loudest one. Breath and the ends of words lie above that.
_SILENCE_BELOW_PEAK_DB = -40.0
_KEPT_LEAD_SECONDS, _KEPT_TAIL_SECONDS = 0.1, 0.2
_PAUSE_BLOCKS = 10  # 200 ms: shorter dips are the closures of plosives
_PAUSE_BELOW_SPEECH_DB = -26.0
_CLIPPED_SHARE = 0.0005  # flat tops in one sample of 2000: audible

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PromptAudio:
    """`samples` (n,) float32 at 16 kHz, what share of the recording's speech they are, and what is wrong with them."""

    samples: Samples
    kept_share: float
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Length of the prepared audio."""
        return len(self.samples) / SAMPLE_RATE


def read_audio_file(source: Path | BinaryIO) -> tuple[Samples, int]:
    """Samples (n, channels) and their rate from a file of any kind libsndfile knows: wav, flac, ogg, mp3 and more.

    Raises InputError for a file that is missing, empty, damaged, of another kind, or longer than 60 s.
    """
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                return _read(file.fileno())  # without a name: the content says which kind it is
        return _read(source)
    except (OSError, soundfile.SoundFileError, TypeError, ValueError) as error:
        raise InputError("the recording cannot be read: give a wav, flac, ogg or mp3 file") from error


def _read(file: BinaryIO | int) -> tuple[Samples, int]:
    with soundfile.SoundFile(file, closefd=False) as sound:
        _check_seconds(sound.frames / sound.samplerate)
        samples: Samples = sound.read(dtype="float32", always_2d=True)
        return samples, int(sound.samplerate)


def prepare_prompt_audio(samples: npt.NDArray[Any], sample_rate: int) -> PromptAudio:
    """A recording (n,) or (n, channels), floating-point within -1..1 or integer, as the codec needs it.

    Channels are averaged (upstream takes the first), silence at both ends is trimmed, and a recording over 30 s is cut
    in its last pause before that. Raises InputError for one that is silent, not finite, under 0.5 s or over 60 s.
    """
    audio = _as_float(samples, sample_rate)  # (n, channels)
    _check_seconds(len(audio) / sample_rate)
    warnings = []
    if _is_clipped(audio):
        warnings.append("the recording is clipped: record it again at a lower level for a cleaner voice")
    if sample_rate < SAMPLE_RATE:
        warnings.append(f"the recording has telephone quality ({sample_rate} Hz), and so will the voice")
    mono = _mono(np.clip(audio, -1, 1), warnings)  # (n,)
    if sample_rate != SAMPLE_RATE:
        mono = np.clip(soxr.resample(mono, sample_rate, SAMPLE_RATE, quality="VHQ"), -1, 1)
    _check_level(mono, warnings)
    speech = _without_silent_ends(mono)
    kept = _without_silent_ends(_cut_in_pause(speech))
    if len(speech) > KEPT_SECONDS * SAMPLE_RATE:
        warnings.append(f"only the first {len(kept) / SAMPLE_RATE:.1f} s of the recording are used")
    return PromptAudio(np.ascontiguousarray(kept, np.float32), len(kept) / len(speech), tuple(warnings))


# --- checks


def _check_seconds(seconds: float) -> None:
    if seconds < MIN_SECONDS:
        raise InputError(f"the recording lasts {seconds:.2f} s: give at least {MIN_SECONDS} s, better 5 to 15 s")
    if seconds > MAX_SECONDS:
        raise InputError(f"the recording lasts {seconds:.0f} s: give at most {MAX_SECONDS:.0f} s, better 5 to 15 s")


def _as_float(samples: npt.NDArray[Any], sample_rate: int) -> Samples:
    """(n, channels) float32; integers scaled by their range."""
    if not _MIN_SAMPLE_RATE <= sample_rate <= _MAX_SAMPLE_RATE:
        raise InputError(f"the recording's sample rate must be {_MIN_SAMPLE_RATE} to {_MAX_SAMPLE_RATE} Hz")
    audio = np.asarray(samples)
    audio = audio[:, None] if audio.ndim == 1 else audio
    if audio.ndim != 2 or not 1 <= audio.shape[1] <= _MAX_CHANNELS:
        shapes = f"(n,) or (n, channels) with up to {_MAX_CHANNELS} channels"
        raise InputError(f"the recording must have the shape {shapes}, not {np.shape(samples)}")
    if audio.dtype in (np.int16, np.int32):
        return (audio / -float(np.iinfo(audio.dtype).min)).astype(np.float32)
    if not np.issubdtype(audio.dtype, np.floating):
        raise InputError(f"the recording must hold floating-point, int16 or int32 samples, not {audio.dtype}")
    if not np.isfinite(audio).all():
        raise InputError("the recording holds samples that are no numbers (NaN or infinity)")
    if audio.size and np.abs(audio).max() > _MAX_PEAK:
        raise InputError("the recording's samples must lie within -1 and 1")
    return audio.astype(np.float32)


def _is_clipped(audio: Samples) -> bool:
    """Flat tops near full scale, or anything beyond it."""
    near_full_scale = np.abs(audio[1:]) >= 0.98
    flat = near_full_scale & (audio[1:] == audio[:-1])
    return bool(np.abs(audio).max() > 1 or flat.mean() > _CLIPPED_SHARE)


def _mono(audio: Samples, warnings: list[str]) -> Samples:
    """The mean of the channels, or the loudest one where the mean cancels."""
    mean: Samples = audio.mean(axis=1, dtype=np.float32)
    powers = audio.var(axis=0)
    if mean.var() < 0.01 * powers.max():
        warnings.append("the recording's channels cancel each other out: only the loudest is used")
        return audio[:, powers.argmax()]
    return mean


def _check_level(mono: Samples, warnings: list[str]) -> None:
    level_db = _db(_block_powers(mono, int(_LEVEL_SECONDS * SAMPLE_RATE)).max())
    if level_db < _SILENT_DB:
        raise InputError(f"the recording is silent (its loudest part is at {level_db:.0f} dB; speech is above -40 dB)")
    if level_db < _QUIET_DB:
        warnings.append(f"the recording is very quiet ({level_db:.0f} dB): noise will be part of the voice")


def _db(power: float) -> float:
    return 10 * math.log10(max(float(power), 1e-12))


# --- trimming


def _block_powers(samples: Samples, block: int) -> npt.NDArray[np.float64]:
    """Mean square of each whole block, without a constant offset; at least one block must fit."""
    n_blocks = len(samples) // block
    blocks = samples[: n_blocks * block].astype(np.float64).reshape(n_blocks, block)  # (blocks, samples)
    powers: npt.NDArray[np.float64] = np.square(blocks - samples.mean(dtype=np.float64)).mean(axis=1)
    return powers


def _without_silent_ends(samples: Samples) -> Samples:
    """Drops the silence at both ends but for a short lead and tail; never shorter than 0.5 s."""
    powers = _block_powers(samples, _BLOCK)
    loud = np.flatnonzero(powers >= powers.max() * 10 ** (_SILENCE_BELOW_PEAK_DB / 10))
    start = int(loud[0]) * _BLOCK - int(_KEPT_LEAD_SECONDS * SAMPLE_RATE)
    end = (int(loud[-1]) + 1) * _BLOCK + int(_KEPT_TAIL_SECONDS * SAMPLE_RATE)
    start, end = max(0, start), min(len(samples), end)
    missing = int(MIN_SECONDS * SAMPLE_RATE) - (end - start)
    if missing > 0:
        end = min(len(samples), end + missing)
        start = max(0, end - int(MIN_SECONDS * SAMPLE_RATE))
    return samples[start:end]


def _cut_in_pause(samples: Samples) -> Samples:
    """At most 30 s: up to the last pause from 15 s on, or up to the quietest moment where there is no pause."""
    if len(samples) <= KEPT_SECONDS * SAMPLE_RATE:
        return samples
    powers = _block_powers(samples, _BLOCK)
    speech = np.percentile(powers, 90)
    first, last = (int(seconds * SAMPLE_RATE / _BLOCK) for seconds in (_EARLIEST_CUT_SECONDS, KEPT_SECONDS))
    # windows[i] is the mean over blocks first + i .. first + i + 9
    windows = np.convolve(powers[first:last], np.full(_PAUSE_BLOCKS, 1 / _PAUSE_BLOCKS), "valid")
    pauses = np.flatnonzero(windows < speech * 10 ** (_PAUSE_BELOW_SPEECH_DB / 10))
    window = int(pauses[-1]) if len(pauses) else int(windows.argmin())
    return samples[: (first + window + _PAUSE_BLOCKS // 2) * _BLOCK]
